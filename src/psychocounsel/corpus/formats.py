"""Files with rows: text, JSON, Parquet and workbooks, each row with its location, or why it cannot be read."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

from psychocounsel.errors import InputError

MAX_LINE_BYTES = 1_000_000
MAX_JSON_BYTES = 200_000_000
SHOWN_CHARS = 40


class SourceRow(NamedTuple):
    """One row and its location, such as `speeches.csv line 812`; `conversation` is what it is a turn of, if it is.

    `file` is the name of the one that holds it, without its ending; it begins where the folders of a source's files
    differ. `header` is where the columns are named, in files that do so once.
    """

    where: str
    values: Mapping[str, Any]
    conversation: str = ""
    file: str = ""
    header: str = ""


class BadRow(NamedTuple):
    """A row that cannot be read, and why."""

    where: str
    error: InputError


def bad_row(fault: str, where: str, remedy: str) -> BadRow:
    """Return a bad row."""
    return BadRow(where, InputError(fault, where=where, remedy=remedy))


Row: TypeAlias = SourceRow | BadRow

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_SAVE_AS_TEXT = "save the file as UTF-8 text, such as by: iconv -f WINDOWS-1252 (or UTF-16) -t UTF-8 FILE > NEW"


def is_table(path: str | Path) -> bool:
    """Return whether a name ends as a file with rows does."""
    return parts_of_name(str(path))[1] in _READERS


def rows_of_file(path: Path, name: str, *, quotes: bool = True) -> Iterator[Row]:
    """Yield the rows of a file, which messages call `name`; without `quotes`, quotation marks are text.

    Raises:
        InputError: its ending is not known, or more than a row of it cannot be read.
    """
    ending, file = parts_of_name(path.name)[1], parts_of_name(name)[0]
    reader = _READERS.get(ending)
    if reader is None:
        fault, remedy = f"the ending {path.suffix!r} is not known", f"give one of {ENDINGS}"
        if path.suffix in _COMPRESSIONS:
            remedy = f"unpack it, or name it {path.stem}.jsonl{path.suffix} if it has one JSON object per line"
        raise InputError(fault, where=str(path), remedy=remedy)
    if not quotes and ending in (".csv", ".tsv"):
        reader = partial(reader, quotes=False)
    try:
        for row in reader(path, name):
            yield row._replace(file=file) if isinstance(row, SourceRow) else row
    except OSError as fault:
        message, remedy = f"cannot be opened or read: {fault.strerror or fault}", "check the file and its permissions"
        if "too much memory for decoding" in str(fault):  # as dumps of Reddit are compressed
            remedy = f"unpack it with: zstd -d --long=31 {path.name}"
        raise InputError(message, where=str(path), remedy=remedy) from None


def parts_of_name(name: str) -> tuple[str, str]:
    """Return the name of a file without its ending, and the ending that says what it holds, whatever compresses it."""
    path = PurePath(name)
    path = path.with_suffix("") if path.suffix.lower() in _COMPRESSIONS else path
    return str(path.parent / path.stem), path.suffix.lower()


def _opened(path: Path, *, seekable: bool = False) -> BinaryIO:
    """Open a file; a compressed one that has to be `seekable` is decompressed in memory."""
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    import pyarrow as pa  # workers, which open no file, do without it

    stream = pa.input_stream(str(path), compression=compression)
    return io.BytesIO(stream.read()) if seekable else cast("BinaryIO", io.BufferedReader(stream))


def _lines(path: Path, name: str) -> Iterator[tuple[str, str, BadRow | None]]:
    """Yield where a line of UTF-8 text is, the line, and the bad row that it makes, if it cannot be read.

    Only a line feed ends one: U+2028 in a text does not.
    """
    with _opened(path) as stream:
        for number, line in enumerate(_raw_lines(stream), start=1):
            where, bad = f"{name} line {number}", None
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError("is UTF-16 text", where=where, remedy=_SAVE_AS_TEXT)
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
            if len(line) > MAX_LINE_BYTES:
                remedy = "leave it out, or name the file .json if it is one array"
                bad = bad_row(f"is longer than {MAX_LINE_BYTES} bytes", where, remedy)
            elif b"\x00" in line:
                bad = bad_row("holds a NUL byte, as binary files and UTF-16 text do", where, _SAVE_AS_TEXT)
            elif _ESCAPED_BYTE.search(text):
                bad = bad_row("is not UTF-8 text", where, _SAVE_AS_TEXT)
            yield where, text, bad


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends; of one that is too long, only its beginning."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES + 1)


_QUOTED = re.compile('"[^"]*"?')


def _csv_rows(path: Path, name: str, delimiter: str = ",", *, quotes: bool = True) -> Iterator[Row]:
    """Yield a row for each record, with the line where it begins; one with a bad line is bad as a whole."""
    faults: list[BadRow] = []  # of the lines since the last record

    def texts() -> Iterator[str]:
        for _, text, bad in _lines(path, name):
            if bad is not None:
                faults.append(bad)
            yield text

    csv.field_size_limit(MAX_LINE_BYTES)
    lines = texts()
    first = next(lines, "")
    bare = _QUOTED.sub("", first) if quotes else first
    if "," not in bare and delimiter == ",":  # where a comma is the decimal point, spreadsheets write semicolons
        delimiter = next((each for each in ";\t" if each in bare), delimiter)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter, quoting=quoting)
    names: list[str] = []
    header = ""
    while True:
        line = f"line {reader.line_num + 1}"
        where = f"{name} {line}"
        try:
            fields = next(reader, None)
        except csv.Error as fault:
            message, remedy = f"cannot be read as CSV: {fault}", "correct the row that begins there"
            if "new-line" in str(fault):
                message, remedy = "holds a carriage return where no line ends", "save the file as CSV UTF-8"
            remedy += ", set on_bad_row: drop, or quotes: false if they are text"
            faults.append(bad_row(message, where, remedy))
            fields = None
        if faults and not names:
            raise faults[0].error
        if faults:
            yield faults[0]
            faults.clear()
        elif fields is None:
            break
        elif not names and fields == ["sep=", ""]:  # what Excel reads of a separator
            continue
        elif not names:
            names, header = fields, f"{path} {line}"
            _require_distinct(names, where)
        elif len(fields) == len(names):
            yield SourceRow(where, dict(zip(names, fields, strict=True)), header=header)
        elif fields:  # a blank line has none
            remedy = f"quote fields that contain {delimiter!r}, quotes or line breaks, or set on_bad_row: drop"
            yield bad_row(f"has {len(fields)} fields where the header has {len(names)}", where, remedy)
    if not names:
        raise InputError("is empty", where=name, remedy="give a file with a header and rows")


def _require_distinct(names: Sequence[str], where: str) -> None:
    """Refuse two columns with one name; those without any, as spreadsheets write at the end, are not used."""
    repeated = sorted(name for name, count in Counter(filter(None, names)).items() if count > 1)
    if repeated:
        raise InputError(f"two columns are called {shown(repeated[0])}", where=where, remedy="give each its own name")


def shown(column: object) -> str:
    """Return a column's name with quotes, cut: without a header it is a client's text."""
    name = str(column)
    return repr(name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}…")


def _jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    remedy = "write one JSON object per line, or set on_bad_row: drop"
    for where, text, bad in _lines(path, name):
        if bad is not None:
            yield bad
        elif text.strip():
            try:
                yield _json_row(_load_json(text), where, remedy)
            except (ValueError, RecursionError) as error:
                yield bad_row(f"is not JSON: {error}", where, remedy)


def _load_json(text: str | bytes) -> object:
    """Return what JSON holds; NaN, which pandas writes for a missing value, is null."""
    return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))


def _json_row(value: object, where: str, remedy: str) -> Row:
    if isinstance(value, dict):
        return SourceRow(where, cast("dict[str, Any]", value))
    return bad_row("is not a JSON object", where, remedy)


def _json_rows(path: Path, name: str) -> Iterator[Row]:
    """Yield the objects of one array, a single object, or one object per line.

    An array is read whole, so that a large one has to be .jsonl.
    """
    remedy = "give one array of objects, or .jsonl with one object per line"
    with _opened(path) as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    is_array = not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    if len(content) > MAX_JSON_BYTES and is_array:
        raise InputError(f"is larger than {MAX_JSON_BYTES} bytes", where=name, remedy=remedy)
    try:
        rows = _load_json(content)
    except (ValueError, RecursionError) as fault:
        if is_array:
            raise InputError(f"is not JSON: {fault}", where=name, remedy=remedy) from None
        yield from _jsonl_rows(path, name)
        return
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise InputError("is no array of objects", where=name, remedy=remedy)
    for number, values in enumerate(cast("list[object]", rows), start=1):
        yield _json_row(values, f"{name} row {number}", remedy)


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _opened(path, seekable=True) as stream, pq.ParquetFile(stream) as table:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(f"{name} row {number}", values)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as fault:
        raise InputError(
            f"cannot be read as Parquet: {fault}", where=f"{name} after row {number}", remedy="check the file"
        ) from None


def _xlsx_rows(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of the first sheet under its header; a whole number is an int, an empty cell None."""
    from python_calamine import CalamineError, load_workbook  # only for workbooks

    try:
        with _opened(path, seekable=True) as stream:
            sheet = load_workbook(stream).get_sheet_by_index(0)
            cells = iter(sheet.to_python())
    except CalamineError as fault:
        raise InputError(f"cannot be read as a workbook: {fault}", where=name, remedy="check the file") from None
    names = [str(each).strip() for each in next(cells, [])]
    first = 1 + (sheet.start or (0, 0))[0]
    _require_distinct(names, f"{name} row {first}")
    for number, row in enumerate(cells, start=first + 1):
        values = [_spreadsheet_value(value) for value in row]
        if any(value is not None for value in values):
            yield SourceRow(f"{name} row {number}", dict(zip(names, values, strict=True)), header=f"{path} row {first}")


def _spreadsheet_value(value: object) -> object:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return None if value == "" else value


_READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".tsv": partial(_csv_rows, delimiter="\t"),
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".xlsx": _xlsx_rows,
}
ENDINGS = ", ".join(_READERS)
