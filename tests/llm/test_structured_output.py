"""What a server enforces is found out, at little cost, and kept."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, ChatServer, Fault, Reply, answer_by_schema, error_fault

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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", offline=True)


def test_a_server_that_keeps_to_the_schema_is_asked_nothing_else(store: Store) -> None:
    with ChatServer() as server:
        asked(server, store)
        assert [kind(each.body) for each in server.received] == ["json_schema"] * 3
    assert list(remembered(store).values()) == ["json_schema"]


@pytest.mark.parametrize("refuses", [(), ("json_schema",)])
@pytest.mark.parametrize("can", ["json_object", "text"])
def test_what_a_server_ignores_or_refuses_is_reported_in_words(
    store: Store, can: str, refuses: tuple[str, ...]
) -> None:
    with ChatServer(Ignoring(can, refuses)) as server:
        replies = asked(server, store)
        shaped = [each.body for each in server.received if not is_probe(each.body)]
        probes = server.count - len(shaped)
    assert all(reply.status is ReplyStatus.VALID and "rating" in reply.text for reply in replies)
    assert [kind(body) for body in shaped] == ["json_schema"] + [can] * 3
    assert all('"additionalProperties": false' in body["messages"][0]["content"] for body in shaped[1:])
    assert shaped[1]["messages"][1]["content"] == "item 0", "the item itself is reported unchanged"
    assert probes == (1 if refuses else 2)
    assert list(remembered(store).values()) == [can]


def test_a_server_that_refuses_json_mode_too_is_asked_in_words(store: Store) -> None:
    with ChatServer(Ignoring("text", ("json_schema", "json_object"))) as server:
        replies = asked(server, store)
    assert all("rating" in reply.text for reply in replies)
    assert list(remembered(store).values()) == ["text"]


def test_what_was_found_out_is_not_asked_again(store: Store) -> None:
    with ChatServer(Ignoring("text")) as server:
        asked(server, store, count=1)
        before = server.count
        asked(server, store, count=1)
        assert server.count == before, "nothing is owed, so nothing is asked"
        asked(server, store, count=2)
        assert [kind(each.body) for each in server.received[before:]] == ["text"]


def test_one_babbled_reply_does_not_condemn_a_server_that_keeps_to_schemas(store: Store) -> None:
    def babbles_first(body: Mapping[str, Any], number: int) -> Reply | Fault:
        return Reply("Well.") if number == 0 else answer_by_schema(body, number)

    with ChatServer(babbles_first) as server:
        asked(server, store)
        assert [kind(each.body) for each in server.received] == ["json_schema"] * 5
    assert list(remembered(store).values()) == ["json_schema"]


def test_a_request_refused_for_another_reason_stays_refused_and_nothing_is_remembered(store: Store) -> None:
    def never(body: Mapping[str, Any], number: int) -> Fault:
        del body, number
        return error_fault(400, "temperature is not supported", "invalid_request_error")

    with ChatServer(never) as server, pytest.raises(EndpointError, match="temperature"):
        asked(server, store)
    assert remembered(store) == {}


@pytest.mark.parametrize("pinned", list(OutputMode))
def test_a_pinned_way_is_not_probed_and_has_a_digest_of_its_own(store: Store, pinned: OutputMode) -> None:
    with ChatServer(Ignoring("text")) as server:
        asked(server, store, response_format=pinned.value)
        assert {kind(each.body) for each in server.received} == {pinned.value}
        assert not any(is_probe(each.body) for each in server.received)
        before = server.count
        asked(server, store)
        assert server.count > before


def test_a_damaged_memory_is_found_out_anew(store: Store) -> None:
    path = store.root / CAPABILITIES_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{half")
    with ChatServer() as server:
        asked(server, store)
    assert list(remembered(store).values()) == ["json_schema"]


@pytest.mark.parametrize(
    ("base_url", "is_known"), [("https://api.openai.com/v1", True), ("http://127.0.0.1:9/v1", False), (None, True)]
)
def test_openai_is_known_to_enforce_schemas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str | None, is_known: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert open_endpoint(EndpointConfig(model="m", base_url=base_url), Store(tmp_path)).is_known is is_known


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        (GOOD, True),
        (f"```json\n{GOOD}\n```", False),
        ('{"item_id": "x", "rating": 4}', False),
        ('{"item_id": "x", "rating": true}', False),
        ('{"item_id": 1, "rating": 1}', False),
        ('{"item_id": "x", "rating": 1, "more": 1}', False),
        ('{"rating": 1}', False),
        ("[]", False),
        ("", False),
    ],
)
def test_a_reply_fits_its_schema_wholly_or_not(text: str, whether: bool) -> None:
    assert fits(text, SCHEMA) is whether


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


class Probed:
    """An endpoint that ignores schemas; probes are answered when the test says so, or raise."""

    fingerprint: Mapping[str, str] = {"model": "fake-1", "base_url": "memory"}

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.released = fault, asyncio.Event()
        self.asked: list[str] = []

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        is_probe = "good morning" in request.messages[-1].content
        self.asked.append("probe" if is_probe else kind_of(request))
        if is_probe:
            await self.released.wait()
            if self.fault is not None:
                raise self.fault
        return ChatReply(ReplyStatus.VALID, "Well.", "fake-1", 4, 1)

    def body(self, request: ChatRequest) -> bytes:
        return repr(request).encode()

    async def check(self) -> None: ...

    async def aclose(self) -> None: ...

    async def listed_models(self) -> None: ...


def kind_of(request: ChatRequest) -> str:
    if request.response_schema is not None:
        return "json_schema"
    return "json_object" if request.json_mode else "text"


def test_a_reply_is_handed_on_before_it_is_settled_what_the_server_can_do(tmp_path: Path) -> None:
    async def work() -> None:
        endpoint = Probed()
        model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "c.json"))
        first, second = requests(2)
        beside: list[ChatReply] = []
        assert (await model.generate(first, RequestContext(on_probe=beside.append))).text == "Well."
        later = asyncio.create_task(model.generate(second, RequestContext()))
        await asyncio.sleep(0.01)
        assert endpoint.asked == ["json_schema", "probe"], "the second waits until it is known how to ask"
        endpoint.released.set()
        await later
        await model.aclose()
        assert endpoint.asked == ["json_schema", "probe", "probe", "text"]
        assert len(beside) == 2, "what it cost to find out is reported to who asked first"

    asyncio.run(work())


@pytest.mark.parametrize("fault", [EndpointError("no quota"), IncompleteError("nobody answers")])
def test_a_probe_that_fails_loses_no_reply_and_stops_nobody(tmp_path: Path, fault: Exception) -> None:
    async def work() -> list[str]:
        endpoint = Probed(fault)
        endpoint.released.set()
        model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "c.json"))
        for request in requests(2):
            assert (await model.generate(request, RequestContext())).text == "Well."
        await model.aclose()
        assert not model.is_known
        return endpoint.asked

    assert asyncio.run(work()) == ["json_schema", "probe"] * 2


def test_the_first_reply_is_journalled_although_the_quota_ends_with_it(store: Store) -> None:
    def once(body: Mapping[str, Any], number: int) -> Reply | Fault:
        del body
        return Reply("rating: two") if number == 0 else error_fault(429, "no", "insufficient_quota")

    with ChatServer(once) as server:
        with pytest.raises(EndpointError, match="quota"):
            asked(server, store)
        with open_journal(store) as journal:
            assert count_replies(journal) == 1


def test_what_it_costs_to_find_out_counts_towards_the_limit(store: Store) -> None:
    with ChatServer(Ignoring("text")) as server:
        price = PriceConfig(prompt=0.0, completion=1.0e6)
        endpoint = EndpointConfig(model=MODEL, base_url=server.base_url, price=price)
        budget = budget_of(endpoint)
        with open_journal(store) as journal:
            run_requests(open_endpoint(endpoint, store), requests(3), journal, RunPolicy(budget=budget))
        assert server.count == 5
    assert budget.spending.total == 5 * 7
    assert budget.spending.as_dict()["cost_usd"] == 3 * 7.0


def test_a_memory_that_cannot_be_written_loses_no_reply(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def work() -> None:
        endpoint = Probed()
        endpoint.released.set()
        model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "file" / "c.json"))
        replies = [await model.generate(request, RequestContext()) for request in requests(2)]
        await model.aclose()
        assert [reply.text for reply in replies] == ["Well.", "Well."]
        assert endpoint.asked == ["json_schema", "probe", "probe", "text"]

    asyncio.run(work())


LOOSE_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
DOLLAR_AT_WORST = Price(Decimal(0), Decimal(0), Decimal(1000), "a test")


class Wordy:
    """Answers in words, whatever it is asked for; the line of its first probe breaks once."""

    fingerprint: Mapping[str, str] = {"model": "wordy-1", "base_url": "memory"}

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broke = False

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        context.cancel.raise_if_cancelled()
        self.asked.append(request.schema_name if request.response_schema else "words")
        await asyncio.sleep(0.01)
        if request.schema_name == "probe" and not self.broke:
            self.broke = True
            await context.on_lost_response()
        await asyncio.sleep(0.01)
        return ChatReply(ReplyStatus.VALID, "no JSON", "wordy-1", 10, 10)

    async def aclose(self) -> None: ...

    async def check(self) -> None: ...

    async def listed_models(self) -> None:
        return None

    def body(self, request: ChatRequest) -> bytes:
        return b""


def dollar_requests(count: int) -> list[ChatRequest]:
    return [ChatRequest((Message("user", str(number)),), 0.0, 1.0, 1000, LOOSE_SCHEMA) for number in range(count)]


@pytest.mark.parametrize(("limit", "count"), [(100.0, 9), (4.5, 9), (3.1, 60), (2.2, 3)])
def test_a_probe_whose_line_breaks_holds_no_room_and_keeps_nobody_waiting(
    tmp_path: Path, limit: float, count: int
) -> None:
    budget = Budget(Spending(DOLLAR_AT_WORST), TokenCounter("wordy-1"), limit)
    model = StructuredOutputModel(Wordy(), Capabilities(tmp_path / "capabilities.json"))
    with Journal(tmp_path / "j.sqlite") as journal:
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


def test_a_server_that_the_first_reply_condemns_is_asked_nothing_more(tmp_path: Path) -> None:
    def condemn(index: int, reply: ChatReply) -> None:
        raise EndpointError("it cannot do what is wanted")

    endpoint = Wordy()
    model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "capabilities.json"))
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(EndpointError, match="cannot do"):
        run_requests(model, dollar_requests(5), journal, RunPolicy(on_reply=condemn))
    assert endpoint.asked in (["reply"], ["reply", "probe"])
