"""ChatRequests -> ChatReplies through the provider's batches: the same replies as live, for half the price.

Another road to what `ask_all` returns. What is owed is cut into shards; each is written down, uploaded and
made a batch, and when that is over, its replies go into the journal under the same digests and through the
same parser. A run that begins takes over the batches that an earlier one left, whenever that was killed: by
the name that was noted, or by what stands in their metadata.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from psychocounsel.errors import StoreError
from psychocounsel.llm.batches.items import Items
from psychocounsel.llm.batches.ledger import BatchLedger, awaited_digests
from psychocounsel.llm.batches.provider import BatchRoad
from psychocounsel.llm.batches.run import BatchRun
from psychocounsel.llm.batches.tidying import tidy_alone
from psychocounsel.llm.beside import paying_beside
from psychocounsel.llm.chat import ChatModel, ChatReply, ChatRequest
from psychocounsel.llm.engine import AskPolicy, ask_all, ignore_progress
from psychocounsel.llm.event_loop import run_to_end
from psychocounsel.llm.journal import Journal


def ask_in_batches(
    road: BatchRoad, model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: AskPolicy
) -> list[ChatReply]:
    """Return what the engine's `ask_all` would: one reply per request, journalled before it is used.

    A reply that is not accepted is asked for again in a further batch, `max_attempts` in all; so is what a
    batch left unanswered, which ends as an `ERROR` reply. `policy.concurrency` does not matter here. Files of
    batches that are over are deleted at the provider, by the next run where that fails.

    Raises:
        EndpointError: there is no batch API, or it refuses; what is running there is collected next time.
        IncompleteError: the provider is away for long, its queue stays full, or the limit of cost is met.
        Preempted: `policy.stop` turned true; the batches go on.
        StoreError: the journal cannot be read or written.
    """
    items = Items(requests, model.identity, journal, policy)
    owed = items.begin()
    if owed and not road.is_known():
        owed = _ask_first(items, owed, model, journal, policy)
    ledger = BatchLedger(journal, f"{model.identity['model']} at {model.identity['base_url']}")
    if owed:
        run_to_end(BatchRun(road, items, ledger, policy).work(owed))
    elif ledger.has_leftovers() and not policy.stop():
        run_to_end(tidy_alone(road, ledger))
    items.settle()
    return items.results()


def ask_live(
    model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: AskPolicy
) -> list[ChatReply]:
    """Return what `ask_all` does, unless some of the requests are with the provider in a batch already.

    Raises:
        StoreError: they are, and would be paid twice.
    """
    awaited = awaited_digests(journal)
    if awaited:  # only now, for digests take their time
        ours = awaited.intersection(request.digest(model.identity) for request in requests)
        if ours:
            raise StoreError(
                f"{len(ours)} of these requests are with the provider in batches, and would be paid twice",
                where=str(journal.path),
                remedy="run with --batch to pick them up",
            )
    return ask_all(model, requests, journal, policy)


def _ask_first(
    items: Items, owed: list[str], model: ChatModel, journal: Journal, policy: AskPolicy
) -> list[str]:
    """Ask the first owed request live: its reply tells what the server can do. Return what is owed then."""
    if policy.stop() or awaited_digests(journal).intersection(owed):
        return owed
    digest, place = owed[0], items.place(owed[0])
    request = items.request(digest)
    if policy.budget is not None:
        policy.budget.require(request)

    def accept(index: int, reply: ChatReply) -> bool:
        del index  # there is one item
        return policy.accept(place, reply)

    alone = replace(
        policy,
        accept=accept,
        progress=ignore_progress,
        reader="",
        max_attempts=1,
        budget=None,
    )
    counted = nullcontext() if policy.budget is None else paying_beside(policy.budget.spending.add_beside)
    with items.counting_live(digest), counted:
        ask_all(model, [request], journal, alone)
    return owed[1:] if items.close(digest, None) else owed
