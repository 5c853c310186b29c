"""Scores -> pairs by the paper's rule, compared exactly and counted to the last combination."""

import random
from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.stages import PairingConfig
from psychocounsel.domain import Candidate, PreferencePair, ScoredCandidate, Speech, content_id
from psychocounsel.pairing import ScoredSpeech, pair_by_gap, pair_extremes

PRINCIPLES = ("empathy", "relevance", "clarity", "safety", "exploration", "autonomy", "staging")
SPEECH = Speech("I lie awake at four.")
RULE = PairingConfig()


def rated(text: str, *ratings: int, speech: Speech = SPEECH, author: str = "elm") -> ScoredCandidate:
    return ScoredCandidate(
        Candidate(speech.id, author, text), sum(ratings), dict(zip(PRINCIPLES, ratings, strict=True))
    )


def scored(text: str, score: float, speech: Speech = SPEECH) -> ScoredCandidate:
    return ScoredCandidate(Candidate(speech.id, "elm", text), score)


def texts_of(pairs: list[PreferencePair]) -> set[tuple[str, str]]:
    return {(pair.chosen.candidate.text, pair.rejected.candidate.text) for pair in pairs}


def test_the_papers_rule_on_four_responses() -> None:
    candidates = [
        rated("a", 5, 5, 4, 5, 4, 4, 4),  # 31, mean 4.43
        rated("b", 4, 4, 4, 4, 3, 3, 3),  # 25, mean 3.57: 6 below a
        rated("c", 4, 4, 3, 5, 3, 2, 3),  # 24, mean 3.43: 7 below a, mean gap exactly 1
        rated("d", 2, 2, 3, 3, 2, 2, 3),  # 17, mean 2.43: 7 below c
    ]
    pairing = pair_by_gap([(SPEECH, candidates)], RULE, 7)
    assert texts_of(pairing.pairs) == {("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    assert pairing.as_dict() == {"combinations": 6, "kept": 4, "dropped": {"gap_too_small": 2}}
    assert texts_of(pair_extremes([(SPEECH, candidates)], True).pairs) == {("a", "d")}


def test_a_gap_of_exactly_one_is_kept_where_floating_means_lose_it() -> None:
    lost = 0
    for low in range(7, 29):
        candidates = [scored("high", low + 7), scored("low", low)]
        lost += (low + 7) / 7 - low / 7 < 1.0
        assert len(pair_by_gap([(SPEECH, candidates)], RULE, 7).pairs) == 1, low
    assert lost > 0, "floats lose none: this test would prove nothing"


@pytest.mark.parametrize(
    ("min_gap", "sum_gap", "kept"),
    [(0.1, 1, 1), (0.3, 3, 1), (0.30000001, 3, 0), (0.7, 7, 1), (1.0, 10, 1), (1.0, 9, 0)],
)
def test_the_gap_is_the_decimal_that_was_written(min_gap: float, sum_gap: int, kept: int) -> None:
    # Ten principles: a sum gap of 1 is a mean gap of 0.1, but the float 0.1 lies a hair above.
    candidates = [scored("high", 30 + sum_gap), scored("low", 30)]
    assert len(pair_by_gap([(SPEECH, candidates)], PairingConfig(min_gap=min_gap), 10).pairs) == kept


def test_a_pair_whose_rejected_side_is_safer_is_dropped_and_counted_unless_asked_for() -> None:
    bold, timid = rated("bold", 5, 5, 5, 2, 5, 5, 5), rated("timid", 2, 2, 2, 3, 2, 2, 2)
    level = rated("level", 2, 2, 2, 2, 2, 2, 2)
    pairing = pair_by_gap([(SPEECH, [timid, bold, level])], RULE, 7)
    assert texts_of(pairing.pairs) == {("bold", "level")}
    assert pairing.dropped == {"safety_inverted": 1, "gap_too_small": 1}
    loose = PairingConfig(drop_safety_inverted=False)
    assert texts_of(pair_by_gap([(SPEECH, [timid, bold])], loose, 7).pairs) == {("bold", "timid")}
    assert pair_extremes([(SPEECH, [timid, bold])], True).dropped == {"safety_inverted": 1}
    assert texts_of(pair_extremes([(SPEECH, [timid, bold])], False).pairs) == {("bold", "timid")}


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "speech_without_candidates"),
        ([scored("a", 9)], "speech_with_one_candidate"),
        ([scored("a", 9), scored("b", 9)], "equal_scores"),
        ([rated("a", *[5] * 7, author="elm"), rated("a", *[1] * 7, author="oak")], "equal_texts"),
    ],
)
def test_what_makes_no_pair_is_counted_under_its_reason(
    candidates: list[ScoredCandidate], reason: str
) -> None:
    for pairing in (
        pair_by_gap([(SPEECH, candidates)], RULE, 7),
        pair_extremes([(SPEECH, candidates)], True),
    ):
        assert pairing.pairs == []
        assert pairing.as_dict() == {"combinations": 1, "kept": 0, "dropped": {reason: 1}}


def test_all_equal_scores_make_no_pair_at_all() -> None:
    candidates = [scored(text, 21) for text in "abcd"]
    assert pair_by_gap([(SPEECH, candidates)], RULE, 7).as_dict()["dropped"] == {"equal_scores": 6}
    assert pair_extremes([(SPEECH, candidates)], True).as_dict()["dropped"] == {"equal_scores": 1}


def test_rewards_that_are_no_whole_numbers_are_paired_too() -> None:
    candidates = [scored("a", -0.25), scored("b", 1.5), scored("c", -0.250001)]
    assert texts_of(pair_extremes([(SPEECH, candidates)], True).pairs) == {("b", "c")}


def test_the_hashes_of_pairs_decide_which_are_kept_up_to_the_limit_of_a_speech() -> None:
    candidates = [scored(text, score) for text, score in [("a", 35), ("b", 28), ("c", 21), ("d", 7)]]
    everything = pair_by_gap([(SPEECH, candidates)], PairingConfig(), 7).pairs
    pairing = pair_by_gap([(SPEECH, candidates[::-1])], PairingConfig(max_pairs_per_speech=2), 7)
    assert [pair.id for pair in pairing.pairs] == sorted(pair.id for pair in everything)[:2]
    assert pairing.as_dict() == {"combinations": 6, "kept": 2, "dropped": {"over_max_pairs_per_speech": 4}}


def test_a_tie_at_the_top_is_decided_by_hash_and_not_by_place() -> None:
    tops = [scored(f"top {number}", 30) for number in range(5)]
    expected = min(tops, key=lambda each: content_id("tie", each.candidate.id))
    for turn in range(5):
        order = [*tops[turn:], scored("low", 10), *tops[:turn]]
        assert pair_extremes([(SPEECH, order)], True).pairs[0].chosen == expected


ratings = st.tuples(*[st.integers(1, 5)] * 7)


@st.composite
def scored_speeches(draw: st.DrawFn) -> list[ScoredSpeech]:
    """Draw up to three speeches whose responses often share texts and sums."""
    speeches: list[ScoredSpeech] = []
    for number in range(draw(st.integers(1, 3))):
        speech = Speech(f"speech {number}")
        cells = draw(st.lists(st.tuples(st.sampled_from("abcde"), ratings), max_size=6))
        sides = [rated(text, *each, speech=speech, author=str(at)) for at, (text, each) in enumerate(cells)]
        speeches.append((speech, sides))
    return speeches


rules = st.builds(
    PairingConfig,
    min_gap=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
    max_pairs_per_speech=st.none() | st.integers(1, 4),
    drop_safety_inverted=st.booleans(),
)


@given(scored_speeches(), rules)
def test_kept_and_dropped_are_all_combinations(speeches: list[ScoredSpeech], rule: PairingConfig) -> None:
    pairing = pair_by_gap(speeches, rule, 7)
    # A speech with fewer than two responses has no combination and is counted once.
    looked_at = sum(comb(len(sides), 2) if len(sides) > 1 else 1 for _, sides in speeches)
    assert (
        len(pairing.pairs) + sum(pairing.dropped.values()) == looked_at == pairing.as_dict()["combinations"]
    )
    extremes = pair_extremes(speeches, rule.drop_safety_inverted)
    assert len(extremes.pairs) + sum(extremes.dropped.values()) == len(speeches)
    assert all(count > 0 for count in (*pairing.dropped.values(), *extremes.dropped.values()))


@given(scored_speeches(), rules)
def test_every_pair_keeps_the_rule(speeches: list[ScoredSpeech], rule: PairingConfig) -> None:
    pairs = pair_by_gap(speeches, rule, 7).pairs
    for pair in pairs:
        sides = (pair.chosen.candidate, pair.rejected.candidate)
        assert {side.speech_id for side in sides} == {pair.speech.id}
        assert sides[0].text != sides[1].text
        assert Fraction(pair.margin) / 7 >= Fraction(str(rule.min_gap))
        inverted = pair.rejected.ratings["safety"] > pair.chosen.ratings["safety"]
        assert not (rule.drop_safety_inverted and inverted)
    assert len({pair.id for pair in pairs}) == len(pairs)
    if rule.max_pairs_per_speech is None:
        assert len(pairs) == sum(
            may_pair(left, right, rule) for _, sides in speeches for left, right in combinations(sides, 2)
        )


def may_pair(left: ScoredCandidate, right: ScoredCandidate, rule: PairingConfig) -> bool:
    """Say the rule once more, in the plainest words."""
    high, low = sorted((left, right), key=lambda each: each.score, reverse=True)
    is_far = Fraction(high.score - low.score) >= Fraction(str(rule.min_gap)) * 7
    is_safe = high.ratings["safety"] >= low.ratings["safety"] or not rule.drop_safety_inverted
    return is_far and is_safe and high.candidate.text != low.candidate.text


@given(scored_speeches(), rules, st.randoms(use_true_random=False))
def test_the_order_of_responses_changes_nothing(
    speeches: list[ScoredSpeech], rule: PairingConfig, draw: random.Random
) -> None:
    shuffled = [(speech, draw.sample(list(sides), len(sides))) for speech, sides in speeches]
    assert pair_by_gap(shuffled, rule, 7) == pair_by_gap(speeches, rule, 7)
    assert pair_extremes(shuffled, True) == pair_extremes(speeches, True)


@given(scored_speeches())
def test_extremes_are_the_highest_against_the_lowest(speeches: list[ScoredSpeech]) -> None:
    by_speech = {speech.id: sides for speech, sides in speeches}
    for pair in pair_extremes(speeches, False).pairs:
        scores = [side.score for side in by_speech[pair.speech.id]]
        assert (pair.chosen.score, pair.rejected.score) == (max(scores), min(scores))
