"""Pending requests -> the next file to submit, as large as the provider's limits and the budget allow."""

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import NamedTuple

from psychocounsel.config.models import BatchConfig
from psychocounsel.llm.batches.files import input_line
from psychocounsel.llm.chat import ChatRequest
from psychocounsel.llm.spending import Budget
from psychocounsel.llm.token_counts import TokenCounter

_BYTES_PER_MB = 1_000_000


class Draft(NamedTuple):
    """A file to be submitted, and whose requests stand in it."""

    digests: list[str]
    content: bytes


class Load(NamedTuple):
    """What requests weigh: tokens of their prompts, and US dollars at most."""

    tokens: int = 0
    worst: Decimal = Decimal(0)

    def plus(self, other: "Load") -> "Load":
        """Return the sum."""
        return Load(self.tokens + other.tokens, self.worst + other.worst)


class Drafts:
    """What is still to be submitted, in order.

    Args:
        request: gives the request of a digest.
        body: what a live request would send.
        limits: of a file, and of the provider's queue.
        counter: counts the tokens of a prompt.
        budget: keeps the limit of cost; None where there is none.
    """

    def __init__(
        self,
        request: Callable[[str], ChatRequest],
        body: Callable[[ChatRequest], bytes],
        limits: BatchConfig,
        counter: TokenCounter,
        budget: Budget | None,
    ) -> None:
        self._request, self._body = request, body
        self._limits, self._counter, self._budget = limits, counter, budget
        self.pending: deque[str] = deque()
        self.queue_tokens = limits.enqueued_tokens

    def load(self, digests: Iterable[str]) -> Load:
        """Return what requests weigh together."""
        total = Load()
        for digest in digests:
            request = self._request(digest)
            worst = Decimal(0) if self._budget is None else self._budget.worst_in_batch(request)
            total = total.plus(Load(self._counter.prompt(request), worst))
        return total

    def next(self, tokens_there: int) -> Draft | None:
        """Return the next file; None if it has to wait until something of ours with the provider ends.

        Args:
            tokens_there: of our prompts that are with the provider.

        Raises:
            IncompleteError: nothing is there, and one more request could pass the limit of cost.
        """
        digests: list[str] = []
        lines: list[bytes] = []
        size, load = 0, Load()
        while self.pending and len(lines) < self._limits.max_lines:
            line = input_line(self.pending[0], self._body(self._request(self.pending[0])))
            size, more = size + len(line), load.plus(self.load([self.pending[0]]))
            if lines and size > self._limits.max_file_mb * _BYTES_PER_MB:
                break
            if not self._has_room(more, tokens_there, not lines):
                break
            digests.append(self.pending.popleft())
            lines.append(line)
            load = more
        return Draft(digests, b"".join(lines)) if lines else None

    def _has_room(self, load: Load, tokens_there: int, is_first: bool) -> bool:
        is_alone = is_first and not tokens_there
        fits = self.queue_tokens is None or tokens_there + load.tokens <= self.queue_tokens
        # A request that is larger than the queue goes alone: the provider will say what it thinks of it.
        if not fits and not is_alone:
            return False
        if self._budget is None or self._budget.fits(load.worst):
            return True
        if is_alone:
            raise self._budget.refusal(load.worst)
        return False

    def remove(self, digests: AbstractSet[str]) -> None:
        """Take requests out that another shard holds."""
        self.pending = deque(digest for digest in self.pending if digest not in digests)
