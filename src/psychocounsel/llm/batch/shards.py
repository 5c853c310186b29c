"""ChatRequests + journal -> items: which await a reply, which are done, and what each ends as."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

from psychocounsel.config.components import BatchConfig
from psychocounsel.errors import EndpointError, IncompleteError, PsychoCounselError
from psychocounsel.llm.batch.ledger import BatchLedger, Shard, ShardState
from psychocounsel.llm.batch.provider import (
    AwayError,
    Batch,
    BatchTransport,
    Outcome,
    Provider,
    UnknownBatchError,
    input_line,
    read_output,
)
from psychocounsel.llm.cost import Budget, TokenCounter
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.types import ChatReply, ChatRequest, RefusedRequestError
from psychocounsel.types import ReplyStatus


class Items:
    """Distinct requests by digest; what an intact reply in the journal answers is done from the start."""

    def __init__(
        self,
        requests: Sequence[ChatRequest],
        fingerprint: Mapping[str, str],
        journal: Journal,
        policy: RunPolicy,
    ) -> None:
        self._requests = requests
        self.model = fingerprint["model"]
        self._journal = journal
        self._policy = policy
        self._places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            self._places.setdefault(request.digest(fingerprint), []).append(place)
        self._failed: dict[str, ChatReply] = {}
        self._settled: set[str] = set()
        self._tries: Counter[str] = Counter()
        self.done = 0
        self.has_answers = False

    @property
    def total(self) -> int:
        """The number of items."""
        return len(self._requests)

    def begin(self) -> list[str]:
        """Count what is kept already, and return the digests of what is owed, in the items' order."""
        owed: list[str] = []
        broken = self._broken_lines()
        for digest, kept in zip(self._places, self._journal.replies_to(self._places), strict=True):
            self.has_answers = self.has_answers or bool(kept)
            self._count_broken_lines(digest, broken[digest])
            if self._policy.budget is not None:
                for reply in kept:
                    self._policy.budget.count(self.request(digest), reply, is_new=False)
            # What the journal remembers of its reader does not do: a reply may be damaged since.
            if self._is_accepted(digest, kept):
                self._finish(digest, kept)
            else:
                owed.append(digest)
        return owed

    def place(self, digest: str) -> int:
        """Return the first place of a request."""
        return self._places[digest][0]

    def request(self, digest: str) -> ChatRequest:
        """Return the request of a digest."""
        return self._requests[self.place(digest)]

    @contextmanager
    def counting_live(self, digest: str) -> Generator[None]:
        """Count what comes of a request that the block asks live, however the block ends."""
        kept, broken = len(self._journal.replies(digest)), self._broken_lines()[digest]
        try:
            yield
        finally:
            self.replied(Entry(digest, reply) for reply in self._journal.replies(digest)[kept:])
            self._count_broken_lines(digest, self._broken_lines()[digest] - broken)

    def replied(self, entries: Iterable[Entry]) -> None:
        """Count what new replies cost."""
        for digest, reply in entries:
            self.has_answers = True
            if digest in self._places and self._policy.budget is not None:
                self._policy.budget.count(self.request(digest), reply, is_new=True)

    def tried(self, digests: Iterable[str], times: int = 1) -> None:
        """Count a try of each, or take it back."""
        for digest in digests:
            self._tries[digest] += times

    def close(self, digest: str, unanswered: str | None) -> bool:
        """End an item that its last batch decides, and return whether it does; else it is owed again.

        Args:
            digest: of the request.
            unanswered: why that batch brought no reply; None where it did.
        """
        kept = self._journal.replies(digest)
        if unanswered is None and kept:
            self._policy.on_reply(self._places[digest][0], kept[-1])
        if not self._is_accepted(digest, kept):
            if self._tries[digest] < self._policy.max_attempts:
                return False
            if unanswered is not None or not kept:
                reason = unanswered or "no batch brought a reply"
                self._failed[digest] = ChatReply(ReplyStatus.ERROR, "", self.model, 0, 0, reason)
        self._finish(digest, kept)
        return True

    def refuse(self, digest: str, reason: str) -> None:
        """End an item that the provider does not take."""
        self._failed[digest] = ChatReply(ReplyStatus.INVALID, "", self.model, 0, 0, reason)
        self._finish(digest)

    def settle(self) -> None:
        """Let the journal remember whose replies the reader accepted."""
        if self._policy.reader:
            self._journal.mark_accepted(self._policy.reader, self._settled.intersection(self._places))

    def results(self) -> list[ChatReply]:
        """Return one reply per item, in order: the first accepted one, else the last that came."""
        results: dict[int, ChatReply] = {}
        for digest, kept in zip(self._places, self._journal.replies_to(self._places), strict=True):
            last = self._failed.get(digest, kept[-1] if kept else None)
            for place in self._places[digest]:
                reply = next((each for each in kept if self._policy.accept(place, each)), last)
                if reply is None:
                    raise RuntimeError(f"request {place} is done without a reply")
                results[place] = reply
        return [results[place] for place in range(len(self._requests))]

    def _broken_lines(self) -> Counter[str]:
        """Return how many lines broke in any run, by request; none where nobody counts."""
        if self._policy.budget is None:
            return Counter()
        return Counter(line.digest for line in self._journal.lost_responses() if line is not None)

    def _count_broken_lines(self, digest: str, times: int) -> None:
        if times and self._policy.budget is not None:
            self._policy.budget.line_broke(self.request(digest), times)

    def _is_accepted(self, digest: str, kept: Sequence[ChatReply]) -> bool:
        places = self._places[digest]
        if not all(any(self._policy.accept(place, reply) for reply in kept) for place in places):
            return False
        self._settled.add(digest)
        return True

    def _finish(self, digest: str, kept: Sequence[ChatReply] = ()) -> None:
        self.done += len(self._places[digest])
        if digest not in self._settled and self._policy.budget is not None:
            self._policy.budget.spending.failed += len(self._places[digest])
        self._policy.progress(len(self._places[digest]))
        self.report(digest, kept)

    def report(self, digest: str, kept: Sequence[ChatReply]) -> None:
        """Call `on_finished` with the last reply to a request; it may end the run."""
        last = self._failed.get(digest, kept[-1] if kept else None)
        if last is not None:
            for place in self._places[digest]:
                self._policy.on_finished(place, last, digest in self._settled)


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


_LINES_PER_COMMIT = 1_000


@dataclass
class Reading:
    """What a batch's files say.

    Attributes:
        lines: that could be read.
        unreadable: lines that could not.
        replies: lines with a reply, whether it was new or not.
        unanswered: by digest, what is told of a request that got no reply.
        files: those of which every line could be read.
    """

    lines: int = 0
    unreadable: int = 0
    replies: int = 0
    unanswered: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    files: list[str] = field(default_factory=list[str])

    def is_strange(self, batch: Batch) -> bool:
        """Whether something else was answered in the place of the batch's files."""
        return bool(batch.files) and not self.lines and bool(self.unreadable or batch.answered)


class BatchReader:
    """Reads batches into the journal; a file may be read again, and each of its replies is kept once."""

    def __init__(self, provider: Provider, ledger: BatchLedger, items: Items) -> None:
        self._provider, self._ledger, self._items = provider, ledger, items

    async def read(self, shard: Shard, batch: Batch) -> Reading:
        """Journal the replies in a batch's files; errors as those of the provider and the journal."""
        reading = Reading()
        for file_id in batch.files:
            lines = read_output(await self._provider.content(file_id), self._items.model)
            unreadable_before = reading.unreadable
            while some := list(islice(lines, _LINES_PER_COMMIT)):
                self._keep(shard, some, reading)
            if reading.unreadable == unreadable_before:
                reading.files.append(file_id)
        return reading

    def _keep(self, shard: Shard, some: list[Outcome | None], reading: Reading) -> None:
        outcomes = [each for each in some if each is not None]
        entries = [Entry(each.digest, each.reply) for each in outcomes if each.reply is not None]
        self._items.replied(self._ledger.keep(shard.id, entries))
        reading.lines += len(outcomes)
        reading.unreadable += len(some) - len(outcomes)
        reading.replies += len(entries)
        reading.unanswered |= {each.digest: each for each in outcomes if each.reply is None}


def require_readable(reading: Reading, batch: Batch, where: str) -> None:
    """Raise if something else was answered in the place of a batch's files.

    Raises:
        AwayError: it was; the files may come the next time.
    """
    if reading.is_strange(batch):
        raise AwayError(
            f"the files of the batch {batch.id} hold no line that can be read",
            where=where,
            remedy="run the same command again later; if it stays so, set judge.batch.resubmit_lost: true to "
            "submit its requests again",
        )


def require_taken(reading: Reading, has_answers: bool, singled_out: Set[str], where: str) -> None:
    """Raise what would befall every other request as well; a batch with a reply shows that it would not.

    Args:
        reading: of one batch.
        has_answers: whether any request of this run was ever answered.
        singled_out: digests that got no reply in a batch where others did; what is told of them is no news.
        where: the provider's address.

    Raises:
        RefusedRequestError: the requests are refused.
    """
    told: Iterable[Outcome] = () if reading.replies else reading.unanswered.values()
    for each in told:
        if each.digest in singled_out:
            continue
        if each.refuses_all or (each.is_refused and not has_answers):
            raise RefusedRequestError(
                f"the requests of a batch are refused ({each.reason})",
                where=where,
                remedy="check endpoint.model, and that it takes these parameters and a JSON schema",
            )


_FAULTS = (EndpointError, IncompleteError, UnknownBatchError)


class Tidying:
    """Deletes what the shards of a ledger left; after the first fault it leaves the rest to the next run."""

    def __init__(self, ledger: BatchLedger, tell: Callable[[str], None]) -> None:
        self._ledger, self._tell = ledger, tell
        self._has_failed = False

    async def tidy(self, provider: Provider) -> None:
        """Delete the files of every shard that is over; faults are told, never raised."""
        if self._has_failed:
            return
        try:
            for shard in self._ledger.read_out():
                await self._close(shard, provider)
            for left in self._ledger.left_files():
                await provider.delete(left.id)
                self._ledger.forget_file(left)
        except _FAULTS as fault:
            self.gives_up(str(fault) or "files are not deleted there")

    def gives_up(self, reason: str) -> None:
        """Say what is left, and leave it."""
        self._has_failed = True
        left = len(self._ledger.left_files())
        self._tell(
            f"{left} files of batches that are over could not be deleted at the provider ({reason}); "
            "the next run tries again"
        )

    async def uploads_of(self, shard: Shard, provider: Provider) -> list[str]:
        """Return what was uploaded for a shard of which no batch was made."""
        try:
            return await provider.uploads(shard.file_name)
        except _FAULTS:
            return []

    async def _close(self, shard: Shard, provider: Provider) -> None:
        """Close a shard of which every reply is kept: whoever read it was killed before it could."""
        try:
            batch = await provider.state(shard.batch)
        except UnknownBatchError:
            self._ledger.close(shard.id, ShardState.ENDED)
            return
        if batch.is_over:
            self._ledger.close(shard.id, ShardState.ENDED, (batch.input_file, *batch.files))


async def tidy_alone(road: BatchTransport, ledger: BatchLedger) -> None:
    """Tidy up for a run that asks nothing."""
    tidying = Tidying(ledger, road.tell)
    try:
        provider = road.connect()
    except PsychoCounselError as fault:
        tidying.gives_up(str(fault))
        return
    try:
        await tidying.tidy(provider)
    finally:
        await provider.aclose()
