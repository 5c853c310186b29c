"""The types of the data flow: ids by content and invariants."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    Normalisation,
    PreferencePair,
    ReplyStatus,
    RewardModel,
    ScoredCandidate,
    Speech,
    Turn,
    Vote,
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
    assert SPEECH.id == Speech(SPEECH.text, history=()).id == "32f13e077da56725"
    assert content_id("\U0001f600\ud800") == "f376fb6d85b2710d"


def test_ids_depend_on_speech_author_and_text_alone() -> None:
    assert Speech(SPEECH.text, "sleep", True, "a.csv").id == SPEECH.id
    histories = [(Turn("assistant", "How are you?"),), (Turn("user", "How are you?"),), (Turn("user", "How"),)]
    assert len({SPEECH.id, *(Speech(SPEECH.text, history=each).id for each in histories)}) == 4
    assert Candidate("s", "elm", "Oh.", finished=False).id == Candidate("s", "elm", "Oh.").id
    assert len({Candidate(*each).id for each in [("s", "elm", "Oh."), ("s", "oak", "Oh."), ("t", "elm", "Oh.")]}) == 3
    pair = PreferencePair(SPEECH, scored("a", 2), scored("b", 1))
    assert pair.id == PreferencePair(SPEECH, scored("a", 9), scored("b", 1)).id
    assert pair.id != PreferencePair(SPEECH, scored("b", 2), scored("a", 1)).id


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_speech_has_text_and_is_frozen(text: str) -> None:
    with pytest.raises(ValueError, match="has text"):
        Speech(text)
    with pytest.raises(FrozenInstanceError):
        SPEECH.text = text  # type: ignore[misc]


@pytest.mark.parametrize("status", ReplyStatus)
def test_only_a_valid_judgement_or_comparison_has_a_result(status: ReplyStatus) -> None:
    is_valid = status is ReplyStatus.VALID
    ratings, winners = {"safety": 4, "clarity": 3}, {"overall": Winner.FIRST}
    if is_valid:
        assert Judgement("c", "judge", status, ratings).total == 7
        assert Comparison("s", "a", "b", status, winners).winners == winners
    with pytest.raises(ValueError, match="a valid judgement has ratings"):
        Judgement("c", "judge", status, {} if is_valid else ratings)
    with pytest.raises(ValueError, match="a valid comparison has winners"):
        Comparison("s", "a", "b", status, {} if is_valid else winners)


def test_a_pair_has_a_positive_margin_one_speech_and_two_texts() -> None:
    assert PreferencePair(SPEECH, scored("good", 30), scored("poor", 12)).margin == 18
    for chosen, rejected in [(12, 30), (12, 12), (float("nan"), 1)]:
        with pytest.raises(ValueError, match="scores strictly higher"):
            PreferencePair(SPEECH, scored("good", chosen), scored("poor", rejected))
    with pytest.raises(ValueError, match="differ in text"):
        PreferencePair(SPEECH, scored("same", 30), scored("same", 12))
    other = Speech("Another.")
    for sides in [(scored("good", 2, other), scored("poor", 1)), (scored("good", 2), scored("poor", 1, other))]:
        with pytest.raises(ValueError, match="its one speech"):
            PreferencePair(SPEECH, *sides)


@given(st.text(), st.text(), st.dictionaries(st.text(max_size=3), st.sampled_from(Winner), min_size=1))
def test_swap_exchanges_everything_and_undoes_itself(first: str, second: str, winners: dict[str, Winner]) -> None:
    vote = Vote("judge", 0, ReplyStatus.VALID, winners)
    comparison = Comparison("s", first, second, ReplyStatus.VALID, winners, (vote,))
    swapped = comparison.swap()
    assert swapped.swap() == comparison
    assert (swapped.first_id, swapped.second_id) == (second, first)
    assert swapped.votes[0].winners == swapped.winners
    for criterion, winner in winners.items():
        assert {winner, swapped.winners[criterion]} in ({Winner.TIE}, {Winner.FIRST, Winner.SECOND})
    assert Comparison("s", "a", "b", ReplyStatus.CUT).swap() == Comparison("s", "b", "a", ReplyStatus.CUT)


def test_a_reward_is_normalised_by_the_models_own_scale() -> None:
    assert RewardModel("folder", Normalisation(mean=-1.5, std=2.0)).reward([0.5]).reward == 1.0
