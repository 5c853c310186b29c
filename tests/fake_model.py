"""A chat model that answers from a function, and what tests ask of a journal."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from psychocounsel.llm.journal import Journal
from psychocounsel.llm.session import JournalledModel, ModelClient
from psychocounsel.llm.types import ChatModel, ChatReply, ChatRequest, RequestContext
from psychocounsel.types import ReplyStatus


def item_of(request: ChatRequest) -> dict[str, str]:
    """Return the item that a request shows: the JSON line between the markers."""
    return json.loads(request.messages[-1].content.splitlines()[1])


def valid(text: str) -> ChatReply:
    return ChatReply(ReplyStatus.VALID, text, "fake-2026-01-01", 10, 10)


def failed(status: ReplyStatus, reason: str = "") -> ChatReply:
    return ChatReply(status, "", "fake-2026-01-01", 10, 0, reason)


def no_request(_request: ChatRequest) -> ChatReply:
    """Answer where every reply is in the journal already: a request fails the test."""
    pytest.fail("nothing is pending")


def ignore(_done: int) -> None:
    """Take the progress of a run that no test looks at."""


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


def client_of(model: ChatModel, journal: Journal, max_attempts: int = 1, **settings: Any) -> ModelClient:
    """Return a client that asks the model and keeps its replies in the journal."""
    return JournalledModel(model, lambda: journal, max_attempts=max_attempts, **settings)
