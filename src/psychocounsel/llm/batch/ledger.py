"""Shard -> SQLite: what is with a provider in batches, written down before it is sent.

Three tables beside the replies, in the journal's own file: a reply and the note that it is no longer awaited
are one commit. A request stands in one unfinished shard at most, whichever run made it, so that none is
submitted twice. A shard is `intended` until its file is uploaded, `sending` from just before its batch is
made, `running` once the batch has a name, and then `ended` or `void`. The files that it has at the provider
stay noted until they are deleted there.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

from psychocounsel.errors import StoreError
from psychocounsel.llm.journal import Entry, Journal

_CREATE = """
CREATE TABLE IF NOT EXISTS batch_shards (
    shard TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    lines INTEGER NOT NULL,
    state TEXT NOT NULL,
    batch TEXT NOT NULL,
    changed_at REAL NOT NULL
)
"""
_CREATE_LINES = """
CREATE TABLE IF NOT EXISTS batch_lines (
    digest TEXT PRIMARY KEY,
    shard TEXT NOT NULL
) WITHOUT ROWID
"""
_CREATE_INDEX = "CREATE INDEX IF NOT EXISTS batch_lines_of ON batch_lines (shard)"
_CREATE_FILES = """
CREATE TABLE IF NOT EXISTS batch_files (
    shard TEXT NOT NULL,
    file TEXT NOT NULL,
    PRIMARY KEY (shard, file)
) WITHOUT ROWID
"""
_UNFINISHED = """
SELECT shard, run, sha256, lines, state, batch, changed_at FROM batch_shards
WHERE endpoint = ? AND state IN ('intended', 'sending', 'running') ORDER BY changed_at, shard
"""
_READ_OUT = """
SELECT shard, run, sha256, lines, state, batch, changed_at FROM batch_shards
WHERE endpoint = ? AND state = 'running' AND NOT EXISTS
    (SELECT 1 FROM batch_lines WHERE batch_lines.shard = batch_shards.shard)
"""
_LEFT_FILES = """
SELECT shard, file FROM batch_files JOIN batch_shards USING (shard)
WHERE endpoint = ? AND state IN ('ended', 'void') ORDER BY changed_at, shard, file
"""
_HAS_LINES = "SELECT 1 FROM sqlite_master WHERE name = 'batch_lines'"
_AWAITED = """
SELECT digest FROM batch_lines JOIN batch_shards USING (shard) WHERE state IN ('sending', 'running')
"""
_CHANGE = "UPDATE batch_shards SET state = ?, batch = ?, changed_at = ? WHERE shard = ?"


class ShardState(StrEnum):
    """How far a shard has come."""

    INTENDED = "intended"
    SENDING = "sending"
    RUNNING = "running"
    ENDED = "ended"
    VOID = "void"


class Shard(NamedTuple):
    """One file of requests; `changed_at` is the time of its last change of state, in Unix seconds."""

    id: str
    run: str
    sha256: str
    lines: int
    state: ShardState = ShardState.INTENDED
    batch: str = ""
    changed_at: float = 0.0

    @property
    def file_name(self) -> str:
        """What its file is called at the provider."""
        return f"{self.id}.jsonl"

    @property
    def metadata(self) -> dict[str, str]:
        """What its batch carries, so that it is known again."""
        return {"psychocounsel_run": self.run, "psychocounsel_shard": self.id, "sha256": self.sha256}


class LeftFile(NamedTuple):
    """A file at the provider whose shard is over."""

    shard: str
    id: str


class BatchLedger:
    """The shards of one endpoint; errors as those of the journal.

    Args:
        journal: whose file holds them.
        endpoint: tells the batches of one provider and model from others.
    """

    def __init__(self, journal: Journal, endpoint: str) -> None:
        self._journal = journal
        self._endpoint = endpoint
        with journal.transaction() as tables:
            for statement in (_CREATE, _CREATE_LINES, _CREATE_INDEX, _CREATE_FILES):
                tables.execute(statement)

    def unfinished(self) -> list[Shard]:
        """Return the shards that may be with the provider, oldest first."""
        return self._shards(_UNFINISHED)

    def read_out(self) -> list[Shard]:
        """Return the shards of which every reply is kept, though a run ended before it could close them."""
        return self._shards(_READ_OUT)

    def _shards(self, query: str) -> list[Shard]:
        with self._journal.transaction() as tables:
            rows = tables.execute(query, (self._endpoint,)).fetchall()
        return [Shard(*row)._replace(state=ShardState(row[4])) for row in rows]

    def is_over(self, shard_id: str) -> bool:
        """Whether a shard was closed, by whatever run."""
        query = "SELECT 1 FROM batch_shards WHERE shard = ? AND state IN ('ended', 'void')"
        with self._journal.transaction() as tables:
            return tables.execute(query, (shard_id,)).fetchone() is not None

    def left_files(self) -> list[LeftFile]:
        """Return the files that nobody needs any more, those of the oldest shard first."""
        with self._journal.transaction() as tables:
            return [LeftFile(*row) for row in tables.execute(_LEFT_FILES, (self._endpoint,))]

    def has_leftovers(self) -> bool:
        """Whether there is something to tidy up at the provider."""
        return bool(self.left_files() or self.read_out())

    def forget_file(self, left: LeftFile) -> None:
        """Note that a file is deleted."""
        with self._journal.transaction() as tables:
            tables.execute("DELETE FROM batch_files WHERE shard = ? AND file = ?", left)

    def members(self, shard_id: str) -> set[str]:
        """Return the digests of a shard's requests that still await a reply."""
        with self._journal.transaction() as tables:
            rows = tables.execute("SELECT digest FROM batch_lines WHERE shard = ?", (shard_id,))
            return {digest for (digest,) in rows}

    @contextmanager
    def turn(self) -> Generator[bool]:
        """Yield whether it is our turn to submit; it ends with the process, however that ends."""
        path = self._journal.path.with_name("batches.lock")
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def intend(self, shard: Shard, digests: Sequence[str]) -> None:
        """Write down a shard before anything of it is sent.

        Raises:
            StoreError: one of the requests stands in another unfinished shard.
        """
        with self._journal.transaction() as tables:
            if any(_is_taken(tables, digest) for digest in digests):
                raise StoreError(
                    "another run has submitted some of these requests meanwhile",
                    where=str(self._journal.path),
                    remedy="run the same command again; it waits for those",
                )
            tables.execute(
                "INSERT INTO batch_shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    shard.id,
                    shard.run,
                    shard.sha256,
                    self._endpoint,
                    shard.lines,
                    ShardState.INTENDED,
                    "",
                    time.time(),
                ),
            )
            tables.executemany("INSERT INTO batch_lines VALUES (?, ?)", ((digest, shard.id) for digest in digests))

    def advance(self, shard_id: str, state: ShardState, batch: str = "", files: Iterable[str] = ()) -> None:
        """Note how far a shard is, and which files it has at the provider."""
        with self._journal.transaction() as tables:
            tables.execute(_CHANGE, (state, batch, time.time(), shard_id))
            _note_files(tables, shard_id, files)

    def keep(self, shard_id: str, entries: Iterable[Entry]) -> list[Entry]:
        """Record replies to a shard's requests, each once however often it is read; return the new."""

        def claim(tables: sqlite3.Connection, digest: str) -> bool:
            found = tables.execute("DELETE FROM batch_lines WHERE digest = ? AND shard = ?", (digest, shard_id))
            return found.rowcount == 1

        return self._journal.record_many(entries, claim)

    def close(self, shard_id: str, state: ShardState, files: Iterable[str] = ()) -> None:
        """End a shard; what it left unanswered may be submitted again, and its files may be deleted."""
        with self._journal.transaction() as tables:
            tables.execute("DELETE FROM batch_lines WHERE shard = ?", (shard_id,))
            tables.execute(
                "UPDATE batch_shards SET state = ?, changed_at = ? WHERE shard = ?",
                (state, time.time(), shard_id),
            )
            _note_files(tables, shard_id, files)


def awaited_digests(journal: Journal) -> set[str]:
    """Return the digests of all requests that may be with a provider in batches, of whatever endpoint."""
    with journal.transaction() as tables:
        if tables.execute(_HAS_LINES).fetchone() is None:
            return set()
        return {digest for (digest,) in tables.execute(_AWAITED)}


def _note_files(tables: sqlite3.Connection, shard_id: str, files: Iterable[str]) -> None:
    rows = ((shard_id, file) for file in files if file)
    tables.executemany("INSERT OR IGNORE INTO batch_files VALUES (?, ?)", rows)


def _is_taken(tables: sqlite3.Connection, digest: str) -> bool:
    return tables.execute("SELECT 1 FROM batch_lines WHERE digest = ?", (digest,)).fetchone() is not None
