"""All figures of a comparison, with speeches that one side did not answer."""

from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.evaluation.winrate import BothOrders, Compared, Unanswered, winrate_metrics
from psychocounsel.types import OVERALL, Candidate, Comparison, ReplyStatus, Speech, Winner

FAST = BootstrapSettings(samples=200)
SPEECHES = [Speech(f"speech {number}", "grief" if number < 4 else "sleep") for number in range(6)]
BY_ID = {speech.id: speech for speech in SPEECHES}


def answer(speech: Speech, author: str, words: int) -> Candidate:
    return Candidate(speech.id, author, "word " * words)


def policy_wins(speech: Speech) -> BothOrders:
    return BothOrders(
        Comparison(speech.id, "p", "r", ReplyStatus.VALID, {OVERALL: Winner.FIRST}),
        Comparison(speech.id, "r", "p", ReplyStatus.VALID, {OVERALL: Winner.SECOND}),
    )


def test_what_was_not_answered_is_missing_overall_and_from_its_topic() -> None:
    answered = SPEECHES[:3]
    policy = {speech.id: answer(speech, "p", 5) for speech in SPEECHES[:4]}
    reference = {speech.id: answer(speech, "r", 7) for speech in answered}
    rounds: list[Compared] = [policy_wins(speech) for speech in answered]
    rounds += [Unanswered(speech.id) for speech in SPEECHES[3:]]
    metrics = winrate_metrics(rounds, BY_ID, policy, reference, FAST)
    assert (metrics["win_rate"]["estimate"], metrics["win_rate"]["missing"]) == (1.0, 3)
    assert metrics["wins"] + metrics["missing"] == 6
    assert metrics["missing_by_topic"] == {
        "grief": {"missing": 1, "total": 4},
        "sleep": {"missing": 2, "total": 2},
    }
    assert (metrics["by_topic"]["grief"]["n"], metrics["by_topic"]["grief"]["missing"]) == (3, 1)
    assert metrics["by_topic"]["sleep"] is None  # nothing of it was judged
    assert metrics["crisis"] is None
    assert metrics["length_controlled"]["rate"]["missing"] == 3
