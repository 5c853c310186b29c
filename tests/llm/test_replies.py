"""Every body that a server may send has one status, and no text is lost on the way."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.llm.client import UnreadableBodyError, read_completion
from psychocounsel.llm.items import UnreadableReplyError, read_json
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus


def body(message=None, finish="stop", **more):
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    return json.dumps({"model": "m-1", "choices": [choice], "usage": usage, **more}).encode()


CASES = [
    (body({"content": "hello"}), ReplyStatus.VALID, "hello"),
    (body({"content": "hello"}, None), ReplyStatus.VALID, "hello"),
    (body({"content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}), "valid", "hello"),
    (body({"content": None, "refusal": "I cannot."}), ReplyStatus.REFUSAL, "I cannot."),
    (body({"content": "", "refusal": "I cannot."}, "content_filter"), ReplyStatus.REFUSAL, "I cannot."),
    (body({"content": "hel"}, "content_filter"), ReplyStatus.CONTENT_FILTER, "hel"),
    (body({"content": None}, "content_filter"), ReplyStatus.CONTENT_FILTER, ""),
    (body({"content": "hel"}, "length"), ReplyStatus.CUT, "hel"),
    (body({"content": "hel"}, "model_length"), ReplyStatus.CUT, "hel"),
    (body({"content": ""}, "length"), ReplyStatus.CUT, ""),
    (body({"content": " \n"}), ReplyStatus.EMPTY, " \n"),
    (body({"content": None}), ReplyStatus.EMPTY, ""),
    (body(None), ReplyStatus.EMPTY, ""),
    (b'{"choices": []}', ReplyStatus.EMPTY, ""),
]


@pytest.mark.parametrize(("raw", "status", "text"), CASES)
def test_bodies_and_their_status(raw, status, text):
    reply = read_completion(raw)
    assert (reply.status, reply.text) == (status, text)
    assert bool(reply.reason) == (status != ReplyStatus.VALID)
    assert read_completion(body({"content": "hi"})) == ChatReply(ReplyStatus.VALID, "hi", "m-1", 5, 2)


# The last two are more than a column of the journal holds.
COUNTS = [{"prompt_tokens": count} for count in ("5", True, -1, 10**20, 10**400)]


@pytest.mark.parametrize("usage", [None, {}, *COUNTS])
def test_tokens_that_are_no_count_are_zero(usage):
    assert read_completion(body({"content": "hi"}, usage=usage)).prompt_tokens == 0


BROKEN_OFF = ("error", "abort", "insufficient_system_resource")
UNREADABLE = [b"", b"<html>", b'{"choices": [{"mess', b"\xff\xfe", b"[]", b"null", b"{}", b'{"choices": null}']
UNREADABLE += [b"[" * 100_000, b'{"error": "overloaded"}', b'{"error": ["overloaded"]}']
UNREADABLE += [b'{"error": {"message": "overloaded"}}', *(body({"content": "hal"}, each) for each in BROKEN_OFF)]


@pytest.mark.parametrize("raw", UNREADABLE)
def test_bodies_that_answer_nothing(raw):
    with pytest.raises(UnreadableBodyError):
        read_completion(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"error": {"message": "no credit"}}', "no credit"),
        (b'{"choices": [{"finish_reason": "error", "error": {"message": "gone"}}]}', "gone"),
        (b" <!DOCTYPE html>", "web page"),
        (b'data: {"choices": []}\n\ndata: [DONE]', "stream"),
    ],
)
def test_what_came_in_the_place_of_a_reply_is_named(raw, reason):
    with pytest.raises(UnreadableBodyError, match=reason):
        read_completion(raw)


@pytest.mark.parametrize(
    ("usage", "completion"),
    [((5, 2, 7), 2), ((5, 2, 60), 55), ((5, 0, 60), 55), ((5, 2, None), 2), ((0, 2, 60), 2), ((5, 2, 3), 2)],
)
def test_thoughts_that_are_in_the_total_alone_count_as_completion(usage, completion):
    reported = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), usage, strict=True))
    reply = read_completion(body({"content": "hi"}, usage=reported))
    assert (reply.prompt_tokens, reply.completion_tokens) == (usage[0], completion)


def test_a_lone_surrogate_becomes_a_replacement_and_a_pair_stays():
    text = read_completion(rb'{"choices": [{"message": {"content": "a\ud83d b\ud83d\ude00"}}]}').text
    assert text == "a\ufffd b\U0001f600"


@given(st.text(min_size=1).filter(str.strip))
def test_text_comes_through_unchanged(text):
    assert read_completion(body({"content": text})).text == text


KEYS = st.sampled_from(["choices", "message", "content", "usage"]) | st.text()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(VALUES)
def test_no_json_crashes_the_reader(value):
    try:
        read_completion(json.dumps(value).encode())
    except UnreadableBodyError as fault:
        assert str(fault)


@given(VALUES, st.sampled_from(["", " ", "\n"]))
def test_what_is_written_is_read(value: object, space: str) -> None:
    text = json.dumps(value)
    assert read_json(space + text + space) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "a key stands twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "a key stands twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1,]", "the JSON is malformed"),
        ("[" * 100_000, "the JSON is malformed"),
        ("[" + "9" * 5000 + "]", "the JSON is malformed"),
    ],
)
def test_what_is_not_strict_is_reported(text: str, reason: str) -> None:
    with pytest.raises(UnreadableReplyError) as caught:
        read_json(text)
    assert str(caught.value) == reason
    with pytest.raises(UnreadableReplyError):
        read_json("{} {}")


def test_a_reply_that_ends_in_blanks_says_so() -> None:
    cut, blank = (read_completion(body({"content": text}, "length")) for text in ('{"a": 1', '{"a":' + " " * 400))
    assert cut.status is blank.status is ReplyStatus.CUT
    assert ("400 blanks" in cut.reason, "400 blanks" in blank.reason) == (False, True)


@pytest.mark.parametrize(("finish", "status"), [("length", ReplyStatus.CUT), ("stop", ReplyStatus.EMPTY)])
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_reply_of_thoughts_alone_says_so(name: str, finish: str, status: ReplyStatus) -> None:
    thought, answered = (read_completion(body({"content": text, name: "Hm."}, finish)) for text in (None, "{}"))
    assert thought.status is status
    assert ("only thoughts" in thought.reason, "only thoughts" in answered.reason) == (True, False)
