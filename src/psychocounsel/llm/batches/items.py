"""ChatRequests + journal -> items: which await a reply, which are done, and what each ends as."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply, ChatRequest
from psychocounsel.llm.engine import AskPolicy
from psychocounsel.llm.journal import Entry, Journal


class Items:
    """Distinct requests by digest; what the journal accepts of them is done from the start."""

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
        self._settled = journal.settled(policy.reader) if policy.reader else set[str]()
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
        for digest in self._places:
            kept = self._journal.replies(digest)
            self.has_answers = self.has_answers or bool(kept)
            if self._policy.budget is not None:
                for reply in kept:
                    self._policy.budget.spending.add(reply, is_new=False)
            if digest in self._settled or self._is_accepted(digest, kept):
                self._finish(digest)
            else:
                owed.append(digest)
        return owed

    def request(self, digest: str) -> ChatRequest:
        """Return the request of a digest."""
        return self._requests[self._places[digest][0]]

    def replied(self, entries: Iterable[Entry]) -> None:
        """Count what new replies cost."""
        for digest, reply in entries:
            self.has_answers = True
            if digest in self._places and self._policy.budget is not None:
                self._policy.budget.spending.add(reply, is_new=True)

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
        results: list[ChatReply | None] = [None] * len(self._requests)
        for digest, places in self._places.items():
            kept = self._journal.replies(digest)
            last = self._failed.get(digest, kept[-1] if kept else None)
            for place in places:
                accepted = (reply for reply in kept if self._policy.accept(place, reply))
                results[place] = next(accepted, last)
        return [reply for reply in results if reply is not None]

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
