"""ChatReply -> SQLite: every reply that was paid for, durable before anybody uses it.

One row per reply, keyed by the request's digest and the number of the attempt. Write-ahead log with
`synchronous=FULL`: `record` returns when the reply has reached the disk, so a crash costs at most what was
still in flight. Each row carries a checksum; a damaged row is skipped and counted, never believed, and its
request is simply owed again.
"""

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
from typing import NamedTuple, Self, TypeAlias

from psychocounsel.errors import IncompleteError, StoreError
from psychocounsel.llm.chat import ChatReply
from psychocounsel.llm.journal_rows import (
    ADD_CHOICES,
    COUNTS,
    CREATE,
    CREATE_BROKEN_LINES,
    CREATE_READINGS,
    DELETE,
    DIGESTS_AT_ONCE,
    FROM_VERSION_1,
    FROM_VERSION_2,
    INSERT,
    INSERT_BROKEN_LINE,
    INSERT_SEVERAL,
    NEXT_ATTEMPT,
    NEXT_ATTEMPTS,
    ROWS_AT_ONCE,
    SELECT,
    SELECT_AT,
    SELECT_BROKEN_LINES,
    SELECT_PLACES,
    SELECT_SEVERAL,
    SETTLED,
    as_reply,
    as_row,
    checksum,
    is_sound,
    line_checksum,
)

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


class BrokenLine(NamedTuple):
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

    def settled(self, reader: str) -> set[str]:
        """Return the digests of all requests that have a reply which this reader once accepted.

        Args:
            reader: names the rule by which replies are accepted; another rule, another name.
        """
        with self._turn, self._explained():
            return {digest for (digest,) in self._connection.execute(SETTLED, (reader,))}

    def settle(self, reader: str, digests: Iterable[str]) -> None:
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
        lines = [BrokenLine(digest, now) for digest in digests]
        with self._turn, self._explained(), self._transaction():
            self._connection.executemany(
                INSERT_BROKEN_LINE, [(*line, line_checksum(*line)) for line in lines]
            )

    def broken_lines(self) -> list[BrokenLine | None]:
        """Return every broken line, by request and time; None in the place of a damaged one."""
        with self._turn, self._explained():
            rows = self._connection.execute(SELECT_BROKEN_LINES).fetchall()
        told = [(BrokenLine(*row[:2]), row[2]) for row in rows]
        return [line if line_checksum(*line) == told_checksum else None for line, told_checksum in told]

    def adopt(self, rows: Iterable[JournalRow | BrokenLine]) -> int:
        """Take over what another journal kept, each once; return how many were new.

        A reply is known by its request, its text and the time at which it was kept. A damaged one that agrees
        in its attempt, and in text or time, gives way to it.
        """
        with self._turn, self._explained(), self._transaction():
            return sum(
                self._adopt_line(each) if isinstance(each, BrokenLine) else self._adopt_reply(each)
                for each in rows
            )

    def _adopt_line(self, line: BrokenLine) -> bool:
        return bool(self._connection.execute(INSERT_BROKEN_LINE, (*line, line_checksum(*line))).rowcount)

    def _adopt_reply(self, offered: JournalRow) -> bool:
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
