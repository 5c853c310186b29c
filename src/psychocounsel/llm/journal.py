"""ChatReply -> SQLite: every reply that was paid for, durable before anybody uses it.

One row per reply, keyed by the request's digest and the number of the attempt. Write-ahead log with
`synchronous=FULL`: `record` returns when the reply has reached the disk, so a crash costs at most what was
still in flight. Each row carries a checksum; a damaged row is skipped and counted, never believed, and its
request is simply owed again.
"""

import codecs
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, cast

from psychocounsel.errors import IncompleteError, InputError, StoreError
from psychocounsel.llm.types import ChatReply
from psychocounsel.store.files import write_faults
from psychocounsel.types import ReplyStatus

CREATE = """
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
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    batched INTEGER NOT NULL DEFAULT 0,
    choices BLOB,
    PRIMARY KEY (digest, attempt)
)
"""
FROM_VERSION_1 = "ALTER TABLE replies ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0"
FROM_VERSION_2 = "ALTER TABLE replies ADD COLUMN batched INTEGER NOT NULL DEFAULT 0"
ADD_CHOICES = "ALTER TABLE replies ADD COLUMN choices BLOB"
CREATE_READINGS = """
CREATE TABLE IF NOT EXISTS readings (
    reader TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (reader, digest)
) WITHOUT ROWID
"""
CREATE_BROKEN_LINES = """
CREATE TABLE IF NOT EXISTS lost_responses (
    digest TEXT NOT NULL,
    created_at TEXT NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (digest, created_at)
) WITHOUT ROWID
"""
SELECT_BROKEN_LINES = "SELECT digest, created_at, checksum FROM lost_responses ORDER BY digest, created_at"
INSERT_BROKEN_LINE = "INSERT OR IGNORE INTO lost_responses VALUES (?, ?, ?)"
SETTLED = """
SELECT readings.digest FROM readings WHERE reader = ? AND EXISTS
    (SELECT 1 FROM replies WHERE replies.digest = readings.digest)
"""
COLUMNS = """
digest, attempt, status, text, model, prompt_tokens, completion_tokens, reason, created_at, cached_tokens,
batched, choices
"""
NEXT_ATTEMPT = "SELECT COALESCE(MAX(attempt) + 1, 0) FROM replies WHERE digest = ?"
NEXT_ATTEMPTS = "SELECT digest, MAX(attempt) + 1 FROM replies WHERE digest IN ({}) GROUP BY digest"
ROWS_AT_ONCE = 70
INSERT_SEVERAL = f"INSERT INTO replies ({COLUMNS}, checksum) VALUES "  # noqa: S608
INSERT = f"INSERT INTO replies ({COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
SELECT = f"SELECT {COLUMNS}, checksum FROM replies WHERE digest = ? ORDER BY attempt"  # noqa: S608
DIGESTS_AT_ONCE = 200
SELECT_SEVERAL = f"""
SELECT {COLUMNS}, checksum FROM replies WHERE digest IN ({", ".join("?" * DIGESTS_AT_ONCE)})
ORDER BY attempt
"""  # noqa: S608
SELECT_PLACES = "SELECT rowid FROM replies ORDER BY digest, attempt"
SELECT_AT = f"SELECT {COLUMNS}, checksum FROM replies WHERE rowid = ?"  # noqa: S608
DELETE = "DELETE FROM replies WHERE digest = ? AND attempt = ?"
COUNTS = """
SELECT status, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens) FROM replies GROUP BY status
"""

JournalTuple: TypeAlias = tuple[str, int, str, bytes, bytes, int, int, bytes, str, int, int, bytes | None]


def as_row(digest: str, attempt: int, reply: ChatReply, created_at: str) -> JournalTuple:
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


def as_reply(row: JournalTuple) -> ChatReply:
    """Return the reply of a row."""
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


def checksum(row: JournalTuple) -> bytes:
    """Return the SHA-256 (32 bytes) that a row is written with."""
    # Rows of formats 1 and 2 were shorter, and their checksums stay as they are.
    told = row if row[11] is not None else row[:11] if row[10] else row[:10] if row[9] else row[:9]
    return hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).digest()


def is_sound(values: tuple[object, ...]) -> bool:
    """Tell whether a row as it is read, its checksum last, is what was written."""
    row = cast("JournalTuple", values[:-1])
    # What a checksum leaves out is nought, and nothing else that is false.
    return type(row[9]) is int and type(row[10]) is int and checksum(row) == values[-1]


def line_checksum(digest: str, created_at: str) -> bytes:
    """Return the SHA-256 (32 bytes) that a broken line is written with."""
    return hashlib.sha256(repr((digest, created_at)).encode("utf-8", "backslashreplace")).digest()


_SCHEMA_VERSION = 3
_BUSY_TIMEOUT_SECONDS = 30.0
Claim: TypeAlias = Callable[[sqlite3.Connection, str], bool]


class Entry(NamedTuple):
    """A reply and the digest of the request that it answers."""

    digest: str
    reply: ChatReply


class JournalRow(NamedTuple):
    """A kept reply: to which request, the how-manieth, and when (ISO 8601, UTC)."""

    digest: str
    attempt: int
    reply: ChatReply
    created_at: str


class DamagedRow(NamedTuple):
    """In the place of a reply that does not fit its checksum; the digest is as it is read."""

    digest: str


class LostResponse(NamedTuple):
    """A request was sent and no answer came, though it may be charged; when (ISO 8601, UTC)."""

    digest: str
    created_at: str


@dataclass(frozen=True)
class JournalSummary:
    """How many replies are kept, for how many distinct requests, and what they cost in tokens."""

    replies: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    by_status: Mapping[str, int] = field(default_factory=dict[str, int])


class Journal:
    """The journal file at `path` (made with mode 0600); use it as a context manager.

    Calls may come from several threads: they take turns at one connection. Several processes may share the
    file: SQLite makes their commits take turns.

    Raises:
        StoreError: the file is no journal, is damaged, or is held by another run.
        IncompleteError: the disk is full or fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged_rows = 0
        self._turn = threading.Lock()
        with self._explained():
            _make_private(path)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
        # A flipped byte must not end in a decoding error: the row's checksum tells.
        self._connection.text_factory = _lenient_text
        try:
            self._prepare()
        except StoreError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; whatever was recorded is already on disk."""
        with self._turn, self._explained():
            self._connection.close()

    def replies(self, digest: str) -> list[ChatReply]:
        """Return the intact replies to the request with this digest, oldest attempt first."""
        with self._turn, self._explained():
            rows = self._connection.execute(SELECT, (digest,)).fetchall()
        intact = [row[:-1] for row in rows if is_sound(row)]
        self.damaged_rows += len(rows) - len(intact)
        return [as_reply(row) for row in intact]

    def replies_to(self, digests: Iterable[str]) -> Iterator[list[ChatReply]]:
        """Yield what `replies` returns for each digest, in their order; many are read at once."""
        remaining = iter(digests)
        while several := list(islice(remaining, DIGESTS_AT_ONCE)):
            kept = {digest: list[ChatReply]() for digest in several}
            filled = (*several, *[None] * (DIGESTS_AT_ONCE - len(several)))
            with self._turn, self._explained():
                rows = self._connection.execute(SELECT_SEVERAL, filled).fetchall()
            for values in rows:
                if is_sound(values):
                    kept[values[0]].append(as_reply(values[:-1]))
                else:
                    self.damaged_rows += 1
            yield from (kept[digest] for digest in several)

    def record(self, digest: str, reply: ChatReply) -> None:
        """Keep one reply; it is on disk when this returns."""
        self.record_many([Entry(digest, reply)])

    def record_many(self, entries: Iterable[Entry], claim: Claim | None = None) -> list[Entry]:
        """Keep several replies in one commit: all are on disk when this returns, or none is.

        Args:
            entries: the replies.
            claim: asked for each digest within that commit; a reply that it declines is not kept.

        Returns:
            Those that were kept.

        Raises:
            ValueError: an `ERROR` reply is among them; nothing was answered, so there is nothing to keep.
        """
        kept = list(entries)
        if not all(entry.reply.answered for entry in kept):
            raise ValueError("a reply that was never answered is not journalled")
        created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._turn, self._explained(), self._transaction():
            if claim is not None:
                kept = [entry for entry in kept if claim(self._connection, entry.digest)]
            for start in range(0, len(kept), ROWS_AT_ONCE):
                self._insert(kept[start : start + ROWS_AT_ONCE], created_at)
        return kept

    def _insert(self, entries: Sequence[Entry], created_at: str) -> None:
        """Insert with two statements: each gives the interpreter away, and a busy event loop takes it."""
        attempts = self._next_attempts({digest for digest, _ in entries})
        values: list[object] = []
        for digest, reply in entries:
            row = as_row(digest, attempts[digest], reply, created_at)
            attempts[digest] += 1
            values += (*row, checksum(row))
        marks = f"({', '.join('?' * (len(values) // len(entries)))})"
        self._connection.execute(INSERT_SEVERAL + ", ".join([marks] * len(entries)), values)

    def _next_attempts(self, digests: Set[str]) -> dict[str, int]:
        query = NEXT_ATTEMPTS.format(", ".join("?" * len(digests)))
        known = self._connection.execute(query, tuple(digests)).fetchall()
        return dict.fromkeys(digests, 0) | dict(known)

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Yield the connection, for tables beside the replies: all that is done there is kept, or nothing."""
        with self._turn, self._explained(), self._transaction():
            yield self._connection

    def accepted(self, reader: str) -> set[str]:
        """Return the digests of all requests that have a reply which this reader once accepted.

        Args:
            reader: names the rule by which replies are accepted; another rule, another name.
        """
        with self._turn, self._explained():
            return {digest for (digest,) in self._connection.execute(SETTLED, (reader,))}

    def mark_accepted(self, reader: str, digests: Iterable[str]) -> None:
        """Remember that a reader accepted a reply to each of these requests."""
        with self._turn, self._explained(), self._transaction():
            self._connection.executemany(
                "INSERT OR IGNORE INTO readings VALUES (?, ?)", ((reader, digest) for digest in digests)
            )

    def rows(self) -> Iterator[JournalRow | DamagedRow]:
        """Yield every reply, sound or damaged, by request and attempt."""
        with self._turn, self._explained():
            places = self._connection.execute(SELECT_PLACES).fetchall()
        for place in places:
            # A turn for each: whoever takes the rows may stop half-way, and close the journal.
            with self._turn, self._explained():
                values = self._connection.execute(SELECT_AT, place).fetchone()
            if values is None:  # an import mended it meanwhile, in another place
                continue
            if is_sound(values):
                yield JournalRow(values[0], values[1], as_reply(values[:-1]), values[8])
            else:
                yield DamagedRow(values[0])

    def record_broken_line(self, digest: str) -> None:
        """Keep that a request was sent and no answer came; it is on disk when this returns."""
        self.record_broken_lines([digest])

    def record_broken_lines(self, digests: Iterable[str]) -> None:
        """Keep the broken lines of several requests in one commit: all are on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        lines = [LostResponse(digest, now) for digest in digests]
        with self._turn, self._explained(), self._transaction():
            self._connection.executemany(INSERT_BROKEN_LINE, [(*line, line_checksum(*line)) for line in lines])

    def lost_responses(self) -> list[LostResponse | None]:
        """Return every broken line, by request and time; None in the place of a damaged one."""
        with self._turn, self._explained():
            rows = self._connection.execute(SELECT_BROKEN_LINES).fetchall()
        told = [(LostResponse(*row[:2]), row[2]) for row in rows]
        return [line if line_checksum(*line) == told_checksum else None for line, told_checksum in told]

    def merge(self, rows: Iterable[JournalRow | LostResponse]) -> int:
        """Take over what another journal kept, each once; return how many were new.

        A reply is known by its request, its text and the time at which it was kept. A damaged one that agrees
        in its attempt, and in text or time, gives way to it.
        """
        with self._turn, self._explained(), self._transaction():
            return sum(
                self._merge_lost(each) if isinstance(each, LostResponse) else self._merge_reply(each) for each in rows
            )

    def _merge_lost(self, line: LostResponse) -> bool:
        return bool(self._connection.execute(INSERT_BROKEN_LINE, (*line, line_checksum(*line))).rowcount)

    def _merge_reply(self, offered: JournalRow) -> bool:
        row = as_row(offered.digest, offered.attempt, offered.reply, offered.created_at)
        attempt = None
        for kept in self._connection.execute(SELECT, (offered.digest,)).fetchall():
            is_intact = is_sound(kept)
            same_text, same_time = kept[3] == row[3], kept[8] == row[8]
            if is_intact and same_text and same_time:
                return False
            if not is_intact and kept[1] == offered.attempt and (same_text or same_time):
                attempt = offered.attempt
        if attempt is None:
            (attempt,) = self._connection.execute(NEXT_ATTEMPT, (offered.digest,)).fetchone()
        row = (row[0], attempt, *row[2:])
        self._connection.execute(DELETE, row[:2])
        self._connection.execute(INSERT, (*row, checksum(row)))
        return True

    def summary(self) -> JournalSummary:
        """Return the counts of everything kept, damaged rows included."""
        with self._turn, self._explained():
            counts = self._connection.execute(COUNTS).fetchall()
            (requests,) = self._connection.execute("SELECT COUNT(DISTINCT digest) FROM replies").fetchone()
        return JournalSummary(
            replies=sum(row[1] for row in counts),
            requests=requests,
            prompt_tokens=sum(row[2] for row in counts),
            completion_tokens=sum(row[3] for row in counts),
            by_status={row[0]: row[1] for row in counts},
        )

    def _prepare(self) -> None:
        with self._explained():
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version > _SCHEMA_VERSION:
                    raise StoreError(
                        f"this journal has format {version}, known here is {_SCHEMA_VERSION}",
                        where=str(self.path),
                        remedy="use the newer version of psychocounsel that wrote it",
                    )
                if version == 1:
                    self._connection.execute(FROM_VERSION_1)
                if version in (1, 2):
                    self._connection.execute(FROM_VERSION_2)
                self._connection.execute(CREATE)
                self._add_choices()
                self._connection.execute(CREATE_READINGS)
                # Older programs read the replies as before, so this table raises no version.
                self._connection.execute(CREATE_BROKEN_LINES)
                self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def _add_choices(self) -> None:
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(replies)")}
        if "choices" not in columns:
            self._connection.execute(ADD_CHOICES)

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
            raise self._told(fault) from fault

    def _told(self, fault: Exception) -> StoreError | IncompleteError:
        name = getattr(fault, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            what, remedy = "another run holds this journal", "let it end, then run the same command again"
        elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return IncompleteError(
                f"the disk is full or fails ({fault}); every reply that was acknowledged is safe",
                where=str(self.path),
                remedy="free some space, then run the same command again",
            )
        elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or name == "SQLITE_ERROR":
            what = f"this is no journal of replies, or a damaged one ({fault})"
            remedy = (
                f"set it and its -wal file aside (say, as {self.path.name}.damaged), or put a copy back; "
                "replies that are only in there will be asked and paid for again"
            )
        else:
            what = f"the journal of replies cannot be used ({fault})"
            remedy = "check that its folder exists and that you may write there"
        return StoreError(what, where=str(self.path), remedy=remedy)


def _lenient_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _make_private(path: Path) -> None:
    # SQLite gives the -wal and -shm files the mode of the database itself.
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


_MOST_COUNTED = 2**63 - 1
_TEXTS = ("digest", "status", "text", "model", "reason", "created_at")
_COUNTS = ("attempt", "prompt_tokens", "completion_tokens", "cached_tokens")


def write_rows(rows: Iterable[JournalRow | LostResponse], path: Path) -> int:
    """Write one reply or broken line per line, replacing the file as a whole; return how many.

    Raises:
        IncompleteError: the disk is full or refuses; the file is as it was.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    count = 0
    with write_faults(path):
        with unfinished.open("w", encoding="utf-8") as file:
            for count, row in enumerate(rows, start=1):  # noqa: B007
                # ASCII alone: a paid reply may hold a lone surrogate, which no file can.
                file.write(json.dumps(_as_line(row)) + "\n")
        unfinished.replace(path)
    return count


def read_rows(path: Path) -> Iterator[JournalRow | LostResponse]:
    """Yield the replies and broken lines of a file that `write_rows` wrote.

    Raises:
        InputError: a line that is no reply, or does not fit its checksum; names it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _from_line(line.removeprefix(codecs.BOM_UTF8), f"{path} line {number}")


def _as_line(row: JournalRow | LostResponse) -> dict[str, Any]:
    if isinstance(row, LostResponse):
        return {"lost_response": True, **row._asdict(), "checksum": _checksum(row)}
    reply = row.reply
    return {
        "digest": row.digest,
        "attempt": row.attempt,
        "created_at": row.created_at,
        "status": reply.status.value,
        "model": reply.model,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cached_tokens": reply.cached_tokens,
        "batched": reply.batched,
        "text": reply.text,
        "reason": reply.reason,
        **({"choices": reply.choices} if reply.choices else {}),
        "checksum": _checksum(row),
    }


def _checksum(row: JournalRow | LostResponse) -> str:
    if isinstance(row, LostResponse):
        return line_checksum(*row).hex()
    return checksum(as_row(row.digest, row.attempt, row.reply, row.created_at)).hex()


def _from_line(line: bytes, where: str) -> JournalRow | LostResponse:
    told = ""
    try:
        values = json.loads(line)
        row = _broken_line(values) if "lost_response" in values else _row(values)
        told = values.get("checksum", "")  # files of older versions have none
    except (ValueError, KeyError, TypeError, RecursionError):
        row = None
    if row is None or (isinstance(row, JournalRow) and not row.reply.answered):
        raise InputError(
            "this is no reply of a journal",
            where=where,
            remedy="give a file that `psychocounsel journal export` wrote",
        )
    if told and told != _checksum(row):
        raise InputError(
            "this reply does not fit its checksum: somebody changed it, or the file is damaged",
            where=where,
            remedy="export it again, or take the line out; the others can be imported",
        )
    return row


def _broken_line(values: Mapping[str, Any]) -> LostResponse | None:
    told = values["digest"], values["created_at"]
    is_one = all(isinstance(each, str) for each in told) and values["lost_response"] is True
    return LostResponse(*told) if is_one else None


def _row(values: Mapping[str, Any]) -> JournalRow | None:
    digest, status, text, model, reason, created_at = (values[name] for name in _TEXTS)
    attempt, prompt_tokens, completion_tokens, cached_tokens = (values[name] for name in _COUNTS)
    choices = values.get("choices", "")
    texts = (digest, status, text, model, reason, created_at, choices)
    counts = (attempt, prompt_tokens, completion_tokens, cached_tokens)
    if not all(isinstance(each, str) for each in texts) or not all(_is_count(each) for each in counts):
        return None
    if not isinstance(values.get("batched", False), bool):
        return None
    batched = values.get("batched", False)  # files of older versions do not say
    reply = ChatReply(
        ReplyStatus(status),
        text,
        model,
        prompt_tokens,
        completion_tokens,
        reason,
        cached_tokens,
        batched,
        choices,
    )
    return JournalRow(digest, attempt, reply, created_at)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_COUNTED
