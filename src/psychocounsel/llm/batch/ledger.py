"""The ledger: which requests are with a provider in batches, written down before anything is sent.

Three tables in the journal's own file, so that keeping a reply and noting that its request is no longer with the
provider are one commit. A request is in one open shard at most, whichever run created it, so that none is submitted
twice. A shard is `intended` until its file is uploaded, `sending` from just before its batch is created, `running`
once the batch has an id, then `ended` or `void`. Its files at the provider stay noted until they are deleted there.
"""

import sqlite3
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

from filelock import FileLock, Timeout

from psychocounsel.errors import StoreError
from psychocounsel.llm.journal import Entry, Journal

_CREATE_TABLES = (
    """
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
""",
    """
CREATE TABLE IF NOT EXISTS batch_lines (
    digest TEXT PRIMARY KEY,
    shard TEXT NOT NULL
) WITHOUT ROWID
""",
    "CREATE INDEX IF NOT EXISTS batch_lines_of ON batch_lines (shard)",
    """
CREATE TABLE IF NOT EXISTS batch_files (
    shard TEXT NOT NULL,
    file TEXT NOT NULL,
    PRIMARY KEY (shard, file)
) WITHOUT ROWID
""",
)
_OPEN_SHARDS = """
SELECT shard, run, sha256, lines, state, batch, changed_at FROM batch_shards
WHERE endpoint = ? AND state IN ('intended', 'sending', 'running') ORDER BY changed_at, shard
"""
_FULLY_READ = """
SELECT shard, run, sha256, lines, state, batch, changed_at FROM batch_shards
WHERE endpoint = ? AND state = 'running' AND NOT EXISTS
    (SELECT 1 FROM batch_lines WHERE batch_lines.shard = batch_shards.shard)
"""
_LEFT_FILES = """
SELECT shard, file FROM batch_files JOIN batch_shards USING (shard)
WHERE endpoint = ? AND state IN ('ended', 'void') ORDER BY changed_at, shard, file
"""
_IN_BATCHES = """
SELECT digest FROM batch_lines JOIN batch_shards USING (shard) WHERE state IN ('sending', 'running')
"""


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
        """The name of its file at the provider."""
        return f"{self.id}.jsonl"

    @property
    def metadata(self) -> dict[str, str]:
        """What its batch carries, so that it can be found in the provider's list."""
        return {"psychocounsel_run": self.run, "psychocounsel_shard": self.id, "sha256": self.sha256}


class LeftFile(NamedTuple):
    """A file at the provider whose shard is closed."""

    shard: str
    id: str


class BatchLedger:
    """The shards of one endpoint; errors are those of the journal.

    Args:
        journal: whose file holds them.
        endpoint: keeps the batches of one provider and model apart from others.
    """

    def __init__(self, journal: Journal, endpoint: str) -> None:
        self._journal = journal
        self._endpoint = endpoint
        with journal.transaction() as tables:
            for statement in _CREATE_TABLES:
                tables.execute(statement)

    @contextmanager
    def submitting(self) -> Generator[bool]:
        """Yield whether this run may submit, one run at a time; the lock ends with the process."""
        lock = FileLock(self._journal.path.with_name("batches.lock"), timeout=0, mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def open_shards(self) -> list[Shard]:
        """Return the shards that may be with the provider, oldest first."""
        return self._shards(_OPEN_SHARDS)

    def fully_read(self) -> list[Shard]:
        """Return the open shards of which every reply is kept: their run ended before it closed them."""
        return self._shards(_FULLY_READ)

    def _shards(self, query: str) -> list[Shard]:
        with self._journal.transaction() as tables:
            rows = tables.execute(query, (self._endpoint,)).fetchall()
        return [Shard(*row)._replace(state=ShardState(row[4])) for row in rows]

    def is_closed(self, shard_id: str) -> bool:
        """Whether a shard was closed, by any run."""
        query = "SELECT 1 FROM batch_shards WHERE shard = ? AND state IN ('ended', 'void')"
        with self._journal.transaction() as tables:
            return tables.execute(query, (shard_id,)).fetchone() is not None

    def left_files(self) -> list[LeftFile]:
        """Return the files that are no longer needed, those of the oldest shard first."""
        with self._journal.transaction() as tables:
            return [LeftFile(*row) for row in tables.execute(_LEFT_FILES, (self._endpoint,))]

    def forget_file(self, left: LeftFile) -> None:
        """Note that a file is deleted."""
        with self._journal.transaction() as tables:
            tables.execute("DELETE FROM batch_files WHERE shard = ? AND file = ?", left)

    def pending_of(self, shard_id: str) -> set[str]:
        """Return the digests of a shard's requests that still have no reply."""
        with self._journal.transaction() as tables:
            rows = tables.execute("SELECT digest FROM batch_lines WHERE shard = ?", (shard_id,))
            return {digest for (digest,) in rows}

    def add(self, shard: Shard, digests: Sequence[str]) -> None:
        """Write down a shard before anything of it is sent.

        Raises:
            StoreError: one of the requests is in another open shard.
        """
        with self._journal.transaction() as tables:
            try:
                tables.executemany("INSERT INTO batch_lines VALUES (?, ?)", ((digest, shard.id) for digest in digests))
            except sqlite3.IntegrityError:
                raise StoreError(
                    "another run has submitted some of these requests meanwhile",
                    where=str(self._journal.path),
                    remedy="run the same command again; it waits for those",
                ) from None
            tables.execute(
                "INSERT INTO batch_shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*shard[:3], self._endpoint, shard.lines, ShardState.INTENDED, "", time.time()),
            )

    def advance(self, shard_id: str, state: ShardState, batch: str = "", files: Iterable[str] = ()) -> None:
        """Note how far a shard is, and which files it has at the provider."""
        with self._journal.transaction() as tables:
            change = "UPDATE batch_shards SET state = ?, batch = ?, changed_at = ? WHERE shard = ?"
            tables.execute(change, (state, batch, time.time(), shard_id))
            _note_files(tables, shard_id, files)

    def record(self, shard_id: str, entries: Iterable[Entry]) -> list[Entry]:
        """Keep replies to a shard's requests, each once however often it is read; return the new ones."""

        def keep_if(tables: sqlite3.Connection, digest: str) -> bool:
            found = tables.execute("DELETE FROM batch_lines WHERE digest = ? AND shard = ?", (digest, shard_id))
            return found.rowcount == 1

        return self._journal.record_many(entries, keep_if)

    def close(self, shard_id: str, state: ShardState, files: Iterable[str] = ()) -> None:
        """End a shard: what it left unanswered may be submitted again, and its files may be deleted."""
        with self._journal.transaction() as tables:
            tables.execute("DELETE FROM batch_lines WHERE shard = ?", (shard_id,))
            change = "UPDATE batch_shards SET state = ?, changed_at = ? WHERE shard = ?"
            tables.execute(change, (state, time.time(), shard_id))
            _note_files(tables, shard_id, files)


def digests_in_batches(journal: Journal) -> set[str]:
    """Return the digests of all requests that may be with a provider in batches, of any endpoint."""
    with journal.transaction() as tables:
        if tables.execute("SELECT 1 FROM sqlite_master WHERE name = 'batch_lines'").fetchone() is None:
            return set()
        return {digest for (digest,) in tables.execute(_IN_BATCHES)}


def _note_files(tables: sqlite3.Connection, shard_id: str, files: Iterable[str]) -> None:
    rows = ((shard_id, file) for file in files if file)
    tables.executemany("INSERT OR IGNORE INTO batch_files VALUES (?, ?)", rows)
