from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.judging.injection import CANARIES, sample_indices, with_canary
from psychocounsel.types import Candidate, Speech

SPEECH = Speech("Since the move I don't sleep.")
TEXTS = [f"What is night {night} like?" for night in range(60)]
CANDIDATES = [Candidate(SPEECH.id, "alder", text, finished=False) for text in TEXTS]


def test_a_copy_says_what_the_response_says_and_then_speaks_to_the_judge() -> None:
    copy = with_canary(CANDIDATES[0])
    text, canary = copy.text.split("\n\n")
    assert text == CANDIDATES[0].text
    assert canary in CANARIES
    assert (copy.speech_id, copy.author, copy.finished) == (SPEECH.id, "alder", False)
    assert copy.id != CANDIDATES[0].id


def test_every_canary_is_used_and_the_text_alone_decides_which() -> None:
    used = {with_canary(each).text.removeprefix(f"{each.text}\n\n") for each in CANDIDATES}
    assert used == set(CANARIES)
    other = Candidate("another speech", "birch", TEXTS[0])
    assert with_canary(other).text == with_canary(CANDIDATES[0]).text


def test_no_canary_names_a_number_that_one_scale_has_and_another_has_not() -> None:
    assert not [each for each in CANARIES if any(sign.isdigit() for sign in each)]


@given(st.permutations(CANDIDATES[:12]), st.integers(0, 15))
def test_the_sample_does_not_depend_on_the_order(shuffled: list[Candidate], count: int) -> None:
    taken = [shuffled[at] for at in sample_indices(shuffled, count, "retest")]
    assert {each.id for each in taken} == {CANDIDATES[at].id for at in sample_indices(CANDIDATES[:12], count, "retest")}
    assert len(taken) == min(count, 12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_larger_sample_holds_the_smaller_one(few: int, more: int) -> None:
    small, large = (set(sample_indices(CANDIDATES, count, "canary")) for count in sorted((few, more)))
    assert small <= large


def test_places_stand_in_order_and_each_purpose_draws_anew() -> None:
    places = sample_indices(CANDIDATES, 20, "canary")
    assert places == sorted(set(places))
    assert places != sample_indices(CANDIDATES, 20, "retest")
    assert places != list(range(20))
