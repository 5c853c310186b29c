"""What replies cost, and a limit that no run passes."""

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_model import count_replies
from psychocounsel.config.components import EndpointConfig, PriceConfig
from psychocounsel.errors import ConfigError, IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.cost import (
    TOKENS_PER_MESSAGE,
    Budget,
    Price,
    Spending,
    TokenCounter,
    Tokens,
    budget_of,
    price_of,
    spent_together,
    vocabulary_of,
)
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.types import ChatReply, ChatRequest, Message, RequestContext
from psychocounsel.types import ReplyStatus

DOLLAR_PER_TOKEN = Price(Decimal(10**6), Decimal(10**6), Decimal(10**6), "a test")


def asks(text: str, max_tokens: int = 10) -> ChatRequest:
    return ChatRequest((Message("user", text),), 0.0, 1.0, max_tokens)


def reply(prompt: int, completion: int, cached: int = 0) -> ChatReply:
    return ChatReply(ReplyStatus.VALID, "yes", "judge-1", prompt, completion, cached_tokens=cached)


def test_tokens_of_a_known_and_of_an_unknown_model() -> None:
    for model in ("gpt-4o-2024-08-06", "openai/gpt-4.1-mini", "ft:gpt-4o-mini:mine", "o3-mini"):
        assert vocabulary_of(model) == "o200k_base"
    assert vocabulary_of("gpt-4-turbo") == "cl100k_base"
    assert vocabulary_of("meta-llama/Llama-3.1-8B-Instruct") is None
    assert TokenCounter("gpt-4o").text("hello world") == 2
    assert TokenCounter("gpt-4o").prompt(asks("hello world")) == 2 + TOKENS_PER_MESSAGE
    assert TokenCounter("llama").text("hello world") == 3  # 11 characters
    assert TokenCounter("llama").at_most(asks("h\u00e9")) == 3 + TOKENS_PER_MESSAGE  # 3 bytes


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_no_count_passes_its_bound(text: str) -> None:
    exact, unknown = TokenCounter("gpt-4o"), TokenCounter("llama")
    assert exact.prompt(asks(text)) <= unknown.at_most(asks(text))


def test_where_prices_come_from_and_a_limit_needs_one() -> None:
    own = EndpointConfig(model="m", base_url="https://x.org/v1", price=PriceConfig(prompt=1.0, completion=2.0))
    assert price_of(own) == Price(Decimal("1.0"), Decimal("1.0"), Decimal("2.0"), "the config")
    table = price_of(EndpointConfig(model="gpt-4o-2024-08-06"))
    assert table is not None
    assert table[:3] == (Decimal("2.5"), Decimal("1.25"), Decimal(10))
    here = price_of(EndpointConfig(model="gpt-4o", base_url="http://127.0.0.1:9/v1"))
    assert here is not None
    assert here.cost(Tokens(10**6, 0, 10**6)) == 0
    assert price_of(EndpointConfig(model="gpt-4o", base_url="https://models.example.org/v1")) is None
    with pytest.raises(ConfigError, match=r"endpoint\.price"):
        budget_of(EndpointConfig(model="m", base_url="https://x.org/v1", max_cost=1.0))


def test_spending_adds_up_by_the_name_in_the_reply() -> None:
    spending = Spending(DOLLAR_PER_TOKEN)
    spending.add(reply(3, 2, cached=1), is_new=False)
    spending.add(reply(5, 4), is_new=True)
    assert spending.kept["judge-1"].tokens == Tokens(3, 1, 2)
    assert spending.as_dict() == {
        "models": {"judge-1": {"calls": 2, "prompt": 8, "cached": 1, "completion": 6}},
        "cost_usd": 14.0,
        "price_from": "a test",
    }
    assert spending.summary == "1 calls in this run ($9.00), 1 in earlier ones ($5.00)"
    unpriced = Spending(None)
    unpriced.add(reply(3, 2), is_new=True)
    assert unpriced.as_dict()["cost_usd"] is None
    assert unpriced.summary == "1 calls in this run, 0 in earlier ones"


class Priced:
    """Answers with the tokens that its texts ask for, and loses the response of the longest."""

    fingerprint: Mapping[str, str] = {"model": "fake-1", "base_url": "memory"}

    def __init__(self, costs: Mapping[str, int], order: list[float]) -> None:
        self.costs, self.order = costs, order
        self.billed = 0

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        text = request.messages[0].content
        await asyncio.sleep(self.order[int(text)] / 1000)
        self.billed += self.costs[text]
        if self.costs[text] == 10:  # the full length: the line breaks, and the server charges for all of it
            await context.on_lost_response()
            return ChatReply(ReplyStatus.ERROR, "", "fake-1", 0, 0, "the line broke")
        return reply(1, self.costs[text])


ANSWERS_ONLY = Price(Decimal(0), Decimal(0), Decimal(10**6), "a test")


@given(
    st.lists(st.tuples(st.integers(1, 10), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(0, 130),
    st.integers(1, 5),
)
def test_the_limit_is_never_passed_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]], limit: int, concurrency: int
) -> None:
    costs = {str(number): cost for number, (cost, _) in enumerate(asked)}
    model = Priced(costs, [float(delay) for _, delay in asked])
    spending = Spending(ANSWERS_ONLY)
    budget = Budget(spending, TokenCounter("fake-1"), max_cost=float(limit))
    policy = RunPolicy(max_attempts=1, concurrency=concurrency, budget=budget)
    with Journal(tmp_path_factory.mktemp("journal") / "j.sqlite") as journal:
        try:
            run_requests(model, [asks(text) for text in costs], journal, policy)
        except IncompleteError as stop:
            # Refused for its price, or because a whole row of lines broke.
            assert "limit" in str(stop) or "in a row" in str(stop)
            assert spending.total + 10 > limit or "in a row" in str(stop)
    assert model.billed == spending.total <= limit


def test_what_failed_and_what_this_run_spent_is_reported_in_a_few_words(journal: Journal) -> None:
    costs = {"0": 4, "1": 10, "2": 4}  # the response to the second is lost
    spending = Spending(ANSWERS_ONLY)
    policy = RunPolicy(max_attempts=1, budget=Budget(spending, TokenCounter("fake-1"), None))
    assert spending.standing == ""
    run_requests(Priced(costs, [0.0] * 3), [asks(text) for text in "0112"], journal, policy)
    assert spending.standing == "2 failed, $18.00 spent"


def test_a_resumed_run_knows_what_may_have_been_paid_before(tmp_path: Path) -> None:
    costs = {"0": 4, "1": 10, "2": 4}  # the response to the second is lost in every try
    spending = Spending(None)
    endings: list[str] = []
    for _ in range(2):
        spending = Spending(ANSWERS_ONLY)
        policy = RunPolicy(max_attempts=2, concurrency=1, budget=Budget(spending, TokenCounter("fake-1"), None))
        with Journal(tmp_path / "j.sqlite") as journal:
            run_requests(Priced(costs, [0.0] * 3), [asks(text) for text in costs], journal, policy)
        endings.append(spending.summary.partition("ones")[2])
    # Twice 4, and two tries of 10 in each run.
    assert endings == [
        " ($0.00); 2 lost responses, possibly billed ($20.00)",
        " ($8.00); 4 lost responses, possibly billed ($40.00)",
    ]
    assert spending.total == 48
    assert spending.as_dict()["possibly_billed"] == {"calls": 4, "cost_usd": 40.0}


def test_what_earlier_runs_paid_counts_before_the_first_request(journal: Journal) -> None:
    """The journal's replies come after the pending request in order; the limit knows them nevertheless."""
    costs = {"0": 4, "1": 4, "2": 4}
    run_requests(Priced(costs, [0.0] * 3), [asks("1"), asks("2")], journal, RunPolicy())
    budget = Budget(Spending(ANSWERS_ONLY), TokenCounter("fake-1"), max_cost=17.0)  # 8 paid, 10 at worst
    model = Priced(costs, [0.0] * 3)
    with pytest.raises(IncompleteError, match="limit"):
        run_requests(model, [asks(text) for text in costs], journal, RunPolicy(budget=budget))
    assert model.billed == 0


def test_lost_responses_of_earlier_runs_count_towards_the_limit(tmp_path: Path) -> None:
    billed = 0
    for _ in range(3):
        budget = Budget(Spending(ANSWERS_ONLY), TokenCounter("fake-1"), max_cost=29.0)
        model = Priced({"0": 10}, [0.0])
        with Journal(tmp_path / "j.sqlite") as journal:
            try:
                run_requests(model, [asks("0")], journal, RunPolicy(max_attempts=1, budget=budget))
            except IncompleteError as stop:
                assert "limit" in str(stop)
        billed += model.billed
    assert billed == 20


class Breaking:
    """Breaks the line of every try but the last, and sends as long as it is let."""

    fingerprint: Mapping[str, str] = {"model": "fake-1", "base_url": "memory"}

    def __init__(self, tries: int) -> None:
        self.tries, self.sent = tries, 0

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        for _ in range(self.tries - 1):
            self.sent += 1
            await context.on_lost_response()
        self.sent += 1
        return reply(9, 4)


@pytest.mark.parametrize(("limit", "sent"), [(10.0, 1), (19.0, 1), (20.0, 2), (29.9, 2), (30.0, 3)])
def test_each_try_after_a_lost_response_needs_room_of_its_own(journal: Journal, limit: float, sent: int) -> None:
    model = Breaking(tries=3)
    budget = Budget(Spending(ANSWERS_ONLY), TokenCounter("fake-1"), max_cost=limit)
    with nullcontext() if limit >= 30 else pytest.raises(IncompleteError, match="limit"):
        run_requests(model, [asks("0")], journal, RunPolicy(budget=budget))
    assert len([*journal.lost_responses()]) == min(sent, 2)
    assert model.sent == sent


def test_requests_that_are_sent_again_do_not_wait_for_each_other(journal: Journal) -> None:
    """Both fit at first, and only one of them at a time once both lines broke."""
    model = Breaking(tries=2)
    budget = Budget(Spending(ANSWERS_ONLY), TokenCounter("fake-1"), max_cost=38.0)
    run_requests(Breaking(tries=1), [asks("first")], journal, RunPolicy(budget=budget))
    run_requests(model, [asks("0"), asks("1")], journal, RunPolicy(concurrency=2, budget=budget))
    assert budget.spending.possibly_billed == 2
    assert budget.spending.total == 4 + 2 * 10 + 2 * 4


@pytest.mark.parametrize("reported", [(0, 0), (10 + TOKENS_PER_MESSAGE, 0), (0, 5)])
def test_what_a_server_does_not_count_is_counted_here(tmp_path: Path, reported: tuple[int, int]) -> None:
    class Silent(Breaking):
        async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
            return ChatReply(ReplyStatus.VALID, "four by four tokens", "fake-1", *reported)

    texts = [f"a prompt of ten tokens, number {number:9}" for number in range(9)]  # 40 characters
    paid = (10 + TOKENS_PER_MESSAGE) + 5  # 19 characters of an answer
    for limit in (100.0, 150.0):
        budget = Budget(Spending(DOLLAR_PER_TOKEN), TokenCounter("fake-1"), max_cost=limit)
        with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(IncompleteError, match="limit"):
            run_requests(Silent(1), [asks(text) for text in texts], journal, RunPolicy(budget=budget))
        uncounted = budget.spending.as_dict()["calls_without_usage"]
        assert budget.spending.total == uncounted * paid <= limit
        assert uncounted == budget.spending.as_dict()["models"]["fake-1"]["calls"] > 1
    assert "without a token count" in budget.spending.summary


def test_one_budget_serves_one_event_loop_after_another(journal: Journal) -> None:
    """As in an audit; in each loop a request has to wait for room."""
    budget = Budget(Spending(ANSWERS_ONLY), TokenCounter("fake-1"), max_cost=60.0)
    for texts in ("01234", "56789", "abcde"):
        model = Priced(dict.fromkeys(map(str, range(100)), 1), [2.0] * 100)
        numbers = [str(int(text, 16)) for text in texts]
        policy = RunPolicy(concurrency=5, budget=budget)
        budget.hold("what leaves room for two", Decimal(36) - budget.spending.total)
        assert len(run_requests(model, [asks(text) for text in numbers], journal, policy)) == 5
        budget.release("what leaves room for two")
    assert budget.spending.total == 15


def test_requests_that_wait_for_room_are_not_sent_after_a_stop(journal: Journal) -> None:
    costs = dict.fromkeys(map(str, range(20)), 1)
    cancel = CancelToken()

    class Cancelling(Priced):
        async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
            reply = await super().generate(request, context)
            if self.billed == 3:
                cancel.cancel()
            return reply

    model = Cancelling(costs, [2.0] * 20)
    budget = Budget(Spending(ANSWERS_ONLY), TokenCounter("fake-1"), max_cost=30.0)
    policy = RunPolicy(concurrency=20, budget=budget, cancel=cancel)
    with pytest.raises(Preempted):
        run_requests(model, [asks(text) for text in costs], journal, policy)
    assert model.billed <= 4  # one more than the third was in flight
    assert count_replies(journal) == model.billed
    assert budget.fits(Decimal(30 - model.billed)), "nothing is held any more"


def test_cost_by_hand_where_more_cached_than_there_was_makes_nothing_cheaper() -> None:
    price = Price(Decimal(2), Decimal(1), Decimal(8), "a test")
    assert price.cost(Tokens(1000, 400, 100)) * 10**6 == 600 * 2 + 400 * 1 + 100 * 8
    assert price.cost(Tokens(100, 5000, 10)) * 10**6 == 100 * 1 + 10 * 8
    spending = Spending(price)
    spending.add(reply(100, 10, cached=5000), is_new=True)
    spending.add(reply(9000, 0), is_new=True)
    assert spending.total * 10**6 == 100 * 1 + 10 * 8 + 9000 * 2


def test_what_several_spent_together_includes_lost_responses() -> None:
    some, none, unpriced = Spending(DOLLAR_PER_TOKEN), Spending(DOLLAR_PER_TOKEN), Spending(None)
    some.possibly_billed, some.possible_cost = 3, Decimal("1.5")
    unpriced.possibly_billed = 2
    assert spent_together([some, none])["possibly_billed"] == {"calls": 3, "cost_usd": 1.5}
    assert spent_together([some, unpriced])["possibly_billed"] == {"calls": 5, "cost_usd": None}
    assert "possibly_billed" not in spent_together([none, none])


def test_probes_count_towards_the_limit_and_are_reported() -> None:
    spending = Spending(DOLLAR_PER_TOKEN)
    spending.add(reply(3, 2), is_new=True)
    spending.add_probe(reply(4, 1))
    assert spending.total == 10
    assert spending.standing == "$10.00 spent"
    assert "1 probes of what the server can do ($5.00)" in spending.summary
    assert spending.as_dict()["cost_usd"] == 5.0, "a resumed run, which does not probe again, is equal"
