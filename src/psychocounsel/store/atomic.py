"""Bytes -> a file that is either the old one or the new one, whenever the machine stops."""

import os
from pathlib import Path

from psychocounsel.errors import IncompleteError

TEMPORARY_SUFFIX = ".partial"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it into place.

    Raises:
        IncompleteError: the disk is full or refuses; what stood at `path` is untouched.
    """
    partial = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as fault:
        raise IncompleteError(
            f"could not write: {fault.strerror}",
            where=str(path),
            remedy="free some space or mend the permissions, then run the same command again",
        ) from fault


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
