"""Missing results and their limits, and which models are of one family."""

import pytest

from psychocounsel.errors import DataQualityError, IncompleteError
from psychocounsel.judging.injection import ADDRESSES_JUDGE
from psychocounsel.judging.judge import (
    addressing_judge,
    missing_by_topic,
    missing_share,
    require_judged,
    same_family,
)
from psychocounsel.types import Comparison, Judgement, ReplyStatus, Speech

VALID = Judgement("c", "j", ReplyStatus.VALID, {"empathy": 3})
REFUSED, CUT, LOST = (
    Judgement("c", "j", status) for status in (ReplyStatus.REFUSAL, ReplyStatus.CUT, ReplyStatus.ERROR)
)


def test_failed_judgements_are_counted_as_missing() -> None:
    missing = missing_share([VALID, REFUSED, VALID, CUT])
    assert (missing.missing, missing.total, missing.share) == (2, 4, 0.5)
    assert missing_share([]).share == 0.0


def test_missing_shares_by_topic() -> None:
    speeches = [Speech("one", "grief"), Speech("two", "work"), Speech("three", "grief")]
    assert missing_by_topic(speeches, [REFUSED, VALID, VALID]) == {"grief": (1, 2), "work": (0, 1)}
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


def test_a_result_without_a_reply_is_pending_whatever_share_may_fail() -> None:
    with pytest.raises(IncompleteError, match="1 of 3 comparisons"):
        require_judged([VALID, REFUSED, LOST], "comparisons", 1.0)


def test_attempts_on_the_judge_are_counted() -> None:
    attempt = Judgement("d", "j", ReplyStatus.VALID, {"empathy": 5}, reason=ADDRESSES_JUDGE)
    assert addressing_judge([VALID, attempt, REFUSED, attempt]) == 2


SAME = [
    ("gpt-4o", "gpt-4.1-mini-2025-04-14"),
    ("gpt-4o-2024-08-06", "chatgpt-4o-latest"),
    ("gpt-4o", "o3-mini"),
    ("gpt-4o", "ft:gpt-4o-mini-2024-07-18:my-org::abc123"),
    ("openai/gpt-4o", "azure/gpt-35-turbo"),
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-70B"),
    ("meta-llama/Llama-3.2-3B", "unsloth/llama3-8b"),
    ("codellama-7b", "TinyLlama-1.1B"),
    ("claude-3-5-sonnet-20241022", "claude-opus-4"),
    ("Qwen/Qwen2.5-7B-Instruct", "qwen-max"),
    ("gemini-1.5-pro", "google/gemma-2-9b-it"),
    ("Mixtral-8x7B", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "Llama-3.1-8B"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-chat"),
    ("offline", "offline"),
    ("my-judge-2", "my-judge"),
    ("meta-llama/Llama-3.1-8B + deepseek-ai/deepseek-chat", "meta-llama/Llama-3.2-3B"),
]
OTHER = [
    ("gpt-4o", "claude-sonnet-4"),
    ("gpt-4o", "gemini-2.0-flash"),
    ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ("mistralai/Mistral-7B", "meta-llama/Llama-3.1-8B"),
    ("offline", "gpt-4o"),
    ("ours-1", "theirs-1"),
    ("phi-4", "o1"),
    ("", "gpt-4o"),
    ("gemma-2 + gpt-4o", "claude-sonnet-4 + Llama-3.1-8B"),
]


@pytest.mark.parametrize(("left", "right", "same"), [*((*pair, True) for pair in SAME), *((*p, False) for p in OTHER)])
def test_models_of_one_maker_are_of_one_family(left: str, right: str, same: bool) -> None:
    assert same_family(left, right) is same_family(right, left) is same
