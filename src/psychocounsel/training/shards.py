"""Shards: long computations over many items are done in parts, and what is finished outlives a kill."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from psychocounsel.store.files import digest_of, write_bytes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Progress = Callable[[int, int], None]


def in_shards(
    items: Sequence[_Item],
    size: int,
    compute: Callable[[Sequence[_Item], Progress], list[_Result]],
    *,
    known_by: object = None,
    plain: TypeAdapter[list[_Result]],
    work: Path,
    progress: Progress,
) -> list[_Result]:
    """Return what `compute` gives for items, called with `size` of them at a time and a progress of its own.

    A finished shard is a file in `work` and is not computed again unless it is damaged or has numbers that are not
    finite. Its items tell it from others there and, where `work` has results of several computations, `known_by` does;
    `plain` writes and reads its results. A shard is computed as one, so an interrupted run gives the results of an
    uninterrupted one. `progress` is called with what is done of all shards,
    in the units of `compute`; what it raises ends the computation.
    """
    results: list[_Result] = []
    for start in range(0, len(items), size):
        shard = items[start : start + size]
        path = work / f"shard-{digest_of([known_by, to_jsonable_python(shard)])[:16]}.json"
        found = _read(path, plain)
        if found is None:
            found = compute(shard, _as_part(start, len(shard), len(items), progress))
            body = plain.dump_json(found)
            write_bytes(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        results += found
    return results


def _as_part(start: int, size: int, items: int, progress: Progress) -> Progress:
    """Return the progress of the shard with `size` of the `items`, from `start` on, as that of all of them."""
    return lambda done, total: progress(start * total // size + done, items * total // size)


def _read(path: Path, plain: TypeAdapter[list[_Result]]) -> list[_Result] | None:
    """Return the results in a shard's file, or None if it is missing, damaged or unreadable, as other code wrote it."""
    if not path.exists():
        return None
    sha256, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != sha256:
        return None
    try:
        return plain.validate_json(body)
    except ValidationError:  # JSON has null for a number that is not finite
        return None
