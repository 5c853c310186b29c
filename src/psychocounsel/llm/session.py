"""One run of a stage: the models it asks, the journal of their replies, and in a dry run the calls it would make.

Judges, responders and topic assigners ask a `ModelClient`. Its fingerprint is known from its config; connection
and journal open with the first request. In a dry run the client counts the requests that are not completed and
returns `PLACEHOLDER` for each.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property, reduce
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn, Protocol

from psychocounsel.config.components import BatchConfig, EndpointConfig
from psychocounsel.llm.batch.run import run_in_batches, run_live
from psychocounsel.llm.batch.shards import digests_in_batches
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals
from psychocounsel.llm.cost import BATCH_SHARE, Budget, Spending, TokenCounter, Tokens, budget_of, price_of
from psychocounsel.llm.endpoints import JOURNAL_FILE, open_endpoint
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, pending_indices, run_requests
from psychocounsel.llm.structured_output import StructuredOutputModel
from psychocounsel.llm.types import (
    ChatModel,
    ChatReply,
    ChatRequest,
    endpoint_fingerprint,
    require_reachable,
    resolved_base_url,
)
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus

PLACEHOLDER = ChatReply(ReplyStatus.VALID, "", "dry run", 0, 0)
"""Stands for a reply in a dry run. It is recognised by being this object."""

NUMBERS = count()
"""Numbers of the texts that stand for others in a dry run: were two alike, their requests would be counted once."""

SHORTEST_CACHED_PREFIX_TOKENS = 1024
"""A shorter beginning of a prompt is not cached by providers."""


class ModelClient(Protocol):
    """A model that completes many requests; every reply is journalled before it is returned.

    Its fingerprint is part of the digest of every request; `spending` is None where nothing is counted.
    """

    @property
    def fingerprint(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def spending(self) -> Spending | None: ...  # noqa: D102

    def run(self, requests: Sequence[ChatRequest], policy: RunPolicy) -> list[ChatReply]:
        """Return one reply per request, in their order; errors as those of `run_requests`.

        Of the policy, attempts, concurrency, cancel token and budget are replaced by the client's own.
        """
        ...


class JournalledModel:
    """A model and a journal, with the settings of `RunPolicy` that are the client's own.

    Journal and cancel token are those of the moment of a run: a session may outlive the run that it was opened for.
    """

    def __init__(
        self,
        model: ChatModel,
        journal: Callable[[], Journal],
        cancel: Callable[[], CancelToken] = CancelToken,
        **settings: Any,
    ) -> None:
        self.fingerprint = model.fingerprint
        self.spending: Spending | None = None
        self._model, self._journal, self._cancel, self._settings = model, journal, cancel, settings

    def run(self, requests: Sequence[ChatRequest], policy: RunPolicy) -> list[ChatReply]:
        """Complete the requests."""
        policy = replace(policy, cancel=self._cancel(), **self._settings)
        return run_requests(self._model, requests, self._journal(), policy)


class EndpointClient:
    """The model behind an endpoint, asked live or in batches."""

    def __init__(self, endpoint: EndpointConfig, session: "Session", batch: BatchConfig | None) -> None:
        self.fingerprint = endpoint_fingerprint(endpoint)
        self._endpoint, self._session, self._batch = endpoint, session, batch

    @property
    def spending(self) -> Spending:
        """What the replies cost so far."""
        return self._budget.spending

    @cached_property
    def _budget(self) -> Budget:
        return budget_of(self._endpoint)

    @cached_property
    def _model(self) -> StructuredOutputModel:
        return open_endpoint(self._endpoint, self._session.store)

    def run(self, requests: Sequence[ChatRequest], policy: RunPolicy) -> list[ChatReply]:
        """Complete the requests; errors are also those of `run_in_batches`."""
        endpoint, session = self._endpoint, self._session
        policy = replace(policy, max_attempts=endpoint.max_attempts, concurrency=endpoint.concurrency)
        policy = replace(policy, cancel=session.cancel, budget=self._budget)
        if self._batch is None or not self._batch.enabled:
            return run_live(self._model, requests, session.journal, policy)
        from psychocounsel.llm.batch.client import BatchTransport, OpenAIBatches  # the client takes a second to import

        transport = BatchTransport(lambda: OpenAIBatches(endpoint, session.store.offline), self._batch)
        return run_in_batches(transport, self._model, requests, session.journal, policy)


_MANY_REQUESTS, _COUNTED_REQUESTS = 5_000, 1_000
"""Of more requests, the tokens of so many are counted; the others have as many for their length."""


def _chars(requests: Sequence[ChatRequest]) -> int:
    return sum(len(message.content) for request in requests for message in request.messages)


@dataclass
class PendingCalls:
    """The calls to one endpoint, for one purpose, that a dry run has counted.

    Attributes:
        has_batches: whether `--batch` would send them in batches.
        calls: without retries; None if they cannot be counted yet, and `hint` says why.
        in_batches: further calls, which are with the provider in batches and are not paid again.
        has_placeholders: whether prompts hold answers that do not exist yet, counted at full length.
        estimate: what stands for speeches that are not here yet, in words; empty if they are.
        tokens: of prompts and completions; completions count at full length.
        most_tokens: an upper bound of them, whatever the model's vocabulary.
        digests: of the requests; one that a later call or step asks again is not paid again.
    """

    endpoint: EndpointConfig
    purpose: str
    has_batches: bool = False
    calls: int | None = None
    in_batches: int = 0
    hint: str = ""
    has_placeholders: bool = False
    estimate: str = ""
    tokens: Tokens = field(default_factory=Tokens)
    most_tokens: Tokens = field(default_factory=Tokens)
    digests: set[str] = field(default_factory=set[str], repr=False)
    _is_exact: bool = field(default=True, repr=False)
    _prefixes: Counter[str] = field(default_factory=Counter[str], repr=False)

    def add(self, requests: Sequence[ChatRequest]) -> None:
        """Count requests."""
        self.calls = (self.calls or 0) + len(requests)
        completion = sum(request.max_tokens for request in requests)
        counted = requests[:: -(-len(requests) // _COUNTED_REQUESTS)] if len(requests) > _MANY_REQUESTS else requests
        share = _chars(requests) / _chars(counted) if len(counted) < len(requests) else 1
        self._is_exact = self._is_exact and self._counter.is_exact and share == 1
        prompt = round(share * sum(map(self._counter.prompt, counted)))
        most = prompt if self._counter.is_exact else round(share * sum(map(self._counter.at_most, counted)))
        self.tokens = self.tokens.plus(Tokens(prompt, 0, completion))
        self.most_tokens = self.most_tokens.plus(Tokens(most, 0, completion))
        self._prefixes.update(request.messages[0].content for request in requests if len(request.messages) > 1)

    @cached_property
    def _counter(self) -> TokenCounter:
        return TokenCounter(self.endpoint.model)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that repeat an earlier beginning, long enough to be read from the provider's cache."""
        prefixes = ((self._counter.text(prefix), times - 1) for prefix, times in self._prefixes.items())
        return sum(tokens * times for tokens, times in prefixes if tokens >= SHORTEST_CACHED_PREFIX_TOKENS)

    def __str__(self) -> str:
        """Return the calls, their tokens and their price in one line."""
        head = f"{self.purpose}, {self.endpoint.model} at {resolved_base_url(self.endpoint)}: "
        in_batches = f"; {self.in_batches:,} more wait in batches with the provider" if self.in_batches else ""
        if self.calls is None:
            return head + self.hint
        if not self.calls:
            return f"{head}nothing pending{in_batches}"
        about = "" if self._is_exact else "about "
        shared = f" ({self.cached_tokens:,} of a prefix that they share)" if self.cached_tokens else ""
        full = "; answers that do not exist yet count at full length" if self.has_placeholders else ""
        return (
            f"{head}{self.calls:,} calls, up to {self.calls * self.endpoint.max_attempts:,} with retries; "
            f"{about}{self.tokens.prompt:,} prompt tokens{shared} and up to {self.tokens.completion:,} completion "
            f"tokens without retries{full}{in_batches}; {self._price()}" + ("; an estimate" if self.estimate else "")
        )

    @cached_property
    def bill(self) -> "Bill | None":
        """What the calls cost; None if the price is unknown."""
        price = price_of(self.endpoint)
        if price is None:
            return None
        whole = price.cost(self.tokens)
        return Bill(
            whole,
            cached=price.cost(self.tokens._replace(cached=self.cached_tokens)),
            batch=whole * BATCH_SHARE if self.has_batches else whole,
            worst=price.cost(self.most_tokens) * self.endpoint.max_attempts,
            source=price.source,
        )

    def _price(self) -> str:
        return "price unknown: set endpoint.price" if self.bill is None else str(self.bill)


class Bill(NamedTuple):
    """US dollars of some calls: live without a cache, with the shared prefix from it, in batches, with all retries."""

    whole: Decimal = Decimal(0)
    cached: Decimal = Decimal(0)
    batch: Decimal = Decimal(0)
    worst: Decimal = Decimal(0)
    source: str = ""

    def plus(self, other: "Bill") -> "Bill":
        """Return the sum, of several sources."""
        return Bill(
            self.whole + other.whole, self.cached + other.cached, self.batch + other.batch, self.worst + other.worst
        )

    def __str__(self) -> str:
        """Return the prices in words, those left out that are the same."""
        from_cache = f", {_dollars(self.cached)} with the prefix from the cache" if self.cached != self.whole else ""
        batch = f", as a batch {_dollars(self.batch)}" if self.batch != self.whole else ""
        by = f" (by {self.source})" if self.source else ""
        if not self.worst:
            return f"free{by}"
        return f"{_dollars(self.whole)}{from_cache}{batch}, up to {_dollars(self.worst)} with retries{by}"


def bill_of(pending: Sequence[PendingCalls]) -> str:
    """Return what all calls cost together, in words; what cannot be counted or has no price is named."""
    counted = [each for each in pending if each.calls is not None]
    bills = [each.bill for each in counted if each.bill is not None]
    left_out = {
        "calls that cannot be counted yet": len(pending) - len(counted),
        "calls of unknown price": len(counted) - len(bills) if bills else 0,
    }
    without = " and ".join(what for what, number in left_out.items() if number)
    price = str(reduce(Bill.plus, bills, Bill())) if bills else "price unknown"
    calls = f"{sum(each.calls or 0 for each in counted):,} calls"
    estimate = next((f", an estimate for {each.estimate}" for each in counted if each.estimate), "")
    return f"{calls}; {price}{f', without {without}' if without else ''}{estimate}"


def _dollars(cost: Decimal) -> str:
    return f"${cost:,.4f}" if 0 < cost < Decimal("0.01") else f"${cost:,.2f}"


class CountingClient:
    """Counts the requests that are not completed, and sends none.

    Returns placeholders, and the replies of the journal where the policy names no reader. (Replies that a reader
    accepted before are not read again, for there may be a million.)
    """

    spending: Spending | None = None

    def __init__(self, session: "Session", pending: PendingCalls) -> None:
        self.fingerprint = endpoint_fingerprint(pending.endpoint)
        self._session, self._pending = session, pending

    def run(self, requests: Sequence[ChatRequest], policy: RunPolicy) -> list[ChatReply]:
        """Count the requests."""
        journal, pending = self._session.journal, self._pending
        indices = pending_indices(requests, self.fingerprint, journal, policy.accept, policy.reader)
        digests = {requests[index].digest(self.fingerprint): requests[index] for index in indices}
        submitted = digests_in_batches(journal).intersection(digests)
        pending.in_batches += len(submitted)
        pending.has_placeholders = pending.has_placeholders or self._session.has_placeholders
        pending.estimate = self._session.estimate
        known = submitted.union(*(digests.keys() & each.digests for each in self._session.calls or ()))
        pending.add([request for digest, request in digests.items() if digest not in known])
        pending.digests |= digests.keys()
        if policy.reader:
            return [PLACEHOLDER] * len(requests)
        replies = journal.replies_to(request.digest(self.fingerprint) for request in requests)
        return [
            next((reply for reply in kept if policy.accept(index, reply)), PLACEHOLDER)
            for index, kept in enumerate(replies)
        ]


class PlaceholderClient:
    """Stands for a model on this machine in a dry run: nothing is paid, so nothing is counted."""

    spending: Spending | None = None

    def __init__(self, fingerprint: Mapping[str, str]) -> None:
        self.fingerprint = fingerprint

    def run(self, requests: Sequence[ChatRequest], policy: RunPolicy) -> list[ChatReply]:
        """Return a placeholder for each."""
        return [PLACEHOLDER] * len(requests)


class _UncountableError(Exception):
    """A dry run ends before it has counted everything."""


@dataclass
class Session:
    """What one run of a stage works with. Unless it `is_open`, it is good for fingerprints, or counts calls.

    In a dry run, `calls` receives an entry per endpoint and purpose, `has_placeholders` says whether placeholders
    stand for answers that do not exist yet, and `estimate` what stands for speeches, empty if they are known.
    """

    store: Store
    cancel: CancelToken = field(default_factory=CancelToken)
    calls: list[PendingCalls] | None = None
    has_placeholders: bool = False
    estimate: str = ""
    is_open: bool = False
    _resources: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def is_dry_run(self) -> bool:
        """Whether calls are counted and not made."""
        return self.calls is not None

    @cached_property
    def journal(self) -> Journal:
        """The journal of the store. A dry run of a store without a journal reads an empty one."""
        path = (self.store.base or self.store.root) / JOURNAL_FILE
        if self.is_dry_run and not path.exists():
            path = Path(self._resources.enter_context(TemporaryDirectory())) / path.name
        return self._resources.enter_context(Journal(path))

    def client(self, endpoint: EndpointConfig, purpose: str, batch: BatchConfig | None = None) -> ModelClient:
        """Return a client of an endpoint; `purpose` names the calls in a dry run.

        Without `batch`, the caller cannot wait for batches, which may take a day.

        Raises:
            ConfigError: offline, and the endpoint is not on this machine.
        """
        if self.is_open:
            require_reachable(resolved_base_url(endpoint), self.store.offline)
        if self.calls is None:
            return EndpointClient(endpoint, self, batch)
        self.calls.append(PendingCalls(endpoint, purpose, batch is not None))
        return CountingClient(self, self.calls[-1])

    def local_client(self, model: ChatModel, **settings: Any) -> ModelClient:
        """Return a client of a model on this machine; settings are those of `JournalledModel`."""
        if self.is_dry_run:
            return PlaceholderClient(model.fingerprint)
        return JournalledModel(model, lambda: self.journal, lambda: self.cancel, **settings)

    def stop_counting(self, hint: str = "") -> NoReturn:
        """End a dry run; `hint` says when calls can be counted that need what does not exist yet."""
        raise _UncountableError(hint)


@contextmanager
def open_session(store: Store, calls: list[PendingCalls] | None = None) -> Generator[Session]:
    """Yield a session that SIGINT and SIGTERM cancel; what it opened is closed at the end.

    A dry run has nothing to save, so a signal ends it at once.
    """
    with ExitStack() as resources:
        cancel = resources.enter_context(cancelled_by_signals()) if calls is None else CancelToken()
        yield Session(store, cancel, calls, is_open=calls is None, _resources=resources)


def count_calls(
    run: Callable[[list[PendingCalls]], object], earlier: Sequence[PendingCalls] = ()
) -> list[PendingCalls]:
    """Return the pending calls of a stage: `run` runs it with the list that its session is to fill.

    Requests that `earlier` calls have counted are not counted again.
    """
    calls = list(earlier)
    try:
        run(calls)
    except _UncountableError as stopped:
        for each in calls[len(earlier) :]:
            each.hint = str(stopped) if each.calls is None else ""
    return [each for each in calls[len(earlier) :] if each.calls is not None or each.hint]
