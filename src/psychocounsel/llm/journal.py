"""The journal: every reply that was paid for, in SQLite, durable before it is used.

One row per reply, keyed by the request's digest and the number of the attempt. Write-ahead log with
`synchronous=FULL`: a method that records returns once its rows are on disk. Each row has a checksum; a damaged row
is skipped and counted, and its request is pending again.
"""

import codecs
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from stat import S_IMODE
from typing import Any, NamedTuple, Self, TypeAlias, cast

from psychocounsel.errors import IncompleteError, InputError, StoreError
from psychocounsel.llm.types import ChatReply
from psychocounsel.store.files import FULL_DISK, partial_path, put_in_place, umask, write_faults
from psychocounsel.types import ReplyStatus

_CREATE_REPLIES = """
CREATE TABLE IF NOT EXISTS replies (
    digest TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    status TEXT NOT NULL,
    text BLOB NOT NULL,
    model BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reason BLOB NOT NULL,
    created_at TEXT NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (digest, attempt)
)
"""
_CREATE_READINGS = """
CREATE TABLE IF NOT EXISTS readings (
    reader TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (reader, digest)
) WITHOUT ROWID
"""
_CREATE_LOST_RESPONSES = """
CREATE TABLE IF NOT EXISTS lost_responses (
    digest TEXT NOT NULL,
    created_at TEXT NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (digest, created_at)
) WITHOUT ROWID
"""
_ADDED_COLUMNS = {
    "cached_tokens": "INTEGER NOT NULL DEFAULT 0",
    "batched": "INTEGER NOT NULL DEFAULT 0",
    "choices": "BLOB",
}
"""Of `replies`, which journals of earlier versions lack as well."""

_SELECT_LOST = "SELECT digest, created_at, checksum FROM lost_responses ORDER BY digest, created_at"
_INSERT_LOST = "INSERT OR IGNORE INTO lost_responses VALUES (?, ?, ?)"
_SELECT_ACCEPTED = """
SELECT readings.digest FROM readings WHERE reader = ? AND EXISTS
    (SELECT 1 FROM replies WHERE replies.digest = readings.digest)
"""
_COLUMNS = """
digest, attempt, status, text, model, prompt_tokens, completion_tokens, reason, created_at, cached_tokens,
batched, choices, checksum
"""
_ROW_MARKS = f"({', '.join('?' * 13)})"
_LEAST_ROW_BYTES = 64
_ROWS_AT_ONCE = 70
_DIGESTS_AT_ONCE = 200
_INSERT = f"INSERT INTO replies ({_COLUMNS}) VALUES "  # noqa: S608
_SELECT_AT = f"SELECT {_COLUMNS} FROM replies WHERE rowid = ?"  # noqa: S608
_SELECT_ONE = f"SELECT {_COLUMNS} FROM replies WHERE digest = ? ORDER BY attempt"  # noqa: S608
_SELECT_SEVERAL = f"""
SELECT {_COLUMNS} FROM replies WHERE digest IN (SELECT value FROM json_each(?)) ORDER BY attempt
"""  # noqa: S608
_SELECT_ATTEMPTS = """
SELECT digest, MAX(attempt) + 1 FROM replies WHERE digest IN (SELECT value FROM json_each(?)) GROUP BY digest
"""

JournalTuple: TypeAlias = tuple[str, int, str, bytes, bytes, int, int, bytes, str, int, int, bytes | None]


def _as_row(digest: str, attempt: int, reply: ChatReply, created_at: str) -> JournalTuple:
    """Return a reply as it is written, without its checksum."""
    # Bytes, for SQLite refuses text with lone surrogates, and a paid reply is kept whatever it holds.
    return (
        digest,
        attempt,
        str(reply.status),
        reply.text.encode("utf-8", "surrogatepass"),
        reply.model.encode("utf-8", "surrogatepass"),
        reply.prompt_tokens,
        reply.completion_tokens,
        reply.reason.encode("utf-8", "surrogatepass"),
        created_at,
        reply.cached_tokens,
        int(reply.batched),
        reply.choices.encode("utf-8", "surrogatepass") or None,
    )


def _as_reply(row: JournalTuple) -> ChatReply:
    return ChatReply(
        status=ReplyStatus(row[2]),
        text=row[3].decode("utf-8", "surrogatepass"),
        model=row[4].decode("utf-8", "surrogatepass"),
        prompt_tokens=row[5],
        completion_tokens=row[6],
        reason=row[7].decode("utf-8", "surrogatepass"),
        cached_tokens=row[9],
        batched=bool(row[10]),
        choices=(row[11] or b"").decode("utf-8", "surrogatepass"),
    )


def _row_checksum(row: JournalTuple) -> bytes:
    # Rows of formats 1 and 2 were shorter, and their checksums stay valid.
    covered = row if row[11] is not None else row[:11] if row[10] else row[:10] if row[9] else row[:9]
    return _sha256(covered)


def _is_intact(values: tuple[object, ...]) -> bool:
    """Whether a row as it is read, its checksum last, is what was written."""
    row = cast("JournalTuple", values[:-1])
    # What a checksum leaves out is the integer 0, and no other false value.
    return type(row[9]) is int and type(row[10]) is int and _row_checksum(row) == values[-1]


def _sha256(values: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr(values).encode("utf-8", "backslashreplace")).digest()


LOCK_FILE = "requests.lock"
"""Beside the journal: of the requests that are in flight."""


def _is_corrupt(fault: Exception) -> bool:
    return getattr(fault, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _is_emptied(path: Path) -> bool:
    """Return whether the file is empty though a run has used it, and stays so: another run may be creating it anew."""
    until = time.monotonic() + _CREATION_SECONDS
    while path.exists() and not path.stat().st_size and path.with_name(LOCK_FILE).exists():
        if time.monotonic() >= until:
            return True
        time.sleep(0.01)
    return False


_SCHEMA_VERSION = 3
_CREATION_SECONDS = 2.0
_BUSY_TIMEOUT_SECONDS = 30.0
KeepIf: TypeAlias = Callable[[sqlite3.Connection, str], bool]


class Entry(NamedTuple):
    """A reply and the digest of the request that it answers."""

    digest: str
    reply: ChatReply


class JournalRow(NamedTuple):
    """A kept reply: the digest of its request, the number of the attempt, and the time (ISO 8601, UTC)."""

    digest: str
    attempt: int
    reply: ChatReply
    created_at: str


class DamagedRow(NamedTuple):
    """In the place of a reply that does not fit its checksum; the digest may be damaged, too."""

    digest: str


class LostResponse(NamedTuple):
    """A request was sent and no response came: it is possibly billed; when (ISO 8601, UTC)."""

    digest: str
    created_at: str


class Journal:
    """The journal file at `path` (for its user alone, or as `umask` says); use it as a context manager.

    Several threads may call it: a lock guards the one connection. Several processes may share the file: SQLite
    serialises their commits. One that `reads_only` need not be able to write the file, or in its folder.

    Raises:
        StoreError: the file is no journal, is damaged, or is held by another run.
        IncompleteError: the disk is full or fails.
    """

    def __init__(self, path: Path, *, reads_only: bool = False) -> None:
        self.path = path
        self.damaged_rows = 0
        self._lock = threading.Lock()
        with self._explained():
            # SQLite gives the -wal and -shm files the mode of the database itself.
            path.parent.mkdir(parents=True, exist_ok=True)
            if _is_emptied(path):
                raise self._damaged("a run has used it, and the file is empty")  # SQLite would delete its -wal file
            if reads_only:
                # SQLite would write a -wal file just to read, unless told that there is none and will be none.
                is_in_use = path.with_name(f"{path.name}-wal").exists()
                name = f"{path.resolve().as_uri()}?mode=ro{'' if is_in_use else '&immutable=1'}"
            else:
                name = str(path)
                mode = 0o666 & ~umask()
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, mode))
                if S_IMODE(path.stat().st_mode) != mode:  # only its owner may change it
                    path.chmod(mode)
            self._connection = sqlite3.connect(
                name, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False, uri=reads_only
            )
        # A flipped byte must not end in a decoding error: the checksum finds it.
        self._connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        try:
            if not reads_only:
                self._prepare()
        except StoreError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything recorded is on disk already."""
        with self._lock, self._explained():
            self._connection.close()

    def replies(self, digest: str) -> list[ChatReply]:
        """Return the intact replies to the request with this digest, oldest attempt first."""
        with self._lock, self._explained():
            rows = self._connection.execute(_SELECT_ONE, (digest,)).fetchall()
        # A damaged index leads to the rows of other requests.
        intact = [row[:-1] for row in rows if _is_intact(row) and row[0] == digest]
        self.damaged_rows += len(rows) - len(intact)
        return [_as_reply(row) for row in intact]

    def replies_to(self, digests: Iterable[str]) -> Iterator[list[ChatReply]]:
        """Yield what `replies` returns for each digest, in their order; many are read at once."""
        remaining = iter(digests)
        while several := list(islice(remaining, _DIGESTS_AT_ONCE)):
            kept = {digest: list[ChatReply]() for digest in several}
            with self._lock, self._explained():
                rows = self._connection.execute(_SELECT_SEVERAL, (json.dumps(several),)).fetchall()
            for values in rows:
                if _is_intact(values) and values[0] in kept:
                    kept[values[0]].append(_as_reply(values[:-1]))
                else:
                    self.damaged_rows += 1
            yield from (kept[digest] for digest in several)

    def record_many(self, entries: Iterable[Entry], keep_if: KeepIf | None = None) -> list[Entry]:
        """Keep several replies in one commit, those for which `keep_if` returns True; return those that were kept.

        `keep_if` is called within that commit, with the connection and each digest.

        Raises:
            ValueError: an `ERROR` reply is among them; it holds no response to keep.
        """
        kept = list(entries)
        if not all(entry.reply.answered for entry in kept):
            raise ValueError("an ERROR reply holds no response to keep")
        created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock, self._explained(), self._transaction():
            if keep_if is not None:
                kept = [entry for entry in kept if keep_if(self._connection, entry.digest)]
            for start in range(0, len(kept), _ROWS_AT_ONCE):
                self._insert(kept[start : start + _ROWS_AT_ONCE], created_at)
        return kept

    def _insert(self, entries: Sequence[Entry], created_at: str) -> None:
        # Two statements for all rows: each statement releases the GIL, and a busy event loop takes it.
        digests = [digest for digest, _ in entries]
        known = self._connection.execute(_SELECT_ATTEMPTS, (json.dumps(digests),)).fetchall()
        attempts = dict.fromkeys(digests, 0) | dict(known)
        values: list[object] = []
        for digest, reply in entries:
            row = _as_row(digest, attempts[digest], reply, created_at)
            attempts[digest] += 1
            values += (*row, _row_checksum(row))
        self._connection.execute(_INSERT + ", ".join([_ROW_MARKS] * len(entries)), values)

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Yield the connection, for tables of other modules; commit all that is done there, or nothing."""
        with self._lock, self._explained(), self._transaction():
            yield self._connection

    def accepted(self, reader: str) -> set[str]:
        """Return the digests of all requests with a reply that was accepted by the rule which `reader` names."""
        with self._lock, self._explained():
            return {digest for (digest,) in self._connection.execute(_SELECT_ACCEPTED, (reader,))}

    def mark_accepted(self, reader: str, digests: Iterable[str]) -> None:
        """Note that a reader accepted a reply to each of these requests."""
        with self._lock, self._explained(), self._transaction():
            rows = ((reader, digest) for digest in digests)
            self._connection.executemany("INSERT OR IGNORE INTO readings VALUES (?, ?)", rows)

    def rows(self) -> Iterator[JournalRow | DamagedRow]:
        """Yield every reply, intact or damaged, ordered by request and attempt.

        If the file itself is damaged, those that can be reached are among them, perhaps in another order.
        """
        with self._lock, self._explained():
            places = self._places()
        for place in places:
            # A lock for each: the caller may stop half-way, and close the journal.
            with self._lock, self._explained():
                row = self._row_at(place)
            if row is not None:
                yield row

    def _places(self) -> Iterable[tuple[int]]:
        # By the table first: a damaged index may hide rows, and no error says so.
        for table in ("replies NOT INDEXED", "replies"):
            try:
                query = f"SELECT rowid FROM {table} ORDER BY digest, attempt"  # noqa: S608
                return self._connection.execute(query).fetchall()
            except sqlite3.DatabaseError as fault:
                if not _is_corrupt(fault):
                    raise
        (last,) = self._connection.execute("SELECT MAX(rowid) FROM replies").fetchone()
        most = self.path.stat().st_size // _LEAST_ROW_BYTES  # the last number may be damaged as well
        return ((place,) for place in range(1, min(last or 0, most) + 1))

    def _row_at(self, place: tuple[int]) -> JournalRow | DamagedRow | None:
        try:
            values = self._connection.execute(_SELECT_AT, place).fetchone()
        except sqlite3.DatabaseError as fault:
            if not _is_corrupt(fault):
                raise
            return DamagedRow("")
        if values is None:  # an import replaced it meanwhile
            return None
        if _is_intact(values):
            return JournalRow(values[0], values[1], _as_reply(values[:-1]), values[8])
        return DamagedRow(values[0])

    def record_lost_responses(self, digests: Iterable[str]) -> None:
        """Keep, in one commit, that each of these requests was sent and no response came."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        with self._lock, self._explained(), self._transaction():
            rows = [(digest, now, _sha256((digest, now))) for digest in digests]
            self._connection.executemany(_INSERT_LOST, rows)

    def lost_responses(self) -> list[LostResponse | None]:
        """Return every lost response, ordered by request and time; None in the place of a damaged one."""
        with self._lock, self._explained():
            rows = self._connection.execute(_SELECT_LOST).fetchall()
        return [LostResponse(*row[:2]) if _sha256(row[:2]) == row[2] else None for row in rows]

    def merge(self, rows: Iterable[JournalRow | LostResponse]) -> int:
        """Take over what another journal kept, each once; return how many were new.

        Two replies are the same if request, text and time agree. A damaged one gives way to a reply that agrees
        in request and attempt, and in text or time.
        """
        with self._lock, self._explained(), self._transaction():
            return sum(map(self._merge_row, rows))

    def _merge_row(self, offered: JournalRow | LostResponse) -> bool:
        if isinstance(offered, LostResponse):
            return bool(self._connection.execute(_INSERT_LOST, (*offered, _sha256(tuple(offered)))).rowcount)
        row = _as_row(*offered)
        kept = self._connection.execute(_SELECT_ONE, (offered.digest,)).fetchall()
        attempt = max((each[1] for each in kept), default=-1) + 1
        for each in kept:
            same_text, same_time = each[3] == row[3], each[8] == row[8]
            if _is_intact(each):
                if same_text and same_time:
                    return False
            elif each[1] == offered.attempt and (same_text or same_time):
                attempt = offered.attempt
        row = (row[0], attempt, *row[2:])
        self._connection.execute("DELETE FROM replies WHERE digest = ? AND attempt = ?", row[:2])
        self._connection.execute(_INSERT + _ROW_MARKS, (*row, _row_checksum(row)))
        return True

    def _prepare(self) -> None:
        with self._explained():
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version > _SCHEMA_VERSION:
                    raise StoreError(
                        f"this journal has format {version}, and the newest known format is {_SCHEMA_VERSION}",
                        where=str(self.path),
                        remedy="use the newer version of psychocounsel that wrote it",
                    )
                for statement in (_CREATE_REPLIES, _CREATE_READINGS, _CREATE_LOST_RESPONSES):
                    self._connection.execute(statement)
                known = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(replies)")}
                for name, kind in _ADDED_COLUMNS.items():
                    if name not in known:
                        self._connection.execute(f"ALTER TABLE replies ADD COLUMN {name} {kind}")
                if self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'broken_lines'").fetchone():
                    self._connection.execute("INSERT OR IGNORE INTO lost_responses SELECT * FROM broken_lines")
                    self._connection.execute("DROP TABLE broken_lines")
                self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def _write_ahead(self) -> None:
        """Turn the write-ahead log on. SQLite's own timeout does not cover this change: two runs may begin a file."""
        until = time.monotonic() + _BUSY_TIMEOUT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as fault:
                if fault.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() >= until:
                    raise
                time.sleep(0.01)
            else:
                return

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.DatabaseError, OSError) as fault:
            raise self._as_error(fault) from fault
        except UnicodeDecodeError as fault:  # SQLite's message quotes the damaged schema
            raise self._damaged(fault) from fault

    def _as_error(self, fault: Exception) -> StoreError | IncompleteError:
        name = getattr(fault, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            what, remedy = "another run holds this journal", "wait for it to end, then run the same command again"
        elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR")) or getattr(fault, "errno", 0) in FULL_DISK:
            return IncompleteError(
                f"the disk is full or fails ({fault}); every reply that was recorded is safe",
                where=str(self.path),
                remedy="free some space, then run the same command again",
            )
        elif _is_corrupt(fault) or name == "SQLITE_ERROR":
            return self._damaged(fault)
        else:
            what = f"the journal of replies cannot be used ({fault})"
            remedy = "check that its folder exists and is writable, and that its path has fewer than 500 bytes"
        return StoreError(what, where=str(self.path), remedy=remedy)

    def _damaged(self, reason: object) -> StoreError:
        return StoreError(
            f"this is not a journal of replies, or it is damaged ({reason})",
            where=str(self.path),
            remedy="save what can be read with `psychocounsel journal export FILE`, move it and its -wal file away (to "
            f"{self.path.name}.damaged, say), and import FILE, or restore a copy; requests whose replies are lost are "
            "sent and paid for again",
        )


_MOST_COUNTED = 2**63 - 1
_TEXTS = ("digest", "status", "text", "model", "reason", "created_at")
_COUNTS = ("attempt", "prompt_tokens", "completion_tokens", "cached_tokens")


def write_rows(rows: Iterable[JournalRow | LostResponse], path: Path) -> int:
    """Write one reply or lost response per line, replacing the file as a whole; return how many.

    Raises:
        IncompleteError: the disk is full or fails; the file is unchanged.
    """
    partial = partial_path(path)
    count = 0
    with write_faults(path):
        with partial.open("w", encoding="utf-8") as file:
            for count, row in enumerate(rows, start=1):  # noqa: B007
                # ASCII only: a paid reply may hold a lone surrogate, which no file can.
                file.write(json.dumps(_as_line(row)) + "\n")
        put_in_place(partial, path)
    return count


def read_rows(path: Path) -> Iterator[JournalRow | LostResponse]:
    """Yield the replies and lost responses of a file that `write_rows` wrote.

    Raises:
        InputError: a line is not a reply, or does not fit its checksum; names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _from_line(line.removeprefix(codecs.BOM_UTF8), f"{path} line {number}")


def _as_line(row: JournalRow | LostResponse) -> dict[str, Any]:
    if isinstance(row, LostResponse):
        return {"lost_response": True, **row._asdict(), "checksum": _checksum(row)}
    place = {"digest": row.digest, "attempt": row.attempt, "created_at": row.created_at}
    return {**place, **asdict(row.reply), "checksum": _checksum(row)}


def _checksum(row: JournalRow | LostResponse) -> str:
    return (_sha256(tuple(row)) if isinstance(row, LostResponse) else _row_checksum(_as_row(*row))).hex()


def _from_line(line: bytes, where: str) -> JournalRow | LostResponse:
    written = ""
    try:
        values = json.loads(line)
        row = _as_journal_row(values)
        written = values.get("checksum", "")  # files of earlier versions have none
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        row = None
    if row is None or (isinstance(row, JournalRow) and not row.reply.answered):
        raise InputError(
            "this is not a reply of a journal",
            where=where,
            remedy="give a file that `psychocounsel journal export` wrote",
        )
    if written and written != _checksum(row):
        raise InputError(
            "this reply does not fit its checksum: it was changed, or the file is damaged",
            where=where,
            remedy="export it again, or remove the line; the others can be imported",
        )
    return row


def _as_journal_row(values: Mapping[str, Any]) -> JournalRow | LostResponse | None:
    # Files of earlier versions call it a broken line.
    if values.get("lost_response", values.get("broken_line")) is True:
        lost = values["digest"], values["created_at"]
        return LostResponse(*lost) if all(isinstance(each, str) for each in lost) else None
    digest, status, text, model, reason, created_at = texts = [values[name] for name in _TEXTS]
    attempt, prompt_tokens, completion_tokens, cached_tokens = counts = [values[name] for name in _COUNTS]
    choices, batched = values.get("choices", ""), values.get("batched", False)  # earlier versions wrote neither
    if not all(isinstance(each, str) for each in (*texts, choices)) or not isinstance(batched, bool):
        return None
    if not all(type(each) is int and 0 <= each <= _MOST_COUNTED for each in counts):
        return None
    reply = ChatReply(
        ReplyStatus(status), text, model, prompt_tokens, completion_tokens, reason, cached_tokens, batched, choices
    )
    return JournalRow(digest, attempt, reply, created_at)
