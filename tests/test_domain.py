"""The nouns: ids by content, invariants that cannot be got round, small verbs."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    PreferencePair,
    Rate,
    ReplyStatus,
    RewardModel,
    ScoredCandidate,
    Speech,
    Winner,
    content_id,
)

SPEECH = Speech("I lie awake at four.")


def scored(text: str, score: float, speech: Speech = SPEECH) -> ScoredCandidate:
    return ScoredCandidate(Candidate(speech.id, "elm", text), score)


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_ids_are_equal_only_for_equal_parts(left: list[str], right: list[str]) -> None:
    assert (content_id(*left) == content_id(*right)) == (left == right)


def test_ids_are_the_same_on_every_machine() -> None:
    # printf '["speech","I lie awake at four."]' | sha256sum
    assert SPEECH.id == "32f13e077da56725"
    assert content_id("\U0001f600\ud800") == "f376fb6d85b2710d"


def test_an_id_is_of_the_text_and_not_of_what_is_said_about_it() -> None:
    assert Speech(SPEECH.text, "sleep", True, "a.csv").id == SPEECH.id
    assert Candidate("s", "elm", "Oh.", finished=False).id == Candidate("s", "elm", "Oh.").id
    assert len({Candidate(*each).id for each in [("s", "elm", "Oh."), ("s", "oak", "Oh."), ("t", "elm", "Oh.")]}) == 3


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_speech_has_text(text: str) -> None:
    with pytest.raises(ValueError, match="a speech has text"):
        Speech(text)


@pytest.mark.parametrize("status", ReplyStatus)
def test_only_a_valid_judgement_or_verdict_carries_a_result(status: ReplyStatus) -> None:
    is_valid = status is ReplyStatus.VALID
    ratings, winners = {"safety": 4, "clarity": 3}, {"overall": Winner.FIRST}
    if is_valid:
        assert Judgement("c", "judge", status, ratings).total == 7
        assert Comparison("s", "a", "b", status, winners).winners == winners
    with pytest.raises(ValueError, match="a valid judgement has ratings, a failed one has none"):
        Judgement("c", "judge", status, {} if is_valid else ratings)
    with pytest.raises(ValueError, match="a valid comparison has winners"):
        Comparison("s", "a", "b", status, {} if is_valid else winners)


def test_a_pair_has_a_positive_margin_one_speech_and_two_texts() -> None:
    pair = PreferencePair(SPEECH, scored("good", 30), scored("poor", 12))
    assert pair.margin == 18
    for chosen, rejected in [(12, 30), (12, 12), (float("nan"), 1)]:
        with pytest.raises(ValueError, match="scores strictly higher"):
            PreferencePair(SPEECH, scored("good", chosen), scored("poor", rejected))
    with pytest.raises(ValueError, match="differ in text"):
        PreferencePair(SPEECH, scored("same", 30), scored("same", 12))
    other = Speech("Another.")
    for sides in [
        (scored("good", 2, other), scored("poor", 1)),
        (scored("good", 2), scored("poor", 1, other)),
    ]:
        with pytest.raises(ValueError, match="its one speech"):
            PreferencePair(SPEECH, *sides)


def test_the_id_of_a_pair_knows_who_was_chosen() -> None:
    one = PreferencePair(SPEECH, scored("a", 2), scored("b", 1))
    other = PreferencePair(SPEECH, scored("b", 2), scored("a", 1))
    assert one.id != other.id
    assert one.id == PreferencePair(SPEECH, scored("a", 9), scored("b", 1)).id


winners = st.dictionaries(st.text(max_size=3), st.sampled_from(Winner), min_size=1)


@given(st.text(), st.text(), winners)
def test_swap_of_swap_is_itself_and_swap_exchanges_everything(first: str, second: str, by: dict[str, Winner]) -> None:
    verdict = Comparison("s", first, second, ReplyStatus.VALID, by)
    swapped = verdict.swap()
    assert swapped.swap() == verdict
    assert (swapped.first_id, swapped.second_id) == (second, first)
    for criterion, winner in by.items():
        assert {winner, swapped.winners[criterion]} in ({Winner.TIE}, {Winner.FIRST, Winner.SECOND})


def test_a_failed_verdict_can_be_told_the_other_way_round() -> None:
    assert Comparison("s", "a", "b", ReplyStatus.CUT).swap() == Comparison("s", "b", "a", ReplyStatus.CUT)


def test_a_reward_is_normalised_by_the_models_own_scale() -> None:
    assert RewardModel("folder", mean=-1.5, std=2.0).normalise(0.5) == 1.0


def test_a_rate_is_written_with_its_documented_keys() -> None:
    assert Rate(0.5, 0.25, 0.75, 40, 2).as_dict() == {
        "estimate": 0.5,
        "low": 0.25,
        "high": 0.75,
        "n": 40,
        "missing": 2,
    }


def test_nouns_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEECH.text = "other"  # type: ignore[misc]
