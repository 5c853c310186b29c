"""Journal <-> JSON Lines: replies carried from one store to another, or kept where a person can read them."""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from psychocounsel.domain import ReplyStatus
from psychocounsel.errors import InputError
from psychocounsel.llm.chat import ChatReply
from psychocounsel.llm.journal import BrokenLine, JournalRow
from psychocounsel.llm.journal_rows import as_row, checksum, line_checksum
from psychocounsel.store.atomic import write_faults

_MOST_COUNTED = 2**63 - 1
_TEXTS = ("digest", "status", "text", "model", "reason", "created_at")
_COUNTS = ("attempt", "prompt_tokens", "completion_tokens", "cached_tokens")


def write_rows(rows: Iterable[JournalRow | BrokenLine], path: Path) -> int:
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


def read_rows(path: Path) -> Iterator[JournalRow | BrokenLine]:
    """Yield the replies and broken lines of a file that `write_rows` wrote.

    Raises:
        InputError: a line that is no reply, or does not fit its checksum; names it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _from_line(line.removeprefix(codecs.BOM_UTF8), f"{path} line {number}")


def _as_line(row: JournalRow | BrokenLine) -> dict[str, Any]:
    if isinstance(row, BrokenLine):
        return {"broken_line": True, **row._asdict(), "checksum": _checksum(row)}
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


def _checksum(row: JournalRow | BrokenLine) -> str:
    if isinstance(row, BrokenLine):
        return line_checksum(*row).hex()
    return checksum(as_row(row.digest, row.attempt, row.reply, row.created_at)).hex()


def _from_line(line: bytes, where: str) -> JournalRow | BrokenLine:
    told = ""
    try:
        values = json.loads(line)
        row = _broken_line(values) if "broken_line" in values else _row(values)
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


def _broken_line(values: Mapping[str, Any]) -> BrokenLine | None:
    told = values["digest"], values["created_at"]
    is_one = all(isinstance(each, str) for each in told) and values["broken_line"] is True
    return BrokenLine(*told) if is_one else None


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
