"""Bytes and settings -> SHA-256: what identity and verification rest on."""

import hashlib
import json
from collections.abc import Iterable
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


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over the named files of a folder and their contents."""
    return digest_of({name: digest_of_file(folder / name) for name in sorted(names)})
