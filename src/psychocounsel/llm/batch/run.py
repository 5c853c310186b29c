"""Owed requests -> batches -> journalled replies: submit, watch, collect, and begin where a run was killed.

Whatever may be paid is written down first: a shard before its upload, and once more just before its batch is
made. A run that finds it there afterwards looks through the provider's list before it submits anything again.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from psychocounsel.errors import EndpointError, IncompleteError, Preempted, StoreError
from psychocounsel.llm.batch.ledger import BatchLedger, Shard, ShardState, awaited_digests
from psychocounsel.llm.batch.provider import (
    FULL_QUEUE,
    AwayError,
    Batch,
    BatchTransport,
    LostAnswerError,
    Outcome,
    UnknownBatchError,
)
from psychocounsel.llm.batch.shards import (
    BatchReader,
    Draft,
    Drafts,
    Items,
    Tidying,
    require_readable,
    require_taken,
    tidy_alone,
)
from psychocounsel.llm.cost import TokenCounter
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import (
    RunPolicy,
    ignore_new_reply,
    ignore_outcome,
    ignore_progress,
    run_requests,
    run_to_end,
)
from psychocounsel.llm.types import ChatModel, ChatReply, ChatRequest

_POLL_GROWTH = 1.5
_STOP_EVERY_SECONDS = 0.2
_CLOCK_SLACK_SECONDS = 86_400.0
"""By how much the provider's clock may be behind ours."""
_MOST_LOST_POLLS = 30
_MOST_ORDERS = 3
_TELL_EVERY_SECONDS = 30.0
_AGAIN = "run the same command again: it picks them up, and pays for none twice"


class _Running(NamedTuple):
    """A shard with the provider; `digests` are those of its requests that this run waits for."""

    shard: Shard
    digests: set[str]
    tokens: int


class BatchRun:
    """One run over what is owed; made and used within one event loop."""

    def __init__(self, road: BatchTransport, items: Items, ledger: BatchLedger, policy: RunPolicy) -> None:
        self._road, self._limits = road, road.limits
        self._items, self._ledger, self._policy = items, ledger, policy
        counter = TokenCounter(items.model)
        self._drafts = Drafts(items.request, road.body, road.limits, counter, policy.budget)
        self._id = uuid.uuid4().hex[:16]
        self._numbers = count(1)
        self._running: dict[str, _Running] = {}
        self._answered: dict[str, int] = {}
        self._singled_out: set[str] = set()
        self._poll_seconds = road.limits.first_poll_seconds
        self._lost_polls = 0
        self._told_at = float("-inf")
        self._told_batches = 0
        self._tidying = Tidying(ledger, road.tell)

    async def work(self, owed: Sequence[str]) -> None:
        """Return when nothing more comes of any item; errors as those of `run_in_batches`."""
        self._go_on()
        self._provider = self._road.connect()
        self._drafts.pending.extend(owed)
        try:
            await self._provider.require_batches()
            await self._road.check()
            while self._drafts.pending or self._running:
                await self._submit()
                self._report()
                await self._pause(self._poll_seconds)
                await self._look()
                await self._tidying.tidy(self._provider)
        except (EndpointError, IncompleteError) as fault:
            if not isinstance(fault, AwayError):
                await self._tidying.tidy(self._provider)
            if self._running:
                self._road.tell(f"{len(self._running)} batches go on at the provider; {_AGAIN}")
            raise
        finally:
            self._items.settle()
            await self._provider.aclose()

    # What earlier runs left.

    async def _adopt(self) -> None:
        """Take over the shards that hold what we are owed."""
        unknown = [each for each in self._ledger.unfinished() if each.id not in self._running]
        for shard in unknown:
            ours = self._ledger.members(shard.id).intersection(self._drafts.pending)
            if not ours:
                continue
            batch = await self._batch_of(shard)
            if batch:
                self._drafts.remove(ours)
                self._begin(shard._replace(batch=batch), ours)
            else:
                left = await self._tidying.uploads_of(shard, self._provider)
                self._ledger.close(shard.id, ShardState.VOID, left)

    async def _batch_of(self, shard: Shard) -> str:
        """Return the name of a shard's batch; empty if none was made."""
        if shard.state is not ShardState.SENDING:
            return shard.batch
        return await self._find(shard)

    async def _find(self, shard: Shard, known: str = "", orders: int = 1) -> str:
        """Look through the provider's list for a batch that may exist; empty if there is none.

        After several orders there may be twins: all is waited for, one is kept and the others are cancelled.
        """
        until = min(shard.changed_at, time.time()) + self._limits.confirm_seconds
        while True:
            is_last = time.time() >= until
            listed = await self._provider.newest(shard.changed_at - _CLOCK_SLACK_SECONDS)
            ours = [each for each in listed if each.carries(shard.metadata)]
            if is_last or (ours and orders == 1):
                break
            await self._pause(min(self._limits.first_poll_seconds, self._limits.confirm_seconds))
        if known and known not in {each.id for each in ours}:
            ours.append(Batch(known, ""))
        if not ours:
            return ""
        kept = min(ours, key=_worth)
        # Before it is noted: a run that is killed here finds them once more.
        for twin in ours:
            if twin.id != kept.id and not twin.is_over:
                await self._cancel(twin.id)
        self._ledger.advance(shard.id, ShardState.RUNNING, kept.id)
        return kept.id

    async def _cancel(self, twin: str) -> None:
        """Cancel a batch if that can be done; one that is done meanwhile cannot be cancelled."""
        try:
            await self._provider.cancel(twin)
        except (EndpointError, AwayError, UnknownBatchError) as fault:
            self._road.tell(f"the batch {twin} repeats another and could not be cancelled: {fault}")

    # What is submitted.

    async def _submit(self) -> None:
        """Take over what there is, and submit the rest as far as there is room."""
        if not self._drafts.pending:
            return
        with self._ledger.turn() as is_ours:
            # One run at a time: whatever another has only intended, it left there when it died.
            if is_ours:
                await self._adopt()
                await self._submit_what_fits()

    async def _submit_what_fits(self) -> None:
        while self._drafts.pending:
            self._go_on()
            draft = self._drafts.next(sum(each.tokens for each in self._running.values()))
            if draft is None:
                return
            await self._send(draft)
            self._poll_seconds = self._limits.first_poll_seconds

    async def _send(self, draft: Draft) -> None:
        sha256 = hashlib.sha256(draft.content).hexdigest()
        shard = Shard(f"{self._id}-{next(self._numbers):04d}", self._id, sha256, len(draft.digests))
        self._ledger.intend(shard, draft.digests)
        try:
            file_id = await self._provider.upload(shard.file_name, draft.content)
        except (EndpointError, AwayError):
            self._ledger.close(shard.id, ShardState.VOID)
            raise
        batch = await self._make(shard, file_id)
        self._begin(shard._replace(batch=batch), set(draft.digests))

    async def _make(self, shard: Shard, file_id: str) -> str:
        """Return the name of a new batch, which is noted."""
        for orders in range(1, _MOST_ORDERS + 1):
            self._ledger.advance(shard.id, ShardState.SENDING, files=[file_id])
            made = await self._order(shard, file_id)
            if made and orders == 1:
                self._ledger.advance(shard.id, ShardState.RUNNING, made)
                return made
            found = await self._find(shard._replace(changed_at=time.time()), made, orders)
            if found:
                return found
        raise AwayError(
            "the provider took an order for a batch several times, and answered none",
            where=self._provider.base_url,
            remedy="run the same command again later; it looks for them first",
        )

    async def _order(self, shard: Shard, file_id: str) -> str:
        """Return the name of the batch that the provider makes; empty if no answer came."""
        try:
            return (await self._provider.create(file_id, shard.metadata)).id
        except LostAnswerError:
            return ""
        except (EndpointError, AwayError):
            self._ledger.close(shard.id, ShardState.VOID)
            raise

    def _begin(self, shard: Shard, digests: set[str]) -> None:
        load = self._drafts.load(digests)
        self._running[shard.id] = _Running(shard, digests, load.tokens)
        self._items.tried(digests)
        if self._policy.budget is not None:
            self._policy.budget.hold(shard.id, load.worst)

    # What comes back.

    async def _look(self) -> None:
        """Look at every batch once, and read those that are over."""
        for running in list(self._running.values()):
            try:
                batch = await self._provider.state(running.shard.batch)
                self._answered[running.shard.id] = batch.answered
                if batch.is_over:
                    await self._collect(running, batch)
                    self._poll_seconds = self._limits.first_poll_seconds
                self._lost_polls = 0
            except AwayError:
                self._lost_polls += 1
                if self._lost_polls > _MOST_LOST_POLLS:
                    raise
            except UnknownBatchError:
                # Another run that waited for it too may have read it to its end, and deleted its files.
                if self._ledger.is_over(running.shard.id):
                    self._end(running, {}, "another run has read the batch")
                else:
                    self._forget(running)
            self._go_on()

    def _forget(self, running: _Running) -> None:
        if not self._limits.resubmit_lost:
            raise EndpointError(
                f"the provider does not know the batch {running.shard.batch}, or its files, with "
                f"{len(running.digests)} of these requests",
                where=self._provider.base_url,
                remedy="use a key of the project that made it; if it was deleted, set "
                "judge.batch.resubmit_lost: true to submit its requests again",
            )
        self._end(running, {}, "the provider lost the batch")

    async def _collect(self, running: _Running, batch: Batch) -> None:
        if FULL_QUEUE in batch.codes and not batch.files:
            self._queue_was_full(running, batch)
            return
        why = {"expired": "the batch expired", "cancelled": "the batch was cancelled"}
        failure = f"the batch failed: {' '.join(batch.faults)}" if batch.status == "failed" else ""
        reading = await BatchReader(self._provider, self._ledger, self._items).read(running.shard, batch)
        if not self._limits.resubmit_lost:
            require_readable(reading, batch, self._provider.base_url)
        otherwise = failure or why.get(batch.status, "the batch left it out")
        self._end(running, reading.unanswered, otherwise, (batch.input_file, *reading.files))
        require_taken(reading, self._items.has_answers, self._singled_out, self._provider.base_url)
        if reading.replies:
            self._singled_out |= reading.unanswered.keys()
        if failure and running.digests.isdisjoint(self._drafts.pending):
            raise EndpointError(
                failure, where=self._provider.base_url, remedy="mend it, or leave --batch out to ask live"
            )

    def _end(
        self, running: _Running, outcomes: Mapping[str, Outcome], otherwise: str, files: Sequence[str] = ()
    ) -> None:
        """Close a shard; what it did not answer well is owed again, as long as an item has tries left."""
        left = self._ledger.members(running.shard.id)
        self._ledger.close(running.shard.id, ShardState.ENDED, files)
        self._leave(running)
        for digest in sorted(running.digests):
            outcome = outcomes.get(digest)
            if digest in left and outcome is not None and outcome.is_refused:
                self._items.refuse(digest, outcome.reason)
                continue
            reason = (outcome.reason if outcome else otherwise) if digest in left else None
            if not self._items.close(digest, reason):
                self._drafts.pending.append(digest)

    def _queue_was_full(self, running: _Running, batch: Batch) -> None:
        """Submit it again in smaller files; nothing of it was done, so it counts as no try."""
        self._ledger.close(running.shard.id, ShardState.VOID, [batch.input_file])
        self._leave(running)
        self._items.tried(running.digests, -1)
        self._drafts.pending.extend(sorted(running.digests))
        others = sum(each.tokens for each in self._running.values())
        if not others and len(running.digests) == 1:
            raise IncompleteError(
                f"the provider's queue has no room: {' '.join(batch.faults)}",
                where=self._provider.base_url,
                remedy="let other batches of the account end, then run the same command again",
            )
        self._drafts.queue_tokens = max(1, others, running.tokens // 2)

    def _leave(self, running: _Running) -> None:
        del self._running[running.shard.id]
        self._answered.pop(running.shard.id, None)
        if self._policy.budget is not None:
            self._policy.budget.release(running.shard.id)

    # Waiting.

    async def _pause(self, seconds: float) -> None:
        """Wait, though no longer than until a stop is asked for; the next wait is longer."""
        self._poll_seconds = min(self._poll_seconds * _POLL_GROWTH, self._limits.longest_poll_seconds)
        until = time.monotonic() + seconds
        self._go_on()
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _STOP_EVERY_SECONDS))
            self._go_on()

    def _go_on(self) -> None:
        if not self._policy.cancel.is_cancelled():
            return
        told = f"stopped with {self._items.done} of {self._items.total} items done"
        if not self._running:
            raise Preempted(told, remedy="run the same command again; what was answered is not asked again")
        waiting = sum(len(each.digests) for each in self._running.values())
        raise Preempted(
            f"{told}; {len(self._running)} batches with {waiting} of them go on at the provider",
            remedy=_AGAIN,
        )

    def _report(self) -> None:
        now, batches = time.monotonic(), len(self._running)
        if batches == self._told_batches and now - self._told_at < _TELL_EVERY_SECONDS:
            return
        self._told_at, self._told_batches = now, batches
        if batches:
            waiting = sum(each.shard.lines for each in self._running.values())
            answered = sum(self._answered.values())
            self._road.tell(
                f"{batches} batches with the provider: {answered:,} of {waiting:,} requests answered there; "
                f"{self._items.done:,} of {self._items.total:,} items done"
            )


def _worth(batch: Batch) -> tuple[bool, bool, bool, int, float, str]:
    """Return what sorts the best of several twins first: one that is done, one that runs, one out of time."""
    # One of which no time is told was made last.
    age = (batch.created_at or float("inf"), batch.id)
    return (batch.is_given_up, batch.status == "expired", not batch.is_over, -batch.answered, *age)


def run_in_batches(
    road: BatchTransport,
    model: ChatModel,
    requests: Sequence[ChatRequest],
    journal: Journal,
    policy: RunPolicy,
) -> list[ChatReply]:
    """Return what the engine's `run_requests` would: one reply per request, journalled before it is used.

    A reply that is not accepted is asked for again in a further batch, `max_attempts` in all; so is what a
    batch left unanswered, which ends as an `ERROR` reply. `policy.concurrency` does not matter here. Files of
    batches that are over are deleted at the provider, by the next run where that fails.

    Raises:
        EndpointError: there is no batch API, or it refuses; what is running there is collected next time.
        IncompleteError: the provider is away for long, its queue stays full, or the limit of cost is met.
        Preempted: `policy.cancel` is cancelled; the batches go on.
        StoreError: the journal cannot be read or written.
    """
    items = Items(requests, model.fingerprint, journal, policy)
    owed = items.begin()
    if owed and (not road.is_known() or (policy.pilot and not items.done)):
        owed = _ask_first(items, owed, model, journal, policy)
    ledger = BatchLedger(journal, f"{model.fingerprint['model']} at {model.fingerprint['base_url']}")
    if owed:
        run_to_end(BatchRun(road, items, ledger, policy).work(owed))
    elif ledger.has_leftovers() and not policy.cancel.is_cancelled():
        run_to_end(tidy_alone(road, ledger))
    items.settle()
    return items.results()


def run_live(model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: RunPolicy) -> list[ChatReply]:
    """Return what `run_requests` does, unless some of the requests are with the provider in a batch already.

    Raises:
        StoreError: they are, and would be paid twice.
    """
    awaited = awaited_digests(journal)
    if awaited:  # only now, for digests take their time
        ours = awaited.intersection(request.digest(model.fingerprint) for request in requests)
        if ours:
            raise StoreError(
                f"{len(ours)} of these requests are with the provider in batches, and would be paid twice",
                where=str(journal.path),
                remedy="run with --batch to pick them up",
            )
    return run_requests(model, requests, journal, policy)


def _ask_first(items: Items, owed: list[str], model: ChatModel, journal: Journal, policy: RunPolicy) -> list[str]:
    """Send requests live until one reply is accepted, at most `policy.pilot`; return what is pending then.

    The first reply shows what the server can do. A judge that nobody can read is found out here, before batches
    are paid.
    """
    if policy.cancel.is_cancelled() or awaited_digests(journal).intersection(owed):
        return owed
    pilot = owed[: max(1, policy.pilot)]
    for digest in pilot:
        if _is_accepted_live(items, digest, model, journal, policy):
            return [each for each in owed if each != digest]
    if len(pilot) == policy.pilot:
        for digest in pilot:
            items.report(digest, journal.replies(digest))
    return owed


def _is_accepted_live(items: Items, digest: str, model: ChatModel, journal: Journal, policy: RunPolicy) -> bool:
    place, request = items.place(digest), items.request(digest)
    if policy.budget is not None:
        policy.budget.require(request)

    def accept(index: int, reply: ChatReply) -> bool:
        del index  # there is one item
        return policy.accept(place, reply)

    alone = replace(
        policy,
        accept=accept,
        progress=ignore_progress,
        on_reply=ignore_new_reply,
        on_finished=ignore_outcome,
        reader="",
        max_attempts=1,
        budget=None,
        on_probe=None if policy.budget is None else policy.budget.spending.add_beside,
    )
    with items.counting_live(digest):
        run_requests(model, [request], journal, alone)
    return items.close(digest, None)
