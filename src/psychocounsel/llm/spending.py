"""Requests and replies -> what they cost, and a stop before a limit is passed.

What is in flight counts at its worst: the prompt, and an answer of the full length, once for every try that
the client may make. A reply counts as the server reports it. A connection that broke after the request was
sent may have been paid for, and counts as one prompt with a full answer.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from psychocounsel.config.models import EndpointConfig
from psychocounsel.errors import ConfigError, IncompleteError
from psychocounsel.llm.chat import ChatReply, ChatRequest
from psychocounsel.llm.prices import Price, Tokens, price_of
from psychocounsel.llm.retry import RetryPolicy
from psychocounsel.llm.token_counts import TokenCounter


class Spent(NamedTuple):
    """Calls that were answered by one model, as it names itself, and their tokens."""

    calls: int = 0
    tokens: Tokens = Tokens()

    def with_reply(self, reply: ChatReply) -> "Spent":
        """Return the sum with one reply more."""
        tokens = Tokens(reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
        return Spent(self.calls + 1, self.tokens.plus(tokens))


@dataclass
class Spending:
    """What the replies to some requests cost: those kept by earlier runs, and those of this one.

    Attributes:
        price: of the model that is asked; None if nobody told it.
        kept: by model, what the journal held before this run.
        new: by model, what this run added.
        maybe_paid: requests of this run whose line broke; each is reckoned at its worst.
        maybe_cost: what those may have cost, in US dollars.
    """

    price: Price | None
    kept: dict[str, Spent] = field(default_factory=dict[str, Spent])
    new: dict[str, Spent] = field(default_factory=dict[str, Spent])
    maybe_paid: int = 0
    maybe_cost: Decimal = Decimal(0)

    def add(self, reply: ChatReply, *, is_new: bool) -> None:
        """Count a reply."""
        book = self.new if is_new else self.kept
        book[reply.model] = book.get(reply.model, Spent()).with_reply(reply)

    def cost(self, book: Mapping[str, Spent]) -> Decimal | None:
        """Return what the calls of a book cost in US dollars; None without a price."""
        if self.price is None:
            return None
        return sum((self.price.cost(each.tokens) for each in book.values()), Decimal(0))

    @property
    def total(self) -> Decimal:
        """US dollars of all runs, what may have been paid included; 0 without a price."""
        return (self.cost(self.kept) or Decimal(0)) + (self.cost(self.new) or Decimal(0)) + self.maybe_cost

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in which `metrics.json` holds it; all runs together, so a resumed one is equal."""
        together = dict(self.kept)
        for model, spent in self.new.items():
            before = together.get(model, Spent())
            together[model] = Spent(before.calls + spent.calls, before.tokens.plus(spent.tokens))
        cost = self.cost(together)
        return {
            "models": {
                model: {"calls": together[model].calls, **together[model].tokens._asdict()}
                for model in sorted(together)
            },
            "cost_usd": None if cost is None else float(round(cost, 6)),
            "price_from": "" if self.price is None else self.price.source,
        }

    @property
    def told(self) -> str:
        """Return what was spent, in words; empty if nothing was answered."""
        calls = sum(each.calls for each in self.new.values())
        before = sum(each.calls for each in self.kept.values())
        if not calls and not before and not self.maybe_paid:
            return ""
        lost = f"; {self.maybe_paid} more whose line broke may be paid{_dollars(self.maybe_cost)}"
        return (
            f"{calls:,} calls in this run{_dollars(self.cost(self.new))}, "
            f"{before:,} in earlier ones{_dollars(self.cost(self.kept))}{lost if self.maybe_paid else ''}"
        )


def spent_together(spendings: Sequence[Spending]) -> dict[str, Any]:
    """Return what several askers spent, in the shape of one; the cost is null where one price is unknown."""
    told = [each.as_dict() for each in spendings]
    models: dict[str, dict[str, int]] = {}
    for name, counts in (pair for each in told for pair in each["models"].items()):
        before = models.get(name, {})
        models[name] = {key: before.get(key, 0) + count for key, count in counts.items()}
    costs = [each["cost_usd"] for each in told]
    return {
        "models": {name: models[name] for name in sorted(models)},
        "cost_usd": None if None in costs else round(sum(costs), 6),
        "price_from": "; ".join(dict.fromkeys(each["price_from"] for each in told if each["price_from"])),
    }


def _dollars(cost: Decimal | None) -> str:
    return "" if cost is None else f" (${cost:,.2f})"


class Budget:
    """Lets a request through when even the worst that is in flight stays within the limit.

    Args:
        spending: where replies are counted.
        counter: counts a prompt's tokens.
        max_cost: US dollars; None for no limit.
        tries: requests that the client may send for one of ours.
    """

    def __init__(
        self, spending: Spending, counter: TokenCounter, max_cost: float | None, tries: int = 1
    ) -> None:
        self.spending = spending
        self._counter = counter
        self._max_cost = None if max_cost is None else Decimal(str(max_cost))
        self._tries = tries
        self._reserved: dict[str, Decimal] = {}
        self._broken_before = 0
        self._freed = asyncio.Event()

    async def reserve(self, digest: str, request: ChatRequest) -> None:
        """Wait until the request fits beside what is in flight.

        Raises:
            IncompleteError: it does not fit although nothing else is in flight.
        """
        if self._max_cost is None:
            return
        worst = self._worst(request) * self._tries
        while self.spending.total + sum(self._reserved.values()) + worst > self._max_cost:
            if not self._reserved:
                raise self._refusal(worst)
            self._freed.clear()
            await self._freed.wait()
        self._reserved[digest] = worst

    def settle(self, digest: str, request: ChatRequest, reply: ChatReply | None, broken: int) -> None:
        """Put what a request really cost in the place of its worst.

        Args:
            digest: of the request.
            request: what was asked.
            reply: what came; None or `ERROR` where nothing was answered.
            broken: lines of the client that broke so far, whoever's they were.
        """
        if reply is not None and reply.answered:
            self.spending.add(reply, is_new=True)
        if newly := broken - self._broken_before:
            self._broken_before = broken
            self.spending.maybe_paid += newly
            self.spending.maybe_cost += self._worst(request) * newly
        self._reserved.pop(digest, None)
        self._freed.set()

    def _worst(self, request: ChatRequest) -> Decimal:
        if self.spending.price is None:
            return Decimal(0)
        return self.spending.price.cost(Tokens(self._counter.at_most(request), 0, request.max_tokens))

    def _refusal(self, worst: Decimal) -> IncompleteError:
        return IncompleteError(
            f"the next request could cost ${worst:.4f}, and with ${self.spending.total:.4f} spent "
            f"the limit of ${self._max_cost:f} would be passed",
            where="endpoint.max_cost",
            remedy="raise it and run the same command again; what was answered is kept and not paid twice",
        )


def budget_of(endpoint: EndpointConfig) -> Budget:
    """Return what counts the replies of an endpoint and keeps them within `max_cost`.

    Raises:
        ConfigError: there is a limit, and nobody told the price.
    """
    price = price_of(endpoint)
    if price is None and endpoint.max_cost is not None:
        raise ConfigError(
            f"nobody told what {endpoint.model} costs, so max_cost cannot be kept",
            where="endpoint.max_cost",
            remedy="write its price under endpoint.price, in US dollars per million tokens, or drop max_cost",
        )
    return Budget(Spending(price), TokenCounter(endpoint.model), endpoint.max_cost, RetryPolicy().max_tries)
