"""Files of requests (shards), the ledger of what is with a provider in batches, and what a provider says of a batch.

The ledger is written before anything is sent: three tables in the journal's own file, so that keeping a reply and
noting that its request is no longer with the provider are one commit. A request is in one open shard at most,
whichever run created it, so that none is submitted twice. A shard is `intended` until its file is uploaded, `sending`
from just before its batch is created, `running` once the batch has an id, then `ended` or `void`. Its files at the
provider stay noted until they are deleted there.
"""

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from psychocounsel.config.components import BatchConfig
from psychocounsel.errors import IncompleteError, StoreError
from psychocounsel.llm.cost import TokenCounter
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.rate_limit import OnStatus
from psychocounsel.llm.runner import Items
from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.store.store import locked

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_HEAD = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'
# Some readers take these for the end of a line; in JSON they can only be inside strings.
_LINE_ENDS = {"\u2028": b"\\u2028", "\u2029": b"\\u2029", "\x85": b"\\u0085"}
_MOST_FILE_BYTES = 64_000_000  # providers take 100 MB or more

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


class BatchLedger:
    """The shards of one endpoint in the journal's file; errors are those of the journal."""

    def __init__(self, journal: Journal, endpoint: str) -> None:
        self._journal = journal
        self._endpoint = endpoint
        with journal.transaction() as tables:
            for statement in _CREATE_TABLES:
                tables.execute(statement)

    def submitting(self) -> AbstractContextManager[bool]:
        """Enter with whether this run may submit, one run at a time; the lock ends with the process."""
        return locked(self._journal.path.with_name("batches.lock"))

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

    def left_files(self) -> list[tuple[str, str]]:
        """Return shard and id of the files that are no longer needed, those of the oldest shard first."""
        with self._journal.transaction() as tables:
            return tables.execute(_LEFT_FILES, (self._endpoint,)).fetchall()

    def forget_file(self, shard_id: str, file_id: str) -> None:
        """Note that a file is deleted."""
        with self._journal.transaction() as tables:
            tables.execute("DELETE FROM batch_files WHERE shard = ? AND file = ?", (shard_id, file_id))

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


@dataclass(frozen=True)
class Batch:
    """A batch as the provider describes it.

    Args:
        status: `in_progress`, `completed`, `failed`, `expired`, `cancelling`, `cancelled`, ...
        created_at: in Unix seconds; 0 if the provider does not say.
        completed: requests that have a line in its files; `failed` need not have one.
        input_file: id of the file of requests; empty if unknown.
        files: ids of the output and error files, as far as they exist.
        codes: of errors, if it failed; `faults` are the messages.
    """

    id: str
    status: str
    created_at: int = 0
    completed: int = 0
    failed: int = 0
    input_file: str = ""
    files: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    codes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def answered(self) -> int:
        """How many requests are done, failed ones included."""
        return self.completed + self.failed

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _OVER

    @property
    def rank(self) -> tuple[bool, bool, bool, int, float, str]:
        """Sorts duplicates by how much they have brought, the best first."""
        is_lost = self.status in ("failed", "cancelling", "cancelled")
        # One without a time was created last.
        age = (self.created_at or float("inf"), self.id)
        return (is_lost, self.status == "expired", not self.is_over, -self.answered, *age)


class ProviderAwayError(IncompleteError):
    """The provider did not answer, after all retries, or not as a provider of batches does."""


class LostAnswerError(Exception):
    """No response came, so the batch may have been created or not."""


class UnknownBatchError(Exception):
    """The provider knows no such batch, or no such file."""


class Outcome(NamedTuple):
    """What a line of output says about one request.

    Without a reply, the reason says why, and `action` what would come of asking again, as for a live request; or else
    it is completed, with an answer that cannot be read.
    """

    digest: str
    reply: ChatReply | None
    reason: str = ""
    action: OnStatus = OnStatus.RETRY
    is_completed: bool = False


def input_line(digest: str, body: bytes) -> bytes:
    """Return the line of a request; `body` is what a live request sends."""
    for end, escaped in _LINE_ENDS.items():
        body = body.replace(end.encode(), escaped)
    return _HEAD % (digest.encode(), body)


class ShardBuilder:
    """Packs pending requests into files, in order, within the limits of files, queue and cost."""

    def __init__(self, items: Items, body: Callable[[ChatRequest], bytes], limits: BatchConfig) -> None:
        self._items, self._body, self._limits = items, body, limits
        self._counter = TokenCounter(items.model)
        self.pending: deque[str] = deque()
        self.queue_tokens = limits.enqueued_tokens

    def tokens(self, digest: str) -> int:
        """Return the tokens of a request's prompt."""
        return self._counter.prompt(self._items.by_digest[digest].request)

    def worst_cost(self, digest: str) -> Decimal:
        """Return what a request costs at most, in US dollars."""
        return self._items.budget.worst_in_batch(self._items.by_digest[digest].request)

    def next(self, queued_tokens: int) -> tuple[list[str], bytes] | None:
        """Return the digests of the next file's requests and its content; None if it waits until one of ours is done.

        Raises:
            IncompleteError: none is there, and one more request could pass the cost limit.
        """
        digests: list[str] = []
        lines: list[bytes] = []
        size, tokens, worst = 0, queued_tokens, Decimal(0)
        while self.pending and len(lines) < self._limits.max_lines:
            digest = self.pending[0]
            line = input_line(digest, self._body(self._items.by_digest[digest].request))
            size, tokens, worst = size + len(line), tokens + self.tokens(digest), worst + self.worst_cost(digest)
            is_alone = not lines and not queued_tokens
            if lines and size > _MOST_FILE_BYTES:
                break
            # A request that is larger than the queue goes alone: the provider says what it thinks of it.
            if self.queue_tokens is not None and tokens > self.queue_tokens and not is_alone:
                break
            if not self._items.budget.fits(worst):
                if is_alone:
                    raise self._items.budget.limit_error(worst)
                break
            digests.append(self.pending.popleft())
            lines.append(line)
        return (digests, b"".join(lines)) if lines else None

    def remove(self, digests: Set[str]) -> None:
        """Leave out requests that another shard holds."""
        self.pending = deque(digest for digest in self.pending if digest not in digests)
