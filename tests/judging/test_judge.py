"""Missing results and their limits, several replies as one result, and which models are of one family."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError, IncompleteError
from psychocounsel.judging.injection import ADDRESSES_JUDGE
from psychocounsel.judging.judge import (
    addressing_judge,
    averaged,
    count_failed,
    in_parts,
    missing_by_topic,
    require_judged,
    same_family,
    voted,
    with_sample,
    with_vote,
)
from psychocounsel.llm.client import read_completion
from psychocounsel.types import OVERALL, Comparison, Judgement, Rating, ReplyStatus, Speech, Winner, exact_rating

VALID = Judgement("c", "j", ReplyStatus.VALID, {"empathy": 3})
REFUSED, CUT, LOST = (
    Judgement("c", "j", status) for status in (ReplyStatus.REFUSAL, ReplyStatus.CUT, ReplyStatus.ERROR)
)


def test_failed_judgements_and_attempts_on_the_judge_are_counted() -> None:
    assert count_failed([VALID, REFUSED, VALID, CUT]) == 2
    speeches = [Speech("one", "grief"), Speech("two", "work"), Speech("three", "grief")]
    expected = {"grief": {"missing": 1, "total": 2}, "work": {"missing": 0, "total": 1}}
    attempt = Judgement("d", "j", ReplyStatus.VALID, {"empathy": 5}, reason=ADDRESSES_JUDGE)
    assert addressing_judge([VALID, attempt, REFUSED, attempt]) == 2
    assert missing_by_topic(speeches, [REFUSED, VALID, VALID]) == expected
    with pytest.raises(ValueError, match="argument 2"):
        missing_by_topic(speeches, [VALID])


def test_as_many_may_fail_as_are_allowed_and_no_more() -> None:
    require_judged([VALID, VALID, VALID, REFUSED], "judgements", 0.25)
    require_judged([], "judgements", 0.0)
    with pytest.raises(DataQualityError, match=r"2 of 4 judgements failed \(1 refusal, 1 cut\)"):
        require_judged([VALID, REFUSED, VALID, CUT], "judgements", 0.25)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (ReplyStatus.CUT, "judge.max_tokens"),
        (ReplyStatus.INVALID, "endpoint."),
        (ReplyStatus.REFUSAL, "journal export"),
    ],
)
def test_the_commonest_failure_is_quoted_and_decides_on_the_remedy(status: ReplyStatus, remedy: str) -> None:
    failed = Judgement("x", "j", status, reason="it is so")
    other = Judgement("x", "j", ReplyStatus.EMPTY, reason="no")
    with pytest.raises(DataQualityError, match=f"{status.value}: it is so") as raised:
        require_judged([other, failed, failed, VALID], "judgements", 0.25)
    assert remedy in raised.value.remedy
    with pytest.raises(DataQualityError, match="1 of 1 comparisons failed"):
        require_judged([Comparison("x", "a", "b", status)], "comparisons", 0.0)


def test_more_tokens_are_no_remedy_for_endless_blanks() -> None:
    body = {"choices": [{"message": {"content": '{"a":' + " " * 400}, "finish_reason": "length"}]}
    reply = read_completion(json.dumps(body).encode())
    with pytest.raises(DataQualityError, match="400 blanks") as raised:
        require_judged([Judgement("x", "j", reply.status, reason=reply.reason)], "judgements", 0.25)
    assert "max_tokens" not in raised.value.remedy


def test_a_result_without_a_reply_is_pending_whatever_share_may_fail() -> None:
    with pytest.raises(IncompleteError, match="1 of 3 comparisons"):
        require_judged([VALID, REFUSED, LOST], "comparisons", 1.0)


# --- Several replies, one result -------------------------------------------------------------------------------------


def part(*ratings: Rating, status: ReplyStatus = ReplyStatus.VALID, index: int = 0) -> Judgement:
    by_principle = {f"p{at}": rating for at, rating in enumerate(ratings)}
    return with_sample(Judgement("c", "j", status, by_principle, "" if ratings else f"it was {status}"), index)


def vote(winner: Winner | None) -> Comparison:
    status = ReplyStatus.VALID if winner else ReplyStatus.INVALID
    return with_vote(Comparison("s", "a", "b", status, {OVERALL: winner} if winner else {}), "j")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_a_mean_comes_back_exactly_from_its_float(points: list[int]) -> None:
    mean = Fraction(sum(points), len(points))
    assert exact_rating(float(mean)) == mean
    assert Judgement("c", "j", ReplyStatus.VALID, {"a": 4, "b": float(mean)}).total == 4 + mean


def test_the_mean_of_three_samples_keeps_them() -> None:
    whole = averaged("j", [part(3, 5), part(4, 5, index=1), part(4, 4, index=2)])
    assert whole.ratings == {"p0": 11 / 3, "p1": 14 / 3}
    assert whole.total == Fraction(25, 3)
    samples = [(each.sample_index, *each.ratings.values()) for each in whole.samples]
    assert samples == [(0, 3, 5), (1, 4, 5), (2, 4, 4)]
    assert [type(each) for each in averaged("j", [part(3), part(3)]).ratings.values()] == [float]
    marked = with_sample(Judgement("c", "j", ReplyStatus.VALID, {"p0": 2}, ADDRESSES_JUDGE))
    assert averaged("j", [part(status=ReplyStatus.CUT), marked]).reason == ADDRESSES_JUDGE


@pytest.mark.parametrize(
    ("failures", "samples", "status"),
    [
        (["cut"], 2, "valid"),  # half is enough
        (["cut", "refusal", "refusal"], 5, "refusal"),
        (["cut", "refusal"], 3, "cut"),  # as many of each: the first that came
        (["cut", "cut"], 4, "valid"),
        (["cut", "cut"], 3, "cut"),
        (["error"], 5, "error"),  # pending, however many others there are
    ],
)
def test_fewer_than_half_is_missing(failures: list[str], samples: int, status: str) -> None:
    succeeded = samples - len(failures)
    failed = [part(status=ReplyStatus(each)) for each in failures]
    whole = averaged("j", [*failed, *(part(4) for _ in range(succeeded))])
    assert (whole.status, len(whole.samples)) == (status, samples)
    assert whole.reason == ("" if status == "valid" else f"{succeeded} of {samples} succeeded: it was {status}")


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ((Winner.FIRST, Winner.FIRST, Winner.SECOND), Winner.FIRST),
        ((Winner.FIRST, Winner.SECOND), Winner.TIE),
        ((Winner.TIE, Winner.TIE, Winner.SECOND), Winner.SECOND),
        ((Winner.FIRST, None, Winner.TIE), Winner.FIRST),
        ((Winner.FIRST, None, None), None),
    ],
)
def test_the_majority_of_votes_wins(votes: tuple[Winner | None, ...], winner: Winner | None) -> None:
    whole = voted([vote(each) for each in votes])
    assert whole.winners.get(OVERALL) is winner
    assert [each.winners.get(OVERALL) for each in whole.votes] == list(votes)


def test_progress_counts_whole_items() -> None:
    reported: list[int] = []
    advance = in_parts(reported.append, 3)
    for newly_done in (1, 1, 2, 5):
        advance(newly_done)
    assert reported == [1, 2]


# --- Families of models ----------------------------------------------------------------------------------------------

FAMILIES = [
    ("gpt-4o", "gpt-4.1-mini-2025-04-14", "chatgpt-4o-latest", "o3-mini", "openai/gpt-4o", "azure/gpt-35-turbo", "o1"),
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-70B", "unsloth/llama3-8b", "TinyLlama-1.1B"),
    ("codellama-7b", "meta-llama/Llama-3.2-3B"),
    ("ft:gpt-4o-mini-2024-07-18:my-org::abc123", "gpt-4o-2024-08-06"),
    ("claude-3-5-sonnet-20241022", "claude-opus-4"),
    ("Qwen/Qwen2.5-7B-Instruct", "qwen-max"),
    ("gemini-1.5-pro", "google/gemma-2-9b-it"),
    ("Mixtral-8x7B", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "Llama-3.1-8B"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-chat"),
    ("my-judge-2", "my-judge"),
    ("meta-llama/Llama-3.1-8B + deepseek-ai/deepseek-chat", "meta-llama/Llama-3.2-3B"),
]
STRANGERS = ["gpt-4o", "claude-sonnet-4", "gemini-2.0-flash", "Llama-3.1-8B", "Qwen2.5-7B", "Mistral-7B", "offline"]
STRANGERS += ["ours-1", "theirs-1", "phi-4", "", "deepseek-chat + grok-2"]


@pytest.mark.parametrize("names", FAMILIES)
def test_models_of_one_maker_are_of_one_family(names: tuple[str, ...]) -> None:
    assert all(same_family(left, right) for left in names for right in names)


def test_models_of_different_makers_are_of_no_family() -> None:
    related = {(left, right) for left in STRANGERS for right in STRANGERS if same_family(left, right)}
    assert related == {(name, name) for name in STRANGERS}
