"""Texts -> what a function makes of each, in their order, on all processors where there are many texts.

The first texts are done here; if more follow, workers are started and take them in chunks. A worker ends
with its parent, whatever ends that, and a worker that dies costs time only: its chunk is done here.
"""

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

FIRST_TEXTS = 4_000
"""Done before workers are worth their start, which takes a second or two."""
CHUNK_TEXTS = 250
MOST_WORKERS = 8
_CHUNKS_AHEAD = 3

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class SideBySide(Generic[_Made]):
    """How texts are worked on.

    Attributes:
        here: what is made of a text.
        open_there: picklable; called once in each worker, it returns the same function; None for no worker.
        workers: processes beside this one; 0 keeps to this one.
    """

    here: Callable[[str], _Made]
    open_there: Callable[[], Callable[[str], _Made]] | None = None
    workers: int = 0

    def each(self, texts: Iterable[str]) -> Iterator[_Made]:
        """Yield what is made of each text, in order."""
        remaining = iter(texts)
        first = FIRST_TEXTS if self.workers and self.open_there is not None else None
        yield from map(self.here, itertools.islice(remaining, first))
        beyond = list(itertools.islice(remaining, 1))
        if beyond and self.open_there is not None:
            yield from self._shared_out(itertools.chain(beyond, remaining), self.open_there)

    def _shared_out(
        self, texts: Iterator[str], open_there: Callable[[], Callable[[str], _Made]]
    ) -> Iterator[_Made]:
        chunks = iter(lambda: list(itertools.islice(texts, CHUNK_TEXTS)), [])
        with _pool(self.workers, open_there) as pool:
            ahead: deque[tuple[list[str], Future[list[_Made]] | None]] = deque()
            for chunk in itertools.islice(chunks, self.workers * _CHUNKS_AHEAD):
                ahead.append((chunk, _submitted(pool, chunk)))
            while ahead:
                chunk, made = ahead.popleft()
                yield from self._collected(chunk, made)
                ahead.extend((each, _submitted(pool, each)) for each in itertools.islice(chunks, 1))

    def _collected(self, chunk: list[str], made: "Future[list[_Made]] | None") -> list[_Made]:
        try:
            return [self.here(text) for text in chunk] if made is None else made.result()
        except BrokenProcessPool:
            return [self.here(text) for text in chunk]


def processors() -> int:
    """Return how many workers are worth their while: one per processor, none where there is but one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, MOST_WORKERS) if count > 1 else 0


@contextmanager
def _pool(workers: int, open_there: Callable[[], Any]) -> Generator[ProcessPoolExecutor]:
    # Spawned, not forked: threads of this process may hold locks that nobody would free in a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (open_there,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, chunk: list[str]) -> "Future[list[Any]] | None":
    try:
        return pool.submit(_work, chunk)
    except BrokenProcessPool:
        return None


_there: Callable[[str], Any] | None = None


def _begin(open_there: Callable[[], Callable[[str], Any]]) -> None:
    global _there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _there = open_there()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(chunk: Sequence[str]) -> list[Any]:
    if _there is None:
        raise RuntimeError("the worker was not begun")
    return [_there(text) for text in chunk]
