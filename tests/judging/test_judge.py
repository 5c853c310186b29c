import pytest

from psychocounsel.domain import Judgement, ReplyStatus, Speech
from psychocounsel.judging.judge import missing_by_topic, missing_share

VALID = Judgement("c", "j", ReplyStatus.VALID, {"empathy": 3})
REFUSED = Judgement("c", "j", ReplyStatus.REFUSAL)
CUT = Judgement("c", "j", ReplyStatus.CUT)


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
