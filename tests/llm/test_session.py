"""Clients of a session: they connect with the first request, and in a dry run they count."""

import signal
from collections.abc import Callable
from decimal import Decimal

import pytest
from chat_server import MODEL, ChatServer, answer_by_schema

from psychocounsel.config.components import BatchConfig, EndpointConfig, PriceConfig
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.session import PLACEHOLDER, PendingCalls, Session, bill_of, count_calls, open_session
from psychocounsel.llm.types import ChatRequest, Message
from psychocounsel.store.store import Store

PRICED = EndpointConfig(
    model="judge-1", base_url="http://here/v1", price=PriceConfig(prompt=1.0, completion=0.0), max_attempts=3
)


def requests(*texts: str) -> list[ChatRequest]:
    return [ChatRequest((Message("user", text),), 0.0, 1.0, 5) for text in texts]


def counted(store: Store, endpoint: EndpointConfig, *texts: str, batch: BatchConfig | None = None) -> PendingCalls:
    def run(calls: list[PendingCalls]) -> None:
        with open_session(store, calls) as session:
            session.client(endpoint, "rating", batch).run(requests(*texts), RunPolicy())

    (pending,) = count_calls(run)
    return pending


def test_nothing_is_opened_before_the_first_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = Session(store).client(EndpointConfig(model="m"), "rating")
    assert client.fingerprint == {"model": "m", "base_url": "https://api.openai.com/v1"}
    assert not store.root.exists()


def test_a_dry_run_counts_what_the_journal_does_not_hold_and_leaves_no_trace(store: Store) -> None:
    with ChatServer(answer_by_schema) as server:
        endpoint = EndpointConfig(model=MODEL, base_url=server.base_url)
        assert counted(store, endpoint, "one", "two", "two").calls == 2
        assert server.count == 0
        assert not store.root.exists()
        with open_session(store) as session:
            (reply,) = session.client(endpoint, "rating").run(requests("one"), RunPolicy())
        pending = counted(store, endpoint, "one", "two")
        assert (pending.calls, server.count) == (1, 1)
        with open_session(store, []) as session:
            assert session.client(endpoint, "r").run(requests("one", "two"), RunPolicy()) == [reply, PLACEHOLDER]
        assert str(counted(store, endpoint, "one")).endswith(": nothing pending")


def test_requests_that_earlier_steps_of_a_dry_run_counted_are_paid_once(store: Store) -> None:
    def step(*texts: str) -> Callable[[list[PendingCalls]], None]:
        def run(calls: list[PendingCalls]) -> None:
            with open_session(store, calls) as session:
                session.client(PRICED, "rating").run(requests(*texts), RunPolicy())

        return run

    (first,) = count_calls(step("one", "two"))
    (second,) = count_calls(step("two", "three"), [first])
    (third,) = count_calls(step("one", "three"), [first, second])
    assert (first.calls, second.calls, third.calls) == (2, 1, 0)


def test_what_cannot_be_counted_yet_says_why(store: Store) -> None:
    def run(calls: list[PendingCalls]) -> None:
        with open_session(store, calls) as session:
            first, _ = session.client(PRICED, "answers"), session.client(PRICED, "rating")
            first.run(requests("one"), RunPolicy())
            session.stop_counting("counted once the speeches are fetched")

    answers, rating = count_calls(run)
    assert (answers.calls, rating.calls) == (1, None)
    assert str(rating) == "rating, judge-1 at http://here/v1: counted once the speeches are fetched"


COSTS = [(2_000_000, "$2.00", "$1.00"), (4_396, "$0.0044", "$0.0022"), (10_000, "$0.01", "$0.0050")]


@pytest.mark.parametrize(("words", "cost", "in_batches"), COSTS)
def test_a_bound_includes_retries_and_less_than_a_cent_has_four_decimals(
    store: Store, words: int, cost: str, in_batches: str
) -> None:
    # A model of unknown vocabulary: four characters count as a token, and a token has at least one byte.
    pending = counted(store, PRICED, "tree" * words, batch=BatchConfig())
    assert f": 1 calls, up to 3 with retries; about {words + 4:,} prompt tokens" in str(pending)
    assert f"; {cost}, as a batch {in_batches}, up to $" in str(pending)
    worst = Decimal(3 * (4 * words + 4)) / 1_000_000
    assert f"up to ${worst:,.2f} with retries" in str(pending)


def test_without_batches_there_is_no_price_for_them_and_without_a_price_none(store: Store) -> None:
    assert "as a batch" not in str(counted(store, PRICED, "tree" * 2_000_000))
    assert "price unknown" in str(counted(store, PRICED.model_copy(update={"price": None}), "tree"))


def test_what_a_server_on_this_machine_answers_is_free(store: Store) -> None:
    here = PRICED.model_copy(update={"price": None, "base_url": "http://127.0.0.1:8000/v1"})
    shown = str(counted(store, here, "tree"))
    assert shown.endswith("; free (by a server on this machine)")
    assert "$" not in shown


def test_calls_of_unknown_price_are_not_free_together(store: Store) -> None:
    unknown = counted(store, PRICED.model_copy(update={"price": None}), "tree")
    assert bill_of([unknown, unknown]) == "2 calls; price unknown"
    uncounted = PendingCalls(PRICED, "rating")
    assert bill_of([unknown, uncounted]) == "1 calls; price unknown, without calls that cannot be counted yet"
    assert bill_of([unknown, counted(store, PRICED, "tree")]).endswith(" with retries, without calls of unknown price")


def test_a_dry_run_has_nothing_to_save_on_a_signal(store: Store) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with open_session(store, []):
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    with open_session(store):
        assert signal.getsignal(signal.SIGINT) is not handlers[0]
