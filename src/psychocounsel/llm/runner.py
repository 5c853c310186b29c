"""ChatRequests -> ChatReplies: ask only what is owed, many at once, and journal before use.

A request is owed until a reply to it is accepted. Replies of earlier runs are read from the journal; what
failed there is tried again. The first owed request goes alone, so that a wrong key costs one request. An
endpoint that leaves one request after another unanswered is left alone, for each would wait for its deadline.
Several processes may ask for the same: each request is in flight for one of them, its reply serves all.
"""

import asyncio
import fcntl
import gc
import os
import sqlite3
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EACCES, EAGAIN
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from psychocounsel.errors import IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken, RunCancelledError
from psychocounsel.llm.cost import Budget, NoRoomError
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.types import (
    ChatModel,
    ChatReply,
    ChatRequest,
    Closable,
    RefusedRequestError,
    RequestContext,
)
from psychocounsel.types import ReplyStatus

_What = TypeVar("_What")
_Waiting: TypeAlias = tuple[_What, asyncio.Future[None]]


class JournalWriter:
    """Writes the entries and the broken lines of one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = threading.Lock()
        self._waiting: list[_Waiting[Entry | str]] = []
        self._is_writing = False
        self._writer: asyncio.Future[None] | None = None
        self._unheard: Exception | None = None

    async def record(self, entry: Entry) -> None:
        """Return when the entry is on disk; an entry whose worker is cancelled gets there all the same.

        Raises:
            StoreError: the journal cannot be written.
            IncompleteError: the disk is full.
        """
        await self._keep(entry)

    async def record_broken_line(self, digest: str) -> None:
        """Return when it is on disk that a line broke on a request; errors as those of `record`."""
        await self._keep(digest)

    async def drain(self) -> None:
        """Return when nothing waits for a commit and none runs; a fault that nobody heard of is raised."""
        if self._writer is not None:
            await self._writer
            await asyncio.sleep(0)  # those who waited for the last commit hear of it first
        if self._unheard is not None:
            raise self._unheard

    async def _keep(self, what: Entry | str) -> None:
        loop = asyncio.get_running_loop()
        kept = loop.create_future()
        with self._turn:
            self._waiting.append((what, kept))
            is_first, self._is_writing = not self._is_writing, True
        if is_first:
            self._writer = loop.run_in_executor(None, self._write, loop)
        await kept

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        while waiting := self._take():
            entries = [(what, kept) for what, kept in waiting if isinstance(what, Entry)]
            self._commit(loop, self._journal.record_many, entries)
            digests = [(what, kept) for what, kept in waiting if isinstance(what, str)]
            self._commit(loop, self._journal.record_broken_lines, digests)

    def _commit(
        self,
        loop: asyncio.AbstractEventLoop,
        write: Callable[[list[_What]], object],
        group: Sequence[_Waiting[_What]],
    ) -> None:
        if not group:
            return
        fault = None
        try:
            write([what for what, _ in group])
        except Exception as caught:  # noqa: BLE001, it is raised where the group comes from
            fault = caught
        loop.call_soon_threadsafe(self._tell, [kept for _, kept in group], fault)

    def _take(self) -> list[_Waiting[Entry | str]]:
        with self._turn:
            waiting, self._waiting = self._waiting, []
            self._is_writing = bool(waiting)
            return waiting

    def _tell(self, waiting: Sequence["asyncio.Future[None]"], fault: Exception | None) -> None:
        for kept in waiting:
            if kept.done():
                self._unheard = self._unheard or fault
            elif fault is None:
                kept.set_result(None)
            else:
                kept.set_exception(fault)


CLAIMS_FILE = "claims.lock"

_HEX_DIGITS = 15  # 60 bits: a place that every file system takes


class RequestLocks:
    """The claims of one run on requests to the journal at `journal_path`."""

    def __init__(self, journal_path: Path) -> None:
        path = journal_path.with_name(CLAIMS_FILE)
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # A connection of its own: the journal's waits while a commit reaches the disk.
        self._kept = sqlite3.connect(journal_path, isolation_level=None)

    def take(self, digest: str) -> bool:
        """Claim a request; return whether it is ours, and not in flight for another process."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(digest))
        except OSError as fault:
            # A file system that knows no locks keeps nobody from asking.
            return fault.errno not in (EACCES, EAGAIN)
        return True

    def drop(self, digest: str) -> None:
        """Give a claim back; the reply, if there was one, is on disk."""
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(digest))

    def replies_kept(self, digest: str) -> int:
        """Return how many replies to a request the journal holds at this moment, damaged ones included."""
        try:
            query = "SELECT COUNT(*) FROM replies WHERE digest = ?"
            (count,) = self._kept.execute(query, (digest,)).fetchone()
        except sqlite3.Error:
            return 0  # whoever reads or writes it next tells what is wrong
        return int(count)

    def close(self) -> None:
        """Give everything back."""
        self._kept.close()
        os.close(self._file)


def _place(digest: str) -> int:
    return int(digest[:_HEX_DIGITS], 16)


_SWITCH_SECONDS = 0.001

_Result = TypeVar("_Result")


def run_to_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `work` in an event loop of its own; errors and Ctrl-C as for `asyncio.run`."""
    # Every full collection would look at all libraries and requests again, for a tenth of a second and more,
    # while replies that were paid for wait to be read.
    gc.freeze()
    # The thread that writes replies to disk waits for its turn at the interpreter several times in a commit.
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(work)
    finally:
        sys.setswitchinterval(switch_seconds)
        gc.unfreeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return None
    return uvloop.new_event_loop


def accept_valid(index: int, reply: ChatReply) -> bool:
    """Accept every reply that came and was finished."""
    del index
    return reply.status is ReplyStatus.VALID


def ignore_progress(items: int) -> None:
    """Tell nobody."""
    del items


def ignore_new_reply(index: int, reply: ChatReply) -> None:
    """Take from a reply nothing that concerns others."""
    del index, reply


def ignore_outcome(index: int, reply: ChatReply, accepted: bool) -> None:
    """Ignore how an item ended."""
    del index, reply, accepted


@dataclass(frozen=True)
class RunPolicy:
    """How requests are asked.

    Args:
        accept: says of the request at an index and a reply to it whether that ends the item.
        max_attempts: requests per item in this run, on top of what earlier runs tried.
        concurrency: requests in flight at most.
        cancel: once cancelled, nothing new is sent.
        progress: called with the number of items just finished, journalled ones included.
        budget: counts what replies cost, and holds a request back that could pass the limit.
        reader: names the rule behind `accept`, so that the journal remembers whose reply it accepted; left
            empty, it does not.
        on_reply: called with the index of a request and each new reply to it, once that is journalled; it raises
            what the server would do to every other request as well.
        on_probe: see `RequestContext`; by default the budget counts it.
        on_finished: called with the index of each item that ends, its last reply and whether that was accepted;
            it may raise to end the run. What is in flight then is still journalled.
        pilot: before batches are submitted, requests are sent live until one reply is accepted, at most so many.
    """

    accept: Callable[[int, ChatReply], bool] = accept_valid
    max_attempts: int = 3
    concurrency: int = 8
    cancel: CancelToken = field(default_factory=CancelToken)
    progress: Callable[[int], None] = ignore_progress
    reader: str = ""
    budget: Budget | None = None
    on_reply: Callable[[int, ChatReply], None] = ignore_new_reply
    on_probe: Callable[[ChatReply], None] | None = None
    on_finished: Callable[[int, ChatReply, bool], None] = ignore_outcome
    pilot: int = 0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.concurrency < 1:
            raise ValueError("max_attempts and concurrency are at least 1")


_LOOK_EVERY_SECONDS = 0.1

RunRequests: TypeAlias = Callable[[ChatModel, Sequence[ChatRequest], Journal, RunPolicy], list[ChatReply]]
"""A road to replies; what it returns and raises is as `run_requests` says."""


def run_requests(
    model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: RunPolicy
) -> list[ChatReply]:
    """Return one reply per request, in their order: the first accepted one, else the last that came.

    Equal requests are asked once. Every reply that the server answered is in the journal before `accept`
    sees it; `ERROR` replies are not journalled, for nothing was answered. When nothing is owed, no request
    is sent and the result comes even if `cancel` is cancelled. A request that the endpoint does not take, though it
    took others of these, ends as an `INVALID` reply with what the endpoint says; it is not journalled either.

    Raises:
        EndpointError: the endpoint refuses; nothing new is asked, what is in flight is still journalled.
        IncompleteError: it answers nobody, the limit of cost is met, or the disk is full; what it answered
            before is journalled.
        Preempted: cancelled with items left to ask; what was in flight is journalled.
        StoreError: the journal cannot be read or written.
    """
    return run_to_end(_Run(model, requests, journal, policy).results())


def pending_indices(
    requests: Sequence[ChatRequest],
    fingerprint: Mapping[str, str],
    journal: Journal,
    accept: Callable[[int, ChatReply], bool] = accept_valid,
    reader: str = "",
) -> list[int]:
    """Return the index of each distinct request that `run_requests` would send at least once; nothing is asked.

    Replies that `reader` is known to have accepted are not read again: one that was damaged since is not seen
    here, for that would mean to read them all; `run_requests` reads them, and asks for it again.
    """
    owed: list[int] = []
    settled = journal.accepted(reader) if reader else frozenset[str]()
    unsettled = _distinct(requests, fingerprint, settled)
    replies = journal.replies_to(question.digest for question in unsettled)
    for question, kept in zip(unsettled, replies, strict=True):
        if not all(any(accept(place, reply) for reply in kept) for place in question.places):
            owed.append(question.places[0])
    return owed


@dataclass(frozen=True, slots=True)
class _Question:
    """One distinct request and the places that wait for its reply."""

    request: ChatRequest
    digest: str
    places: tuple[int, ...]


class _Run:
    def __init__(self, model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: RunPolicy) -> None:
        self._model = model
        self._journal = journal
        self._policy = policy
        self._scribe = JournalWriter(journal)
        self._cancel = CancelToken(policy.cancel)
        self._claims = RequestLocks(journal.path)
        self._elsewhere: deque[_Question] = deque()
        self._kept: dict[str, int] = {}
        self._questions = _distinct(requests, model.fingerprint)
        self._replies: list[ChatReply | None] = [None] * len(requests)
        self._accepted = bytearray(len(requests))
        self._finished = 0
        self._unanswered_in_a_row = 0
        self._has_answered = False
        self._failure: Exception | None = None
        self._left_some = False

    async def results(self) -> list[ChatReply]:
        """Ask what is owed, then return the replies in order."""
        try:
            owed = iter(self._owed())
            first = next(owed, None)
            if first is not None:
                await self._ask_or_put_off(first)
                await self._share_out(owed)
        except Exception:
            self._cancel.cancel()
            raise
        finally:
            await self._end()
        if self._left_some:
            raise Preempted(
                f"stopped with {self._finished} of {len(self._replies)} items done",
                remedy="run the same command again; what was answered is not asked again",
            )
        return [reply for reply in self._replies if reply is not None]

    async def _end(self) -> None:
        try:
            await self._scribe.drain()
            if self._policy.reader:
                self._journal.mark_accepted(self._policy.reader, self._settled())
        finally:
            self._claims.close()
            if isinstance(self._model, Closable):
                await self._model.aclose()

    def _settled(self) -> list[str]:
        return [each.digest for each in self._questions if all(self._accepted[place] for place in each.places)]

    def _owed(self) -> list[_Question]:
        # All of it before the first request: a limit of costs has to know what was paid before.
        owed: list[_Question] = []
        self._recall_broken_lines()
        digests = (question.digest for question in self._questions)
        for question, kept in zip(self._questions, self._journal.replies_to(digests), strict=True):
            self._count_kept(question, kept)
            if any(self._offer(question, reply) for reply in kept):
                self._finish(question)
            else:
                owed.append(question)
                if kept:
                    self._kept[question.digest] = len(kept)
        return owed

    def _count_kept(self, question: _Question, kept: Sequence[ChatReply]) -> None:
        if self._policy.budget is not None:
            for reply in kept:
                self._policy.budget.count(question.request, reply, is_new=False)

    def _recall_broken_lines(self) -> None:
        if self._policy.budget is not None:
            broken = Counter(line.digest for line in self._journal.lost_responses() if line is not None)
            for question in self._questions if broken else ():
                if times := broken[question.digest]:
                    self._policy.budget.line_broke(question.request, times)

    async def _share_out(self, owed: Iterator[_Question]) -> None:
        # Workers draw from one iterator: as many tasks as requests in flight, however many items there are.
        workers = [asyncio.create_task(self._work(owed)) for _ in range(self._policy.concurrency)]
        await asyncio.gather(*workers, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _work(self, owed: Iterator[_Question]) -> None:
        try:
            for question in owed:
                await self._ask_or_put_off(question)
                if self._left_some:
                    return
            while self._elsewhere and not self._left_some:
                await self._ask_after_another(self._elsewhere.popleft())
        except Exception as failure:
            # The others ask nothing more; what they have in flight is paid and is kept.
            self._failure = self._failure or failure
            self._cancel.cancel()
            raise

    async def _ask_or_put_off(self, question: _Question) -> None:
        """Ask, unless another run has the same request in flight: what it is answered serves both."""
        if self._claims.take(question.digest):
            await self._ask_claimed(question)
        else:
            self._elsewhere.append(question)

    async def _ask_after_another(self, question: _Question) -> None:
        try:
            async with self._cancel.interrupting():
                while not self._claims.take(question.digest):
                    await asyncio.sleep(_LOOK_EVERY_SECONDS)
        except RunCancelledError:
            self._left_some = True
        else:
            await self._ask_claimed(question)

    async def _ask_claimed(self, question: _Question) -> None:
        try:
            if not self._was_answered_meanwhile(question):
                await self._ask(question)
        finally:
            self._claims.drop(question.digest)

    def _was_answered_meanwhile(self, question: _Question) -> bool:
        """Take what another run was answered since this one began."""
        known = self._kept.pop(question.digest, 0)
        if self._claims.replies_kept(question.digest) <= known:
            return False
        kept = self._journal.replies(question.digest)[known:]
        self._count_kept(question, kept)
        if not any(self._offer(question, reply) for reply in kept):
            return False
        self._finish(question)
        return True

    async def _ask(self, question: _Question) -> None:
        attempts = 0
        while attempts < self._policy.max_attempts:
            try:
                reply = await self._reply_within_budget(question)
            except NoRoomError:
                continue  # whoever gave its place in the client back waits for room here
            except RunCancelledError:
                self._left_some = True
                return
            except RefusedRequestError as refusal:
                self._offer(question, self._failed_reply(refusal))
                break
            attempts += 1
            self._require_answers(reply)
            if reply.answered:
                await self._scribe.record(Entry(question.digest, reply))
                self._policy.on_reply(question.places[0], reply)
            if self._offer(question, reply):
                break
        self._finish(question)

    async def _reply_within_budget(self, question: _Question) -> ChatReply:
        budget = self._policy.budget
        reply: ChatReply | None = None
        try:
            if budget is not None:
                async with self._cancel.interrupting():
                    await budget.reserve(question.digest, question.request)
            self._cancel.raise_if_cancelled()
            context = RequestContext(self._cancel, partial(self._keep_broken_line, question), self._count_probe)
            reply = await self._model.generate(question.request, context)
            return reply
        finally:
            if budget is not None:
                budget.settle(question.digest, question.request, reply)

    async def _keep_broken_line(self, question: _Question) -> None:
        budget = self._policy.budget
        if budget is not None:
            budget.line_broke(question.request)
        await self._scribe.record_broken_line(question.digest)
        if budget is not None:
            budget.require_room_again(question.digest)

    def _count_probe(self, reply: ChatReply) -> None:
        if self._policy.on_probe is not None:
            self._policy.on_probe(reply)
        elif self._policy.budget is not None:
            self._policy.budget.spending.add_beside(reply)

    def _failed_reply(self, refusal: RefusedRequestError) -> ChatReply:
        """Return what a request ends as that is refused while others are taken; else raise the refusal."""
        if not refusal.concerns_item and not self._has_answered and not self._answered_before():
            raise refusal
        return ChatReply(ReplyStatus.INVALID, "", self._model.fingerprint["model"], 0, 0, refusal.what)

    def _answered_before(self) -> bool:
        return any(self._journal.replies_to(question.digest for question in self._questions))

    def _require_answers(self, reply: ChatReply) -> None:
        self._has_answered = self._has_answered or reply.answered
        self._unanswered_in_a_row = 0 if reply.answered else self._unanswered_in_a_row + 1
        if self._unanswered_in_a_row >= self._policy.max_attempts + self._policy.concurrency:
            raise IncompleteError(
                f"{self._unanswered_in_a_row} requests in a row were not answered: {reply.reason}",
                where=self._model.fingerprint.get("base_url", ""),
                remedy="see to the endpoint, then run the same command again; only what is owed is asked",
            )

    def _offer(self, question: _Question, reply: ChatReply) -> bool:
        """Give the reply to every place that still waits; return whether none waits any more."""
        for place in question.places:
            if not self._accepted[place]:
                self._replies[place] = reply
                self._accepted[place] = self._policy.accept(place, reply)
        return all(self._accepted[place] for place in question.places)

    def _finish(self, question: _Question) -> None:
        self._finished += len(question.places)
        if self._policy.budget is not None:
            self._policy.budget.spending.failed += sum(not self._accepted[place] for place in question.places)
        self._policy.progress(len(question.places))
        for place in question.places:
            reply = self._replies[place]
            if reply is not None:
                self._policy.on_finished(place, reply, bool(self._accepted[place]))


def _distinct(
    requests: Sequence[ChatRequest], fingerprint: Mapping[str, str], left_out: Set[str] = frozenset()
) -> list[_Question]:
    places: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        digest = request.digest(fingerprint)
        if digest not in left_out:
            places.setdefault(digest, []).append(index)
    return [_Question(requests[spots[0]], digest, tuple(spots)) for digest, spots in places.items()]
