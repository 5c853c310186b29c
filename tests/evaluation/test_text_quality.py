"""Words, loops, unfinished and empty answers, and lengths, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.evaluation.text_quality import (
    LengthWords,
    distinct_4gram_ratio,
    has_loop,
    length_words,
    measure_text_quality,
    words,
)
from psychocounsel.types import Candidate

FAST = BootstrapSettings(samples=200)
LOOP = "You are not alone. You are not alone! You are not alone, "


def said(speech: str, text: str, finished: bool = True) -> Candidate:
    return Candidate(speech, "policy", text, finished)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        (LOOP, True),
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
        FAST,
    )
    assert (quality.repetition_rate.estimate, quality.repetition_rate.n) == (0.25, 4)
    assert quality.unfinished_rate.estimate == 0.25
    assert quality.empty_rate.estimate == 0.25
    assert quality.distinct_4gram_ratio is not None
    assert quality.distinct_4gram_ratio.estimate == pytest.approx((4 / 9 + 1) / 2)
    assert (quality.distinct_4gram_ratio.n, quality.distinct_4gram_ratio.missing) == (2, 2)
    assert quality.length_words.mean == pytest.approx((12 + 7 + 0 + 3) / 4)


def test_policy_that_says_nothing_has_rates_but_no_ratio() -> None:
    quality = measure_text_quality([said("a", ""), said("b", "")], FAST)
    assert quality.distinct_4gram_ratio is None
    assert quality.empty_rate.estimate == 1.0
    assert quality.length_words == LengthWords(0.0, 0.0, 0.0)
    with pytest.raises(DataQualityError):
        measure_text_quality([], FAST)


@given(st.text(alphabet="ab ", max_size=40))
def test_loop_means_fewer_distinct_runs_and_case_does_not_matter(text: str) -> None:
    ratio = distinct_4gram_ratio(text)
    assert ratio is None or 0 < ratio <= 1
    if has_loop(text):
        assert ratio is not None
        assert ratio < 1
    assert has_loop(text.upper()) == has_loop(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(Nods) I hear you, Friend!", ["nods", "i", "hear", "you", "friend"]),
        ("It's she\u2019ll 'quoted'", ["it's", "she\u2019ll", "quoted"]),
        ("one\u2028two\tthree", ["one", "two", "three"]),
        ("... ...", ["...", "..."]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
