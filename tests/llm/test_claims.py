"""Runs in several processes that share a journal send no request twice."""

import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sharing_run import Noting, numbered

from psychocounsel.errors import Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RequestLocks, RunPolicy, run_requests

RUN = Path(__file__).with_name("sharing_run.py")
HOLD = """
import sys
from pathlib import Path
from psychocounsel.llm.runner import RequestLocks
locks = RequestLocks(Path(sys.argv[1]))
assert all(locks.acquire(digest) for digest in sys.argv[2:])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path, *digests: str) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(path), *digests]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "j.sqlite"
    Journal(path).close()
    return path


def test_a_claim_is_one_process_s_until_it_ends(path: Path) -> None:
    locks = RequestLocks(path)
    with held_elsewhere(path, "a" * 64, "b" * 64) as holder:
        assert not locks.acquire("a" * 64)
        assert not locks.acquire("b" * 64)
        assert locks.acquire("c" * 64)
        holder.kill()
        holder.wait()
        assert locks.acquire("a" * 64)
    locks.release("a" * 64)
    with held_elsewhere(path, "a" * 64):
        assert not locks.acquire("a" * 64)
    locks.close()


def test_two_runs_share_the_work_and_send_nothing_twice(path: Path, tmp_path: Path) -> None:
    notes, count = tmp_path / "notes", 120
    command = [sys.executable, str(RUN), str(path), str(notes), str(count), "4"]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    answers = [run.communicate("go\n", timeout=60)[0].strip() for run in runs]
    sent = Counter(notes.read_text(encoding="utf-8").split())
    assert sent == Counter(map(str, range(count)))
    assert answers[0] == answers[1] == " ".join(f"to {number}" for number in range(count))


def test_what_is_in_flight_elsewhere_is_awaited_and_asked_if_nothing_came(path: Path, tmp_path: Path) -> None:
    requests, notes = numbered(3), tmp_path / "notes"
    first = requests[0].digest(Noting.fingerprint)
    with held_elsewhere(path, first) as holder, Journal(path) as journal:

        def ended(items: int) -> None:
            del items
            if notes.read_text(encoding="utf-8").split() == ["1", "2"]:
                holder.kill()  # its line broke

        replies = run_requests(Noting(notes), requests, journal, RunPolicy(concurrency=2, progress=ended))
    assert notes.read_text(encoding="utf-8").split() == ["1", "2", "0"]
    assert [reply.text for reply in replies] == ["to 0", "to 1", "to 2"]


def test_a_stop_ends_the_wait_for_another_run(path: Path, tmp_path: Path) -> None:
    requests, notes = numbered(2), tmp_path / "notes"
    with held_elsewhere(path, requests[0].digest(Noting.fingerprint)), Journal(path) as journal:
        cancel = CancelToken()
        policy = RunPolicy(cancel=cancel, on_reply=lambda index, reply: cancel.cancel())
        with pytest.raises(Preempted, match="1 of 2 items"):
            run_requests(Noting(notes), requests, journal, policy)
