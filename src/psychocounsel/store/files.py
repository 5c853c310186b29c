"""Bytes -> a file that is either the old one or the new one, whenever the machine stops."""

import errno
import hashlib
import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

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


_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Return the one JSON spelling of `value`: keys sorted, no spaces, ASCII, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def digest_of(value: Any) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cached_digest(path: Path) -> str:
    """Return the SHA-256 of a file, counted once for as long as its size and time of change stay.

    Weights are many gigabytes, and a run comes back to them often.
    """
    state = path.stat()
    return _digest_in_state(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_in_state(path: Path, size_bytes: int, changed_at_ns: int) -> str:
    del size_bytes, changed_at_ns  # they only tell one state of the file from another
    return digest_of_file(path)


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over the named files of a folder and their contents."""
    return digest_of({name: cached_digest(folder / name) for name in sorted(names)})
