"""Files that are either the old version or the new one after a crash, and digests of their content."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from psychocounsel.errors import ConfigError, IncompleteError

TEMPORARY_SUFFIX = ".partial"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
UMASK_VARIABLE = "PSYCHOCOUNSEL_UMASK"


def umask() -> int:
    """Return the mode bits that new files lack: those of `PSYCHOCOUNSEL_UMASK`, or all of other users and the group.

    On a shared machine no other user may read what clients said unless somebody decides so.

    Raises:
        ConfigError: the variable is no umask, or takes rights from the user too.
    """
    text = os.environ.get(UMASK_VARIABLE, "077")
    if not re.fullmatch("0*[0-7]{1,2}", text):
        raise ConfigError(
            f"{text!r} is no umask that leaves the user all rights",
            where=f"environment variable {UMASK_VARIABLE}",
            remedy="write three octal digits: 077 for the user alone, 027 if the group may read, 007 if it may write",
        )
    return int(text, 8)


def human_bytes(size: int) -> str:
    """Return a size in the unit that leaves one to three digits before the point, as in `1.5 MB`; 1 kB is 1,000."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{size} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file, flush it to the disk and rename it to `path`.

    Raises:
        IncompleteError: the disk is full or refuses; the old file at `path` is untouched.
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
    """Flush a completely written file to the disk and rename it to `path`."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, with missing folders, in place of what a killed run left there.

    The file is copied where links are impossible.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def write_faults(path: Path, only: Collection[int] = ()) -> Generator[None]:
    """Turn an `OSError` while `path` is written into an `IncompleteError`; `only` those with these `errno`s, if any."""
    try:
        yield
    except OSError as fault:
        if only and fault.errno not in only:
            raise
        raise IncompleteError(
            f"could not write: {fault.strerror or fault}",
            where=str(path),
            remedy="free some space or correct the permissions, then run the same command again",
        ) from fault


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(value: Any) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_digest(path: Path) -> str:
    """Return the SHA-256 of a file, computed again only if its size or modification time has changed.

    A run reads the same weights several times, and they are many gigabytes.
    """
    state = path.stat()
    return _digest_in_state(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_in_state(path: Path, size_bytes: int, changed_at_ns: int) -> str:
    del size_bytes, changed_at_ns  # part of the cache key only
    return digest_of_file(path)


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over the names and contents of some files in a folder."""
    return digest_of({name: cached_digest(folder / name) for name in sorted(names)})
