"""Run the command line in a fork of a warm process, and what a run returned."""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import psychocounsel

SOURCE = str(Path(psychocounsel.__file__).parents[1])
ENVIRONMENT = {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}


class Ended(NamedTuple):
    """A completed command: its exit code (-signal if it was killed) and its output."""

    code: int
    out: str
    err: str

    def says(self, code: int, *words: str) -> None:
        """Assert the exit code and the words on stderr, where no traceback may stand."""
        absent = [each for each in words if each not in self.err]
        assert (self.code, absent, "Traceback" in self.err) == (code, [], False), self.err


def await_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Poll until the condition holds; the limit only ends a test that would hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.002)


class Cli(Protocol):
    def __call__(self, *argv: str | Path) -> Ended: ...


def write_listed(path: Path, content: bytes) -> None:
    """Write a file of an artifact as its stage would have written it: with its digest in the manifest."""
    path.write_bytes(content)
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    manifest["files"][path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path.parent / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


class WarmRun:
    """One run of the command line in a fork of the warm process."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, argv: list[str], env: dict[str, str]) -> None:
        self._server = server
        self._out, self._err = folder / "stdout", folder / "stderr"
        order = {"argv": argv, "env": env, "out": str(self._out), "err": str(self._err)}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pid = self._read_number()
        self._is_collected = False

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def err(self) -> str:
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    def wait(self) -> Ended:
        code = os.waitstatus_to_exitcode(self._read_number())
        self._is_collected = True
        return Ended(code, self._out.read_text(encoding="utf-8"), self.err())

    def abandon(self) -> None:
        """Kill the run where a failed test has left it: its wait status stands in the pipe that the next run reads."""
        if not self._is_collected:
            with suppress(ProcessLookupError):  # it has ended
                self.send(signal.SIGKILL)
            self._read_number()

    def _read_number(self) -> int:
        return int(self._server.stdout.readline())


@dataclass
class Warm:
    """A process that has imported torch and all stages; each run is a fork of it and starts at once."""

    server: subprocess.Popen[str]
    folder: Path
    latest: WarmRun | None = None

    def start(self, *argv: str | Path, **env: str) -> WarmRun:
        if self.latest:
            self.latest.abandon()
        self.latest = WarmRun(self.server, self.folder, [str(each) for each in argv], env)
        return self.latest

    def run(self, *argv: str | Path, **env: str) -> Ended:
        return self.start(*argv, **env).wait()


class Miniature(NamedTuple):
    """The miniature recipe, the store that it filled, and the output of the run."""

    recipe: Path
    store: Path
    ended: Ended


def drop_override() -> None:
    """Have the permissions of files bind root, too: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability)
