"""Files and Hub data sets: rows that know their place, or an error that names it."""

import json
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.sources import RowSource
from psychocounsel.corpus.formats import MAX_LINE_BYTES, BadRow, SourceRow
from psychocounsel.corpus.sources import (
    cell,
    read_rows,
    read_source,
    source_fingerprint,
    source_name,
)
from psychocounsel.errors import InputError

JOINED = "\U0001f469\u200d\U0001f467"


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows_of(path: str) -> list[tuple[str, dict[str, Any]]]:
    return [(row.where, row.values) for row in read_rows(path)]


def fault_of(path: str) -> str:
    with pytest.raises(InputError) as fault:
        rows_of(path)
    assert fault.value.remedy
    assert fault.value.where
    return str(fault.value)


def test_csv_rows_know_the_line_where_they_begin(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,topic\none,x\n\n"two\nthree, ""four""",y\nfive,\n')
    assert rows_of(path) == [
        ("a.csv line 2", {"text": "one", "topic": "x"}),
        ("a.csv line 4", {"text": 'two\nthree, "four"', "topic": "y"}),
        ("a.csv line 6", {"text": "five", "topic": ""}),
    ]


def test_csv_of_other_programs_is_read(tmp_path: Path) -> None:
    windows = write(tmp_path, "A.CSV", b"\xef\xbb\xbftext,topic\r\none\xe2\x80\xa8more,x")
    assert rows_of(windows) == [("A.CSV line 2", {"text": "one\u2028more", "topic": "x"})]
    unnamed_index = write(tmp_path, "A.CSV", ",text\n0,one\n")
    assert rows_of(unnamed_index) == [("A.CSV line 2", {"": "0", "text": "one"})]


@pytest.mark.parametrize(
    "content",
    [
        '"id";"said, at last"\n1;"one, two"\n',
        'id\t"said, at last"\n1\tone, two\n',
        '"id","said, at last"\n1,"one, two"\n',
    ],
)
def test_a_csv_file_may_be_separated_otherwise(tmp_path: Path, content: str) -> None:
    values = {"id": "1", "said, at last": "one, two"}
    assert rows_of(write(tmp_path, "a.csv", content)) == [("a.csv line 2", values)]
    separator = next(each for each in content if each in ";\t,")
    assert rows_of(write(tmp_path, "b.csv", f"sep={separator}\r\n{content}")) == [("b.csv line 3", values)]


def test_a_bad_line_drops_its_whole_record_and_moves_no_line_number(tmp_path: Path) -> None:
    content = b'text,n\n"one\ncaf\xe9\nthree",1\n"two",2\nx\x00y,3\n"four\nfive",4\nlast,5\n'
    path = write(tmp_path, "a.csv", content)
    rows = list(read_source(RowSource(path=path, on_bad_row="drop")))
    assert [row.where for row in rows if isinstance(row, BadRow)] == ["a.csv line 3", "a.csv line 6"]
    assert [(row.where, row.values["n"]) for row in rows if isinstance(row, SourceRow)] == [
        ("a.csv line 5", "2"),
        ("a.csv line 7", "4"),
        ("a.csv line 9", "5"),
    ]


@pytest.mark.parametrize(
    ("header", "remedy"),
    [
        ("question ", "did you mean 'question '?"),
        ("QUESTION", "did you mean 'QUESTION'?"),
        ("I feel that " + "nobody " * 20, "(the first row is read as the header)"),
    ],
)
def test_a_missing_column_is_told_at_the_header(tmp_path: Path, header: str, remedy: str) -> None:
    path = write(tmp_path, "a.csv", f"{header}\none\n")
    with pytest.raises(InputError) as fault:
        cell(next(read_rows(path)), "question")
    assert str(fault.value).startswith(f"{path} line 1: there is no column 'question'; ")
    assert str(fault.value).endswith(remedy)
    assert len(fault.value.remedy) < 120


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("text,topic\none,x\ntwo\n", "a.csv line 3: has 1 fields where the header has 2; quote fields"),
        ("text,topic\none,x,y\n", "a.csv line 2: has 3 fields where the header has 2"),
        ("text,text\none,x\n", "a.csv line 1: two columns are called 'text'"),
        ('text\none\n"two\nthree\n', "a.csv line 3: cannot be read as CSV: unexpected end of data"),
        ('text\n"one" more\n', "a.csv line 2: cannot be read as CSV"),
        ("text\none\rtwo\n", "a.csv line 2: holds a carriage return where no line ends; save the file as CSV UTF-8"),
        (b"text\none\n\xff\xfe\n", "a.csv line 3: is not UTF-8 text"),
        (b"text\none\ntw\x00o\n", "a.csv line 3: holds a NUL byte"),
        ("text\none\n".encode("utf-16"), "a.csv line 1: is UTF-16 text"),
        ("text\none\n".encode("utf-16-be"), "a.csv line 1: holds a NUL byte, as binary files and UTF-16 text do"),
        (b"\x89PNG\r\n\x1a\n\x00", "a.csv line 1: is not UTF-8 text"),
        (b"\xef\xbb\xbf", "a.csv: is empty"),
        (b"\n\n", "a.csv: is empty"),
        ("text\n" + "x" * (2 * MAX_LINE_BYTES) + "\n", f"a.csv line 2: is longer than {MAX_LINE_BYTES} bytes"),
        ('text\n"' + "x\n" * MAX_LINE_BYTES, "a.csv line 2: cannot be read as CSV: field larger than field limit"),
        ('{"text": "one"}\n{"text": "tw', "a.jsonl line 2: is not JSON: Unterminated string"),
        ('{"text": "one"}\n\n[1]\n', "a.jsonl line 3: is not a JSON object"),
        ("3\n", "a.jsonl line 1: is not a JSON object"),
        ("{'text': 'one'}\n", "a.jsonl line 1: is not JSON"),
        ("[" * 100_000, "a.jsonl line 1: is not JSON"),
        ('{"n": ' + "9" * 5000 + "}", "a.jsonl line 1: is not JSON"),
        (
            '{"text": "' + "x" * (2 * MAX_LINE_BYTES) + '"}',
            f"a.jsonl line 1: is longer than {MAX_LINE_BYTES} bytes; leave it out, or name the file .json",
        ),
        (b'{"text": "a\x00b"}', "a.jsonl line 1: holds a NUL byte"),
        (b'{"text": "\xed\xa0\x80"}', "a.jsonl line 1: is not UTF-8 text"),
        ('{"text": "one"}'.encode("utf-16"), "a.jsonl line 1: is UTF-16 text"),
        (b"\x1f\x8b\x08\x00\x00", "a.jsonl line 1: holds a NUL byte"),
    ],
    ids=range(26),
)
def test_an_unreadable_line_is_named(tmp_path: Path, content: str | bytes, fragment: str) -> None:
    assert fragment in fault_of(write(tmp_path, re.split("[ :]", fragment)[0], content))


def test_a_bad_byte_far_down_is_found_on_its_own_line(tmp_path: Path) -> None:
    lines = [f"row {number}".encode() for number in range(2, 3000)]
    lines[1500 - 2] = b"caf\xe9"
    content = b"text\n" + b"\n".join(lines) + b"\n"
    assert "a.csv line 1500: is not UTF-8 text" in fault_of(write(tmp_path, "a.csv", content))
    content = b"\n".join(b'{"text": "' + line + b'"}' for line in lines)
    assert "a.jsonl line 1499: is not UTF-8 text" in fault_of(write(tmp_path, "a.jsonl", content))


def test_jsonl_rows(tmp_path: Path) -> None:
    first = {"text": f"one\u2028two\x85 {JOINED} \u200f\u05e9"}
    others = '\r\n\n  \n{"text": NaN, "crisis": true, "n": 3}\n{"a": "\\ud800"}'
    assert rows_of(write(tmp_path, "a.jsonl", "\ufeff" + json.dumps(first, ensure_ascii=False) + others)) == [
        ("a.jsonl line 1", first),
        ("a.jsonl line 4", {"text": None, "crisis": True, "n": 3}),
        ("a.jsonl line 5", {"a": "\ud800"}),  # refused where the column is known
    ]


@given(st.data())
def test_a_torn_jsonl_gives_whole_rows_then_at_most_one_error(tmp_path_factory: Any, data: st.DataObject) -> None:
    rows = [{"text": f"row {at} {JOINED}", "n": at} for at in range(3)]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    cut = data.draw(st.integers(1, len(whole)))
    path = write(tmp_path_factory.getbasetemp(), "torn.jsonl", whole[:cut])
    read: list[dict[str, Any]] = []
    try:
        read.extend(row.values for row in read_rows(path))
    except InputError as fault:
        assert f"torn.jsonl line {len(read) + 1}: " in str(fault)
    else:
        assert whole[:cut].endswith((b"}", b"\n"))
    assert read == rows[: len(read)]
    assert len(read) >= whole[:cut].count(b"\n")


@pytest.mark.parametrize("above", [0, 2])
def test_rows_of_the_first_sheet_of_a_workbook(tmp_path: Path, above: int) -> None:
    def cell(value: str | float | None) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t xml:space="preserve">{value}</t></is></c>'
        return "<c/>" if value is None else f"<c><v>{value}</v></c>"

    rows = [["text ", "key", "score"], [JOINED, 1.0, 2.5], [None, 2.0, 3.0], [None, None, None]]
    sheet = "".join(f'<row r="{at}">{"".join(map(cell, row))}</row>' for at, row in enumerate(rows, above + 1))
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    link = (
        f'<Relationships xmlns="{package}"><Relationship Id="r1" Type="{office}/{{}}" Target="{{}}"/></Relationships>'
    )
    sheets = '<sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets>'
    book = f'<workbook xmlns="{main}" xmlns:r="{office}">{sheets}</workbook>'
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as file:
        file.writestr("_rels/.rels", link.format("officeDocument", "xl/workbook.xml"))
        file.writestr("xl/workbook.xml", book)
        file.writestr("xl/_rels/workbook.xml.rels", link.format("worksheet", "worksheets/sheet1.xml"))
        file.writestr(
            "xl/worksheets/sheet1.xml", f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>'
        )
    expected = [{"text": JOINED, "key": 1, "score": 2.5}, {"text": None, "key": 2, "score": 3}]
    assert rows_of(str(tmp_path / "a.xlsx")) == [
        (f"a.xlsx row {at}", row) for at, row in enumerate(expected, above + 2)
    ]


def test_parquet_rows(tmp_path: Path) -> None:
    texts = [JOINED, None, "a\x00b"]
    pq.write_table(pa.table({"text": texts, "key": [1, 2, 3]}), tmp_path / "a.parquet")
    expected = [(f"a.parquet row {at}", {"text": text, "key": at}) for at, text in enumerate(texts, 1)]
    assert rows_of(str(tmp_path / "a.parquet")) == expected


def test_a_damaged_parquet_file_is_an_error_and_never_a_crash(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {at}" for at in range(50)]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        path = write(tmp_path, "b.parquet", whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            rows_of(path)
        except InputError as fault:
            assert str(fault).startswith("b.parquet after row ")
            refused += 1
    assert refused > 0
    assert "cannot be read as Parquet" in fault_of(write(tmp_path, "c.parquet", b"no parquet at all"))
    assert "cannot be read as Parquet" in fault_of(write(tmp_path, "c.parquet", whole[:-5]))


def test_an_unreadable_file_is_an_error_before_any_row(tmp_path: Path) -> None:
    assert "holds no file with rows; give files in one of .csv" in fault_of(str(tmp_path))
    assert "no such file; check the path" in fault_of(str(tmp_path / "a.csv"))
    assert "is empty; give a file with rows" in fault_of(write(tmp_path, "a.csv", b""))
    assert "the ending '.xls' is not known; give one of .csv" in fault_of(write(tmp_path, "a.xls", b"x"))
    assert "cannot be read as a workbook" in fault_of(write(tmp_path, "a.xlsx", b"x"))
    assert "the ending '' is not known" in fault_of(write(tmp_path, "a", b"x"))


def test_a_file_is_identified_by_its_content_not_its_place(tmp_path: Path) -> None:
    first, moved = write(tmp_path, "a.csv", "text\none\n"), write(tmp_path, "b.csv", "text\none\n")
    assert source_fingerprint(first, "train") == source_fingerprint(moved, "test")
    assert source_fingerprint(first, "train") != source_fingerprint(write(tmp_path, "c.csv", "text\ntwo\n"), "train")
    hub = {"hub": "owner/name@abc", "split": "test", "config": "small"}
    assert source_fingerprint("hub:owner/name@abc", "test", "small") == hub
    with pytest.raises(InputError, match="no such file"):
        source_fingerprint(str(tmp_path / "none.csv"), "train")
    names = [source_name(path) for path in ("/home/me/a.csv", "a.csv", "bundled:a.csv", "hub:owner/name@abc")]
    assert names == ["a.csv", "a.csv", "bundled:a.csv", "hub:owner/name@abc"]


def test_memory_stays_bounded_on_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.truncate(200_000_000)  # a hole: no bytes on the disk
    tracemalloc.start()
    assert "a.jsonl line 1" in fault_of(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
