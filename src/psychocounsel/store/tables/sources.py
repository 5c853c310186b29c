"""CSV, JSONL, Parquet or a Hub data set -> rows with their place: the user's raw files."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.config.bundled import locate
from psychocounsel.errors import InputError
from psychocounsel.store.digests import digest_of_file
from psychocounsel.store.references import HUB
from psychocounsel.store.tables.hub_rows import hub_rows

MAX_LINE_CHARS = 1_000_000


class SourceRow(NamedTuple):
    """One row and where it stands, such as `speeches.csv line 812`."""

    where: str
    values: dict[str, Any]


def source_identity(path: str, split: str) -> dict[str, Any]:
    """Return what identifies a raw source: its content, or the Hub name with revision."""
    if path.startswith(HUB):
        return {"hub": path.removeprefix(HUB), "split": split}
    return {"sha256": digest_of_file(existing_file(path))}


def existing_file(path: str) -> Path:
    """Return the path of a readable, non-empty file.

    Raises:
        InputError: it is missing, a folder, or empty.
    """
    place = locate(path)
    if not place.exists():
        raise InputError(
            "no such file", where=path, remedy="check the path; it is taken from where you stand"
        )
    if not place.is_file():
        raise InputError("is not a file", where=path, remedy="name a .csv, .jsonl or .parquet file")
    if place.stat().st_size == 0:
        raise InputError("is empty", where=path, remedy="give a file with rows")
    return place


def read_rows(path: str, split: str = "train") -> Iterator[SourceRow]:
    """Yield the rows of a source one by one.

    Args:
        path: a .csv, .jsonl or .parquet file, `bundled:FILE`, or `hub:owner/name@revision`.
        split: the split to read of a Hub data set.

    Raises:
        InputError: unreadable content, with the line.
    """
    if path.startswith(HUB):
        for number, values in enumerate(hub_rows(path.removeprefix(HUB), split), start=1):
            yield SourceRow(f"{path} row {number}", values)
        return
    place = existing_file(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(place.suffix)
    if reader is None:
        raise InputError(
            f"the ending {place.suffix!r} is not known", where=path, remedy="give .csv, .jsonl or .parquet"
        )
    yield from reader(place)


def _text_stream(path: Path) -> io.TextIOWrapper:
    """Open as UTF-8 in which only a line feed ends a line: U+2028 inside a text must not."""
    with path.open("rb") as head:
        start = head.read(4096)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("is UTF-16 text", where=str(path), remedy="save it as UTF-8")
    if b"\x00" in start:
        raise InputError("is a binary file", where=str(path), remedy="give UTF-8 text")
    return path.open(encoding="utf-8-sig", newline="")


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(MAX_LINE_CHARS)
    with _text_stream(path) as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for values in reader:
                yield SourceRow(
                    f"{path.name} line {reader.line_num}", _complete(values, path, reader.line_num)
                )
        except (csv.Error, UnicodeDecodeError) as fault:
            raise InputError(
                f"cannot be read as CSV: {fault}",
                where=f"{path.name} line {reader.line_num + 1}",
                remedy="mend or drop the row, and save the file as UTF-8",
            ) from None


def _complete(values: dict[str | Any, Any], path: Path, line: int) -> dict[str, Any]:
    if None in values or None in values.values():
        raise InputError(
            "has another number of fields than the header",
            where=f"{path.name} line {line}",
            remedy="quote fields that hold commas or line breaks",
        )
    return values


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    with _text_stream(path) as stream:
        number = 0
        try:
            while line := stream.readline(MAX_LINE_CHARS):
                number += 1
                if line.strip():
                    yield SourceRow(f"{path.name} line {number}", _json_object(line, path, number))
        except UnicodeDecodeError:
            raise InputError(
                "is not UTF-8 text", where=f"{path.name} near line {number + 1}", remedy="save it as UTF-8"
            ) from None


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as fault:
        raise InputError(
            f"is not JSON: {fault}",
            where=f"{path.name} line {number}",
            remedy="write one JSON object per line",
        ) from None
    if not isinstance(values, dict):
        raise InputError(
            "is not a JSON object",
            where=f"{path.name} line {number}",
            remedy="write one JSON object per line",
        )
    return dict(values)


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    try:
        with pq.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(f"{path.name} row {number}", values)
    except pa.ArrowInvalid as fault:
        raise InputError(
            f"cannot be read as Parquet: {fault}", where=path.name, remedy="check the file"
        ) from None
