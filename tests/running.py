"""Runs of the command line and what came of them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import psychocounsel

SOURCE = str(Path(psychocounsel.__file__).parents[1])
ENVIRONMENT = {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}


class Ended(NamedTuple):
    """A command that came to its end."""

    code: int
    out: str
    err: str


def await_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


class Cli(Protocol):
    def __call__(self, *argv: str | Path) -> Ended: ...


class WarmRun:
    """One run in a fork of the warm process."""

    def __init__(self, child: subprocess.Popen[str], folder: Path, argv: list[str], env: dict[str, str]) -> None:
        self._child = child
        self._logs = {"out": folder / "stdout", "err": folder / "stderr"}
        order = {"argv": argv, "env": env, **{name: str(path) for name, path in self._logs.items()}}
        assert child.stdin is not None
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.flush()
        self.pid = self._number()

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def err(self) -> str:
        return self._logs["err"].read_text(encoding="utf-8") if self._logs["err"].exists() else ""

    def wait(self) -> Ended:
        """Return the run's end; a run that a signal killed has the code -signal."""
        code = os.waitstatus_to_exitcode(self._number())
        return Ended(code, self._logs["out"].read_text(encoding="utf-8"), self.err())

    def _number(self) -> int:
        assert self._child.stdout is not None
        return int(self._child.stdout.readline())


@dataclass(frozen=True)
class Warm:
    """A process that has imported everything and forks runs."""

    child: subprocess.Popen[str]
    folder: Path

    def start(self, *argv: str | Path, **env: str) -> WarmRun:
        return WarmRun(self.child, self.folder, [str(each) for each in argv], env)

    def run(self, *argv: str | Path, **env: str) -> Ended:
        return self.start(*argv, **env).wait()


class Miniature(NamedTuple):
    """A miniature recipe, the store that it filled, and what the run printed; do not write into either."""

    recipe: Path
    store: Path
    ended: Ended
