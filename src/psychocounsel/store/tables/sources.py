"""CSV, JSONL, Parquet or a Hub data set -> rows with their place: the user's raw files."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.config.bundled import PREFIX, locate
from psychocounsel.errors import InputError
from psychocounsel.store.digests import digest_of_file
from psychocounsel.store.references import HUB
from psychocounsel.store.tables.hub_rows import hub_rows

if TYPE_CHECKING:
    import _csv  # the reader's type has no public name

MAX_LINE_BYTES = 1_000_000


class SourceRow(NamedTuple):
    """One row and where it stands, such as `speeches.csv line 812`."""

    where: str
    values: dict[str, Any]


def source_identity(path: str, split: str, config: str | None = None) -> dict[str, Any]:
    """Return what identifies a raw source: its content, or the Hub name with revision."""
    if path.startswith(HUB):
        return {"hub": path.removeprefix(HUB), "split": split, "config": config}
    return {"sha256": digest_of_file(existing_file(path))}


def source_name(path: str) -> str:
    """Return the name under which rows remember their source; its folder, like its identity, is left out."""
    return path if path.startswith((HUB, PREFIX)) else Path(path).name


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


def read_rows(path: str, split: str = "train", config: str | None = None) -> Iterator[SourceRow]:
    """Yield the rows of a source one by one.

    Args:
        path: a .csv, .jsonl or .parquet file, `bundled:FILE`, or `hub:owner/name@revision`.
        split: the split to read of a Hub data set.
        config: the configuration to read of a Hub data set that has several.

    Raises:
        InputError: unreadable content, with the line.
    """
    if path.startswith(HUB):
        rows = hub_rows(path.removeprefix(HUB), split, config)
        for number, values in enumerate(rows, start=1):
            yield SourceRow(f"{path} row {number}", values)
        return
    place = existing_file(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(place.suffix.lower())
    if reader is None:
        raise InputError(
            f"the ending {place.suffix!r} is not known", where=path, remedy="give .csv, .jsonl or .parquet"
        )
    yield from reader(place)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines of UTF-8 text; only a line feed ends one: U+2028 inside a text must not.

    Raises:
        InputError: bytes that are no text, or a line too long to be one, with the line.
    """
    with _opened(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            fault = _not_text(line, number)
            if fault is not None:
                raise InputError(
                    fault,
                    where=f"{path.name} line {number}",
                    remedy="save the file as UTF-8 text, one row a line",
                )
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as fault:
        raise InputError(
            f"cannot be opened: {fault.strerror}", where=str(path), remedy="check its permissions"
        ) from None


def _not_text(line: bytes, number: int) -> str | None:
    if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16 text"
    if len(line) > MAX_LINE_BYTES:
        return f"is longer than {MAX_LINE_BYTES} bytes"
    if b"\x00" in line:
        return "holds a NUL byte, as binary files and UTF-16 text do"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    return None


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header = next(_csv_records(reader, path), None)
    if header is None:
        raise InputError("is empty", where=path.name, remedy="give a file with a header and rows")
    names = header.fields
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(
            f"two columns are called {repeated[0]!r}", where=header.where, remedy="give each its own name"
        )
    for record in _csv_records(reader, path):
        if len(record.fields) != len(names):
            raise InputError(
                f"has {len(record.fields)} fields where the header has {len(names)}",
                where=record.where,
                remedy="quote fields that hold commas, quotes or line breaks",
            )
        yield SourceRow(record.where, dict(zip(names, record.fields, strict=True)))


class _CsvRecord(NamedTuple):
    """The fields of one record and the line where it begins."""

    where: str
    fields: list[str]


def _csv_records(reader: "_csv.Reader", path: Path) -> Iterator[_CsvRecord]:
    """Yield the records that are left, blank lines skipped."""
    while True:
        where = f"{path.name} line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as fault:
            raise InputError(
                f"cannot be read as CSV: {fault}",
                where=where,
                remedy="mend or drop the row that begins there",
            ) from None
        if fields is None:
            return
        if fields:
            yield _CsvRecord(where, fields)


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path.name} line {number}"
            yield SourceRow(where, _json_object(line, where))


def _json_object(line: str, where: str) -> dict[str, Any]:
    remedy = "write one JSON object per line"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise InputError(f"is not JSON: {fault}", where=where, remedy=remedy) from None
    if not isinstance(values, dict):
        raise InputError("is not a JSON object", where=where, remedy=remedy)
    return dict(values)


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(f"{path.name} row {number}", values)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as fault:
        raise InputError(
            f"cannot be read as Parquet: {fault}",
            where=f"{path.name} after row {number}",
            remedy="check the file",
        ) from None
