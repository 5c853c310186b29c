"""ChatReply -> row of the journal, and back; with the statements that make, write and read its tables."""

import hashlib
from typing import TypeAlias, cast

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply

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
CREATE TABLE IF NOT EXISTS broken_lines (
    digest TEXT NOT NULL,
    created_at TEXT NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (digest, created_at)
) WITHOUT ROWID
"""
SELECT_BROKEN_LINES = "SELECT digest, created_at, checksum FROM broken_lines ORDER BY digest, created_at"
INSERT_BROKEN_LINE = "INSERT OR IGNORE INTO broken_lines VALUES (?, ?, ?)"
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
