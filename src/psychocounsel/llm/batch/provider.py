"""Batch -> what its provider tells of it; what a provider is, and the way there."""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from psychocounsel.config.components import BatchConfig
from psychocounsel.errors import IncompleteError
from psychocounsel.llm.replies import UnreadableBodyError, mapping_of, read_completion
from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import ReplyStatus

log = logging.getLogger(__name__)

FULL_QUEUE = "token_limit_exceeded"

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_GIVEN_UP = frozenset({"failed", "cancelling", "cancelled"})


@dataclass(frozen=True)
class Batch:
    """What a provider tells of a batch; times in Unix seconds, `codes` and `faults` of its failure.

    `input_file` and `files`, of its output and its errors, are ids; an unknown one is left out.
    """

    id: str
    status: str
    created_at: int = 0
    answered: int = 0
    input_file: str = ""
    files: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    codes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _OVER

    @property
    def is_given_up(self) -> bool:
        """Whether it ends, or has ended, before its work is done."""
        return self.status in _GIVEN_UP

    def carries(self, metadata: Mapping[str, str]) -> bool:
        """Whether all of this stands in its metadata."""
        return metadata.items() <= self.metadata.items()


class AwayError(IncompleteError):
    """The provider did not answer, however often it was asked, or not as a provider of batches does."""


class LostAnswerError(Exception):
    """A batch may have been made, or not: no answer came."""


class UnknownBatchError(Exception):
    """The provider knows no such batch, or no such file."""


class Provider(Protocol):
    """Where batches are done; errors as those of `OpenAIBatches`."""

    base_url: str

    async def require_batches(self) -> None:
        """Return if there is a batch endpoint that takes our key."""
        ...

    async def newest(self, since: float) -> list[Batch]:
        """Return the batches that were made after a time in Unix seconds."""
        ...

    async def upload(self, name: str, content: bytes) -> str:
        """Hand in a file of requests, which costs nothing yet; return its id."""
        ...

    async def uploads(self, name: str) -> list[str]:
        """Return the ids of lately uploaded files of this name."""
        ...

    async def delete(self, file_id: str) -> None:
        """Delete a file; one that is not there is deleted already."""
        ...

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> Batch:
        """Make a batch of a file."""
        ...

    async def state(self, batch_id: str) -> Batch:
        """Return how far a batch is."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to do no more of a batch."""
        ...

    async def content(self, file_id: str) -> bytes:
        """Return what a file holds."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True)
class BatchTransport:
    """How requests reach a provider in batches.

    Args:
        connect: opens the provider; called within the event loop that uses it.
        body: what a live request would send.
        check: raises what is wrong with the model, before anything is submitted.
        is_known: whether it is known how the server is asked; if not, one request goes live and finds out.
        limits: of files, queue and polling.
        tell: is told how far the batches are, now and then.
    """

    connect: Callable[[], Provider]
    body: Callable[[ChatRequest], bytes]
    check: Callable[[], Awaitable[None]]
    is_known: Callable[[], bool]
    limits: BatchConfig
    tell: Callable[[str], None] = log.info


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
