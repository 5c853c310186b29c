"""Batches as a provider describes them, the files of requests that it takes, and the files of replies that it gives."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, NamedTuple

from psychocounsel.config.components import BatchConfig
from psychocounsel.errors import IncompleteError
from psychocounsel.llm.cost import TokenCounter
from psychocounsel.llm.rate_limit import OnStatus, on_status
from psychocounsel.llm.replies import UnreadableBodyError, mapping_of, read_completion
from psychocounsel.llm.runner import Items
from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import ReplyStatus

ENDPOINT = "/v1/chat/completions"
QUEUE_IS_FULL = "token_limit_exceeded"

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_CONTENT_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})
_HEAD = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'
# Some readers take these for the end of a line; in JSON they can only be inside strings.
_LINE_ENDS = {"\u2028": b"\\u2028", "\u2029": b"\\u2029", "\x85": b"\\u0085"}
_LONGEST_QUOTE_CHARS = 200
_BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Batch:
    """A batch as the provider describes it.

    Args:
        id: its name at the provider.
        status: `in_progress`, `completed`, `failed`, `expired`, `cancelling`, `cancelled`, ...
        created_at: in Unix seconds; 0 if the provider does not say.
        answered: requests that are done, failed ones included.
        input_file: id of the file of requests; empty if unknown.
        files: ids of the output and error files, as far as they exist.
        metadata: what its shard gave it.
        codes: error codes, if it failed.
        faults: error messages, if it failed.
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

    Attributes:
        digest: the request's.
        reply: None if there is none.
        reason: why there is none.
        is_refused: the request would be refused again.
        refuses_all: so would every other request.
    """

    digest: str
    reply: ChatReply | None
    reason: str = ""
    is_refused: bool = False
    refuses_all: bool = False


def input_line(digest: str, body: bytes) -> bytes:
    """Return the line of a request; `body` is what a live request sends."""
    for end, escaped in _LINE_ENDS.items():
        body = body.replace(end.encode(), escaped)
    return _HEAD % (digest.encode(), body)


class PendingShard(NamedTuple):
    """A file to be submitted, and the digests of its requests."""

    digests: list[str]
    content: bytes


class ShardBuilder:
    """Packs pending requests into files, in order, within the limits of files, queue and cost.

    Args:
        items: of the run; their budget keeps the cost limit.
        body: what a live request would send.
        limits: of a file, and of the provider's queue.
    """

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

    def next(self, queued_tokens: int) -> PendingShard | None:
        """Return the next file; None if it has to wait until one of ours is done.

        Args:
            queued_tokens: of our prompts that are with the provider.

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
            if lines and size > self._limits.max_file_mb * _BYTES_PER_MB:
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
        return PendingShard(digests, b"".join(lines)) if lines else None

    def remove(self, digests: Set[str]) -> None:
        """Leave out requests that another shard holds."""
        self.pending = deque(digest for digest in self.pending if digest not in digests)


def read_output(content: bytes, model: str) -> Iterator[Outcome | None]:
    """Yield what each line of an output or error file says; None for a line that cannot be read.

    Args:
        content: the file; its lines may stand in any order.
        model: for replies that do not name theirs.
    """
    for line in content.split(b"\n"):
        if line.strip():
            yield _read_line(line, model)


def _read_line(line: bytes, model: str) -> Outcome | None:
    try:
        result = mapping_of(json.loads(line))
    except (ValueError, RecursionError):
        return None
    digest = result.get("custom_id")
    if not isinstance(digest, str):
        return None
    response = mapping_of(result.get("response"))
    status = response.get("status_code")
    if status == 200:
        # As ASCII, for a lone surrogate in it has no UTF-8; the parser deals with it.
        body = json.dumps(response.get("body")).encode()
        try:
            return Outcome(digest, replace(read_completion(body), batched=True))
        except UnreadableBodyError as fault:
            return Outcome(digest, None, f"unreadable answer: {fault}")
    error = mapping_of(mapping_of(response.get("body")).get("error")) or mapping_of(result.get("error"))
    return _unanswered(digest, status if isinstance(status, int) else 0, error, model)


def _unanswered(digest: str, status: int, error: Mapping[str, Any], model: str) -> Outcome:
    codes = {str(error.get("code")), str(error.get("type"))}
    if status == 400 and codes & _CONTENT_FILTER_CODES:
        reason = "the provider filtered the prompt"
        return Outcome(digest, ChatReply(ReplyStatus.CONTENT_FILTER, "", model, 0, 0, reason, 0, True))
    message = " ".join(str(error.get("message") or error.get("code") or "no reason given").split())
    message = message[:_LONGEST_QUOTE_CHARS]
    if not status:
        return Outcome(digest, None, message)
    action = on_status(status, codes)
    return Outcome(
        digest,
        None,
        f"HTTP {status}: {message}",
        is_refused=action is OnStatus.REFUSE_REQUEST,
        refuses_all=action is OnStatus.REFUSE_ALL,
    )
