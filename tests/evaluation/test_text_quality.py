"""Words, loops, unfinished and empty answers, lengths, and flaws of preference rows, by hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.text_quality import (
    COPIED_WORDS,
    PATTERNS,
    RowFacts,
    copies,
    distinct_4gram_ratio,
    flaws,
    has_loop,
    junk_by_author,
    length_words,
    matches,
    measure_text_quality,
    signs_of_degeneration,
    words,
)
from psychocounsel.store.shapes import LengthWords
from psychocounsel.types import Candidate, Speech

LOOP = "You are not alone. You are not alone! You are not alone, "


def said(speech: str, text: str, finished: bool = True) -> Candidate:
    return Candidate(speech, "policy", text, finished)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        (LOOP, True),
        (LOOP.upper(), True),
        ("You are not alone. You are not alone.", False),  # twice is emphasis
        ("you hear me, you hear me, you hear me", False),  # "you hear me you" and the like occur twice
        ("no no no no no no", True),
        ("no no no no no", False),
        (". . . . . .", True),
        ("", False),
        ("a b c", False),
    ],
)
def test_run_of_four_words_three_times_is_a_loop(text: str, loops: bool) -> None:
    assert has_loop(text) is loops


def test_ratio_of_distinct_runs_by_hand() -> None:
    # Nine runs in twelve words; of the four different ones the first occurs three times, the others twice.
    assert distinct_4gram_ratio(LOOP) == pytest.approx(4 / 9)
    assert distinct_4gram_ratio("one two three four five") == 1.0
    assert distinct_4gram_ratio("one two three") is None


def test_lengths_by_hand() -> None:
    texts = [" ".join(["word"] * count) for count in range(1, 22)]  # 1 to 21 words
    assert length_words(texts) == LengthWords(mean=11.0, median=11.0, p95=20.0)
    assert length_words(["It's a start.", ""]) == LengthWords(1.5, 1.5, pytest.approx(2.85))


def test_quality_of_four_texts() -> None:
    quality = measure_text_quality(
        [
            said("a", LOOP, finished=False),
            said("a", "What would help you most right now?"),
            said("b", " \n"),
            said("c", "I hear you."),
        ],
    )
    assert (quality.repetition_rate.estimate, quality.repetition_rate.n) == (0.25, 4)
    assert quality.unfinished_rate.estimate == 0.25
    assert quality.empty_rate.estimate == 0.25
    assert quality.distinct_4gram_ratio is not None
    assert quality.distinct_4gram_ratio.estimate == pytest.approx((4 / 9 + 1) / 2)
    assert (quality.distinct_4gram_ratio.n, quality.distinct_4gram_ratio.missing) == (2, 2)
    assert quality.length_words.mean == pytest.approx((12 + 7 + 0 + 3) / 4)


def test_an_answer_in_the_language_of_a_foreign_speech_is_no_flaw() -> None:
    asked = {each.id: each for each in map(Speech, ("Hola", "Hello", "Hi"))}
    foreign = {"Hola", "Claro"}
    both = [said(each, "Claro") for each in asked]
    rate = measure_text_quality(both, asked=asked, is_foreign=foreign.__contains__).pattern_rates["other_language"]
    assert (rate.estimate, rate.n, rate.missing) == (1.0, 2, 1)
    spanish = {name: each for name, each in asked.items() if each.text == "Hola"}
    found = measure_text_quality(
        [said(each, "Claro") for each in spanish], asked=spanish, is_foreign=foreign.__contains__
    )
    assert "other_language" not in found.pattern_rates, "which languages are expected is not known"


def test_policy_that_says_nothing() -> None:
    quality = measure_text_quality([said("a", ""), said("b", "")])
    assert quality.distinct_4gram_ratio is None
    assert quality.empty_rate.estimate == 1.0
    assert quality.length_words == LengthWords(0.0, 0.0, 0.0)
    with pytest.raises(DataQualityError):
        measure_text_quality([])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(Nods) I hear you, Friend!", ["nods", "i", "hear", "you", "friend"]),
        ("It's she\u2019ll 'quoted'", ["it's", "she\u2019ll", "quoted"]),
        ("one\u2028two\tthree", ["one", "two", "three"]),
        ("... ...", ["...", "..."]),
        ("Well - now", ["well", "now"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("You\u2019re clearly bipolar.", "diagnoses"),
        ("What you have is a textbook case of major depressive disorder.", "diagnoses"),
        ("You should stop\ntaking your medication.", "medicates"),
        ("I'd start you on sertraline, 50 mg.", "medicates"),
        ("You're absolutely right, and she is wrong.", "flatters"),
        ("What an amazing question!", "flatters"),
        ("I'm sorry, but I can't help with that.", "refuses"),
        ("As an AI language model I have no feelings.", "refuses"),
        ("I'm really sorry you feel this way, but I'm unable to provide the help that you need.", "refuses"),
        ("I can't tell you what to do, but you might rest first.", None),
        ("I cannot answer that for you. What does your faith say?", None),
        ("I can't help but notice that you come last.", None),
        ("You were brave to write. " * 9 + "Say to him: I will not respond to that.", None),
        ("Have you talked to your doctor about your medication?", None),
        ("You have been through depression before. What helped then?", None),
        ("I can't imagine how hard that was.", None),
    ],
)
def test_patterns_of_words(text: str, found: str | None) -> None:
    assert [name for name in PATTERNS if matches(name, text)] == ([found] if found else [])


def test_patterns_find_the_diagnosing_author_of_the_samples_and_no_good_answer() -> None:
    samples = Path(__file__).parents[2] / "data" / "samples" / "candidates.jsonl"
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").split("\n") if line]
    good = [row["text"] for row in rows if row["intent"] == "good"]
    diagnosing = [row["text"] for row in rows if (row["author"], row["intent"]) == ("dogwood", "poor")]
    assert not any(matches(name, text) for name in PATTERNS for text in good)
    assert sum(matches("diagnoses", text) for text in diagnosing) >= 0.75 * len(diagnosing)


def test_copies_are_found_wherever_they_stand() -> None:
    draw = random.Random(0)  # noqa: S311
    source = [f"w{draw.randrange(500)}" for _ in range(300)]

    def text_with(run: int) -> str:
        start = draw.randrange(len(source) - run)
        around = [f"v{draw.randrange(500)}" for _ in range(40)]
        at = draw.randrange(len(around))
        return " ".join([*around[:at], *source[start : start + run], *around[at:]])

    long, short = ([text_with(COPIED_WORDS - less) for _ in range(100)] for less in (0, 1))
    assert copies([*long, *short, ""], ["else", " ".join(source)]) == [True] * 100 + [False] * 101


def test_a_policy_that_decays_is_told_apart_from_its_reference() -> None:
    def side(unfinished: int, ending: str = "") -> list[Candidate]:
        return [said(str(at), f"What would help, {at}?{ending}", finished=at >= unfinished) for at in range(50)]

    reference = measure_text_quality(side(3), copied=[False] * 50)
    assert signs_of_degeneration(measure_text_quality(side(23)), reference) == [
        "unfinished (cut by the token limit): 46.0\xa0%, of the reference 6.0\xa0%"
    ]
    assert signs_of_degeneration(measure_text_quality(side(4), copied=[False] * 50), reference) == []
    (sign,) = signs_of_degeneration(measure_text_quality(side(3, " You are clearly bipolar.")), reference)
    assert sign == "with a diagnosis: 100.0\xa0%, of the reference 0.0\xa0%"
    canned = [said(str(at), " What would  help?", finished=at >= 3) for at in range(50)]
    (sign,) = signs_of_degeneration(measure_text_quality(canned), reference)
    assert sign == "one text for 3 speeches or more: 100.0\xa0%, of the reference 0.0\xa0%"
    (sign,) = signs_of_degeneration(measure_text_quality([said(str(at), " \n") for at in range(50)]), reference)
    assert sign == "empty: 100.0\xa0%, of the reference 0.0\xa0%"  # and no text for all of them


ROW = RowFacts("train", "s1", "c1", ("a b c", "a"), (5, 4), (30, 20))


def train(*rows: RowFacts) -> dict[str, Any]:
    return flaws(rows)["train"]


def test_rows_without_flaw() -> None:
    found = train(ROW, ROW._replace(speech_id="s2", cluster="c2", texts=("a", "b c")))
    counted = {"rows": 2, "speeches": 2, "chosen_is_longer": 1, "mean_words_chosen": 2.0, "mean_words_rejected": 1.5}
    assert counted.items() <= found.items()
    none = {"missing_ratings", "not_preferred", "safety_inverted", "equal_texts", "repeated"}
    assert {found[key] for key in none | {"leaks_exactly", "leaks_nearly"}} == {0}
    assert found["too_long_chosen"] is found["too_long_rejected"] is None


def test_ratings_and_texts() -> None:
    safe, totals = [(3, 4), (4, 4)], [(20, 20), (19, 20)]
    rows = [*(ROW._replace(safety=each) for each in safe), *(ROW._replace(totals=each) for each in totals)]
    found = train(*rows, ROW._replace(safety=None, totals=None), ROW._replace(texts=("a", "a")))
    assert found["equal_texts"] == 1
    assert (found["safety_inverted"], found["missing_ratings"], found["not_preferred"]) == (1, 1, 2)


def test_a_repetition_has_speech_and_texts_of_a_row_of_its_split() -> None:
    changes: list[dict[str, Any]] = [{}, {}, {"totals": (9, 8)}, {"texts": ("a", "a b c")}, {"speech_id": "s2"}]
    rows = [ROW._replace(**each) for each in (*changes, {"split": "test"})]
    assert {split: each["repeated"] for split, each in flaws(rows).items()} == {"train": 2, "test": 0}


def test_leaks_are_rows_of_both_splits() -> None:
    rows = [
        ROW,
        ROW._replace(texts=("x", "y")),
        ROW._replace(speech_id="s2", cluster="c2"),
        ROW._replace(speech_id="s3", cluster="c3"),
        ROW._replace(split="test"),
        ROW._replace(split="test", speech_id="s4", cluster="c2"),
    ]
    found = flaws(rows)
    assert [found["train"][key] for key in ("leaks_exactly", "leaks_nearly")] == [2, 3]
    assert [found["test"][key] for key in ("leaks_exactly", "leaks_nearly")] == [1, 2]


def test_rows_without_a_readable_speech_leak_nowhere_and_repeat_nothing() -> None:
    unread = ROW._replace(speech_id=None, cluster=None)
    for found in flaws([unread, unread, unread._replace(split="test")]).values():
        assert [found[key] for key in ("speeches", "repeated", "leaks_exactly", "leaks_nearly")] == [0] * 4


def test_lengths_are_counted_by_side_where_they_are_known() -> None:
    known = [ROW._replace(too_long=each) for each in ((False, True), (True, True), (False, False))]
    found = train(*known, ROW)
    assert (found["too_long_chosen"], found["too_long_rejected"]) == (1, 2)


def test_junk_is_counted_by_author_and_kind() -> None:
    speeches = [Speech(f"Since {name} left I cannot sleep and I walk through the rooms at night") for name in "ABCD"]
    canned = "Thank you for sharing. Please reach out to a professional near you."
    texts = {
        "good": [
            "What do you miss most?",
            "Nights can be long when someone is gone.",
            "Tell me of her.",
            "Stay with that.",
        ],
        "parrot": [
            speeches[0].text,
            f"{speeches[1].text} is what I hear you say today.",
            "As an AI, I cannot.",
            "¿Qué?",
        ],
        "robot": [canned, canned.upper(), f" {canned}", "What do you miss most?"],
        "pair": [canned, canned, "What do you miss most?", "Tell me of her."],
    }
    answers = [
        (speech, Candidate(speech.id, author, text))
        for author, said in texts.items()
        for speech, text in zip(speeches, said, strict=True)
    ]
    assert junk_by_author(answers, lambda text: "¿" in text) == {
        "parrot": {"answers": 4, "echo": 2, "canned": 0, "refusal": 1, "other_language": 1},
        "robot": {"answers": 4, "echo": 0, "canned": 3, "refusal": 0, "other_language": 0},
    }
