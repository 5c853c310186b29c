"""Bytes and settings -> SHA-256: what identity and verification rest on."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

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


def remembered_digest(path: Path) -> str:
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
    return digest_of({name: remembered_digest(folder / name) for name in sorted(names)})
