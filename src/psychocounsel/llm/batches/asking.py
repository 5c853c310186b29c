"""ChatRequests -> ChatReplies through the provider's batches: the same replies as live, for half the price.

Another road to what `ask_all` returns. What is owed is cut into shards; each is written down, uploaded and
made a batch, and when that is over, its replies go into the journal under the same digests and through the
same parser. A run that begins takes over the batches that an earlier one left, whenever that was killed: by
the name that was noted, or by what stands in their metadata.
"""

from collections.abc import Sequence
from dataclasses import replace

from psychocounsel.errors import StoreError
from psychocounsel.llm.batches.items import Items
from psychocounsel.llm.batches.ledger import BatchLedger
from psychocounsel.llm.batches.provider import BatchRoad
from psychocounsel.llm.batches.run import BatchRun
from psychocounsel.llm.chat import ChatModel, ChatReply, ChatRequest
from psychocounsel.llm.engine import AskPolicy, ask_all, ignore_progress
from psychocounsel.llm.event_loop import run_to_end
from psychocounsel.llm.journal import Journal


def ask_in_batches(
    road: BatchRoad, model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: AskPolicy
) -> list[ChatReply]:
    """Return what the engine's `ask_all` would: one reply per request, journalled before it is used.

    A reply that is not accepted is asked for again in a further batch, `max_attempts` in all; so is what a
    batch left unanswered, which ends as an `ERROR` reply. `policy.concurrency` does not matter here.

    Raises:
        EndpointError: there is no batch API, or it refuses; what is running there is collected next time.
        IncompleteError: the provider is away for long, its queue stays full, or the limit of cost is met.
        Preempted: `policy.stop` turned true; the batches go on.
        StoreError: the journal cannot be read or written.
    """
    if not road.is_known():
        _ask_one(model, requests, journal, policy)
    items = Items(requests, model.identity, journal, policy)
    owed = items.begin()
    if owed:
        ledger = BatchLedger(journal, f"{model.identity['model']} at {model.identity['base_url']}")
        run_to_end(BatchRun(road, items, ledger, policy).work(owed))
    items.settle()
    return items.results()


def ask_live(
    model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: AskPolicy
) -> list[ChatReply]:
    """Return what `ask_all` does, unless some of the requests are with the provider in a batch already.

    Raises:
        StoreError: they are, and would be paid twice.
    """
    awaited = BatchLedger(journal, "").awaited()
    if awaited:  # only now, for digests take their time
        ours = awaited.intersection(request.digest(model.identity) for request in requests)
        if ours:
            raise StoreError(
                f"{len(ours)} of these requests are with the provider in batches, and would be paid twice",
                where=str(journal.path),
                remedy="run with --batch to pick them up",
            )
    return ask_all(model, requests, journal, policy)


def _ask_one(model: ChatModel, requests: Sequence[ChatRequest], journal: Journal, policy: AskPolicy) -> None:
    """Ask the first owed request live: its reply tells what the server can do."""
    quiet = replace(policy, progress=ignore_progress, budget=None)
    owed = Items(requests, model.identity, journal, quiet).begin()
    if not owed or policy.stop() or BatchLedger(journal, "").awaited().intersection(owed):
        return
    places = {request.digest(model.identity): place for place, request in enumerate(requests)}
    place = places[owed[0]]
    if policy.budget is not None:
        policy.budget.require(requests[place])

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
    ask_all(model, [requests[place]], journal, alone)
