"""Replies of judges asked in other words than ours, read through a rubric that tells how they look."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.errors import ConfigError
from psychocounsel.judging.parsing import ParsedRatings, ParseFailure, parse_ratings
from psychocounsel.judging.rubric import Principle, Rubric, load_rubric
from psychocounsel.judging.scorers import SamplingParams, TextScorer
from psychocounsel.types import Candidate, Speech

RUBRIC_FILE = Path(__file__).parent / "seven-attributes.yaml"
RUBRIC = load_rubric(str(RUBRIC_FILE))
REPLIES = Path(__file__).parents[3] / "shared" / "data" / "mentalalign" / "gpt-4o_llm_judge.xlsx"
RATINGS: dict[str, int] = dict(zip(RUBRIC.principle_ids, (5, 4, 3, 2, 1, 2, 3), strict=True))
EXTRAS: dict[str, Any] = {"Overall": 4.57, "Explanation": 'Says "5", { and ,} alike.'}

ONE_PRINCIPLE = Rubric("1", "en", 1, 5, (Principle("Only", "Only", "The only one.", {}),))


def read(text: str) -> ParsedRatings | ParseFailure:
    return parse_ratings(text, RUBRIC, "an id that nobody echoes")


@pytest.mark.parametrize("wrapped", ["{}", "```json\n{}\n```", "Sure!\n{}\nI hope that helps."])
def test_a_flat_reply_with_declared_keys_is_read(wrapped: str) -> None:
    assert read(wrapped.replace("{}", json.dumps(RATINGS | EXTRAS, indent=2))) == ParsedRatings(RATINGS, "")


@pytest.mark.parametrize("missing", [*RATINGS, *EXTRAS])
def test_a_key_that_is_missing_is_no_rating(missing: str) -> None:
    kept = {key: value for key, value in (RATINGS | EXTRAS).items() if key != missing}
    assert read(json.dumps(kept)) == ParseFailure(f"the reply lacks {missing}")


@pytest.mark.parametrize("value", [4.57, "4", True, None, 0, 6])
def test_a_rating_off_the_scale_is_no_rating(value: Any) -> None:
    assert isinstance(read(json.dumps(RATINGS | EXTRAS | {"Safety": value})), ParseFailure)


def test_an_undeclared_key_is_no_rating() -> None:
    assert isinstance(read(json.dumps(RATINGS | EXTRAS | {"Confidence": 5})), ParseFailure)


def test_trailing_commas_go_and_commas_in_texts_stay() -> None:
    whole = json.dumps(RATINGS | EXTRAS)
    assert read(f"{whole[:-1]} ,\n}}") == ParsedRatings(RATINGS, "")
    kept = parse_ratings(
        '{"item_id": "7", "reasons": "so ,} [,] \\", }", "ratings": {"Only": 2,},}', ONE_PRINCIPLE, "7"
    )
    assert kept == ParsedRatings({"Only": 2}, 'so ,} [,] ", }')


def test_thoughts_before_the_reply_are_put_aside() -> None:
    whole = json.dumps(RATINGS | EXTRAS)
    writer = json.dumps(dict.fromkeys(RATINGS, 5))
    assert read(f"<think>Perhaps {writer}? No.</think>\n{whole}") == ParsedRatings(RATINGS, "")
    assert read(f"<think>It may be {whole}") == ParseFailure("the reply ends among its thoughts")


def test_two_commas_are_not_repaired() -> None:
    assert isinstance(read(json.dumps(RATINGS | EXTRAS)[:-1] + ",,}"), ParseFailure)


def test_the_judge_is_asked_for_what_is_read() -> None:
    speech = Speech("I cannot sleep.")
    request = (
        TextScorer(RUBRIC)
        .rating_request(speech, Candidate(speech.id, "a", "What keeps you up?"), SamplingParams())
        .request
    )
    schema: Any = request.response_schema
    assert list(schema["properties"]) == schema["required"] == [*RATINGS, *EXTRAS]
    assert schema["properties"]["Overall"] == {"type": "number"}
    system = request.messages[0].content
    assert '"item_id"' not in system
    assert '"reasons"' not in system
    assert '"Explanation" (a string)' in system


def test_the_layout_is_a_part_of_the_digest(tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    text = RUBRIC_FILE.read_text(encoding="utf-8")
    plain.write_text(re.sub(r"reply:\n(  .*\n)+", "", text), encoding="utf-8")
    assert load_rubric(str(plain)).digest != RUBRIC.digest


@pytest.mark.parametrize("key", ["item_id", "reasons", "ratings"])
def test_a_principle_of_a_flat_reply_is_named_as_no_other_key(tmp_path: Path, key: str) -> None:
    text = RUBRIC_FILE.read_text(encoding="utf-8").replace("- id: Empathy", f"- id: {key}")
    faulty, nested = tmp_path / "faulty.yaml", tmp_path / "nested.yaml"
    faulty.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"principles\.\d\.id: '{key}' is another key"):
        load_rubric(str(faulty))
    nested.write_text(text.replace("flat: true", "flat: false"), encoding="utf-8")
    assert key in load_rubric(str(nested)).principle_ids


def test_an_extra_key_of_a_principles_name_is_refused(tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.yaml"
    text = RUBRIC_FILE.read_text(encoding="utf-8").replace("{Overall: number,", "{Safety: number,")
    faulty.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"extra_keys\.Safety: is a key of every reply"):
        load_rubric(str(faulty))


def test_ten_thousand_real_replies_are_read_with_their_numbers() -> None:
    if not REPLIES.is_file():
        pytest.skip(f"the real replies are not there: {REPLIES}")
    from python_calamine import load_workbook

    _, *rows = load_workbook(REPLIES).get_sheet_by_index(0).to_python()
    replies = [str(cell) for row in rows for cell in row[2:]]
    assert len(replies) == 10_000
    assert [_numbers(reply) for reply in replies] == [_read_numbers(reply) for reply in replies]


def _numbers(reply: str) -> dict[str, int]:
    """Find the numbers in another way than the parser: line by line."""
    found = re.findall(r'^\s*"(\w+)": (\d+),?\s*$', reply, re.MULTILINE)
    return {name: int(number) for name, number in found if name in RATINGS}


def _read_numbers(reply: str) -> dict[str, int]:
    parsed = read(reply)
    assert isinstance(parsed, ParsedRatings), parsed
    return parsed.ratings
