"""ChatReply -> SQLite: every reply that was paid for, durable before anybody uses it.

One row per reply, keyed by the request's digest and the number of the attempt. Write-ahead log with
`synchronous=FULL`: `record` returns when the reply has reached the disk, so a crash costs at most what was
still in flight. Each row carries a checksum; a damaged row is skipped and counted, never believed, and its
request is simply owed again.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from psychocounsel.domain import ReplyStatus
from psychocounsel.errors import IncompleteError, StoreError
from psychocounsel.llm.chat import ChatReply

_SCHEMA_VERSION = 2
_BUSY_TIMEOUT_SECONDS = 30.0
_CREATE = """
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
    choices BLOB,
    PRIMARY KEY (digest, attempt)
)
"""
_FROM_VERSION_1 = "ALTER TABLE replies ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0"
_ADD_CHOICES = "ALTER TABLE replies ADD COLUMN choices BLOB"
_CREATE_READINGS = """
CREATE TABLE IF NOT EXISTS readings (
    reader TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (reader, digest)
) WITHOUT ROWID
"""
_SETTLED = """
SELECT readings.digest FROM readings WHERE reader = ? AND EXISTS
    (SELECT 1 FROM replies WHERE replies.digest = readings.digest)
"""
_COLUMNS = """
digest, attempt, status, text, model, prompt_tokens, completion_tokens, reason, created_at, cached_tokens,
choices
"""
_NEXT_ATTEMPT = "SELECT COALESCE(MAX(attempt) + 1, 0) FROM replies WHERE digest = ?"
_IS_KNOWN = "SELECT 1 FROM replies WHERE digest = ? AND text = ? AND created_at = ?"
_INSERT = f"INSERT INTO replies ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_SELECT = f"SELECT {_COLUMNS}, checksum FROM replies WHERE digest = ? ORDER BY attempt"  # noqa: S608
_SELECT_ALL = f"SELECT {_COLUMNS}, checksum FROM replies ORDER BY digest, attempt"  # noqa: S608
_COUNTS = """
SELECT status, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens) FROM replies GROUP BY status
"""

_Row: TypeAlias = tuple[str, int, str, bytes, bytes, int, int, bytes, str, int, bytes | None]


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
        StoreError: the file is no journal, is damaged, is held by another run, or the disk is full.
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
            rows = self._connection.execute(_SELECT, (digest,)).fetchall()
        intact = [row[:-1] for row in rows if _checksum(row[:-1]) == row[-1]]
        self.damaged_rows += len(rows) - len(intact)
        return [_reply(row) for row in intact]

    def record(self, digest: str, reply: ChatReply) -> None:
        """Keep one reply; it is on disk when this returns."""
        self.record_many([Entry(digest, reply)])

    def record_many(self, entries: Iterable[Entry]) -> None:
        """Keep several replies in one commit: all are on disk when this returns, or none is.

        Raises:
            ValueError: an `ERROR` reply is among them; nothing was answered, so there is nothing to keep.
        """
        kept = list(entries)
        if not all(entry.reply.answered for entry in kept):
            raise ValueError("a reply that was never answered is not journalled")
        created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._turn, self._explained(), self._transaction():
            for digest, reply in kept:
                (attempt,) = self._connection.execute(_NEXT_ATTEMPT, (digest,)).fetchone()
                row = _row(digest, attempt, reply, created_at)
                self._connection.execute(_INSERT, (*row, _checksum(row)))

    def settled(self, reader: str) -> set[str]:
        """Return the digests of all requests that have a reply which this reader once accepted.

        Args:
            reader: names the rule by which replies are accepted; another rule, another name.
        """
        with self._turn, self._explained():
            return {digest for (digest,) in self._connection.execute(_SETTLED, (reader,))}

    def settle(self, reader: str, digests: Iterable[str]) -> None:
        """Remember that a reader accepted a reply to each of these requests."""
        with self._turn, self._explained(), self._transaction():
            self._connection.executemany(
                "INSERT OR IGNORE INTO readings VALUES (?, ?)", ((reader, digest) for digest in digests)
            )

    def rows(self) -> Iterator[JournalRow | None]:
        """Yield every reply, by request and attempt; None in the place of a damaged one."""
        with self._turn, self._explained():
            for values in self._connection.execute(_SELECT_ALL):
                row = values[:-1]
                intact = _checksum(row) == values[-1]
                yield JournalRow(row[0], row[1], _reply(row), row[8]) if intact else None

    def adopt(self, rows: Iterable[JournalRow]) -> int:
        """Take over replies that another journal kept, each once; return how many were new.

        A reply is known by its request, its text and the time at which it was kept.
        """
        taken = 0
        with self._turn, self._explained(), self._transaction():
            for each in rows:
                row = _row(each.digest, each.attempt, each.reply, each.created_at)
                same = (each.digest, row[3], each.created_at)
                if self._connection.execute(_IS_KNOWN, same).fetchone() is None:
                    (attempt,) = self._connection.execute(_NEXT_ATTEMPT, (each.digest,)).fetchone()
                    row = (row[0], attempt, *row[2:])
                    self._connection.execute(_INSERT, (*row, _checksum(row)))
                    taken += 1
        return taken

    def summary(self) -> JournalSummary:
        """Return the counts of everything kept, damaged rows included."""
        with self._turn, self._explained():
            counts = self._connection.execute(_COUNTS).fetchall()
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
                    self._connection.execute(_FROM_VERSION_1)
                self._connection.execute(_CREATE)
                self._add_choices()
                self._connection.execute(_CREATE_READINGS)
                self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def _add_choices(self) -> None:
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(replies)")}
        if "choices" not in columns:
            self._connection.execute(_ADD_CHOICES)

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


def _row(digest: str, attempt: int, reply: ChatReply, created_at: str) -> _Row:
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
        reply.choices.encode("utf-8", "surrogatepass") or None,
    )


def _reply(row: _Row) -> ChatReply:
    return ChatReply(
        status=ReplyStatus(row[2]),
        text=row[3].decode("utf-8", "surrogatepass"),
        model=row[4].decode("utf-8", "surrogatepass"),
        prompt_tokens=row[5],
        completion_tokens=row[6],
        reason=row[7].decode("utf-8", "surrogatepass"),
        cached_tokens=row[9],
        choices=(row[10] or b"").decode("utf-8", "surrogatepass"),
    )


def _checksum(row: _Row) -> bytes:
    # Older rows had no cached tokens and no choices, and their checksums stay as they are.
    told = row if row[10] is not None else row[:10] if row[9] else row[:9]
    return hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).digest()
