"""ChatRequests + journal -> items: which await a reply, which are done, and what each ends as."""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply, ChatRequest
from psychocounsel.llm.engine import AskPolicy
from psychocounsel.llm.journal import Entry, Journal


class Items:
    """Distinct requests by digest; what an intact reply in the journal answers is done from the start."""

    def __init__(
        self,
        requests: Sequence[ChatRequest],
        identity: Mapping[str, str],
        journal: Journal,
        policy: AskPolicy,
    ) -> None:
        self._requests = requests
        self.model = identity["model"]
        self._journal = journal
        self._policy = policy
        self._places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            self._places.setdefault(request.digest(identity), []).append(place)
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
                self._finish(digest)
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
            self._policy.heed(self._places[digest][0], kept[-1])
        if not self._is_accepted(digest, kept):
            if self._tries[digest] < self._policy.max_attempts:
                return False
            if unanswered is not None or not kept:
                reason = unanswered or "no batch brought a reply"
                self._failed[digest] = ChatReply(ReplyStatus.ERROR, "", self.model, 0, 0, reason)
        self._finish(digest)
        return True

    def refuse(self, digest: str, reason: str) -> None:
        """End an item that the provider does not take."""
        self._failed[digest] = ChatReply(ReplyStatus.INVALID, "", self.model, 0, 0, reason)
        self._finish(digest)

    def settle(self) -> None:
        """Let the journal remember whose replies the reader accepted."""
        if self._policy.reader:
            self._journal.settle(self._policy.reader, self._settled.intersection(self._places))

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
        return Counter(line.digest for line in self._journal.broken_lines() if line is not None)

    def _count_broken_lines(self, digest: str, times: int) -> None:
        if times and self._policy.budget is not None:
            self._policy.budget.line_broke(self.request(digest), times)

    def _is_accepted(self, digest: str, kept: Sequence[ChatReply]) -> bool:
        places = self._places[digest]
        if not all(any(self._policy.accept(place, reply) for reply in kept) for place in places):
            return False
        self._settled.add(digest)
        return True

    def _finish(self, digest: str) -> None:
        self.done += len(self._places[digest])
        if digest not in self._settled and self._policy.budget is not None:
            self._policy.budget.spending.failed += len(self._places[digest])
        self._policy.progress(len(self._places[digest]))
