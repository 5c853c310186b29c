import pytest

from psychocounsel.errors import DataQualityError, IncompleteError
from psychocounsel.judging.injection import ADDRESSES_JUDGE
from psychocounsel.judging.judge import (
    addressing_judge,
    missing_by_topic,
    missing_share,
    require_judged,
)
from psychocounsel.types import Comparison, Judgement, ReplyStatus, Speech

VALID = Judgement("c", "j", ReplyStatus.VALID, {"empathy": 3})
REFUSED = Judgement("c", "j", ReplyStatus.REFUSAL)
CUT = Judgement("c", "j", ReplyStatus.CUT)
LOST = Judgement("c", "j", ReplyStatus.ERROR)


def test_failed_judgements_are_counted_as_missing() -> None:
    missing = missing_share([VALID, REFUSED, VALID, CUT])
    assert (missing.missing, missing.total, missing.share) == (2, 4, 0.5)


def test_of_nothing_nothing_is_missing() -> None:
    assert missing_share([]).share == 0.0


def test_missing_shares_by_topic() -> None:
    speeches = [Speech("one", "grief"), Speech("two", "work"), Speech("three", "grief")]
    by_topic = missing_by_topic(speeches, [REFUSED, VALID, VALID])
    assert by_topic == {"grief": (1, 2), "work": (0, 1)}
    with pytest.raises(ValueError, match="argument 2"):
        missing_by_topic(speeches, [VALID])


def test_as_many_may_fail_as_are_allowed_and_none_more() -> None:
    require_judged([VALID, VALID, VALID, REFUSED], "judgements", 0.25)
    require_judged([], "judgements", 0.0)
    with pytest.raises(DataQualityError, match=r"2 of 4 judgements failed \(1 refusal, 1 cut\)"):
        require_judged([VALID, REFUSED, VALID, CUT], "judgements", 0.25)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (ReplyStatus.CUT, "judge.max_tokens"),
        (ReplyStatus.INVALID, "endpoint.response_format"),
        (ReplyStatus.REFUSAL, "journal export"),
    ],
)
def test_the_commonest_failure_is_quoted_and_decides_on_the_remedy(status: ReplyStatus, remedy: str) -> None:
    failed = Judgement("x", "j", status, reason="it is so")
    other = Judgement("x", "j", ReplyStatus.EMPTY, reason="no")
    with pytest.raises(DataQualityError, match=f"the first {status.value}: it is so") as raised:
        require_judged([other, failed, failed, VALID], "judgements", 0.25)
    assert remedy in raised.value.remedy
    with pytest.raises(DataQualityError, match="1 of 1 comparisons failed"):
        require_judged([Comparison("x", "a", "b", status)], "comparisons", 0.0)


def test_one_that_got_lost_is_owed_whatever_share_is_allowed() -> None:
    with pytest.raises(IncompleteError, match="1 of 3 comparisons got no answer from the judge"):
        require_judged([VALID, REFUSED, LOST], "comparisons", 1.0)


def test_attempts_on_the_judge_are_counted() -> None:
    attempt = Judgement("d", "j", ReplyStatus.VALID, {"empathy": 5}, reason=ADDRESSES_JUDGE)
    assert addressing_judge([VALID, attempt, REFUSED, attempt]) == 2
