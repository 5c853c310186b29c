"""The scripted endpoint for the tests of this room."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import psychocounsel

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))

from chat_server import ChatServer

SECRET_KEY = "sk-secret-0123456789abcdef"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """Return a running server; set `server.script` to change what it says."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET_KEY)
    with ChatServer() as running:
        yield running


@pytest.fixture
def secret_key() -> str:
    return SECRET_KEY


class Forks:
    """Runs of `run_requests` in forks of one warm child process, to be killed or waited for."""

    def __init__(self, child: subprocess.Popen[str], folder: Path) -> None:
        self._child = child
        self._result = folder / "result.json"

    @staticmethod
    def messages(items: int) -> list[list[dict[str, str]]]:
        return [[{"role": "user", "content": f"item {number}"}] for number in range(items)]

    def start(self, base_url: str, journal: Path, items: int, concurrency: int) -> int:
        """Return the pid of a run that has begun."""
        order = {
            "base_url": base_url,
            "journal": str(journal),
            "texts": [turns[0]["content"] for turns in self.messages(items)],
            "concurrency": concurrency,
            "result": str(self._result),
        }
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        return self._line()

    def kill(self, pid: int) -> None:
        """Kill the run with SIGKILL; it must not have ended before."""
        os.kill(pid, signal.SIGKILL)
        assert self._line() == signal.SIGKILL

    def finish(self, base_url: str, journal: Path, items: int, concurrency: int) -> list[str]:
        """Return the texts of a run that goes to its end."""
        self.start(base_url, journal, items, concurrency)
        assert self._line() == 0
        return json.loads(self._result.read_text())

    def _line(self) -> int:
        assert self._child.stdout is not None
        return int(self._child.stdout.readline())


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    """Return a warm process from which runs are forked."""
    source = str(Path(psychocounsel.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "killable.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    with child:
        yield Forks(child, tmp_path)
        assert child.stdin is not None
        child.stdin.close()
