"""The digest of a request changes with everything that shapes the reply, and with nothing else."""

from dataclasses import replace

import pytest

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply, ChatRequest, Message

IDENTITY = {"model": "judge-1", "base_url": "http://127.0.0.1/v1"}
REQUEST = ChatRequest(
    messages=(Message("system", "Rate."), Message("user", "I feel lost.")),
    temperature=0.0,
    top_p=1.0,
    max_tokens=50,
    response_schema={"type": "object", "properties": {"a": {}, "b": {}}},
)
CHANGES = [
    {"messages": (Message("system", "Rate!"), Message("user", "I feel lost."))},
    {"messages": (Message("user", "Rate."), Message("user", "I feel lost."))},
    {"messages": (Message("system", "Rate."), Message("user", "I feel"), Message("user", " lost."))},
    {"messages": (Message("user", "I feel lost."), Message("system", "Rate."))},
    {"temperature": 0.1},
    {"top_p": 0.9},
    {"max_tokens": 51},
    {"response_schema": None},
    {"response_schema": {"type": "object", "properties": {"a": {}, "c": {}}}},
    {"response_schema": {"type": "object", "properties": {"b": {}, "a": {}}}},
    {"schema_name": "rating"},
    {"sample_index": 1},
]


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with_each_field(change):
    assert replace(REQUEST, **change).digest(IDENTITY) != REQUEST.digest(IDENTITY)


def test_changes_are_told_apart_from_each_other():
    digests = {replace(REQUEST, **change).digest(IDENTITY) for change in CHANGES}
    assert len(digests) == len(CHANGES)


@pytest.mark.parametrize("name", ["model", "base_url"])
def test_digest_changes_with_the_model_behind_it(name):
    assert REQUEST.digest({**IDENTITY, name: "other"}) != REQUEST.digest(IDENTITY)


def test_equal_requests_have_equal_digests():
    same = replace(REQUEST, temperature=0, top_p=1, response_schema=dict(REQUEST.response_schema or {}))
    assert same.digest(dict(reversed(IDENTITY.items()))) == REQUEST.digest(IDENTITY)


def test_digest_takes_any_text():
    odd = replace(REQUEST, messages=(Message("user", "\ud800 \u2028 \0 👩‍👧"),))
    assert len(odd.digest(IDENTITY)) == 64


@pytest.mark.parametrize("wrong", [{"messages": ()}, {"max_tokens": 0}, {"sample_index": -1}])
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(ValueError, match=r"request|max_tokens"):
        replace(REQUEST, **wrong)


def test_only_an_error_was_never_answered():
    answered = {s for s in ReplyStatus if ChatReply(s, "", "", 0, 0).answered}
    assert answered == set(ReplyStatus) - {ReplyStatus.ERROR}
