"""JSON of replies: what is read, and the one reason why it is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.llm.replies import UnreadableReplyError, read_json, read_json_at

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.sampled_from(["", " ", "\n"]))
def test_what_is_written_is_read(value: object, space: str) -> None:
    text = json.dumps(value)
    assert read_json(space + text + space) == value
    assert read_json_at(f"{space}[{text}] and more", len(space)) == ([value], len(space) + len(text) + 2)


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
def test_what_is_not_strict_is_told(text: str, reason: str) -> None:
    for read in (read_json, lambda text: read_json_at(text, 0)):
        with pytest.raises(UnreadableReplyError) as caught:
            read(text)
        assert str(caught.value) == reason


def test_a_whole_text_has_nothing_behind_its_value() -> None:
    with pytest.raises(UnreadableReplyError):
        read_json("{} {}")
