"""What a server enforces is found out, at little cost, and kept."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from chat_server import GIVEN_UP, MODEL, ChatServer, Fault, Reply, answer_by_schema, error_fault

from fake_model import count_replies
from psychocounsel.config.components import EndpointConfig, PriceConfig
from psychocounsel.errors import EndpointError, IncompleteError
from psychocounsel.llm.cost import Budget, Price, Spending, TokenCounter, budget_of
from psychocounsel.llm.endpoints import CAPABILITIES_FILE, open_endpoint, open_journal
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.structured_output import Capabilities, OutputMode, StructuredOutputModel, fits, in_mode
from psychocounsel.llm.types import JSON, ChatReply, ChatRequest, Message, RequestContext
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus

SCHEMA: dict[str, JSON] = {
    "type": "object",
    "properties": {"item_id": {"type": "string"}, "rating": {"type": "integer", "enum": [1, 2, 3]}},
    "required": ["item_id", "rating"],
    "additionalProperties": False,
}
GOOD = '{"item_id": "x", "rating": 2}'


def requests(count: int) -> list[ChatRequest]:
    return [
        ChatRequest((Message("system", "Rate."), Message("user", f"item {number}")), 0.0, 1.0, 50, SCHEMA, "rate")
        for number in range(count)
    ]


def kind(body: Mapping[str, Any]) -> str:
    """Return how a request was held to its schema."""
    return body.get("response_format", {}).get("type", "text")


def is_probe(body: Mapping[str, Any]) -> bool:
    return "good morning" in str(body["messages"])


class Ignoring:
    """A server that takes everything and ignores what it cannot do, or refuses it."""

    def __init__(self, can: str, refuses: tuple[str, ...] = ()) -> None:
        self.can, self.refuses = can, refuses

    def __call__(self, body: Mapping[str, Any], number: int) -> Reply | Fault:
        if kind(body) in self.refuses:
            return error_fault(400, f"response_format {kind(body)} is not supported", "invalid_request_error")
        if kind(body) == "json_schema" and self.can == "json_schema":
            return answer_by_schema(body, number)
        if kind(body) == "json_object" and self.can == "json_object":
            return Reply('{"greeting": "good morning"}' if is_probe(body) else GOOD)
        if is_probe(body):
            return Reply("Good morning!")
        reported = "rating" in str(body["messages"][0]["content"])
        return Reply(f"Sure:\n```json\n{GOOD}\n```" if reported else "Four out of five.")


def asked(server: ChatServer, store: Store, count: int = 3, **settings: Any) -> list[ChatReply]:
    endpoint = EndpointConfig(model=MODEL, base_url=server.base_url, **settings)
    policy = RunPolicy(lambda _, reply: "rating" in reply.text, max_attempts=2)
    with open_journal(store) as journal:
        return run_requests(open_endpoint(endpoint, store), requests(count), journal, policy)


def remembered(store: Store) -> dict[str, str]:
    path = store.root / CAPABILITIES_FILE
    return json.loads(path.read_bytes()) if path.exists() else {}


@pytest.mark.parametrize(
    ("can", "refuses", "probe_count"),
    [
        ("json_object", (), 2),
        ("text", (), 2),
        ("json_object", ("json_schema",), 1),
        ("text", ("json_schema",), 1),
        ("text", ("json_schema", "json_object"), 1),
    ],
)
def test_what_a_server_ignores_or_refuses_is_put_in_words(
    store: Store, can: str, refuses: tuple[str, ...], probe_count: int
) -> None:
    with ChatServer(Ignoring(can, refuses)) as server:
        replies = asked(server, store)
        shaped = [each.body for each in server.received if not is_probe(each.body)]
        probes = server.count - len(shaped)
    assert all(reply.status is ReplyStatus.VALID and "rating" in reply.text for reply in replies)
    assert [kind(body) for body in shaped] == ["json_schema"] + [can] * 3
    assert all('"additionalProperties": false' in body["messages"][0]["content"] for body in shaped[1:])
    assert shaped[1]["messages"][1]["content"] == "item 0", "the item itself stays unchanged"
    assert probes == probe_count
    assert list(remembered(store).values()) == [can]


@pytest.mark.parametrize("damage", [lambda known: "{half", lambda known: json.dumps({name: {} for name in known})])
def test_known_capabilities_are_not_probed_again_and_damaged_ones_are(
    store: Store, damage: Callable[[Mapping[str, str]], str]
) -> None:
    with ChatServer(Ignoring("text")) as server:
        asked(server, store, count=1)
        before = server.count
        asked(server, store, count=1)
        assert server.count == before, "nothing is pending, so nothing is sent"
        asked(server, store, count=2)
        assert [kind(each.body) for each in server.received[before:]] == ["text"]
        (store.root / CAPABILITIES_FILE).write_text(damage(remembered(store)))
        asked(server, store, count=3)
        assert is_probe(server.received[-1].body) or is_probe(server.received[-2].body)


@pytest.mark.parametrize(("in_words", "count"), [(0, 3), (1, 5)])
def test_a_server_that_keeps_to_schemas_is_sent_nothing_else_though_one_reply_is_in_words(
    store: Store, in_words: int, count: int
) -> None:
    with ChatServer(lambda *asked: Reply("Well.") if asked[1] < in_words else answer_by_schema(*asked)) as server:
        asked(server, store)
        assert [kind(each.body) for each in server.received] == ["json_schema"] * count
    assert list(remembered(store).values()) == ["json_schema"]


def test_a_request_refused_for_another_reason_stays_refused_and_nothing_is_remembered(store: Store) -> None:
    never = error_fault(400, "temperature is not supported", "invalid_request_error")
    with ChatServer(lambda body, number: never) as server, pytest.raises(EndpointError, match="temperature"):
        asked(server, store)
    assert remembered(store) == {}


@pytest.mark.parametrize("pinned", list(OutputMode))
def test_a_pinned_mode_is_not_probed_and_has_a_digest_of_its_own(store: Store, pinned: OutputMode) -> None:
    with ChatServer(Ignoring("text")) as server:
        asked(server, store, response_format=pinned.value)
        assert {kind(each.body) for each in server.received} == {pinned.value}
        assert not any(is_probe(each.body) for each in server.received)
        before = server.count
        asked(server, store)
        assert server.count > before


@pytest.mark.parametrize(
    ("base_url", "is_known"), [("https://api.openai.com/v1", True), ("http://127.0.0.1:9/v1", False), (None, True)]
)
def test_openai_is_known_to_enforce_schemas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str | None, is_known: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert open_endpoint(EndpointConfig(model="m", base_url=base_url), Store(tmp_path)).is_known is is_known


UNFIT = ('{"item_id": "x", "rating": 4}', '{"item_id": "x", "rating": true}', '{"item_id": 1, "rating": 1}')
UNFIT += ('{"item_id": "x", "rating": 1, "more": 1}', '{"rating": 1}', "[]", "", f"```json\n{GOOD}\n```")


def test_a_reply_fits_its_schema_wholly_or_not() -> None:
    assert [text for text in (GOOD, *UNFIT) if fits(text, SCHEMA)] == [GOOD]


def test_a_request_without_a_system_message_gets_one_for_the_schema() -> None:
    request = ChatRequest((Message("user", "Rate it."),), 0.0, 1.0, 9, SCHEMA)
    reported = in_mode(request, OutputMode.TEXT)
    assert [turn.role for turn in reported.messages] == ["system", "user"]
    assert reported.response_schema is None
    assert in_mode(request, OutputMode.JSON_SCHEMA) is request


def listed(name: str, **more: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", **more}


def days_from_now(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()


@pytest.mark.parametrize(
    ("models", "what"),
    [
        ([listed("successor-1"), listed("successor-2")], "unknown, or retired"),
        ([listed(MODEL, shutdown_date=days_from_now(-1)), listed("successor-1")], "was shut down on"),
    ],
)
def test_a_retired_model_is_refused_before_the_first_call(
    store: Store, models: list[dict[str, Any]], what: str
) -> None:
    with ChatServer(models=models) as server:
        with pytest.raises(EndpointError, match=what) as refused:
            asked(server, store)
        assert server.count == 0
    assert "successor-1" in refused.value.remedy
    assert MODEL not in refused.value.remedy


def test_an_announced_end_is_reported_and_lets_through(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    end = days_from_now(30)
    with ChatServer(models=[listed(MODEL, shutdown_date=end)]) as server:
        asked(server, store)
    assert f"will be shut down on {end}" in caplog.text


@pytest.mark.parametrize("models", [None, [], [listed(MODEL, shutdown_date=None)], [listed(f"{MODEL}:latest")]])
def test_a_listed_model_and_a_server_without_a_list_are_let_through(
    store: Store, models: list[dict[str, Any]] | None
) -> None:
    with ChatServer(models=models) as server:
        asked(server, store)
        assert server.count == 3


class FakeEndpoint:
    """Answers in words, whatever the schema; a probe waits for `released`, then raises or loses a response once."""

    fingerprint: Mapping[str, str] = {"model": "fake-1", "base_url": "memory"}
    base_url = "memory"

    def __init__(self, fault: Exception | None = None, loses_response: bool = False, is_released: bool = True) -> None:
        self.fault, self.loses_response, self.released = fault, loses_response, asyncio.Event()
        if is_released:
            self.released.set()
        self.requested: list[str] = []

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        context.cancel.raise_if_cancelled()
        is_probe = "good morning" in request.messages[-1].content
        mode = "json_schema" if request.response_schema else "json_object" if request.json_mode else "text"
        self.requested.append("probe" if is_probe else mode)
        await asyncio.sleep(0.01)
        if is_probe:
            await self.released.wait()
            if self.loses_response:
                self.loses_response = False
                await context.on_lost_response()
            if self.fault is not None:
                raise self.fault
        return ChatReply(ReplyStatus.VALID, "Well.", "fake-1", 10, 10)

    def body(self, request: ChatRequest) -> bytes:
        return b""

    async def aclose(self) -> None: ...

    async def listed_models(self) -> None: ...


def test_a_reply_is_returned_before_it_is_known_what_the_server_can_do(tmp_path: Path) -> None:
    async def work() -> None:
        endpoint = FakeEndpoint(is_released=False)
        model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "c.json"))
        first, second = requests(2)
        probes: list[ChatReply] = []
        assert (await model.generate(first, RequestContext(on_probe=probes.append))).text == "Well."
        later = asyncio.create_task(model.generate(second, RequestContext()))
        await asyncio.sleep(0.03)
        assert endpoint.requested == ["json_schema", "probe"], "the second waits until the mode is known"
        endpoint.released.set()
        await later
        await model.aclose()
        assert endpoint.requested == ["json_schema", "probe", "probe", "text"]
        assert len(probes) == 2, "the first request is charged for the probes"

    asyncio.run(work())


@pytest.mark.parametrize("fault", [EndpointError("no quota"), IncompleteError("no connection"), None])
def test_a_probe_that_fails_or_a_memory_that_cannot_be_written_loses_no_reply(
    tmp_path: Path, fault: Exception | None
) -> None:
    (tmp_path / "file").touch()

    async def work() -> list[str]:
        endpoint = FakeEndpoint(fault)
        model = StructuredOutputModel(endpoint, Capabilities(tmp_path / ("c.json" if fault else "file/c.json")))
        for request in requests(2):
            assert (await model.generate(request, RequestContext())).text == "Well."
        await model.aclose()
        assert model.is_known is (fault is None)
        return endpoint.requested

    expected = ["json_schema", "probe"] * 2 if fault else ["json_schema", "probe", "probe", "text"]
    assert asyncio.run(work()) == expected


@pytest.mark.parametrize("refuses", [(), ("json_schema",)])
def test_a_probe_that_is_not_answered_settles_nothing(store: Store, refuses: tuple[str, ...]) -> None:
    answers, is_down = Ignoring("json_object", refuses), True

    def script(body: Mapping[str, Any], number: int) -> Reply | Fault:
        return GIVEN_UP if is_down and is_probe(body) and kind(body) == "json_object" else answers(body, number)

    with ChatServer(script) as server:
        asked(server, store, count=1)
        assert remembered(store) == {}
        is_down = False
        asked(server, store, count=3)
        assert list(remembered(store).values()) == ["json_object"]


def test_an_endpoint_that_does_not_answer_is_named_by_its_address_and_not_by_its_identity(store: Store) -> None:
    with ChatServer(lambda body, number: GIVEN_UP) as server:
        with pytest.raises(IncompleteError, match="in a row") as caught:
            asked(server, store, count=20, identity="http://earlier.example/v1")
        assert caught.value.where == server.base_url


def test_the_first_reply_is_journalled_although_the_quota_ends_with_it(store: Store) -> None:
    over = error_fault(429, "no", "insufficient_quota")
    with ChatServer(lambda body, number: over if number else Reply("rating: two")) as server:
        with pytest.raises(EndpointError, match="quota"):
            asked(server, store)
        with open_journal(store) as journal:
            assert count_replies(journal) == 1


def test_the_cost_of_probes_counts_towards_the_limit(store: Store) -> None:
    with ChatServer(Ignoring("text")) as server:
        price = PriceConfig(prompt=0.0, completion=1.0e6)
        endpoint = EndpointConfig(model=MODEL, base_url=server.base_url, price=price)
        budget = budget_of(endpoint)
        with open_journal(store) as journal:
            run_requests(open_endpoint(endpoint, store), requests(3), journal, RunPolicy(budget=budget))
        assert server.count == 5
    assert budget.spending.total == 5 * 7
    assert budget.spending.as_dict()["cost_usd"] == 3 * 7.0


LOOSE_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
DOLLAR_AT_WORST = Price(Decimal(0), Decimal(0), Decimal(1000), "a test")


def dollar_requests(count: int) -> list[ChatRequest]:
    return [ChatRequest((Message("user", str(number)),), 0.0, 1.0, 1000, LOOSE_SCHEMA) for number in range(count)]


@pytest.mark.parametrize(("limit", "count"), [(100.0, 9), (4.5, 9), (3.1, 60), (2.2, 3)])
def test_a_probe_whose_response_is_lost_holds_no_room_and_blocks_no_request(
    tmp_path: Path, journal: Journal, limit: float, count: int
) -> None:
    budget = Budget(Spending(DOLLAR_AT_WORST), TokenCounter("fake-1"), limit)
    model = StructuredOutputModel(FakeEndpoint(loses_response=True), Capabilities(tmp_path / "capabilities.json"))
    try:
        replies = run_requests(model, dollar_requests(count), journal, RunPolicy(concurrency=4, budget=budget))
    except IncompleteError as stop:
        assert "limit" in str(stop)
        assert budget.spending.total + 1 > limit
    else:
        assert len(replies) == count
    assert [line.digest for line in journal.lost_responses() if line] == [
        dollar_requests(1)[0].digest(model.fingerprint)
    ]
    assert budget.spending.possibly_billed == 1
    assert budget.spending.total <= limit
    assert budget.fits(Decimal(str(limit)) - budget.spending.total), "nothing is held any more"


def test_a_server_that_the_first_reply_condemns_is_sent_nothing_more(tmp_path: Path) -> None:
    def condemn(index: int, reply: ChatReply) -> None:
        endpoint.released.set()
        raise EndpointError("it cannot do what is wanted")

    endpoint = FakeEndpoint(is_released=False)
    model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "capabilities.json"))
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(EndpointError, match="cannot do"):
        run_requests(model, dollar_requests(5), journal, RunPolicy(on_reply=condemn))
    assert endpoint.requested == ["json_schema", "probe"], "no second probe"
