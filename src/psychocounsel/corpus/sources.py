# pyright: standard, for its libraries come without types
"""CSV, JSONL, Parquet or a Hub data set -> rows with their place: the user's raw files."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.config.components import PREFIX, locate
from psychocounsel.corpus.text import refusal
from psychocounsel.errors import InputError
from psychocounsel.store.files import digest_of_file
from psychocounsel.store.references import HUB
from psychocounsel.store.schemas import hub_rows

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
        raise InputError("no such file", where=path, remedy="check the path; it is taken from where you stand")
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
        raise InputError(f"two columns are called {repeated[0]!r}", where=header.where, remedy="give each its own name")
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


SPLITS = ("train", "test")
_TEXTS = ("question", "chosen", "rejected", "chosen_model", "rejected_model")
_RATING = "_rating"
_SCHEMA = "name a data set in the released columns"


class ReleasedSide(NamedTuple):
    """One response of a row: its text, its author, its ratings by principle, None for a missing one."""

    text: str
    author: str
    ratings: Mapping[str, int | None]


class ReleasedRow(NamedTuple):
    """One preference as it was released; `split` is the one it was released in."""

    where: str
    split: str
    question: str
    chosen: ReleasedSide
    rejected: ReleasedSide


def released_identity(source: str, config: str | None) -> dict[str, Any]:
    """Return what identifies a released data set: the content of its files, or its Hub name with revision.

    Raises:
        InputError: a split has no file.
    """
    return {split: [source_identity(path, split, config) for path in _paths(source, split)] for split in SPLITS}


def read_released(source: str, config: str | None = None) -> Iterator[ReleasedRow]:
    """Yield the rows of a released preference data set, train before test; all have the same principles.

    Args:
        source: `hub:owner/name@revision`, or a folder that holds `train*.parquet` and `test*.parquet`, as a
            copy of the Hub's has them in `data/`.
        config: the configuration to read of a Hub data set that has several.

    Raises:
        InputError: a file or column is missing, or a cell is not what its column holds.
    """
    principles: tuple[str, ...] = ()
    for split in SPLITS:
        for path in _paths(source, split):
            for where, values in read_rows(path, split, config):
                principles = principles or _principles(where, values)
                yield _row(where, split, values, principles)


def _paths(source: str, split: str) -> list[str]:
    if source.startswith(HUB):
        return [source]
    found = sorted(path for path in Path(source).rglob(f"{split}*.parquet") if path.is_file())
    if not found:
        raise InputError(
            f"there is no {split}*.parquet",
            where=source,
            remedy="name the folder of a copy of the data set, or hub:owner/name",
        )
    return [str(path) for path in found]


def _principles(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    rated = [name for name in values if name.startswith("chosen_") and name.endswith(_RATING)]
    if not rated:
        raise InputError(f"there is no column chosen_PRINCIPLE{_RATING}", where=where, remedy=_SCHEMA)
    return tuple(name.removeprefix("chosen_").removesuffix(_RATING) for name in rated)


def _row(where: str, split: str, values: Mapping[str, Any], principles: tuple[str, ...]) -> ReleasedRow:
    ratings = {side: {name: f"{side}_{name}{_RATING}" for name in principles} for side in ("chosen", "rejected")}
    wanted = [*_TEXTS, *(column for by_name in ratings.values() for column in by_name.values())]
    missing = [column for column in wanted if column not in values]
    if missing:
        raise InputError(f"there is no column {', '.join(missing)}", where=where, remedy=_SCHEMA)
    chosen, rejected = (
        ReleasedSide(
            _text(where, values, side),
            _text(where, values, f"{side}_model"),
            {name: _rating(where, values, column) for name, column in by_name.items()},
        )
        for side, by_name in ratings.items()
    )
    return ReleasedRow(where, split, _text(where, values, "question"), chosen, rejected)


def _text(where: str, values: Mapping[str, Any], column: str) -> str:
    value = values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{column!r} is {type(value).__name__}, not text", where=where, remedy="mend or drop the row")
    return value


def _rating(where: str, values: Mapping[str, Any], column: str) -> int | None:
    value = values[column]
    if value is not None and type(value) is not int:
        raise InputError(f"{column!r} is {value!r}, not a whole number", where=where, remedy="mend or drop the row")
    return value


class Row(Protocol):
    """A row of a source: its values by column, and where it stands."""

    @property
    def where(self) -> str:
        """File and line."""
        ...

    @property
    def values(self) -> Mapping[str, object]:
        """Cells by column."""
        ...


def cell(row: Row, column: str) -> object:
    """Return the value in a column.

    Raises:
        InputError: there is no such column; names those that there are.
    """
    if column not in row.values:
        known = ", ".join(str(name) for name in row.values)
        raise InputError(f"there is no column {column!r}", where=row.where, remedy=f"set columns to one of: {known}")
    return row.values[column]


def text_cell(row: Row, column: str) -> str:
    """Return a cell's text as it stands, its outer space removed; a null is an empty one.

    Raises:
        InputError: there is no such column, it holds no text, or text that no table can hold.
    """
    value = cell(row, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{column!r} is {type(value).__name__}, not text",
            where=row.where,
            remedy="quote it, or drop the row",
        )
    fault = refusal(value)
    if fault is not None:
        raise InputError(f"{column!r} holds {fault}", where=row.where, remedy="remove it, or drop the row")
    return value.strip()


def name_cell(row: Row, column: str) -> str:
    """Return a cell that must not be empty.

    Raises:
        InputError: it is, or it holds no text.
    """
    name = " ".join(text_cell(row, column).split())
    if not name:
        raise InputError(f"{column!r} is empty", where=row.where, remedy="fill it, or drop the row")
    return name


def key_cell(row: Row, column: str) -> str:
    """Return a key, which may be a whole number.

    Raises:
        InputError: it is empty, or neither a text nor a whole number.
    """
    value = cell(row, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return name_cell(row, column)


def flag_cell(row: Row, column: str) -> bool:
    """Return a cell that says true or false.

    Raises:
        InputError: it says something else.
    """
    value = cell(row, column)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise InputError(f"{column!r} is {value!r}", where=row.where, remedy="write true or false")
