"""What arrives during a commit goes into the next one; nothing that arrived is left out."""

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from psychocounsel.domain import ReplyStatus
from psychocounsel.errors import StoreError
from psychocounsel.llm.chat import ChatReply
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.scribe import Scribe


def entry(number: int) -> Entry:
    return Entry(f"d{number}", ChatReply(ReplyStatus.VALID, f"text {number}", "judge-1", 10, 3))


class Slow(Journal):
    """Commits when it is told to, and remembers how many went into each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go_on = threading.Event()
        self.began = threading.Event()
        self.sizes: list[int] = []
        self.fault: Exception | None = None

    def record_many(self, entries: Iterable[Entry]) -> None:
        self.began.set()
        assert self.go_on.wait(10)
        kept = list(entries)
        self.sizes.append(len(kept))
        if self.fault is not None:
            raise self.fault
        super().record_many(kept)


async def begun(journal: Slow, scribe: Scribe, count: int) -> list["asyncio.Task[None]"]:
    """Record one entry, and others while its commit runs."""
    tasks = [asyncio.create_task(scribe.record(entry(0)))]
    await asyncio.to_thread(journal.began.wait, 10)
    tasks += [asyncio.create_task(scribe.record(entry(number))) for number in range(1, count)]
    await asyncio.sleep(0)
    return tasks


def test_all_that_arrive_during_a_commit_share_the_next(tmp_path: Path) -> None:
    async def work(journal: Slow) -> None:
        scribe = Scribe(journal)
        tasks = await begun(journal, scribe, 200)
        assert not any(task.done() for task in tasks)
        journal.go_on.set()
        await asyncio.gather(*tasks)
        await scribe.record(entry(200))
        await scribe.drain()

    with Slow(tmp_path / "j.sqlite") as journal:
        asyncio.run(work(journal))
        assert journal.sizes == [1, 199, 1]
        assert all(journal.replies(f"d{number}") == [entry(number).reply] for number in range(201))


def test_a_worker_that_is_gone_leaves_its_entry(tmp_path: Path) -> None:
    async def work(journal: Slow) -> None:
        scribe = Scribe(journal)
        tasks = await begun(journal, scribe, 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        journal.go_on.set()
        await scribe.drain()

    with Slow(tmp_path / "j.sqlite") as journal:
        asyncio.run(work(journal))
        assert journal.summary().replies == 3


@pytest.mark.parametrize("are_gone", [False, True])
def test_a_fault_reaches_all_who_wait_or_else_the_end(tmp_path: Path, are_gone: bool) -> None:
    async def work(journal: Slow) -> list[object]:
        scribe = Scribe(journal)
        tasks = await begun(journal, scribe, 3)
        for task in tasks if are_gone else ():
            task.cancel()
        journal.go_on.set()
        outcomes: list[object] = list(await asyncio.gather(*tasks, return_exceptions=True))
        try:
            await scribe.drain()
        except StoreError as fault:
            outcomes.append(fault)
        return outcomes

    with Slow(tmp_path / "j.sqlite") as journal:
        journal.fault = StoreError("broken")
        outcomes = asyncio.run(work(journal))
    assert outcomes.count(journal.fault) == (1 if are_gone else 3)


def test_drain_of_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        asyncio.run(Scribe(journal).drain())
