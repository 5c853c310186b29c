"""Bytes -> a file that is either the old one or the new one, whenever the machine stops."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psychocounsel.errors import IncompleteError

TEMPORARY_SUFFIX = ".partial"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it into place.

    Raises:
        IncompleteError: the disk is full or refuses; what stood at `path` is untouched.
    """
    partial = partial_path(path)
    with write_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        put_in_place(partial, path)


def partial_path(path: Path) -> Path:
    """Return where the content of `path` is written before it is complete."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def put_in_place(partial: Path, path: Path) -> None:
    """Flush a completely written file to the disk and rename it to its name."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


@contextmanager
def write_faults(path: Path) -> Generator[None]:
    """Tell a full or refusing disk as an unfinished run.

    Raises:
        IncompleteError: whatever system error was raised inside, with its remedy.
    """
    try:
        yield
    except OSError as fault:
        raise IncompleteError(
            f"could not write: {fault.strerror or fault}",
            where=str(path),
            remedy="free some space or mend the permissions, then run the same command again",
        ) from fault


@contextmanager
def full_disk_faults(path: Path) -> Generator[None]:
    """Tell a full disk, whoever met it, as an unfinished run; other system errors pass.

    Raises:
        IncompleteError: no space or quota is left.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with write_faults(path):
            raise


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
