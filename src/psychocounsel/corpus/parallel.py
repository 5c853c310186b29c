"""Texts -> what a function makes of each, in their order, on all processors where there are many texts.

The first texts are done here; if more follow, workers are started and take them in chunks. A worker ends
with its parent, whatever ends that, and a worker that dies costs time only: its chunk is done here.
"""

import itertools
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from psychocounsel.store.files import write_faults
from psychocounsel.types import Speech

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

    def _shared_out(self, texts: Iterator[str], open_there: Callable[[], Callable[[str], _Made]]) -> Iterator[_Made]:
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


_BUFFER_BYTES = 1 << 20


class TextSpool(Sequence[str]):
    """A sequence of texts on the disk; it grows at its end and holds eight bytes per text in memory.

    The file is scratch: nothing reads it after a crash, so it is never flushed to the disk.
    """

    def __init__(self, path: Path) -> None:
        """Begin an empty spool; a file that stands there is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._ends = array("Q", [0])
        self._flushed = 0
        self._file = path.open("w+b", buffering=_BUFFER_BYTES)

    def append(self, text: str) -> None:
        """Add one text at the end.

        Raises:
            IncompleteError: the disk is full.
        """
        content = text.encode("utf-8")
        with write_faults(self._path):
            self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        self._flush()
        start, end = self._ends[place], self._ends[place + 1]
        return os.pread(self._file.fileno(), end - start, start).decode("utf-8")

    def _flush(self) -> None:
        if self._flushed < len(self):
            with write_faults(self._path):
                self._file.flush()
            self._flushed = len(self)

    def __iter__(self) -> Iterator[str]:
        self._flush()
        with self._path.open("rb", buffering=_BUFFER_BYTES) as stream:
            for at in range(len(self)):
                yield stream.read(self._ends[at + 1] - self._ends[at]).decode("utf-8")

    def close(self) -> None:
        """Close the file and remove it."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class KeptSpeeches(Sequence[Speech]):
    """Speeches in the order in which they came; all but their texts is held in memory."""

    def __init__(self, scratch: Path) -> None:
        """Begin an empty sequence whose texts lie in the file `scratch` until it is closed."""
        self.texts = TextSpool(scratch)
        self._ids = array("Q")
        self._topics: list[tuple[str, str]] = []
        self._crisis = bytearray()
        self._sources: list[str] = []
        self._known_topics: dict[tuple[str, str], tuple[str, str]] = {}

    def append(self, speech: Speech) -> None:
        """Add a speech at the end."""
        self.texts.append(speech.text)
        self._ids.append(int(speech.id, 16))
        self._topics.append(self._known(speech.topic, speech.fine_topic))
        self._crisis.append(speech.crisis)
        self._sources.append(speech.source)

    def _known(self, *topic: str) -> tuple[str, str]:
        """Return the topic as it is held for all its speeches: once."""
        pair = (topic[0], topic[1])
        return self._known_topics.setdefault(pair, pair)

    def name_topic(self, at: int, coarse: str, fine: str) -> None:
        """Give a speech its topic, in place of the one that it came with."""
        self._topics[at] = self._known(coarse, fine)

    def chosen(self, places: Iterable[int], scratch: Path) -> "KeptSpeeches":
        """Return the speeches at some places as a sequence of their own."""
        chosen = KeptSpeeches(scratch)
        for at in places:
            chosen.append(self[at])
        return chosen

    @property
    def ids(self) -> NDArray[np.uint64]:
        """[speeches]; the ids as numbers."""
        return np.array(self._ids, dtype=np.uint64)

    @property
    def topics(self) -> list[str]:
        """[speeches]; the coarse topics."""
        return [coarse for coarse, _ in self._topics]

    @property
    def fine_topics(self) -> list[str]:
        """[speeches]; empty where the topics have no finer ones."""
        return [fine for _, fine in self._topics]

    @property
    def sources(self) -> Sequence[str]:
        """[speeches]; names of their sources."""
        return self._sources

    @property
    def crisis_count(self) -> int:
        """How many speak of a crisis."""
        return sum(self._crisis)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> Speech: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Speech]: ...
    def __getitem__(self, at: int | slice) -> Speech | Sequence[Speech]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return self._speech(at, self.texts[at])

    def __iter__(self) -> Iterator[Speech]:
        return (self._speech(at, text) for at, text in enumerate(self.texts))

    def _speech(self, at: int, text: str) -> Speech:
        coarse, fine = self._topics[at]
        return Speech(text, coarse, bool(self._crisis[at]), self._sources[at], fine)

    def close(self) -> None:
        """Remove the scratch file."""
        self.texts.close()
