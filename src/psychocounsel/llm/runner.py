"""Run many requests at once: send what is pending, journal every reply before it is used.

A request is pending until a reply to it is accepted. Replies of earlier runs are read from the journal; what failed
then is tried again. The first pending request goes alone, so that a wrong key costs one request. A run ends when an
endpoint leaves one request after another unanswered, for each would wait for its deadline. Several processes may run
the same requests: each request is in flight for one of them, and its reply serves all.
"""

import asyncio
import fcntl
import gc
import logging
import os
import sqlite3
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EACCES, EAGAIN
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from psychocounsel.errors import IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken, RunCancelledError
from psychocounsel.llm.cost import Budget, NoRoomError, unlimited_budget
from psychocounsel.llm.journal import LOCK_FILE, Entry, Journal
from psychocounsel.llm.types import ChatModel, ChatReply, ChatRequest, Closable, RefusedRequestError, RequestContext
from psychocounsel.store.files import umask, write_faults
from psychocounsel.types import ReplyStatus

log = logging.getLogger(__name__)

_RETRY_LOCK_SECONDS = 0.1
_SWITCH_SECONDS = 0.001
# Hex digits of a digest that number its byte in the lock file: 60 bits, which every file system takes.
_LOCK_DIGITS = 15
_Row = TypeVar("_Row")
_Result = TypeVar("_Result")
_Waiting: TypeAlias = tuple[_Row, asyncio.Future[None]]


def accept_valid(index: int, reply: ChatReply) -> bool:
    """Accept every complete reply."""
    return reply.status is ReplyStatus.VALID


def ignore_progress(items: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class RunPolicy:
    """How requests are run.

    Args:
        accept: whether a reply to the request at an index ends the item.
        max_attempts: requests per item in this run, on top of those of earlier runs.
        cancel: once cancelled, nothing new is sent.
        progress: called with the number of items just finished, those from the journal included.
        reader: names the rule behind `accept`, under which the journal notes what was accepted; if empty, it
            notes nothing.
        budget: counts what replies cost, and holds a request back that could pass the limit.
        on_reply: called with the index of a request and each new reply to it, once that is journalled; raises
            what the server would do to every other request as well.
        on_finished: called with the index of each item that ends, its last reply and whether that was accepted;
            it may raise to end the run. What is in flight then is still journalled.
        pilot: so many requests go first, and say what the others will cost; before batches, only until one reply is
            accepted.
    """

    accept: Callable[[int, ChatReply], bool] = accept_valid
    max_attempts: int = 3
    concurrency: int = 8
    cancel: CancelToken = field(default_factory=CancelToken)
    progress: Callable[[int], None] = ignore_progress
    reader: str = ""
    budget: Budget | None = None
    on_reply: Callable[[int, ChatReply], None] = lambda index, reply: None
    on_finished: Callable[[int, ChatReply, bool], None] = lambda index, reply, accepted: None
    pilot: int = 0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.concurrency < 1:
            raise ValueError("max_attempts and concurrency must be at least 1")


def run_requests(
    model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: RunPolicy
) -> list[ChatReply]:
    """Return one reply per request, in their order: the first accepted one, else the last that came.

    Equal requests are sent once. Every response is in the journal before `accept` sees it; `ERROR` replies, which
    hold no response, are not journalled. If nothing is pending, nothing is sent, cancelled or not. A request that
    the endpoint refuses, though it accepted others of these, ends as an `INVALID` reply with the endpoint's
    message, which is not journalled either.

    Raises:
        EndpointError: the endpoint refuses; nothing new is sent, what is in flight is still journalled.
        IncompleteError: it does not answer, the cost limit is met, or the disk is full; responses that came before
            are journalled.
        Preempted: cancelled with items pending; what was in flight is journalled.
        StoreError: the journal cannot be read or written.
    """
    return run_in_loop(_Run(model, requests, journal, policy).results())


def pending_indices(
    requests: Sequence[ChatRequest],
    fingerprint: Mapping[str, str],
    journal: Journal,
    accept: Callable[[int, ChatReply], bool] = accept_valid,
    reader: str = "",
) -> list[int]:
    """Return the index of each distinct request that `run_requests` would send at least once; nothing is sent.

    Replies that the journal notes as accepted by `reader` are not read again. If one was damaged since, only
    `run_requests` finds that, and sends its request again.
    """
    accepted = journal.accepted(reader) if reader else frozenset[str]()
    items = _distinct(requests, fingerprint, accepted)
    replies = journal.replies_to(item.digest for item in items)
    return [
        item.places[0]
        for item, kept in zip(items, replies, strict=True)
        if not all(any(accept(place, reply) for reply in kept) for place in item.places)
    ]


def run_in_loop(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `work` in an event loop of its own; errors and Ctrl-C as for `asyncio.run`.

    Where one runs already, it is in a thread, as for `outside_loop`.
    """
    return outside_loop(partial(_run_here, work))


def outside_loop(call: Callable[[], _Result]) -> _Result:
    """Return what `call` returns. Where an event loop runs, as in a notebook, it is in a thread, and the caller waits.

    Ctrl-C ends the wait, and not the thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call).result()
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C, nothing here waits for what is in flight


def _run_here(work: Coroutine[Any, Any, _Result]) -> _Result:
    import uvloop  # not where nothing is sent

    # A full collection would look at all libraries and requests again, for a tenth of a second and more, while
    # replies that were paid for wait to be read.
    gc.freeze()
    # The thread that writes replies to disk waits for the GIL several times in a commit.
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    finally:
        sys.setswitchinterval(switch_seconds)
        gc.unfreeze()


class JournalWriter:
    """Writes replies and lost responses of one event loop, from a thread and in grouped commits."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._waiting: list[_Waiting[Entry | str]] = []
        self._is_writing = False
        self._thread: asyncio.Future[None] | None = None
        self._unraised: Exception | None = None

    async def record(self, row: Entry | str) -> None:
        """Return when a reply, or the digest of a request whose response was lost, is on disk.

        It gets there even if the calling task is cancelled. Errors are those of the journal.
        """
        loop = asyncio.get_running_loop()
        on_disk = loop.create_future()
        with self._lock:
            self._waiting.append((row, on_disk))
            is_first, self._is_writing = not self._is_writing, True
        if is_first:
            self._thread = loop.run_in_executor(None, self._write, loop)
        await on_disk

    async def drain(self) -> None:
        """Return when everything is on disk; raise an error that no caller of `record` was left to receive."""
        if self._thread is not None:
            await self._thread
            await asyncio.sleep(0)  # callers that wait for the last commit receive its errors first
        if self._unraised is not None:
            raise self._unraised

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._lock:
                waiting = self._waiting
                self._waiting = []
                self._is_writing = bool(waiting)
            if not waiting:
                return
            replies = [(row, on_disk) for row, on_disk in waiting if isinstance(row, Entry)]
            lost = [(row, on_disk) for row, on_disk in waiting if isinstance(row, str)]
            self._commit(loop, self._journal.record_many, replies)
            self._commit(loop, self._journal.record_lost_responses, lost)

    def _commit(
        self, loop: asyncio.AbstractEventLoop, write: Callable[[list[_Row]], object], group: Sequence[_Waiting[_Row]]
    ) -> None:
        if not group:
            return
        fault = None
        try:
            write([row for row, _ in group])
        except Exception as caught:  # noqa: BLE001, raised by `record` or `drain`
            fault = caught
        loop.call_soon_threadsafe(self._resolve, [on_disk for _, on_disk in group], fault)

    def _resolve(self, group: Sequence["asyncio.Future[None]"], fault: Exception | None) -> None:
        for on_disk in group:
            if on_disk.done():
                self._unraised = self._unraised or fault
            elif fault is None:
                on_disk.set_result(None)
            else:
                on_disk.set_exception(fault)


@dataclass(slots=True)
class _LockFile:
    """The lock file of a journal as this process has it open, and which run holds which byte.

    The system takes all runs of a process for one, and drops their locks when any of its descriptors is closed.
    """

    descriptor: int
    owners: dict[int, "RequestLocks"] = field(default_factory=dict[int, "RequestLocks"])
    runs: int = 0


_lock_files: dict[Path, _LockFile] = {}
_lock_files_guard = threading.Lock()
os.register_at_fork(after_in_child=_lock_files.clear)  # locks stay with the parent


class RequestLocks:
    """One run's locks on requests to the journal at `journal_path`, among all runs of all processes.

    Locks on single bytes of one file, for there may be a million requests; the system frees them when the process
    ends, however it ends.
    """

    def __init__(self, journal_path: Path) -> None:
        self._path = journal_path.resolve().with_name(LOCK_FILE)
        with _lock_files_guard, write_faults(self._path):
            if self._path not in _lock_files:
                mode = 0o666 & ~umask()
                _lock_files[self._path] = _LockFile(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, mode))
            self._file = _lock_files[self._path]
            self._file.runs += 1
        # A connection of its own: the journal's is busy while a commit reaches the disk. The event loop that uses it
        # may run in another thread.
        self._database = sqlite3.connect(journal_path, isolation_level=None, check_same_thread=False)

    def acquire(self, digest: str) -> bool:
        """Lock a request; return False if it is in flight for another run."""
        place = int(digest[:_LOCK_DIGITS], 16)
        with _lock_files_guard:
            if place in self._file.owners:
                return False
            try:
                fcntl.lockf(self._file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError as fault:
                # A file system without locks must not keep a run from sending.
                if fault.errno in (EACCES, EAGAIN):
                    return False
            self._file.owners[place] = self
        return True

    def release(self, digest: str) -> None:
        """Unlock a request; its reply, if there was one, is on disk."""
        with _lock_files_guard:
            self._release(int(digest[:_LOCK_DIGITS], 16))

    def _release(self, place: int) -> None:
        if self._file.owners.get(place) is self:
            del self._file.owners[place]
            with suppress(OSError):
                fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, 1, place)

    def count_replies(self, digest: str) -> int:
        """Return how many replies to a request the journal holds at this moment, damaged ones included."""
        try:
            query = "SELECT COUNT(*) FROM replies WHERE digest = ?"
            return int(self._database.execute(query, (digest,)).fetchone()[0])
        except sqlite3.Error:
            return 0  # the next read or write reports what is wrong

    def close(self) -> None:
        """Release all locks."""
        self._database.close()
        with _lock_files_guard:
            for place in list(self._file.owners):
                self._release(place)
            self._file.runs -= 1
            if not self._file.runs:
                os.close(self._file.descriptor)
                del _lock_files[self._path]


@dataclass(frozen=True, slots=True)
class Item:
    """One distinct request, and the places of the equal requests that wait for its reply."""

    request: ChatRequest
    digest: str
    places: tuple[int, ...]


class Items:
    """The items of a run: which are pending, what replies cost, and what each item ends as.

    `total` and `done` count requests; `has_replies` says whether any was ever answered; `kept` is, by digest, the
    number of replies to a pending item that the journal held at the start.
    """

    def __init__(
        self, requests: Sequence[ChatRequest], fingerprint: Mapping[str, str], journal: Journal, policy: RunPolicy
    ) -> None:
        self.by_digest = {item.digest: item for item in _distinct(requests, fingerprint)}
        self.budget = policy.budget or unlimited_budget()
        self.model = fingerprint["model"]
        self.total = len(requests)
        self.done = 0
        self.has_replies = False
        self.kept: dict[str, int] = {}
        self._journal, self._policy = journal, policy
        self._replies: list[ChatReply | None] = [None] * len(requests)
        self._accepted = bytearray(len(requests))

    def read_journal(self) -> list[Item]:
        """Return the pending items, after counting what was paid before: a cost limit covers that, too.

        What a run with this budget has counted is not counted again.
        """
        lost = Counter(each.digest for each in self._journal.lost_responses() if each is not None)
        counted = self.budget.counted & self.by_digest.keys()
        self.budget.counted |= self.by_digest.keys()
        for digest in lost.keys() & self.by_digest.keys() - counted:
            self.budget.count_lost(self.by_digest[digest].request, lost[digest])
        pending: list[Item] = []
        damaged_before = self._journal.damaged_rows
        for item, kept in zip(self.by_digest.values(), self._journal.replies_to(self.by_digest), strict=True):
            if not self.take(item, kept, is_counted=item.digest in counted):
                pending.append(item)
                self.kept[item.digest] = len(kept)
        if damaged := self._journal.damaged_rows - damaged_before:
            what = "those without another reply are requested, and paid for, again"
            log.warning(f"{damaged} damaged replies in {self._journal.path} cannot be used; {what}")
        return pending

    def take(self, item: Item, replies: Sequence[ChatReply], *, is_counted: bool = False) -> bool:
        """Count replies from the journal, unless they were; return whether they end the item."""
        self.has_replies = self.has_replies or bool(replies)
        for reply in () if is_counted else replies:
            self.budget.count(item.request, reply, is_new=False)
        return self.offer(item, replies) and self.finish(item)

    def offer(self, item: Item, replies: Iterable[ChatReply]) -> bool:
        """Give replies to every place without an accepted one; return whether all places have one now."""
        for reply in replies:
            for place in item.places:
                if not self._accepted[place]:
                    self._replies[place] = reply
                    self._accepted[place] = self._policy.accept(place, reply)
        return self._is_accepted(item)

    def fail(self, item: Item, status: ReplyStatus, reason: str) -> None:
        """End an item without a usable reply."""
        self.offer(item, [ChatReply(status, "", self.model, 0, 0, reason)])
        self.finish(item)

    def finish(self, item: Item) -> bool:
        """Count an item as done, accepted or not; return True."""
        self.done += len(item.places)
        self.budget.spending.failed += sum(not self._accepted[place] for place in item.places)
        self._policy.progress(len(item.places))
        self.report_outcome(item)
        return True

    def report_outcome(self, item: Item) -> None:
        """Call `on_finished` with the last reply to an item; it may end the run."""
        for place in item.places:
            if (reply := self._replies[place]) is not None:
                self._policy.on_finished(place, reply, bool(self._accepted[place]))

    def measure_pilot(self) -> None:
        """Have the budget keep, once, what the first items cost and how many can be read, if more follow."""
        items = list(islice(self.by_digest.values(), self._policy.pilot))
        if items and len(items) < len(self.by_digest) and self.budget.spending.pilot is None:
            answered = [(item.request, self._journal.replies(item.digest)) for item in items]
            readable = sum(map(self._is_accepted, items))
            self.budget.measure_pilot(answered, readable, len(self.by_digest))

    def mark_accepted(self) -> None:
        """Have the journal note which requests have an accepted reply."""
        if self._policy.reader:
            accepted = [item.digest for item in self.by_digest.values() if self._is_accepted(item)]
            self._journal.mark_accepted(self._policy.reader, accepted)

    def results(self) -> list[ChatReply]:
        """Return one reply per request, in order: the first accepted one, else the last that came."""
        self.measure_pilot()  # of a run that was resumed
        return [reply for reply in self._replies if reply is not None]

    def _is_accepted(self, item: Item) -> bool:
        return all(self._accepted[place] for place in item.places)


class _Run:
    def __init__(self, model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: RunPolicy) -> None:
        self._model = model
        self._journal = journal
        self._policy = policy
        self._items = Items(requests, model.fingerprint, journal, policy)
        self._budget = self._items.budget
        self._writer = JournalWriter(journal)
        self._cancel = CancelToken(policy.cancel)
        self._locks = RequestLocks(journal.path)
        self._locked_elsewhere: deque[Item] = deque()
        self._unanswered_in_a_row = 0
        self._failure: Exception | None = None
        self._left_some = False

    async def results(self) -> list[ChatReply]:
        """Run what is pending, then return the replies in order."""
        try:
            pending = iter(self._items.read_journal())
            is_pilot = bool(self._policy.pilot) and not self._items.done
            first = next(pending, None)
            if first is not None:
                await self._run_unless_locked(first)
                if is_pilot:
                    await self._run_all(islice(pending, self._policy.pilot - 1))
                    self._items.measure_pilot()
                    if (pilot := self._budget.spending.pilot) is not None:
                        log.info(f"pilot: {pilot}")
                await self._run_all(pending)
        except Exception:
            self._cancel.cancel()
            raise
        finally:
            try:
                await self._writer.drain()
                self._items.mark_accepted()
            finally:
                self._locks.close()
                if isinstance(self._model, Closable):
                    await self._model.aclose()
        if self._failure is not None:
            raise self._failure
        if self._left_some:
            raise Preempted(
                f"stopped with {self._items.done} of {self._items.total} items done",
                remedy="run the same command again to resume; replies are kept and not paid for twice",
            )
        return self._items.results()

    async def _run_all(self, pending: Iterator[Item]) -> None:
        # Workers share one iterator: as many tasks as requests in flight, however many items there are.
        workers = [asyncio.create_task(self._work(pending)) for _ in range(self._policy.concurrency)]
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, pending: Iterator[Item]) -> None:
        try:
            for item in pending:
                await self._run_unless_locked(item)
                if self._left_some:
                    return
            while self._locked_elsewhere and not self._left_some:
                await self._run_once_unlocked(self._locked_elsewhere.popleft())
        except Exception as failure:
            # The other workers send nothing more; what they have in flight is paid for and is kept.
            self._failure = self._failure or failure
            self._cancel.cancel()
            raise

    async def _run_unless_locked(self, item: Item) -> None:
        """Run an item now, or later if another process has its request in flight: that reply serves both."""
        if self._locks.acquire(item.digest):
            await self._run_locked(item)
        else:
            self._locked_elsewhere.append(item)

    async def _run_once_unlocked(self, item: Item) -> None:
        try:
            async with self._cancel.interrupting():
                while not self._locks.acquire(item.digest):
                    await asyncio.sleep(_RETRY_LOCK_SECONDS)
        except RunCancelledError:
            self._left_some = True
        else:
            await self._run_locked(item)

    async def _run_locked(self, item: Item) -> None:
        try:
            # Another run may have received a reply since this one began.
            known = self._items.kept.get(item.digest, 0)
            has_new = self._locks.count_replies(item.digest) > known
            if not has_new or not self._items.take(item, self._journal.replies(item.digest)[known:]):
                await self._run_item(item)
        finally:
            self._locks.release(item.digest)

    async def _run_item(self, item: Item) -> None:
        attempts = 0
        while attempts < self._policy.max_attempts:
            try:
                reply = await self._generate(item)
            except NoRoomError:
                continue  # its slot in the client is free again; it waits for room in the budget
            except RunCancelledError:
                self._left_some = True
                return
            except RefusedRequestError as refusal:
                if not refusal.concerns_item and not self._items.has_replies:
                    raise
                self._items.fail(item, ReplyStatus.INVALID, refusal.what)
                return
            attempts += 1
            self._require_answers(reply)
            if reply.answered:
                await self._writer.record(Entry(item.digest, reply))
                self._policy.on_reply(item.places[0], reply)
            if self._items.offer(item, [reply]):
                break
        self._items.finish(item)

    async def _generate(self, item: Item) -> ChatReply:
        reply: ChatReply | None = None
        try:
            async with self._cancel.interrupting():
                await self._budget.reserve(item.digest, item.request)
            self._cancel.raise_if_cancelled()
            context = RequestContext(self._cancel, partial(self._keep_lost, item), self._budget.spending.add_probe)
            reply = await self._model.generate(item.request, context)
            return reply
        finally:
            self._budget.finish(item.digest, item.request, reply)

    async def _keep_lost(self, item: Item) -> None:
        self._budget.count_lost(item.request)
        await self._writer.record(item.digest)
        self._budget.require_room_again(item.digest)

    def _require_answers(self, reply: ChatReply) -> None:
        self._items.has_replies = self._items.has_replies or reply.answered
        self._unanswered_in_a_row = 0 if reply.answered else self._unanswered_in_a_row + 1
        if self._unanswered_in_a_row >= self._policy.max_attempts + self._policy.concurrency:
            raise IncompleteError(
                f"{self._unanswered_in_a_row} requests in a row were not answered: {reply.reason}",
                where=getattr(self._model, "base_url", "") or self._model.fingerprint.get("base_url", ""),
                remedy="check the endpoint, and raise endpoint.timeout_seconds if it is slow; then run the same "
                "command again: only what is pending is sent",
            )


def _distinct(
    requests: Sequence[ChatRequest], fingerprint: Mapping[str, str], left_out: Set[str] = frozenset()
) -> list[Item]:
    places: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        digest = request.digest(fingerprint)
        if digest not in left_out:
            places.setdefault(digest, []).append(index)
    return [Item(requests[indices[0]], digest, tuple(indices)) for digest, indices in places.items()]
