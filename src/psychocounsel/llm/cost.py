# genai_prices and bpe_openai come without types.
"""What requests and replies cost, and a limit that no run passes.

A request in flight counts at its worst: the prompt, and a reply of the full length. A reply counts as the server
reports it; if it reports nothing, its tokens are counted here. A lost response (the request was sent and the
connection broke) is possibly billed and counts at its worst, too; before the request is sent again, it must fit
within the limit again.
"""

import asyncio
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, NamedTuple

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError, IncompleteError, PsychoCounselError
from psychocounsel.llm.types import ChatReply, ChatRequest, is_on_this_machine, resolved_base_url
from psychocounsel.store.shapes import Pilot

MILLION = Decimal(1_000_000)
BATCH_SHARE = Decimal("0.5")
"""Of the live price: what providers charge for a batch."""

TOKENS_PER_MESSAGE = 4
CHARS_PER_TOKEN = 4
"""Of English text, roughly, under current tokenizers."""

_VOCABULARIES = (
    ("o200k_base", ("gpt-4o", "chatgpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "gpt-oss")),
    ("cl100k_base", ("gpt-4", "gpt-3.5")),
)


class Tokens(NamedTuple):
    """Tokens of one or many calls; `cached` are those of the prompt that came from a prefix cache."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def plus(self, other: "Tokens") -> "Tokens":
        """Return the sum."""
        return Tokens(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Price(NamedTuple):
    """US dollars per million tokens, and the source of the figures."""

    prompt: Decimal
    cached: Decimal
    completion: Decimal
    source: str

    def cost(self, tokens: Tokens) -> Decimal:
        """Return what the tokens cost, in US dollars; at most the whole prompt is cached."""
        cached = min(tokens.cached, tokens.prompt)
        fresh = (tokens.prompt - cached) * self.prompt
        return (fresh + cached * self.cached + tokens.completion * self.completion) / MILLION

    def batch_cost(self, tokens: Tokens) -> Decimal:
        """Return what the tokens cost in a batch, in US dollars; there a cached prefix is not cheaper."""
        return self.cost(tokens._replace(cached=0)) * BATCH_SHARE


def price_of(endpoint: EndpointConfig) -> Price | None:
    """Return the price of an endpoint's model; None if it is unknown.

    A price in the config wins. A server on this machine costs nothing unless the config says so.
    """
    if (price := endpoint.price) is not None:
        prompt = Decimal(str(price.prompt))
        cached = prompt if price.cached_prompt is None else Decimal(str(price.cached_prompt))
        return Price(prompt, cached, Decimal(str(price.completion)), "the config")
    base_url = resolved_base_url(endpoint)
    if is_on_this_machine(base_url):
        return Price(Decimal(0), Decimal(0), Decimal(0), "a server on this machine")
    from genai_prices import Usage, calc_price  # takes a quarter of a second to import

    # Some prices rise with the length of a call; ours are about this long.
    amount, calls = 1_000, MILLION / 1_000
    try:
        fresh, cached = (
            calc_price(
                Usage(input_tokens=amount, cache_read_tokens=read, output_tokens=amount),
                model_ref=endpoint.model,
                provider_api_url=base_url,
            )
            for read in (0, amount)
        )
    except LookupError:
        return None
    if fresh.input_price is None or cached.input_price is None or fresh.output_price is None:
        return None
    source = f"genai-prices, {fresh.provider.id}/{fresh.model.id}"
    return Price(fresh.input_price * calls, cached.input_price * calls, fresh.output_price * calls, source)


class TokenCounter:
    """Counts tokens as a model does: exactly if its vocabulary is known, else four characters as one token."""

    def __init__(self, model: str) -> None:
        self._vocabulary = vocabulary_of(model)
        self.is_exact = self._vocabulary is not None

    def text(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return _count(self._vocabulary, text)

    def prompt(self, request: ChatRequest) -> int:
        """Return the number of tokens that a request sends."""
        messages = sum(self.text(each.content) + TOKENS_PER_MESSAGE for each in request.messages)
        return messages + self.text(_schema_text(request))

    def at_most(self, request: ChatRequest) -> int:
        """Return an upper bound on the prompt's tokens, whatever the model's vocabulary."""
        if self.is_exact:
            return self.prompt(request)
        texts = [*(each.content for each in request.messages), _schema_text(request)]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)  # no token is less than a byte
        return size + TOKENS_PER_MESSAGE * len(request.messages)


def vocabulary_of(model: str) -> str | None:
    """Return the name of a model's vocabulary; None if it is not known.

    A provider's prefix (`openai/gpt-4o`) and a fine-tune's (`ft:gpt-4o:...`) do not matter.
    """
    name = model.removeprefix("ft:").rpartition("/")[2]
    return next((vocabulary for vocabulary, heads in _VOCABULARIES if name.startswith(heads)), None)


@lru_cache(maxsize=256)
def _count(vocabulary: str | None, text: str) -> int:
    if vocabulary is None:
        return -(-len(text) // CHARS_PER_TOKEN)
    # A lone surrogate is sent as a replacement character.
    return len(encoder(vocabulary)(text.encode("utf-8", "replace").decode()))


@cache
def encoder(vocabulary: str) -> Callable[[str], list[int]]:
    """Return what splits a text into the token ids of a vocabulary of OpenAI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from the way it opens its files
        import bpe_openai  # 70 MB, only when tokens are counted

        return bpe_openai.get_encoding(vocabulary).encode_ordinary


def _schema_text(request: ChatRequest) -> str:
    extra = request.questions or request.response_schema
    return json.dumps(extra, default=dict) if extra else ""


class NoRoomError(PsychoCounselError):
    """After a lost response, a request does not fit within the limit while others are in flight."""

    def __init__(self) -> None:
        super().__init__("there is no room within the limit to send this request again at present")


class Spent(NamedTuple):
    """Calls answered by one model, by the name in its replies: their number, their tokens and US dollars."""

    calls: int = 0
    tokens: Tokens = Tokens()
    batched_calls: int = 0
    cost: Decimal = Decimal(0)

    def plus(self, other: "Spent") -> "Spent":
        """Return the sum."""
        return Spent(
            self.calls + other.calls,
            self.tokens.plus(other.tokens),
            self.batched_calls + other.batched_calls,
            self.cost + other.cost,
        )

    def as_dict(self) -> dict[str, int]:
        """Return the form in `metrics.json`."""
        batched = {"batched_calls": self.batched_calls} if self.batched_calls else {}
        return {"calls": self.calls, **self.tokens._asdict(), **batched}


@dataclass
class Spending:
    """What the replies to some requests cost: those kept by earlier runs, and those of this one.

    Attributes:
        kept: by model, what the journal held before this run; `new`: what this run added.
        possibly_billed: lost responses of all runs; each is counted at its worst.
        possible_cost: what those may have cost, in US dollars.
        before: what the same step paid to the same endpoint for other requests, in US dollars.
        failed: items of this run that ended without a usable reply.
        probes: this run's replies to requests of the model's own (what the server can do). They count towards
            the limit. The journal does not hold them, so `metrics.json`, which covers all runs, leaves them out.
        uncounted: replies of all runs whose tokens the server did not report.
        pilot: what the first requests showed, where a pilot was wanted.
    """

    price: Price | None
    kept: dict[str, Spent] = field(default_factory=dict[str, Spent])
    new: dict[str, Spent] = field(default_factory=dict[str, Spent])
    possibly_billed: int = 0
    possible_cost: Decimal = Decimal(0)
    before: Decimal = Decimal(0)
    failed: int = 0
    probes: Spent = field(default_factory=Spent)
    uncounted: int = 0
    pilot: Pilot | None = None

    def add(self, reply: ChatReply, *, is_new: bool) -> None:
        """Count a reply."""
        book = self.new if is_new else self.kept
        book[reply.model] = book.get(reply.model, Spent()).plus(self.spent(reply))

    def add_probe(self, reply: ChatReply) -> None:
        """Count the reply to a probe."""
        self.probes = self.probes.plus(self.spent(reply))

    def spent(self, reply: ChatReply) -> Spent:
        """Return what one reply cost."""
        tokens = Tokens(reply.prompt_tokens, min(reply.cached_tokens, reply.prompt_tokens), reply.completion_tokens)
        cost = Decimal(0)
        if self.price is not None:
            cost = self.price.batch_cost(tokens) if reply.batched else self.price.cost(tokens)
        return Spent(1, tokens, int(reply.batched), cost)

    def cost(self, book: Mapping[str, Spent]) -> Decimal | None:
        """Return what the calls of `kept` or `new` cost in US dollars; None without a price."""
        return None if self.price is None else sum((each.cost for each in book.values()), Decimal(0))

    @property
    def total(self) -> Decimal:
        """US dollars of all runs, with what is possibly billed; 0 without a price."""
        answered = (self.cost(self.kept) or 0) + (self.cost(self.new) or 0)
        return self.before + answered + self.probes.cost + self.possible_cost

    def as_dict(self) -> dict[str, Any]:
        """Return the form in `metrics.json`; of all runs together, so that a resumed run gives the same."""
        return {**spent_together([self]), **({"pilot": self.pilot.model_dump()} if self.pilot else {})}

    @property
    def standing(self) -> str:
        """For a progress display: what failed and what this run has spent so far, as far as it is known."""
        cost = self.cost(self.new)
        failed = f"{self.failed:,} failed" if self.failed else ""
        spent = f"${cost + self.probes.cost + self.possible_cost:,.2f} spent" if cost else ""
        return ", ".join(part for part in (failed, spent) if part)

    @property
    def summary(self) -> str:
        """What was spent, in words; empty if no response came."""
        calls = sum(each.calls for each in self.new.values())
        before = sum(each.calls for each in self.kept.values())
        if not calls and not before and not self.possibly_billed:
            return ""
        parts = [
            f"{calls:,} calls in this run{_dollars(self.cost(self.new))}, "
            f"{before:,} in earlier ones{_dollars(self.cost(self.kept))}"
        ]
        if self.probes.calls:
            cost = _dollars(None if self.price is None else self.probes.cost)
            parts.append(f"{self.probes.calls} probes of what the server can do{cost}")
        if self.possibly_billed:
            cost = _dollars(None if self.price is None else self.possible_cost)
            parts.append(f"{self.possibly_billed} lost responses, possibly billed{cost}")
        if self.uncounted:
            parts.append(f"{self.uncounted:,} replies without a token count, counted here")
        return "; ".join(parts)


def spent_together(spendings: Sequence[Spending]) -> dict[str, Any]:
    """Return what several models spent, in the form of one; the cost is null if one price is unknown."""
    together: dict[str, Spent] = {}
    for model, spent in (pair for each in spendings for book in (each.kept, each.new) for pair in book.items()):
        together[model] = together.get(model, Spent()).plus(spent)
    lost = [each for each in spendings if each.possibly_billed]
    uncounted = sum(each.uncounted for each in spendings)
    possibly_billed = {
        "calls": sum(each.possibly_billed for each in lost),
        "cost_usd": _sum_of_costs(None if each.price is None else each.possible_cost for each in lost),
    }
    return {
        "models": {model: together[model].as_dict() for model in sorted(together)},
        "cost_usd": _sum_of_costs(cost for each in spendings for cost in (each.cost(each.kept), each.cost(each.new))),
        "price_from": "; ".join(dict.fromkeys(each.price.source for each in spendings if each.price)),
        **({"calls_without_usage": uncounted} if uncounted else {}),
        **({"possibly_billed": possibly_billed} if lost else {}),
    }


def _sum_of_costs(costs: Iterable[Decimal | None]) -> float | None:
    known = list(costs)
    return None if None in known else float(round(sum(filter(None, known), Decimal(0)), 6))


def _dollars(cost: Decimal | None) -> str:
    return "" if cost is None else f" (${cost:,.2f})"


class Budget:
    """Lets a request through if `max_cost` (US dollars) holds even when everything in flight costs its worst.

    `counted` are the digests of the requests whose earlier replies were counted.
    """

    def __init__(self, spending: Spending, counter: TokenCounter, max_cost: float | None) -> None:
        self.spending = spending
        self.counted: set[str] = set()
        self._counter = counter
        self._max_cost = None if max_cost is None else Decimal(str(max_cost))
        self._reserved: dict[str, Decimal] = {}
        # Futures, for each belongs to an event loop of its own: one budget may serve several in turn.
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def reserve(self, digest: str, request: ChatRequest) -> None:
        """Wait until the request fits next to those in flight.

        Raises:
            IncompleteError: it does not fit although nothing else is in flight.
        """
        if self._max_cost is None:
            return
        worst = self._worst(request)
        while not self.fits(worst):
            if not self._reserved:
                raise self.limit_error(worst)
            freed = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed
        self._reserved[digest] = worst

    def require_room_again(self, digest: str) -> None:
        """Return if a request may be sent again after a lost response; the client does not wait for room.

        Raises:
            NoRoomError: it does not fit at present, and has to be reserved anew.
        """
        if digest in self._reserved and not self.fits(Decimal(0)):
            raise NoRoomError

    def count_lost(self, request: ChatRequest, times: int = 1) -> None:
        """Count lost responses to a request, each at its worst."""
        self.spending.possibly_billed += times
        self.spending.possible_cost += self._worst(request) * times

    def count(self, request: ChatRequest, reply: ChatReply, *, is_new: bool) -> None:
        """Count what an answered request cost."""
        counted = self._with_tokens(request, reply)
        self.spending.uncounted += counted is not reply
        self.spending.add(counted, is_new=is_new)

    def _with_tokens(self, request: ChatRequest, reply: ChatReply) -> ChatReply:
        """Return a reply with the tokens that the server did not report; no prompt is empty."""
        if reply.prompt_tokens and (reply.completion_tokens or not reply.text):
            return reply
        prompt_tokens = reply.prompt_tokens or self._counter.prompt(request)
        completion_tokens = max(reply.completion_tokens, self._counter.text(reply.text))
        return replace(reply, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def measure_pilot(
        self, answered: Sequence[tuple[ChatRequest, Sequence[ChatReply]]], readable: int, total: int
    ) -> None:
        """Keep what the first requests, each with its replies, say of all `total`."""
        costs: dict[str, float] = {}
        if self.spending.price is not None:
            replies = [self._with_tokens(request, reply) for request, kept in answered for reply in kept]
            cost = sum((self.spending.spent(reply).cost for reply in replies), Decimal(0))
            projected = cost * total / len(answered)
            costs = {"cost_usd": float(round(cost, 6)), "projected_usd": float(round(projected, 6))}
        self.spending.pilot = Pilot(requests=len(answered), readable=readable, **costs)

    def finish(self, digest: str, request: ChatRequest, reply: ChatReply | None) -> None:
        """Replace what was reserved for a request by what its reply cost, if there is one."""
        if reply is not None and reply.answered:
            self.count(request, reply, is_new=True)
        self.release(digest)

    def worst_in_batch(self, request: ChatRequest) -> Decimal:
        """Return what a request costs at most in a batch, in US dollars; 0 without a limit."""
        return Decimal(0) if self._max_cost is None else self._worst(request) * BATCH_SHARE

    def fits(self, worst: Decimal) -> bool:
        """Whether so much more stays within the limit, next to all that is reserved."""
        if self._max_cost is None:
            return True
        return self.spending.total + sum(self._reserved.values()) + worst <= self._max_cost

    def hold(self, name: str, worst: Decimal) -> None:
        """Reserve an amount until `release`, whether it fits or not: it may be paid already."""
        self._reserved[name] = worst

    def release(self, name: str) -> None:
        """Free what was reserved under a name, and have all that wait for room look again."""
        self._reserved.pop(name, None)
        while self._waiting:
            freed = self._waiting.popleft()
            if not freed.done():
                freed.set_result(None)

    def limit_error(self, worst: Decimal) -> IncompleteError:
        """Return the error for a request that does not fit."""
        return IncompleteError(
            f"the next request could cost ${worst:.4f}, and with ${self.spending.total:.4f} spent "
            f"the limit of ${self._max_cost:f} would be passed",
            where="endpoint.max_cost",
            remedy="raise it and run the same command again; replies are kept and not paid for twice",
        )

    def _worst(self, request: ChatRequest) -> Decimal:
        if self.spending.price is None:
            return Decimal(0)
        return self.spending.price.cost(Tokens(self._counter.at_most(request), 0, request.max_tokens))


def budget_of(endpoint: EndpointConfig) -> Budget:
    """Return what counts the replies of an endpoint and keeps them within `max_cost`.

    Raises:
        ConfigError: there is a limit, and the price is unknown.
    """
    price = price_of(endpoint)
    if price is None and endpoint.max_cost is not None:
        raise ConfigError(
            f"the price of {endpoint.model} is unknown, so max_cost cannot be kept",
            where="endpoint.max_cost",
            remedy="write its price under endpoint.price, in US dollars per million tokens, or drop max_cost",
        )
    return Budget(Spending(price), TokenCounter(endpoint.model), endpoint.max_cost)


def unlimited_budget() -> Budget:
    """Return a budget that counts tokens roughly, without a price and without a limit."""
    return Budget(Spending(None), TokenCounter(""), None)
