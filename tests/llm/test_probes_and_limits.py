"""What a client asks of its own accord, and the limit of costs of whoever asks."""

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.errors import EndpointError, IncompleteError
from psychocounsel.llm.cost import Budget, Price, Spending, TokenCounter
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.structured_output import Capabilities, StructuredOutputModel
from psychocounsel.llm.types import ChatReply, ChatRequest, Message, RequestContext
from psychocounsel.types import ReplyStatus

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
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


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest((Message("user", str(number)),), 0.0, 1.0, 1000, SCHEMA) for number in range(count)]


@pytest.mark.parametrize(("limit", "count"), [(100.0, 9), (4.5, 9), (3.1, 60), (2.2, 3)])
def test_a_probe_whose_line_breaks_holds_no_room_and_keeps_nobody_waiting(
    tmp_path: Path, limit: float, count: int
) -> None:
    budget = Budget(Spending(DOLLAR_AT_WORST), TokenCounter("wordy-1"), limit)
    model = StructuredOutputModel(Wordy(), Capabilities(tmp_path / "capabilities.json"))
    with Journal(tmp_path / "j.sqlite") as journal:
        try:
            replies = run_requests(model, requests(count), journal, RunPolicy(concurrency=4, budget=budget))
        except IncompleteError as stop:
            assert "limit" in str(stop)
            assert budget.spending.total + 1 > limit
        else:
            assert len(replies) == count
        assert [line.digest for line in journal.lost_responses() if line] == [requests(1)[0].digest(model.fingerprint)]
    assert budget.spending.possibly_billed == 1
    assert budget.spending.total <= limit
    assert budget.fits(Decimal(str(limit)) - budget.spending.total), "nothing is held any more"


def test_a_server_that_the_first_reply_condemns_is_asked_nothing_more(tmp_path: Path) -> None:
    def condemn(index: int, reply: ChatReply) -> None:
        raise EndpointError("it cannot do what is wanted")

    endpoint = Wordy()
    model = StructuredOutputModel(endpoint, Capabilities(tmp_path / "capabilities.json"))
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(EndpointError, match="cannot do"):
        run_requests(model, requests(5), journal, RunPolicy(on_reply=condemn))
    assert endpoint.asked in (["reply"], ["reply", "probe"])
