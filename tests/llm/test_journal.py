"""The journal keeps every reply through kills and damage; exports and imports keep it, too."""

import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Timer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import psychocounsel
from fake_model import count_replies
from psychocounsel.errors import IncompleteError, InputError, StoreError
from psychocounsel.llm.journal import (
    LOCK_FILE,
    DamagedRow,
    Entry,
    Journal,
    JournalRow,
    LostResponse,
    read_rows,
    write_rows,
)
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus

SOURCE = str(Path(psychocounsel.__file__).parents[1])
ANSWERED = sorted(set(ReplyStatus) - {ReplyStatus.ERROR})


def reply(text="yes", status=ReplyStatus.VALID, tokens=3):
    return ChatReply(status, text, "judge-1", 10, tokens, "" if status is ReplyStatus.VALID else "why")


def row(text="one", digest="a", attempt=0):
    return JournalRow(digest, attempt, reply(text), "now")


def test_replies_come_back_in_the_order_of_their_attempts(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record_many([Entry("a", reply("no", ReplyStatus.REFUSAL))])
        journal.record_many([Entry("b", reply("other"))])
        journal.record_many([Entry("a", reply("half", ReplyStatus.CUT)), Entry("a", reply("done"))])
    with Journal(tmp_path / "j.sqlite") as journal:
        assert [r.text for r in journal.replies("a")] == ["no", "half", "done"]
        assert journal.replies("a")[0] == reply("no", ReplyStatus.REFUSAL)
        assert journal.replies("unknown") == []


def test_many_are_read_at_once_as_one_by_one(journal):
    places = [(number, n) for number in range(0, 900, 2) for n in range(1 + number % 3)]
    journal.record_many([Entry(f"d{number}", reply(f"{number}/{n}")) for number, n in places])
    journal._connection.execute("UPDATE replies SET text = x'00' WHERE digest = 'd8'")
    asked = [f"d{number}" for number in range(450)] + ["d2", "d2"]
    assert list(journal.replies_to(asked)) == [journal.replies(digest) for digest in asked]
    assert list(journal.replies_to([])) == []


def test_a_lost_response_is_kept_once_each_time_and_is_no_reply(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        for digest in ("b", "a", "b"):
            journal.record_lost_responses([digest])
    with Journal(tmp_path / "j.sqlite") as journal:
        assert [line.digest for line in journal.lost_responses()] == ["a", "b", "b"]
        assert journal.replies("b") == []
        assert count_replies(journal) == 0
        journal._connection.execute("UPDATE lost_responses SET digest = 'c' WHERE digest = 'a'")
        assert [line and line.digest for line in journal.lost_responses()] == ["b", "b", None]


def test_unanswered_replies_are_not_kept(journal):
    with pytest.raises(ValueError, match="ERROR"):
        journal.record_many([Entry("a", reply()), Entry("b", reply("", ReplyStatus.ERROR))])
    assert count_replies(journal) == 0


def test_files_are_private_even_where_they_were_not_and_commits_are_forced_to_disk(tmp_path):
    path = tmp_path / "deep" / "j.sqlite"
    path.parent.mkdir()
    path.touch(mode=0o644)
    with Journal(path) as journal:
        journal.record_many([Entry("a", reply())])
        assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"j.sqlite": 0o600, "j.sqlite-wal": 0o600, "j.sqlite-shm": 0o600}


def test_threads_take_turns(journal):
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: journal.record_many([Entry("shared", reply(str(number)))]), range(30)))
    assert len(journal.replies("shared")) == 30


def test_a_journal_that_another_run_begins_is_waited_for(tmp_path):
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        ends = Timer(0.1, other.execute, ["COMMIT"])
        ends.start()
        with Journal(path) as journal:
            assert list(journal.rows()) == []
        ends.join()


RECORDER = """
import sys
from pathlib import Path
from psychocounsel.types import ReplyStatus
from psychocounsel.llm.types import ChatReply
from psychocounsel.llm.journal import Entry, Journal
journal = Journal(Path(sys.argv[1]))
for number in range(100000):
    journal.record_many([Entry(f"d{number}", ChatReply(ReplyStatus.VALID, f"text {number}", "m", 1, 1))])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_everything_acknowledged_survives_kill_9(tmp_path):
    path = tmp_path / "j.sqlite"
    child = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(path)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": SOURCE}
    )
    with child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(40)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    acknowledged = [int(line) for line in lines if line.endswith("\n")]
    with Journal(path) as journal:
        for number in acknowledged:
            assert [r.text for r in journal.replies(f"d{number}")] == [f"text {number}"]
        assert count_replies(journal) in (len(acknowledged), len(acknowledged) + 1)


def test_a_torn_log_loses_only_its_end(tmp_path):
    path, log = tmp_path / "torn.sqlite", tmp_path / "torn.sqlite-wal"
    with Journal(tmp_path / "live.sqlite") as journal:
        for number in range(12):
            journal.record_many([Entry(f"d{number}", reply(f"text {number}"))])
        for suffix in ("", "-wal"):
            shutil.copy(f"{journal.path}{suffix}", f"{path}{suffix}")
    whole = log.read_bytes()
    kept = []
    for cut in [*range(0, len(whole), len(whole) // 25), len(whole)]:
        log.write_bytes(whole[:cut] + b"\xff" * 100)
        copy = tmp_path / f"cut{cut}.sqlite"
        shutil.copy(path, copy)
        shutil.copy(log, f"{copy}-wal")
        with Journal(copy) as journal:
            there = [bool(journal.replies(f"d{number}")) for number in range(12)]
            journal.record_many([Entry("after", reply())])
        assert there == sorted(there, reverse=True)
        kept.append(sum(there))
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, 12)


@pytest.mark.parametrize("content", [b"not a database, but long enough to look at" * 30, b"SQLite format 3\0junk" * 99])
def test_a_damaged_file_is_named_and_left_alone(tmp_path, content):
    path = tmp_path / "j.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert path.read_bytes() == content


def test_a_used_journal_that_is_empty_is_damaged_and_keeps_its_log(tmp_path):
    path, log = tmp_path / "j.sqlite", tmp_path / "j.sqlite-wal"
    Journal(path).close()
    path.write_bytes(b"")
    log.write_bytes(b"replies")
    (tmp_path / LOCK_FILE).touch()
    with pytest.raises(StoreError, match="damaged"):
        Journal(path)
    assert log.read_bytes() == b"replies"


def test_a_journal_that_another_run_is_just_creating_anew_is_waited_for(tmp_path):
    with Journal(tmp_path / "whole"):
        pass
    path, content = tmp_path / "journal.sqlite", (tmp_path / "whole").read_bytes()
    (tmp_path / LOCK_FILE).touch()
    path.touch()
    other = Timer(0.1, path.write_bytes, [content])
    other.start()
    with Journal(path) as journal:
        assert list(journal.rows()) == []
    other.join()


class FailingDisk:
    """A connection to a file on a disk that fails."""

    in_transaction = False

    def __init__(self, errorname):
        self.fault = sqlite3.OperationalError("disk I/O error")
        self.fault.sqlite_errorname = errorname

    def execute(self, *_):
        raise self.fault


@pytest.mark.parametrize("errorname", ["SQLITE_IOERR", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC"])
def test_a_failing_disk_is_an_unfinished_run(journal, monkeypatch, errorname):
    for ask in (
        lambda: journal.record_many([Entry("a", reply())]),
        lambda: journal.replies("a"),
        journal.lost_responses,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(journal, "_connection", FailingDisk(errorname))
            with pytest.raises(IncompleteError, match="free some space"):
                ask()


def test_a_newer_format_and_a_folder_are_refused(tmp_path):
    path = tmp_path / "j.sqlite"
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="format 99"):
        Journal(path)
    with pytest.raises(StoreError, match="cannot be used"):
        Journal(tmp_path)


OLD_FORMAT = """
CREATE TABLE replies (
    digest TEXT NOT NULL, attempt INTEGER NOT NULL, status TEXT NOT NULL, text BLOB NOT NULL,
    model BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, reason BLOB NOT NULL,
    created_at TEXT NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (digest, attempt)
)
"""


def test_a_journal_of_the_first_format_keeps_its_replies(tmp_path):
    row = ("a", 0, "valid", b"yes", b"judge-1", 10, 3, b"", "2026-01-02T03:04:05.678+00:00")
    with sqlite3.connect(tmp_path / "j.sqlite") as old:
        old.execute(OLD_FORMAT)
        checksum = hashlib.sha256(repr(row).encode()).digest()
        old.execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, checksum))
        old.execute("PRAGMA user_version=1")
    later = ChatReply(ReplyStatus.VALID, "again", "judge-1", 10, 3, cached_tokens=8, choices='[[6,"4",[["4",-0.1]]]]')
    for _ in range(2):
        with Journal(tmp_path / "j.sqlite") as journal:
            journal.record_many([Entry("a", later)])
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.replies("a") == [reply(), later, later]
        assert journal.damaged_rows == 0


TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
COUNTS = st.integers(0, 10**9)
ROWS = st.builds(
    JournalRow,
    st.text("0123456789abcdef", min_size=1, max_size=8),
    st.integers(0, 3),
    st.builds(ChatReply, st.sampled_from(ANSWERED), TEXTS, TEXTS, COUNTS, COUNTS, TEXTS, COUNTS, st.booleans(), TEXTS),
    st.just("2026-01-02T03:04:05.678+00:00"),
)

LOST_RESPONSES = st.builds(LostResponse, TEXTS, TEXTS)


def sound(journal: Journal) -> list[JournalRow]:
    return [row for row in journal.rows() if isinstance(row, JournalRow)]


@settings(max_examples=40)
@given(st.lists(ROWS | LOST_RESPONSES, max_size=5))
def test_rows_round_trip_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, rows: list[JournalRow | LostResponse]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_rows(rows, path) == len(rows)
    assert list(read_rows(path)) == rows
    assert [each.name for each in path.parent.iterdir()] == ["rows.jsonl"]
    replies = [row.reply for row in rows if isinstance(row, JournalRow)]
    with Journal(path.with_name("j.sqlite")) as journal:
        journal.record_many([Entry("d", each) for each in replies])
        assert journal.replies("d") == replies


def test_an_import_adds_replies_and_lost_responses_of_another_journal_only_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "old.sqlite") as old:
        old.record_many([Entry("a", reply("one")), Entry("a", reply("two")), Entry("b", reply("three"))])
        old.record_lost_responses(["a"])
        old.record_lost_responses(["b"])
        kept = [line for line in old.lost_responses() if line is not None]
        assert write_rows([*sound(old), *kept], tmp_path / "rows.jsonl") == 5
    with Journal(tmp_path / "new.sqlite") as new:
        new.record_many([Entry("a", reply("mine"))])
        new.record_lost_responses(["b"])
        assert new.merge(read_rows(tmp_path / "rows.jsonl")) == 5
        assert new.merge(read_rows(tmp_path / "rows.jsonl")) == 0
        assert [each.text for each in new.replies("a")] == ["mine", "one", "two"]
        assert [each.text for each in new.replies("b")] == ["three"]
        assert [line.digest for line in new.lost_responses() if line is not None] == ["a", "b", "b"]


CHANGES = [("status", "splendid"), ("status", "error"), ("attempt", True), ("text", 7), ("prompt_tokens", 2**63)]
NO_REPLIES = [
    "[]",
    "7",
    '{"lost_response": true, "digest": "a"}',
    '{"lost_response": true, "digest": "a", "created_at": 7}',
    '{"lost_response": 1, "digest": "a", "created_at": "now"}',
]


@pytest.mark.parametrize(
    "broken",
    [lambda line: line[:-5]]
    + [lambda line, other=other: other for other in NO_REPLIES]
    + [lambda line, change=change: json.dumps(dict([*json.loads(line).items(), change])) for change in CHANGES]
    + [lambda line: json.dumps({name: value for name, value in json.loads(line).items() if name != "digest"})],
)
def test_a_line_that_is_no_reply_is_named_and_nothing_is_read(
    tmp_path: Path, journal: Journal, broken: Callable[[str], str]
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([row(), row("two", "b")], path)
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{broken(second)}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: .*not a reply"):
        journal.merge(read_rows(path))
    assert count_replies(journal) == 0


NO_TEXT = (b"SQLite format 3\0\xff\xfe", "\ufeffnot JSON".encode("utf-16"), b"\x00\x01\x80")
CHANGED = ((b"a rating of 1", b"a rating of 5"), (b'"digest": "c"', b'"digest": "d"'))


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [(None, content, "line 1: .*not a reply") for content in NO_TEXT]
    + [(*change, "does not fit its checksum") for change in CHANGED],
)
def test_a_file_that_is_no_text_or_was_changed_is_reported(
    tmp_path: Path, before: bytes | None, after: bytes, what: str
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([row("a rating of 1"), LostResponse("c", "then")], path)
    path.write_bytes(path.read_bytes().replace(before, after) if before else after)
    with pytest.raises(InputError, match=what):
        list(read_rows(path))


def test_a_line_of_an_older_version_without_a_checksum_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([row()], path)
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values.pop("checksum")
    path.write_text("\ufeff" + json.dumps(values), encoding="utf-8")
    assert list(read_rows(path)) == [row()]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    def rows():
        yield row()
        raise OSError("disk")

    (tmp_path / "rows.jsonl").write_text("precious", encoding="utf-8")
    with pytest.raises(IncompleteError, match="disk"):
        write_rows(rows(), tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == "precious"


def test_what_a_reader_accepted_is_known_to_it_alone(journal: Journal) -> None:
    journal.record_many([Entry("a", reply("one")), Entry("b", reply("two"))])
    journal.mark_accepted("parser 1", ["a", "a", "lost"])
    assert journal.accepted("parser 1") == {"a"}  # a request without a reply stays pending
    assert journal.accepted("parser 2") == set()


DAMAGE = {
    "status": "'?'",
    "completion_tokens": "99",
    "created_at": "'then'",
    "cached_tokens": "''",
    "batched": "''",
    "choices": "'?'",
}
DAMAGE |= dict.fromkeys(["text", "model", "checksum"], "x'00'")


@pytest.mark.parametrize(("column", "value"), [*DAMAGE.items(), ("status", "CAST(x'ff' AS TEXT)")])
def test_an_import_mends_a_damaged_reply(tmp_path: Path, journal: Journal, column: str, value: str) -> None:
    journal.record_many([Entry("a", reply("one")), Entry("a", reply("two"))])
    write_rows(sound(journal), tmp_path / "rows.jsonl")
    journal._connection.execute(f"UPDATE replies SET {column} = {value} WHERE attempt = 0")  # noqa: S608
    assert journal.merge(read_rows(tmp_path / "rows.jsonl")) == 1
    assert [each.text for each in journal.replies("a")] == ["one", "two"]
    assert all(isinstance(row, JournalRow) for row in journal.rows())


def test_a_damaged_reply_is_reported_among_others_and_gives_way_to_none_but_itself(journal: Journal) -> None:
    journal.record_many([Entry("a", reply("one"))])
    journal._connection.execute("UPDATE replies SET text = x'00'")
    assert journal.merge([row("another")]) == 1
    assert list(journal.rows()) == [DamagedRow("a"), row("another", attempt=1)]


def test_a_journal_closes_while_its_rows_are_being_read(journal: Journal) -> None:
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


@contextmanager
def changed_page(journal: Journal, name: str) -> Iterator[bytearray]:
    """Yield the first page of a table or an index, and write what it is then."""
    tables = journal._connection
    tables.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = tables.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    (page_bytes,) = tables.execute("PRAGMA page_size").fetchone()
    with journal.path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        content = bytearray(file.read(page_bytes))
        yield content
        file.seek((page - 1) * page_bytes)
        file.write(content)


@pytest.mark.parametrize(("damages_index", "at", "found"), [(True, 12, 100), (False, 12, 100), (False, 8, 150)])
def test_a_damaged_page_and_number_of_a_row_hide_no_row_elsewhere(
    journal: Journal, damages_index: bool, at: int, found: int
) -> None:
    journal.record_many([Entry(f"{number:064x}", reply("one")) for number in range(200)])
    journal._connection.execute("UPDATE replies SET rowid = 1 << 60 WHERE rowid = 200")
    with changed_page(journal, "replies") as page:
        pointer = int.from_bytes(page[12:14]) if at == 12 else at  # to the first page of rows, or to the last
        page[pointer : pointer + 4] = b"\xff" * 4
    if damages_index:
        with changed_page(journal, "sqlite_autoindex_replies_1") as page:
            page[:] = b"\xff" * len(page)
    with Journal(journal.path) as damaged:
        assert len(sound(damaged)) > found


def test_a_damaged_index_hides_no_row(journal: Journal) -> None:
    digests = [f"{number:064x}" for number in range(9)]
    journal.record_many([Entry(digest, reply("one")) for digest in digests])
    with changed_page(journal, "sqlite_autoindex_replies_1") as page:
        page[page.index(digests[7].encode()) + 64] -= 1  # the number of its row is that of the one before
    with Journal(journal.path) as damaged:
        assert [each.digest for each in sound(damaged)] == digests


def test_a_damaged_index_gives_no_request_the_reply_to_another(journal: Journal) -> None:
    digests = [letter * 64 for letter in "abcde"]
    journal.record_many([Entry(digest, reply(f"to {digest[0]}")) for digest in digests])
    with changed_page(journal, "sqlite_autoindex_replies_1") as page:
        page[page.index(digests[0].encode())] = ord("z")  # what follows is no longer in order
    with Journal(journal.path) as damaged:
        assert damaged.replies(digests[2]) == [reply("to c")]
        assert list(damaged.replies_to([digests[2]])) == [[reply("to c")]]
        assert damaged.damaged_rows > 0


def test_a_damaged_schema_that_is_no_text_is_a_damaged_journal(journal: Journal) -> None:
    path = journal.path
    journal.close()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE replies", b"CREATE TABL\xaf replies"))
    with pytest.raises(StoreError, match="damaged"):
        Journal(path)


def test_lost_responses_of_an_earlier_version_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal.record_lost_responses(["a", "b"])
        kept = journal.lost_responses()
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE lost_responses RENAME TO broken_lines")
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.lost_responses() == kept
    line = json.dumps({"broken_line": True, **kept[0]._asdict()}) if kept[0] else ""
    (tmp_path / "old.jsonl").write_text(line, encoding="utf-8")
    assert list(read_rows(tmp_path / "old.jsonl")) == kept[:1]
