"""ChatRequest -> line of a batch's input; line of its output -> what became of one request."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply
from psychocounsel.llm.completion import UnreadableBodyError, mapping_of, read_completion

ENDPOINT = "/v1/chat/completions"
FILTERED = frozenset({"content_filter", "content_policy_violation"})

_HEAD = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'
# What some readers take for the end of a line; in JSON these stand in strings only.
_LINE_ENDS = {"\u2028": b"\\u2028", "\u2029": b"\\u2029", "\x85": b"\\u0085"}
_NOT_TAKEN = frozenset({400, 413, 422})
_REFUSES_ALL = frozenset({401, 402, 403, 404})
_LONGEST_QUOTE_CHARS = 200


class Outcome(NamedTuple):
    """What a line of output says of one request.

    Attributes:
        digest: the request's.
        reply: what was answered; None where nothing was.
        reason: why nothing was.
        is_refused: asked again, the request would be refused again.
        refuses_all: so would every other.
    """

    digest: str
    reply: ChatReply | None
    reason: str = ""
    is_refused: bool = False
    refuses_all: bool = False


def input_line(digest: str, body: bytes) -> bytes:
    """Return the line of a request, whose body is what a live request sends."""
    for end, escaped in _LINE_ENDS.items():
        body = body.replace(end.encode(), escaped)
    return _HEAD % (digest.encode(), body)


def read_output(content: bytes, model: str) -> Iterator[Outcome | None]:
    """Yield what each line of an output or error file says, in whatever order they stand; None if unreadable.

    Args:
        content: the file.
        model: named by a reply that names none itself.
    """
    for line in content.split(b"\n"):
        if line.strip():
            yield _outcome(line, model)


def _outcome(line: bytes, model: str) -> Outcome | None:
    try:
        told = mapping_of(json.loads(line))
    except (ValueError, RecursionError):
        return None
    digest = told.get("custom_id")
    if not isinstance(digest, str):
        return None
    response = mapping_of(told.get("response"))
    status = response.get("status_code")
    if status == 200:
        return _answered(digest, response.get("body"))
    error = mapping_of(mapping_of(response.get("body")).get("error")) or mapping_of(told.get("error"))
    return _unanswered(digest, status if isinstance(status, int) else 0, error, model)


def _answered(digest: str, body: object) -> Outcome:
    # ASCII, for a lone surrogate in it is nothing that bytes can hold; the parser deals with it.
    whole = json.dumps(body).encode()
    try:
        return Outcome(digest, replace(read_completion(whole), batched=True))
    except UnreadableBodyError as fault:
        return Outcome(digest, None, f"unreadable answer: {fault}")


def _unanswered(digest: str, status: int, error: Mapping[str, Any], model: str) -> Outcome:
    codes = {str(error.get("code")), str(error.get("type"))}
    if status == 400 and codes & FILTERED:
        reason = "the provider filtered the prompt"
        return Outcome(digest, ChatReply(ReplyStatus.CONTENT_FILTER, "", model, 0, 0, reason, 0, True))
    words = " ".join(str(error.get("message") or error.get("code") or "no reason is told").split())
    said = words[:_LONGEST_QUOTE_CHARS]
    if not status:
        return Outcome(digest, None, said)
    reason = f"HTTP {status}: {said}"
    return Outcome(digest, None, reason, status in _NOT_TAKEN, status in _REFUSES_ALL)
