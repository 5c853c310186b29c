"""Run requests in batches: submit, poll, collect, clean up, and resume where a run was killed.

Whatever may be paid is written down first: a shard before its upload, and again just before its batch is created. A
run that finds such a shard looks through the provider's list before it submits anything.
"""

import asyncio
import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count, islice
from typing import TYPE_CHECKING, NamedTuple

from psychocounsel.errors import EndpointError, IncompleteError, Preempted, PsychoCounselError, StoreError
from psychocounsel.llm.batch.shards import (
    Batch,
    BatchLedger,
    LostAnswerError,
    Outcome,
    ProviderAwayError,
    Shard,
    ShardBuilder,
    ShardState,
    UnknownBatchError,
    digests_in_batches,
)
from psychocounsel.llm.cancel import RunCancelledError
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.rate_limit import OnStatus
from psychocounsel.llm.runner import Items, RunPolicy, run_in_loop, run_requests
from psychocounsel.llm.structured_output import StructuredOutputModel
from psychocounsel.llm.types import ChatModel, ChatReply, ChatRequest, RefusedRequestError
from psychocounsel.types import ReplyStatus

if TYPE_CHECKING:  # the client takes a second to import
    from psychocounsel.llm.batch.client import BatchTransport, OpenAIBatches

_POLL_GROWTH = 1.5
_CLOCK_SLACK_SECONDS = 86_400.0
"""By how much the provider's clock may be behind ours."""
_MOST_LOST_POLLS = 30
_MOST_ORDERS = 3
_REPORT_EVERY_SECONDS = 30.0
_LINES_PER_COMMIT = 1_000
_RESUME = "run the same command again: it picks them up, and pays for none twice"


def run_in_batches(
    transport: "BatchTransport",
    model: StructuredOutputModel,
    requests: Sequence[ChatRequest],
    journal: Journal,
    policy: RunPolicy,
) -> list[ChatReply]:
    """Return what `run_requests` would: one reply per request, journalled before it is used.

    Unless the server's output mode is known, one request goes live to find it out.

    A request without an accepted reply goes into a further batch, `max_attempts` in all; so does one that a batch
    left unanswered, which ends as an `ERROR` reply. `policy.concurrency` does not apply. Files of batches that are
    over are deleted at the provider, by the next run if that fails.

    Raises:
        EndpointError: there is no batch API, or it refuses; what is running there is collected next time.
        IncompleteError: the provider is away for long, its queue stays full, or the cost limit is met.
        Preempted: `policy.cancel` is cancelled; the batches continue.
        StoreError: the journal cannot be read or written.
    """
    items = Items(requests, model.fingerprint, journal, policy)
    pending = [item.digest for item in items.read_journal()]
    if pending and (not model.is_known or (policy.pilot and not items.done)):
        pending = _run_pilot(items, pending, model, journal, policy)
    ledger = BatchLedger(journal, f"{model.fingerprint['model']} at {model.fingerprint['base_url']}")
    if pending:
        run_in_loop(_BatchRun(transport, model, items, journal, ledger, policy).work(pending))
    elif (ledger.left_files() or ledger.fully_read()) and not policy.cancel.is_cancelled():
        run_in_loop(_clean_up_alone(transport, ledger))
    items.mark_accepted()
    return items.results()


def run_live(model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: RunPolicy) -> list[ChatReply]:
    """Return what `run_requests` does, unless some of the requests are with the provider in a batch already.

    Raises:
        StoreError: they are, and would be paid for twice.
    """
    in_batches = digests_in_batches(journal)
    if in_batches:  # only then, for digests take their time
        ours = in_batches.intersection(request.digest(model.fingerprint) for request in requests)
        if ours:
            raise StoreError(
                f"{len(ours)} of these requests are with the provider in batches, and would be paid for twice",
                where=str(journal.path),
                remedy="run with --batch to pick them up",
            )
    return run_requests(model, requests, journal, policy)


def _run_pilot(items: Items, pending: list[str], model: ChatModel, journal: Journal, policy: RunPolicy) -> list[str]:
    """Run requests live until one reply is accepted, at most `policy.pilot`; return what is pending then.

    The first reply shows the server's output mode. A judge whose replies cannot be read is found out before batches
    are paid for.
    """
    if policy.cancel.is_cancelled() or digests_in_batches(journal).intersection(pending):
        return pending
    pilot = pending[: max(1, policy.pilot)]
    for digest in pilot:
        if _is_accepted_live(items, digest, model, journal, policy):
            return [each for each in pending if each != digest]
    if len(pilot) == policy.pilot:
        for digest in pilot:
            items.report_outcome(items.by_digest[digest])
    return pending


def _is_accepted_live(items: Items, digest: str, model: ChatModel, journal: Journal, policy: RunPolicy) -> bool:
    """Run one request live and return whether that ends its item."""
    item, spending = items.by_digest[digest], items.budget.spending
    kept, failed = len(journal.replies(digest)), spending.failed
    alone = RunPolicy(
        lambda _, reply: policy.accept(item.places[0], reply), max_attempts=1, cancel=policy.cancel, budget=items.budget
    )
    run_requests(model, [item.request], journal, alone)
    spending.failed = failed  # a batch may still answer it
    replies = journal.replies(digest)[kept:]
    if replies:
        items.has_replies = True
        policy.on_reply(item.places[0], replies[-1])
    return items.offer(item, replies) and items.finish(item)


class _Running(NamedTuple):
    """A shard with the provider; `digests` are those of its requests that this run waits for."""

    shard: Shard
    digests: set[str]
    tokens: int


@dataclass
class _Reading:
    """What a batch's files say: lines read, files of which every line could be read, requests without a reply."""

    lines: int = 0
    unreadable: int = 0
    replies: int = 0
    unanswered: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    files: list[str] = field(default_factory=list[str])


class _BatchRun:
    """One run over pending requests, in one event loop."""

    def __init__(
        self,
        transport: "BatchTransport",
        model: StructuredOutputModel,
        items: Items,
        journal: Journal,
        ledger: BatchLedger,
        policy: RunPolicy,
    ) -> None:
        self._transport, self._model, self._limits = transport, model, transport.limits
        self._items, self._journal, self._ledger, self._policy = items, journal, ledger, policy
        self._builder = ShardBuilder(items, model.body, transport.limits)
        self._tries: Counter[str] = Counter()
        self._id = uuid.uuid4().hex[:16]
        self._numbers = count(1)
        self._running: dict[str, _Running] = {}
        self._answered: dict[str, int] = {}
        self._failed_alone: set[str] = set()
        self._poll_seconds = self._limits.first_poll_seconds
        self._lost_polls = 0
        self._reported_at = float("-inf")
        self._reported_batches = 0
        self._cleanup = _Cleanup(ledger, transport)

    async def work(self, pending: Sequence[str]) -> None:
        """Return when every item is done; errors are those of `run_in_batches`."""
        self._raise_if_cancelled()
        self._provider = self._transport.connect()
        self._builder.pending.extend(pending)
        try:
            await self._provider.require_batches()
            await self._model.check()
            while self._builder.pending or self._running:
                await self._submit()
                self._report()
                await self._pause(self._poll_seconds)
                await self._poll()
                await self._cleanup.run(self._provider)
        except (EndpointError, IncompleteError) as fault:
            if not isinstance(fault, ProviderAwayError):
                await self._cleanup.run(self._provider)
            if self._running:
                self._transport.report(f"{len(self._running)} batches continue at the provider; {_RESUME}")
            raise
        finally:
            self._items.mark_accepted()
            await self._model.aclose()
            await self._provider.aclose()

    # Submit.

    async def _submit(self) -> None:
        """Take over shards of earlier runs, then submit as much of the rest as there is room for."""
        if not self._builder.pending:
            return
        with self._ledger.submitting() as may_submit:
            # One run at a time: an `intended` or `sending` shard of another run was left there when that run died.
            if may_submit:
                await self._take_over()
                while self._builder.pending:
                    self._raise_if_cancelled()
                    file = self._builder.next(sum(each.tokens for each in self._running.values()))
                    if file is None:
                        return
                    await self._submit_file(*file)
                    self._poll_seconds = self._limits.first_poll_seconds

    async def _take_over(self) -> None:
        """Wait for the batches of earlier runs that hold pending requests."""
        for shard in self._ledger.open_shards():
            ours = self._ledger.pending_of(shard.id).intersection(self._builder.pending)
            if shard.id in self._running or not ours:
                continue
            batch = shard.batch
            if shard.state is ShardState.SENDING and (found := await self._listed(shard)):
                batch = await self._keep_one(shard, found)
            if batch:
                self._builder.remove(ours)
                self._start_waiting(shard._replace(batch=batch), ours)
            else:
                left: list[str] = []
                with suppress(*_FAULTS):
                    left = await self._provider.uploads(shard.file_name)
                self._ledger.close(shard.id, ShardState.VOID, left)

    async def _submit_file(self, digests: list[str], content: bytes) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        shard = Shard(f"{self._id}-{next(self._numbers):04d}", self._id, sha256, len(digests))
        self._ledger.add(shard, digests)
        try:
            file_id = await self._provider.upload(shard.file_name, content)
        except (EndpointError, ProviderAwayError):
            self._ledger.close(shard.id, ShardState.VOID)
            raise
        batch = await self._create_batch(shard, file_id)
        self._start_waiting(shard._replace(batch=batch), set(digests))

    async def _create_batch(self, shard: Shard, file_id: str) -> str:
        """Return the id of a new batch, which is noted."""
        for orders in range(1, _MOST_ORDERS + 1):
            self._ledger.advance(shard.id, ShardState.SENDING, files=[file_id])
            try:
                created = await self._provider.create(file_id, shard.metadata)
            except LostAnswerError:
                created = ""
            except (EndpointError, ProviderAwayError):
                self._ledger.close(shard.id, ShardState.VOID)
                raise
            if created and orders == 1:
                self._ledger.advance(shard.id, ShardState.RUNNING, created)
                return created
            found = await self._listed(shard._replace(changed_at=time.time()), may_be_several=orders > 1)
            if created and created not in {each.id for each in found}:
                found.append(Batch(created, ""))
            if found:
                return await self._keep_one(shard, found)
        raise ProviderAwayError(
            "the provider did not respond to several orders for a batch",
            where=self._provider.base_url,
            remedy="run the same command again later; it looks for them first",
        )

    async def _listed(self, shard: Shard, *, may_be_several: bool = False) -> list[Batch]:
        """Return the batches of a shard in the provider's list.

        A new batch may be missing there for `confirm_seconds`. So long it waits until there is one or, if there may be
        several, to the end.
        """
        sent_at = min(shard.changed_at, time.time())  # the clock may have been set back since
        until = time.monotonic() + sent_at - time.time() + self._limits.confirm_seconds
        while True:
            is_last = time.monotonic() >= until
            listed = await self._provider.newest(sent_at - _CLOCK_SLACK_SECONDS)
            ours = [each for each in listed if shard.metadata.items() <= each.metadata.items()]
            if is_last or (ours and not may_be_several):
                return ours
            await self._pause(min(self._limits.first_poll_seconds, self._limits.confirm_seconds))

    async def _keep_one(self, shard: Shard, batches: Sequence[Batch]) -> str:
        """Cancel all batches of a shard but the best, which is noted; return its id."""
        kept = min(batches, key=lambda batch: batch.rank)
        # Cancelled before the kept one is noted: a run that is killed here finds them again.
        for duplicate in batches:
            if duplicate.id != kept.id and not duplicate.is_over:
                try:
                    await self._provider.cancel(duplicate.id)
                except (EndpointError, ProviderAwayError, UnknownBatchError) as fault:
                    what = f"the batch {duplicate.id} duplicates another and could not be cancelled"
                    self._transport.report(f"{what}: {fault}")
        self._ledger.advance(shard.id, ShardState.RUNNING, kept.id)
        return kept.id

    def _start_waiting(self, shard: Shard, digests: set[str]) -> None:
        self._running[shard.id] = _Running(shard, digests, sum(map(self._builder.tokens, digests)))
        self._tries.update(digests)
        self._items.budget.hold(shard.id, sum(map(self._builder.worst_cost, digests), Decimal(0)))

    # Poll and collect.

    async def _poll(self) -> None:
        """Look at every batch once, and collect those that are over."""
        for running in list(self._running.values()):
            try:
                batch = await self._provider.state(running.shard.batch)
                self._answered[running.shard.id] = batch.answered
                if batch.is_over:
                    await self._collect(running, batch)
                    self._poll_seconds = self._limits.first_poll_seconds
                self._lost_polls = 0
            except ProviderAwayError:
                self._lost_polls += 1
                if self._lost_polls > _MOST_LOST_POLLS:
                    raise
            except UnknownBatchError:
                self._end_unknown(running)
            self._raise_if_cancelled()

    def _end_unknown(self, running: _Running) -> None:
        if self._ledger.is_closed(running.shard.id):
            # Another run waited for it too, read it to its end, and deleted its files.
            self._end(running, {}, "another run has read the batch")
            return
        if not self._limits.resubmit_lost:
            raise EndpointError(
                f"the provider does not know the batch {running.shard.batch}, or its files, with "
                f"{len(running.digests)} of these requests",
                where=self._provider.base_url,
                remedy="use a key of the project that created it; if it was deleted, set "
                "judge.batch.resubmit_lost: true to submit its requests again",
            )
        self._end(running, {}, "the provider lost the batch")

    async def _collect(self, running: _Running, batch: Batch) -> None:
        if "token_limit_exceeded" in batch.codes and not batch.files:
            self._shrink_queue(running, batch)
            return
        reading = await self._read(running.shard, batch)
        # Requests of which the files say nothing, but for those that were not answered.
        pending = self._ledger.pending_of(running.shard.id)
        failed = sum(not reading.unanswered[each].is_completed for each in pending & reading.unanswered.keys())
        missing = pending - reading.unanswered.keys()
        lost = len(missing) - max(0, running.shard.lines - batch.completed - failed)
        is_strange = batch.files and not reading.lines and (reading.unreadable or batch.answered)
        if (lost > 0 or is_strange) and not self._limits.resubmit_lost:
            which = f" for {lost} of {batch.completed} answers" if reading.lines else ""
            raise ProviderAwayError(
                f"the files of the batch {batch.id} hold no line that can be read{which}",
                where=self._provider.base_url,
                remedy="run the same command again later; if that does not help, set judge.batch.resubmit_lost: "
                "true to submit its requests again",
            )
        failure = f"the batch failed: {' '.join(batch.faults)}" if batch.status == "failed" else ""
        reasons = {"expired": "the batch expired", "cancelled": "the batch was cancelled"}
        otherwise = failure or reasons.get(batch.status, "the batch left it out")
        self._end(running, reading.unanswered, otherwise, (batch.input_file, *reading.files))
        self._require_accepted(reading)
        if failure and running.digests.isdisjoint(self._builder.pending):
            raise EndpointError(
                failure, where=self._provider.base_url, remedy="correct it, or leave --batch out to run live"
            )

    async def _read(self, shard: Shard, batch: Batch) -> _Reading:
        """Journal the replies in a batch's files; a file may be read again, and each reply is kept once."""
        reading = _Reading()
        for file_id in batch.files:
            lines = await self._provider.output(file_id)
            unreadable_before = reading.unreadable
            while group := list(islice(lines, _LINES_PER_COMMIT)):
                outcomes = [each for each in group if each is not None]
                entries = [Entry(each.digest, each.reply) for each in outcomes if each.reply is not None]
                for digest, reply in self._ledger.record(shard.id, entries):
                    self._items.has_replies = True
                    if (item := self._items.by_digest.get(digest)) is not None:
                        self._items.budget.count(item.request, reply, is_new=True)
                reading.lines += len(outcomes)
                reading.unreadable += len(group) - len(outcomes)
                reading.replies += len(entries)
                reading.unanswered |= {each.digest: each for each in outcomes if each.reply is None}
            if reading.unreadable == unreadable_before:
                reading.files.append(file_id)
        return reading

    def _require_accepted(self, reading: _Reading) -> None:
        """Raise RefusedRequestError for what every other request would meet as well.

        A batch with a reply shows that the others would not. A request that failed in such a batch says nothing
        about others in the next one.
        """
        if reading.replies:
            self._failed_alone |= reading.unanswered.keys()
            return
        for each in reading.unanswered.values():
            if each.digest in self._failed_alone:
                continue
            is_refused = each.action is OnStatus.REFUSE_REQUEST and not self._items.has_replies
            if is_refused or each.action is OnStatus.REFUSE_ALL:
                raise RefusedRequestError(
                    f"the requests of a batch are refused ({each.reason})",
                    where=self._provider.base_url,
                    remedy="check endpoint.model, and that it takes these parameters and a JSON schema",
                )

    def _end(
        self, running: _Running, outcomes: Mapping[str, Outcome], otherwise: str, files: Sequence[str] = ()
    ) -> None:
        """Close a shard; requests without an accepted reply are pending again, while they have tries left."""
        unanswered = self._ledger.pending_of(running.shard.id)
        self._ledger.close(running.shard.id, ShardState.ENDED, files)
        self._stop_waiting(running)
        for digest in sorted(running.digests):
            item, outcome = self._items.by_digest[digest], outcomes.get(digest)
            if digest in unanswered and outcome is not None and outcome.action is OnStatus.REFUSE_REQUEST:
                self._items.fail(item, ReplyStatus.INVALID, outcome.reason)
                continue
            kept = self._journal.replies(digest)
            if digest not in unanswered and kept:
                self._policy.on_reply(item.places[0], kept[-1])
            if self._items.offer(item, kept):
                self._items.finish(item)
            elif self._tries[digest] < self._policy.max_attempts:
                self._builder.pending.append(digest)
            elif digest in unanswered or not kept:
                self._items.fail(item, ReplyStatus.ERROR, outcome.reason if outcome else otherwise)
            else:
                self._items.finish(item)

    def _shrink_queue(self, running: _Running, batch: Batch) -> None:
        """Submit a batch again in smaller files; nothing of it was done, so it counts as no try."""
        self._ledger.close(running.shard.id, ShardState.VOID, [batch.input_file])
        self._stop_waiting(running)
        self._tries.subtract(running.digests)
        self._builder.pending.extend(sorted(running.digests))
        others = sum(each.tokens for each in self._running.values())
        if not others and len(running.digests) == 1:
            raise IncompleteError(
                f"the provider's queue has no room: {' '.join(batch.faults)}",
                where=self._provider.base_url,
                remedy="wait for other batches of the account, then run the same command again",
            )
        self._builder.queue_tokens = max(1, others, running.tokens // 2)

    def _stop_waiting(self, running: _Running) -> None:
        del self._running[running.shard.id]
        self._answered.pop(running.shard.id, None)
        self._items.budget.release(running.shard.id)

    # Wait.

    async def _pause(self, seconds: float) -> None:
        """Wait, at most until the run is cancelled; the next wait is longer."""
        self._poll_seconds = min(self._poll_seconds * _POLL_GROWTH, self._limits.longest_poll_seconds)
        try:
            async with self._policy.cancel.interrupting():
                await asyncio.sleep(seconds)
        except RunCancelledError:
            self._raise_if_cancelled()

    def _raise_if_cancelled(self) -> None:
        if not self._policy.cancel.is_cancelled():
            return
        message = f"stopped with {self._items.done} of {self._items.total} items done"
        remedy = "run the same command again to resume; replies are kept and not paid for twice"
        if self._running:
            waiting = sum(len(each.digests) for each in self._running.values())
            message += f"; {len(self._running)} batches with {waiting} of them continue at the provider"
            remedy = _RESUME
        raise Preempted(message, remedy=remedy)

    def _report(self) -> None:
        now, batches = time.monotonic(), len(self._running)
        if batches == self._reported_batches and now - self._reported_at < _REPORT_EVERY_SECONDS:
            return
        self._reported_at, self._reported_batches = now, batches
        if batches:
            waiting = sum(each.shard.lines for each in self._running.values())
            answered = sum(self._answered.values())
            self._transport.report(
                f"{batches} batches with the provider: {answered:,} of {waiting:,} requests answered there; "
                f"{self._items.done:,} of {self._items.total:,} items done"
            )


# Clean up.

_FAULTS = (EndpointError, IncompleteError, UnknownBatchError)


class _Cleanup:
    """Deletes the files of closed shards; after the first fault it leaves the rest to the next run."""

    def __init__(self, ledger: BatchLedger, transport: "BatchTransport") -> None:
        self._ledger, self._report = ledger, transport.report
        self._has_failed = False

    async def run(self, provider: "OpenAIBatches") -> None:
        """Delete the files of every closed shard; faults are reported, never raised."""
        if self._has_failed:
            return
        try:
            # Their runs were killed before they could close them.
            for shard in self._ledger.fully_read():
                try:
                    batch = await provider.state(shard.batch)
                except UnknownBatchError:
                    self._ledger.close(shard.id, ShardState.ENDED)
                else:
                    if batch.is_over:
                        self._ledger.close(shard.id, ShardState.ENDED, (batch.input_file, *batch.files))
            for shard_id, file_id in self._ledger.left_files():
                await provider.delete(file_id)
                self._ledger.forget_file(shard_id, file_id)
        except _FAULTS as fault:
            self.give_up(str(fault) or "files cannot be deleted there")

    def give_up(self, reason: str) -> None:
        """Report what is left, and leave it."""
        self._has_failed = True
        self._report(
            f"{len(self._ledger.left_files())} files of finished batches could not be deleted at the provider "
            f"({reason}); the next run tries again"
        )


async def _clean_up_alone(transport: "BatchTransport", ledger: BatchLedger) -> None:
    """Clean up in a run that has nothing pending."""
    cleanup = _Cleanup(ledger, transport)
    try:
        provider = transport.connect()
    except PsychoCounselError as fault:
        cleanup.give_up(str(fault))
        return
    try:
        await cleanup.run(provider)
    finally:
        await provider.aclose()
