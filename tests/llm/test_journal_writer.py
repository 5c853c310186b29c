"""Grouped commits from a thread, and locks on requests among processes."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest
from sharing_run import Noting, numbered

from fake_model import count_replies
from psychocounsel.errors import IncompleteError, Preempted, StoreError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.journal import LOCK_FILE, Entry, Journal, KeepIf
from psychocounsel.llm.runner import JournalWriter, RequestLocks, RunPolicy, run_requests
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus


def entry(number: int) -> Entry:
    return Entry(f"d{number}", ChatReply(ReplyStatus.VALID, f"text {number}", "judge-1", 10, 3))


class Slow(Journal):
    """Commits when it is released, and remembers how many went into each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.released = threading.Event()
        self.began = threading.Event()
        self.sizes: list[int] = []
        self.fault: Exception | None = None

    def record_many(self, entries: Iterable[Entry], keep_if: KeepIf | None = None) -> list[Entry]:
        self.began.set()
        assert self.released.wait(10)
        kept = list(entries)
        self.sizes.append(len(kept))
        if self.fault is not None:
            raise self.fault
        return super().record_many(kept, keep_if)


async def begun(journal: Slow, writer: JournalWriter, count: int) -> list["asyncio.Task[None]"]:
    """Record one entry, and others while its commit runs."""
    tasks = [asyncio.create_task(writer.record(entry(0)))]
    await asyncio.to_thread(journal.began.wait, 10)
    tasks += [asyncio.create_task(writer.record(entry(number))) for number in range(1, count)]
    await asyncio.sleep(0)
    return tasks


def test_all_that_arrive_during_a_commit_share_the_next(tmp_path: Path) -> None:
    async def work(journal: Slow) -> None:
        writer = JournalWriter(journal)
        tasks = await begun(journal, writer, 200)
        assert not any(task.done() for task in tasks)
        journal.released.set()
        await asyncio.gather(*tasks)
        await writer.record(entry(200))
        await writer.drain()

    with Slow(tmp_path / "j.sqlite") as journal:
        asyncio.run(work(journal))
        assert journal.sizes == [1, 199, 1]
        assert all(journal.replies(f"d{number}") == [entry(number).reply] for number in range(201))


def test_a_worker_that_is_gone_leaves_its_entry(tmp_path: Path) -> None:
    async def work(journal: Slow) -> None:
        writer = JournalWriter(journal)
        tasks = await begun(journal, writer, 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        journal.released.set()
        await writer.drain()

    with Slow(tmp_path / "j.sqlite") as journal:
        asyncio.run(work(journal))
        assert count_replies(journal) == 3


async def drained(writer: JournalWriter) -> object:
    return (await asyncio.gather(writer.drain(), return_exceptions=True))[0]


@pytest.mark.parametrize("are_gone", [False, True])
def test_a_fault_reaches_all_that_wait_or_else_the_end(tmp_path: Path, are_gone: bool) -> None:
    async def work(journal: Slow) -> list[object]:
        writer = JournalWriter(journal)
        tasks = await begun(journal, writer, 3)
        for task in tasks if are_gone else ():
            task.cancel()
        journal.released.set()
        return [*await asyncio.gather(*tasks, return_exceptions=True), await drained(writer)]

    with Slow(tmp_path / "j.sqlite") as journal:
        journal.fault = StoreError("broken")
        outcomes = asyncio.run(work(journal))
    assert outcomes.count(journal.fault) == (1 if are_gone else 3)


def test_a_storm_of_lost_responses_is_one_commit_and_replies_go_before_it(tmp_path: Path) -> None:
    order: list[str] = []

    class Watched(Slow):
        def record_lost_responses(self, digests: Iterable[str]) -> None:
            kept = list(digests)
            super().record_lost_responses(kept)
            order.extend([*(f"{size} replies" for size in self.sizes), f"{len(kept)} lines"])

    async def work(journal: Watched) -> None:
        writer = JournalWriter(journal)
        tasks = await begun(journal, writer, 1)
        tasks += [asyncio.create_task(writer.record(f"b{number}")) for number in range(400)]
        tasks.append(asyncio.create_task(writer.record(entry(1))))
        await asyncio.sleep(0)
        journal.released.set()
        await asyncio.gather(*tasks)

    with Watched(tmp_path / "j.sqlite") as journal:
        asyncio.run(work(journal))
        assert order == ["1 replies", "1 replies", "400 lines"]
        assert {line.digest for line in journal.lost_responses() if line} == {f"b{n}" for n in range(400)}


def test_a_lost_response_that_cannot_be_kept_is_reported_and_replies_are_kept_all_the_same(tmp_path: Path) -> None:
    class Lineless(Journal):
        def record_lost_responses(self, digests: Iterable[str]) -> None:
            raise StoreError(f"no room for {list(digests)}")

    async def work(journal: Journal) -> list[object]:
        writer = JournalWriter(journal)
        both = writer.record("b"), writer.record(entry(1))
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        await writer.drain()
        return list(outcomes)

    with Lineless(tmp_path / "j.sqlite") as journal:
        fault, kept = asyncio.run(work(journal))
        assert isinstance(fault, StoreError)
        assert kept is None
        assert count_replies(journal) == 1


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


def test_a_lock_belongs_to_one_process_until_it_ends(path: Path) -> None:
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


def test_a_lock_belongs_to_one_run_and_stays_when_another_of_its_process_ends(path: Path) -> None:
    digest = "a" * 64
    first, second = RequestLocks(path), RequestLocks(path)
    assert first.acquire(digest)
    assert not second.acquire(digest)
    second.release(digest)
    second.close()
    command = [sys.executable, "-c", HOLD, str(path), digest]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 1
    third = RequestLocks(path)
    assert not third.acquire(digest)
    first.close()
    assert third.acquire(digest)
    third.close()
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)


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
                holder.kill()  # its response is lost

        replies = run_requests(Noting(notes), requests, journal, RunPolicy(concurrency=2, progress=ended))
    assert notes.read_text(encoding="utf-8").split() == ["1", "2", "0"]
    assert [reply.text for reply in replies] == ["to 0", "to 1", "to 2"]


def test_a_file_of_locks_that_cannot_be_opened_is_named(path: Path) -> None:
    path.with_name(LOCK_FILE).mkdir()
    with pytest.raises(IncompleteError, match="could not write") as fault:
        RequestLocks(path)
    assert fault.value.where == str(path.with_name(LOCK_FILE))


def test_a_stop_ends_the_wait_for_another_run(path: Path, tmp_path: Path) -> None:
    requests, notes = numbered(2), tmp_path / "notes"
    with held_elsewhere(path, requests[0].digest(Noting.fingerprint)), Journal(path) as journal:
        cancel = CancelToken()
        policy = RunPolicy(cancel=cancel, on_reply=lambda index, reply: cancel.cancel())
        with pytest.raises(Preempted, match="1 of 2 items"):
            run_requests(Noting(notes), requests, journal, policy)
