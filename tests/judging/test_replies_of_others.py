"""Replies that others paid for -> ratings: fences, words around, trailing commas, keys beside the principles.

The ten thousand are GPT-4o's of MentalBench-Align (github.com/abeerbadawi/MentalBench-Align, MIT).
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.errors import ConfigError
from psychocounsel.judging.parsing import ParsedRatings, ParseFailure, parse_ratings
from psychocounsel.judging.rubric import load_rubric

REPLIES = Path(__file__).parents[3] / "shared" / "data" / "mentalalign" / "gpt-4o_llm_judge.xlsx"
RUBRIC_FILE = Path(__file__).parent / "rubrics" / "mentalalign.yaml"
RUBRIC = load_rubric(str(RUBRIC_FILE))
ITEM = "0123456789abcdef"
GOOD = dict(zip(RUBRIC.principle_ids, (4, 3, 5, 5, 4, 2, 1), strict=True))
BESIDE: dict[str, Any] = {"Overall": 3.5, "Explanation": 'Warm, but {vague}, "nice", ]'}


def reply(**changes: Any) -> str:
    return json.dumps({**GOOD, **BESIDE, **changes}, indent=2)


def ratings(text: str) -> dict[str, int] | str:
    parsed = parse_ratings(text, RUBRIC, ITEM)
    return parsed.reason if isinstance(parsed, ParseFailure) else parsed.ratings


def read_by_line(text: str) -> dict[str, int]:
    """Return what a human reads: the figure behind each name, one a line; independent of the parser."""
    lines = re.findall(r'^\s*"(\w+)": ([1-5]),?$', text, re.MULTILINE)
    return {name: int(figure) for name, figure in lines if name in GOOD}


@pytest.mark.parametrize(
    "text",
    [
        reply(),
        f"```json\n{reply()}\n```",
        f"```JSON\n{reply()}\n```\n\nLet me know if you need 5 more.",
        f"Here is my rating (1 to 5):\n\n{reply()}",
        f"<think>Perhaps {json.dumps(dict.fromkeys(GOOD, 5))}? No.</think>\n{reply()}",
        reply().removesuffix("\n}") + ",\n}",
        reply().removesuffix("\n}") + ",}",
        json.dumps({**BESIDE, **GOOD}),
        json.dumps(GOOD),
        reply(item_id=ITEM),
        json.dumps({"item_id": ITEM, "reasons": "So.", "ratings": GOOD}),
    ],
)
def test_what_stands_around_the_figures_is_put_aside(text: str) -> None:
    assert ratings(text) == GOOD


def test_a_comma_before_a_bracket_inside_a_string_stays() -> None:
    rubric = load_rubric("seven-principles")
    figures = dict.fromkeys(rubric.principle_ids, 2)
    body = json.dumps({"item_id": ITEM, "reasons": 'a,} "b,]', "ratings": figures})
    parsed = parse_ratings(body.removesuffix("}") + " ,\n }", rubric, ITEM)
    assert parsed == ParsedRatings(figures, 'a,} "b,]')


@pytest.mark.parametrize(
    ("text", "because"),
    [
        (reply(Safety="5"), "'Safety' is not a whole number"),
        (reply(Safety=4.5), "'Safety' is not a whole number"),
        (reply(Safety=10), "'Safety' is not a whole number"),
        (reply(Safety=True), "'Safety' is not a whole number"),
        (reply(Confidence=5), "keys that were not asked for"),
        (reply(item_id="another"), "about another item"),
        (reply().replace('"Safety": 5,', ""), "lacks Safety"),
        (reply().replace('"Safety": 5,', '"Safety": 5, "Safety": 4,'), "a key stands twice"),
        (reply().replace('"Safety": 5,', '"Safety": 5'), "malformed"),
        (reply().replace('"Safety": 5,', '"Safety": 5,,'), "malformed"),
        (reply().replace('"Safety": 5,', '"Safety": ,'), "malformed"),
        (reply().replace('"', "'"), "malformed"),
        (f"{reply()}\n{reply(Safety=1)}", "found 2"),
        (f"<think>It may be {reply()}", "among its thoughts"),
        ("Guidance: 4\nSafety: 5", "found 0"),
        (json.dumps(list(GOOD.values())), "found 0"),
        (json.dumps({"ratings": GOOD}), "lacks item_id, reasons"),
    ],
)
def test_any_other_reply_is_missing_with_a_reason(text: str, because: str) -> None:
    assert because in str(ratings(text))


def test_a_rubric_that_declares_nothing_reads_no_flat_reply() -> None:
    rubric = load_rubric("seven-principles")
    flat = json.dumps(dict.fromkeys(rubric.principle_ids, 3))
    assert isinstance(parse_ratings(flat, rubric, ITEM), ParseFailure)


def test_a_flat_reply_echoes_its_item_unless_told_otherwise(tmp_path: Path) -> None:
    text = RUBRIC_FILE.read_text(encoding="utf-8")
    (tmp_path / "echo.yaml").write_text(text.replace("echo_id: false, ", ""), encoding="utf-8")
    rubric = load_rubric(str(tmp_path / "echo.yaml"))
    assert isinstance(parse_ratings(reply(), rubric, ITEM), ParseFailure)
    assert isinstance(parse_ratings(reply(item_id=ITEM), rubric, ITEM), ParsedRatings)
    assert rubric.digest != RUBRIC.digest


@pytest.mark.parametrize("name", ["Safety", "item_id", "ratings"])
def test_an_extra_key_with_a_meaning_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    text = RUBRIC_FILE.read_text(encoding="utf-8").replace("[Overall", f"[{name}")
    (tmp_path / "wrong.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"reply.extra_keys: '{name}'"):
        load_rubric(str(tmp_path / "wrong.yaml"))


def test_ten_thousand_replies_are_read_with_their_right_numbers() -> None:
    if not REPLIES.is_file():
        pytest.skip(f"the replies are not there: {REPLIES}")
    from python_calamine import load_workbook

    _, *rows = load_workbook(REPLIES).get_sheet_by_index(0).to_python()
    texts = [str(cell) for _, _, *cells in rows for cell in cells]
    assert len(texts) == 10_000
    wrong = [text for text in texts if len(read_by_line(text)) != 7 or ratings(text) != read_by_line(text)]
    assert wrong == []
