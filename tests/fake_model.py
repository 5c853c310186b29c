"""A chat model that answers from a function, and what tests ask of a journal."""

import json
from collections.abc import Callable, Mapping

from psychocounsel.llm.journal import Journal
from psychocounsel.llm.types import ChatReply, ChatRequest, RequestContext
from psychocounsel.types import ReplyStatus


def item_of(request: ChatRequest) -> dict[str, str]:
    """Return the item that a request shows: the JSON line between the markers."""
    return json.loads(request.messages[-1].content.splitlines()[1])


def valid(text: str) -> ChatReply:
    return ChatReply(ReplyStatus.VALID, text, "fake-2026-01-01", 10, 10)


def failed(status: ReplyStatus, reason: str = "") -> ChatReply:
    return ChatReply(status, "", "fake-2026-01-01", 10, 0, reason)


class FakeModel:
    """Answers each request with `script(request)` and remembers what it was asked."""

    def __init__(self, script: Callable[[ChatRequest], ChatReply]) -> None:
        self._script = script
        self.asked: list[ChatRequest] = []

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {"model": "fake-2026-01-01", "base_url": "http://127.0.0.1/v1"}

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        self.asked.append(request)
        return self._script(request)


def count_replies(journal: Journal) -> int:
    """Return how many replies a journal holds, damaged ones included."""
    return sum(1 for _ in journal.rows())
