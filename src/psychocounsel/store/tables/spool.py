"""Texts -> a scratch file, read back at random: a million speeches need not fit into memory."""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from psychocounsel.store.atomic import write_faults

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
