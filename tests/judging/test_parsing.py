import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.judging.parsing import (
    ParsedRatings,
    ParsedWinners,
    ParseFailure,
    parse_ratings,
    parse_winners,
)
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.types import Winner

RUBRIC = load_rubric("seven-principles")
ITEM = "0123456789abcdef"
GOOD: dict[str, int] = dict(zip(RUBRIC.principle_ids, (1, 2, 3, 4, 5, 4, 3), strict=True))


def reply(**changes: Any) -> str:
    return json.dumps({"item_id": ITEM, "reasons": "Because.", "ratings": GOOD} | changes)


def with_rating(raw: str) -> str:
    return reply().replace('"empathy": 1', f'"empathy": {raw}')


def reason(text: str) -> str:
    parsed = parse_ratings(text, RUBRIC, ITEM)
    assert isinstance(parsed, ParseFailure), parsed
    return parsed.reason


@pytest.mark.parametrize(
    "wrapped",
    [
        "{}",
        "  {}\n",
        "```json\n{}\n```",
        "```\n{}\n```",
        "Here are my ratings:\n```json\n{}\n```\nI gave 5 for [something] else.",
        "Well, 10 out of 10: {} Done.",
        "\ufeff{}",
    ],
)
def test_one_object_is_read_wherever_it_stands(wrapped: str) -> None:
    assert parse_ratings(wrapped.replace("{}", reply()), RUBRIC, ITEM) == ParsedRatings(GOOD, "Because.")


def test_braces_quotes_and_fences_inside_the_reasons_do_not_matter() -> None:
    text = reply(reasons='She said "}" and {then} ``` a \\ backslash')
    assert isinstance(parse_ratings(f"```json\n{text}\n```", RUBRIC, ITEM), ParsedRatings)


@pytest.mark.parametrize(
    "raw",
    [
        "true",
        "false",
        '"5"',
        "4.5",
        "4.0",
        "5e0",
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "[5]",
        "{}",
        "0",
        "6",
        "10",
        "-1",
        "9" * 5000,
        '"10"',
        '"five"',
    ],
)
def test_what_is_no_whole_number_of_the_scale_is_no_rating(raw: str) -> None:
    assert reason(with_rating(raw))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected one JSON object, found 0"),
        ("Empathy: 5, Relevance: 4", "expected one JSON object, found 0"),
        (reply() + reply(), "found 2"),
        (reply() + " {", "an open one"),
        (reply()[:-1], "found 0 and an open one"),
        (reply().replace('"item_id"', "item_id"), "the JSON is malformed"),
        (with_rating('1, "empathy": 5'), "a key stands twice"),
        (reply().replace('"reasons"', '"item_id": "x", "reasons"'), "a key stands twice"),
        (reply(item_id="another"), "the reply is about another item"),
        (reply(item_id=None), "the reply is about another item"),
        (reply(reasons=None), "'reasons' is not text"),
        (reply(overall=5), "the reply has unknown keys"),
        (reply(ratings=GOOD | {"warmth": 5}), "'ratings' has unknown keys"),
        (reply(ratings={k: v for k, v in GOOD.items() if k != "safety"}), "'ratings' lacks safety"),
        (reply(ratings=[1, 2, 3, 4, 5, 4, 3]), "'ratings' is not an object"),
        ('{"item_id": "0123456789abcdef", "ratings": {}}', "the reply lacks reasons"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "the JSON is malformed"),
    ],
)
def test_anything_else_fails_with_its_reason(text: str, expected: str) -> None:
    assert expected in reason(text)


def test_a_rubric_of_another_scale_sets_what_is_read() -> None:
    wide = RUBRIC.__class__("1", "en", 0, 10, RUBRIC.principles)
    parsed = parse_ratings(with_rating("10"), wide, ITEM)
    assert isinstance(parsed, ParsedRatings)
    assert parsed.ratings["empathy"] == 10


def test_winners_are_read_by_position() -> None:
    sides = {"overall": "A"} | dict.fromkeys(RUBRIC.principle_ids, "tie") | {"safety": "B"}
    text = json.dumps({"item_id": ITEM, "reasons": "", "winners": sides})
    parsed = parse_winners(text, RUBRIC, ITEM)
    assert isinstance(parsed, ParsedWinners)
    assert parsed.winners["overall"] is Winner.FIRST
    assert parsed.winners["safety"] is Winner.SECOND
    assert parsed.winners["empathy"] is Winner.TIE


@pytest.mark.parametrize("side", ['"a"', '"C"', '"Tie"', "null", "true", "1", '["A"]', '{"A": 1}'])
def test_no_other_side_wins(side: str) -> None:
    sides = json.dumps({"overall": "X"} | dict.fromkeys(RUBRIC.principle_ids, "A")).replace('"X"', side)
    text = f'{{"item_id": "{ITEM}", "reasons": "", "winners": {sides}}}'
    assert isinstance(parse_winners(text, RUBRIC, ITEM), ParseFailure)


@given(st.text(alphabet='{}[]"\\:,0123456789 aeitrnu`\n'))
def test_no_text_breaks_the_parser(text: str) -> None:
    assert isinstance(parse_ratings(text, RUBRIC, ITEM), ParseFailure)


@given(st.fixed_dictionaries({name: st.sampled_from(RUBRIC.scale) for name in RUBRIC.principle_ids}), st.text())
def test_what_a_judge_writes_is_what_is_read(ratings: dict[str, int], reasons: str) -> None:
    text = json.dumps({"item_id": ITEM, "reasons": reasons, "ratings": ratings}, ensure_ascii=False)
    assert parse_ratings(f"```json\n{text}\n```", RUBRIC, ITEM) == ParsedRatings(dict(ratings), reasons)


PIECES = st.sampled_from(['"', ",", "}", "{", "\\", " NaN", '"item_id": 1, ', "\u2028", "]", "true", "x"])


@given(st.integers(1, 200), PIECES, st.integers(0, 9), st.booleans())
def test_a_bare_object_is_read_as_one_among_words(place: int, piece: str, cut: int, insert: bool) -> None:
    good = reply()
    text = good[:place] + piece * insert + good[place + cut :]
    assert parse_ratings(text, RUBRIC, ITEM) == parse_ratings(f"Well: {text}", RUBRIC, ITEM)


def test_a_draft_before_the_end_of_thoughts_is_no_answer() -> None:
    writer = reply(ratings=dict.fromkeys(GOOD, 5))
    none_left = "expected one JSON object, found 0"
    assert reason(f"First {writer}. No, that ignores the crisis.\n</think>\n\nI cannot rate it.") == none_left
    assert reason(f"<think>First {writer}.</think> I cannot rate it.") == none_left
    assert reason(f"{writer}</think>") == none_left


@pytest.mark.parametrize(
    "thoughts",
    [
        "First {} hm.\n</think>",
        "<think>First {}, it's \"odd</think>",
        "{}</think>and so {}</think>\n",
        "<think>{ no</think> {} </think>",
        'An open one {"item_id": </think>',
        "It } is </think>",
    ],
)
def test_what_follows_the_last_end_of_thoughts_is_the_answer(thoughts: str) -> None:
    writer = reply(ratings=dict.fromkeys(GOOD, 5))
    text = f"{thoughts.replace('{}', writer)} {reply()}"
    assert parse_ratings(text, RUBRIC, ITEM) == ParsedRatings(GOOD, "Because.")


def test_an_end_of_thoughts_in_a_string_is_a_word_like_any_other() -> None:
    said = 'He wrote "</think>", and \\ then </think> {"empathy": 5}'
    for around in ("{}", "Here: {}", "So</think> {} Done.", "<think>So</think>\n{}"):
        text = around.replace("{}", reply(reasons=said))
        assert parse_ratings(text, RUBRIC, ITEM) == ParsedRatings(GOOD, said)
