import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_model import count_replies
from psychocounsel.errors import IncompleteError, InputError
from psychocounsel.llm.journal import DamagedRow, Entry, Journal, JournalRow, LostResponse, read_rows, write_rows
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus

ANSWERED = sorted(set(ReplyStatus) - {ReplyStatus.ERROR})
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
ROWS = st.builds(
    JournalRow,
    st.text("0123456789abcdef", min_size=1, max_size=8),
    st.integers(0, 3),
    st.builds(
        ChatReply,
        st.sampled_from(ANSWERED),
        TEXTS,
        TEXTS,
        st.integers(0, 9),
        st.integers(0, 9),
        TEXTS,
        st.integers(0, 9),
        st.booleans(),
        TEXTS,
    ),
    st.just("2026-01-02T03:04:05.678+00:00"),
)

BROKEN_LINES = st.builds(LostResponse, TEXTS, TEXTS)


def reply(text: str) -> ChatReply:
    return ChatReply(ReplyStatus.VALID, text, "judge-1", 10, 3)


def sound(journal: Journal) -> list[JournalRow]:
    return [row for row in journal.rows() if isinstance(row, JournalRow)]


@given(st.lists(ROWS | BROKEN_LINES, max_size=5))
def test_rows_round_trip_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, rows: list[JournalRow | LostResponse]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_rows(rows, path) == len(rows)
    assert list(read_rows(path)) == rows
    assert [each.name for each in path.parent.iterdir()] == ["rows.jsonl"]


def test_an_export_taken_in_elsewhere_answers_there_and_only_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "old.sqlite") as old:
        old.record_many([Entry("a", reply("one")), Entry("a", reply("two")), Entry("b", reply("three"))])
        write_rows(sound(old), tmp_path / "rows.jsonl")
    with Journal(tmp_path / "new.sqlite") as new:
        new.record("a", reply("mine"))
        assert new.merge(read_rows(tmp_path / "rows.jsonl")) == 3
        assert new.merge(read_rows(tmp_path / "rows.jsonl")) == 0
        assert [each.text for each in new.replies("a")] == ["mine", "one", "two"]
        assert [each.text for each in new.replies("b")] == ["three"]


def test_broken_lines_travel_with_the_replies_and_are_taken_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "old.sqlite") as old:
        old.record("a", reply("one"))
        old.record_lost_responses(["a"])
        old.record_lost_responses(["b"])
        kept = [line for line in old.lost_responses() if line is not None]
        assert (
            write_rows([*(row for row in old.rows() if isinstance(row, JournalRow)), *kept], tmp_path / "rows.jsonl")
            == 3
        )
    with Journal(tmp_path / "new.sqlite") as new:
        new.record_lost_responses(["b"])
        assert new.merge(read_rows(tmp_path / "rows.jsonl")) == 3
        assert new.merge(read_rows(tmp_path / "rows.jsonl")) == 0
        assert [line.digest for line in new.lost_responses() if line is not None] == ["a", "b", "b"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda line: line[:-5],
        lambda line: "[]",
        lambda line: json.dumps({**json.loads(line), "status": "splendid"}),
        lambda line: json.dumps({**json.loads(line), "status": "error"}),
        lambda line: json.dumps({**json.loads(line), "attempt": True}),
        lambda line: json.dumps({**json.loads(line), "text": 7}),
        lambda line: '{"lost_response": true, "digest": "a"}',
        lambda line: '{"lost_response": true, "digest": "a", "created_at": 7}',
        lambda line: '{"lost_response": 1, "digest": "a", "created_at": "now"}',
        lambda line: "7",
        lambda line: json.dumps({**json.loads(line), "prompt_tokens": 2**63}),
        lambda line: json.dumps({name: value for name, value in json.loads(line).items() if name != "digest"}),
    ],
)
def test_a_line_that_is_no_reply_is_named_and_nothing_is_taken(tmp_path: Path, broken: Callable[[str], str]) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([JournalRow("a", 0, reply("one"), "now"), JournalRow("b", 0, reply("two"), "now")], path)
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{broken(second)}\n", encoding="utf-8")
    with Journal(tmp_path / "j.sqlite") as journal:
        with pytest.raises(InputError, match=r"line 2: .*not a reply"):
            journal.merge(read_rows(path))
        assert count_replies(journal) == 0


@pytest.mark.parametrize("content", [b"SQLite format 3\0\xff\xfe", "\ufeffnot JSON".encode("utf-16"), b"\x00\x01\x80"])
def test_a_file_that_is_no_text_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line 1: .*not a reply"):
        list(read_rows(path))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([JournalRow("a", 0, reply("one"), "now")], path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_rows(path)) == [JournalRow("a", 0, reply("one"), "now")]


@pytest.mark.parametrize(("before", "after"), [("a rating of 1", "a rating of 5"), ('"digest": "c"', '"digest": "d"')])
def test_a_changed_line_does_not_fit_its_checksum(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([JournalRow("a", 0, reply("a rating of 1"), "now"), LostResponse("c", "then")], path)
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    with pytest.raises(InputError, match="does not fit its checksum"):
        list(read_rows(path))


def test_a_line_of_an_older_version_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([JournalRow("a", 0, reply("one"), "now")], path)
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values.pop("checksum")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert list(read_rows(path)) == [JournalRow("a", 0, reply("one"), "now")]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("precious", encoding="utf-8")

    def rows():
        yield JournalRow("a", 0, reply("one"), "now")
        raise OSError("disk")

    with pytest.raises(IncompleteError, match="disk"):
        write_rows(rows(), path)
    assert path.read_text(encoding="utf-8") == "precious"


def test_what_a_reader_accepted_is_known_to_it_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record_many([Entry("a", reply("one")), Entry("b", reply("two"))])
        journal.mark_accepted("parser 1", ["a", "a", "lost"])
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.accepted("parser 1") == {"a"}  # a request without a reply is owed, whatever was said
        assert journal.accepted("parser 2") == set()


def test_a_damaged_row_is_told_and_the_others_stand(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record_many([Entry("a", reply("one")), Entry("b", reply("two"))])
        journal._connection.execute("UPDATE replies SET text = x'00' WHERE digest = 'a'")
        rows = list(journal.rows())
    assert rows[0] == DamagedRow("a")
    assert isinstance(rows[1], JournalRow)
    assert rows[1].reply == reply("two")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("text", "x'00'"),
        ("model", "x'00'"),
        ("status", "'?'"),
        ("completion_tokens", "99"),
        ("created_at", "'then'"),
        ("checksum", "x'00'"),
        ("cached_tokens", "''"),
        ("batched", "''"),
    ],
)
def test_an_import_mends_a_damaged_reply_in_its_place(tmp_path: Path, column: str, value: str) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record_many([Entry("a", reply("one")), Entry("a", reply("two"))])
        write_rows(sound(journal), tmp_path / "rows.jsonl")
        journal._connection.execute(f"UPDATE replies SET {column} = {value} WHERE attempt = 0")  # noqa: S608
        assert journal.merge(read_rows(tmp_path / "rows.jsonl")) == 1
        assert [each.text for each in journal.replies("a")] == ["one", "two"]
        assert all(isinstance(row, JournalRow) for row in journal.rows())


def test_a_damaged_reply_gives_way_to_none_but_itself(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("a", reply("one"))
        journal._connection.execute("UPDATE replies SET text = x'00'")
        assert journal.merge([JournalRow("a", 0, reply("another"), "now")]) == 1
        rows = list(journal.rows())
        assert rows == [DamagedRow("a"), JournalRow("a", 1, reply("another"), "now")]


def test_a_journal_closes_while_its_rows_are_being_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.record_many([Entry("a", reply("one")), Entry("b", reply("two"))])
    rows = journal.rows()
    assert next(rows).digest == "a"
    journal.close()


def test_rows_that_an_import_mends_meanwhile_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal, Journal(path) as other:
        journal.record_many([Entry(digest, reply("one")) for digest in "abc"])
        kept = sound(journal)
        journal._connection.execute("UPDATE replies SET text = x'00' WHERE digest = 'b'")
        rows = journal.rows()
        first = next(rows)
        assert other.merge(kept) == 1
        assert [row.digest for row in (first, *rows)] == ["a", "c"]
