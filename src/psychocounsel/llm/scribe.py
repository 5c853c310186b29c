"""Entries, broken lines -> journal: what arrived while one commit ran goes into the next, all together.

The commits follow each other in a thread. If the event loop had to begin each of them, it would do so after
all the replies that arrived together, and what is not on disk yet is paid again after a kill. Replies go
first: they are paid for certain, and broken lines come in storms.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from psychocounsel.llm.journal import Entry, Journal

_What = TypeVar("_What")
_Waiting: TypeAlias = tuple[_What, asyncio.Future[None]]


class Scribe:
    """Writes the entries and the broken lines of one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = threading.Lock()
        self._waiting: list[_Waiting[Entry | str]] = []
        self._is_writing = False
        self._writer: asyncio.Future[None] | None = None
        self._unheard: Exception | None = None

    async def record(self, entry: Entry) -> None:
        """Return when the entry is on disk; an entry whose worker is cancelled gets there all the same.

        Raises:
            StoreError: the journal cannot be written.
            IncompleteError: the disk is full.
        """
        await self._keep(entry)

    async def record_broken_line(self, digest: str) -> None:
        """Return when it is on disk that a line broke on a request; errors as those of `record`."""
        await self._keep(digest)

    async def drain(self) -> None:
        """Return when nothing waits for a commit and none runs; a fault that nobody heard of is raised."""
        if self._writer is not None:
            await self._writer
            await asyncio.sleep(0)  # those who waited for the last commit hear of it first
        if self._unheard is not None:
            raise self._unheard

    async def _keep(self, what: Entry | str) -> None:
        loop = asyncio.get_running_loop()
        kept = loop.create_future()
        with self._turn:
            self._waiting.append((what, kept))
            is_first, self._is_writing = not self._is_writing, True
        if is_first:
            self._writer = loop.run_in_executor(None, self._write, loop)
        await kept

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        while waiting := self._take():
            entries = [(what, kept) for what, kept in waiting if isinstance(what, Entry)]
            self._commit(loop, self._journal.record_many, entries)
            digests = [(what, kept) for what, kept in waiting if isinstance(what, str)]
            self._commit(loop, self._journal.record_broken_lines, digests)

    def _commit(
        self,
        loop: asyncio.AbstractEventLoop,
        write: Callable[[list[_What]], object],
        group: Sequence[_Waiting[_What]],
    ) -> None:
        if not group:
            return
        fault = None
        try:
            write([what for what, _ in group])
        except Exception as caught:  # noqa: BLE001, it is raised where the group comes from
            fault = caught
        loop.call_soon_threadsafe(self._tell, [kept for _, kept in group], fault)

    def _take(self) -> list[_Waiting[Entry | str]]:
        with self._turn:
            waiting, self._waiting = self._waiting, []
            self._is_writing = bool(waiting)
            return waiting

    def _tell(self, waiting: Sequence["asyncio.Future[None]"], fault: Exception | None) -> None:
        for kept in waiting:
            if kept.done():
                self._unheard = self._unheard or fault
            elif fault is None:
                kept.set_result(None)
            else:
                kept.set_exception(fault)
