"""Entries -> journal: all that arrived while the previous commit ran goes into the next, in one.

The commits follow each other in a thread. If the event loop had to begin each of them, it would do so after
all the replies that arrived together, and what is not on disk yet is paid again after a kill.
"""

import asyncio
import threading
from collections.abc import Sequence

from psychocounsel.llm.journal import Entry, Journal


class Scribe:
    """Writes the entries of one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = threading.Lock()
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._is_writing = False
        self._writer: asyncio.Future[None] | None = None
        self._unheard: Exception | None = None

    async def record(self, entry: Entry) -> None:
        """Return when the entry is on disk; an entry whose worker is cancelled gets there all the same.

        Raises:
            StoreError: the journal cannot be written.
            IncompleteError: the disk is full.
        """
        loop = asyncio.get_running_loop()
        kept = loop.create_future()
        with self._turn:
            self._waiting.append((entry, kept))
            is_first, self._is_writing = not self._is_writing, True
        if is_first:
            self._writer = loop.run_in_executor(None, self._write, loop)
        await kept

    async def drain(self) -> None:
        """Return when nothing waits for a commit and none runs; a fault that nobody heard of is raised."""
        if self._writer is not None:
            await self._writer
            await asyncio.sleep(0)  # those who waited for the last commit hear of it first
        if self._unheard is not None:
            raise self._unheard

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        while entries := self._take():
            fault = None
            try:
                self._journal.record_many([entry for entry, _ in entries])
            except Exception as caught:  # noqa: BLE001, it is raised where the entries come from
                fault = caught
            loop.call_soon_threadsafe(self._tell, [kept for _, kept in entries], fault)

    def _take(self) -> list[tuple[Entry, asyncio.Future[None]]]:
        with self._turn:
            entries, self._waiting = self._waiting, []
            self._is_writing = bool(entries)
            return entries

    def _tell(self, waiting: Sequence["asyncio.Future[None]"], fault: Exception | None) -> None:
        for kept in waiting:
            if kept.done():
                self._unheard = self._unheard or fault
            elif fault is None:
                kept.set_result(None)
            else:
                kept.set_exception(fault)
