"""Verdicts in both orders + the answers compared -> every figure of a comparison. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from psychocounsel.domain import Candidate, Speech
from psychocounsel.evaluation.decay import text_health
from psychocounsel.evaluation.intervals import BootstrapSettings
from psychocounsel.evaluation.length_control import LengthComparison, length_controlled_rate
from psychocounsel.evaluation.win_rate import Asked, Outcome, win_rates
from psychocounsel.evaluation.words import word_count


class Answers(NamedTuple):
    """Speeches by id, and each side's answer by speech id; a speech without one was left unanswered."""

    speeches: Mapping[str, Speech]
    policy: Mapping[str, Candidate]
    reference: Mapping[str, Candidate]


def measure(rounds: Sequence[Asked], answers: Answers, settings: BootstrapSettings) -> dict[str, Any]:
    """Return what `metrics.json` holds of a comparison: win rates, raw, length-controlled and by slice.

    Beside them stands the health of each side's texts. A slice of which nothing was judged is None.
    """
    crisis = [each for each in rounds if answers.speeches[each.speech_id].crisis]
    compared = [_lengths(each, answers) for each in rounds]
    by_topic: dict[str, list[Asked]] = {}
    for each in rounds:
        by_topic.setdefault(answers.speeches[each.speech_id].topic, []).append(each)
    return {
        **win_rates(rounds, settings).as_dict(),
        "length_controlled": length_controlled_rate(compared, settings).as_dict(),
        "missing_by_topic": {topic: _missing(group) for topic, group in sorted(by_topic.items())},
        "crisis": _slice_rate(crisis, settings),
        "by_topic": {topic: _slice_rate(group, settings) for topic, group in sorted(by_topic.items())},
        "policy_health": text_health(list(answers.policy.values()), settings).as_dict(),
        "reference_health": text_health(list(answers.reference.values()), settings).as_dict(),
    }


def _missing(rounds: Sequence[Asked]) -> dict[str, int]:
    missing = sum(each.outcome() is Outcome.MISSING for each in rounds)
    return {"missing": missing, "total": len(rounds)}


def _slice_rate(rounds: Sequence[Asked], settings: BootstrapSettings) -> dict[str, float] | None:
    if all(each.outcome() is Outcome.MISSING for each in rounds):
        return None
    return win_rates(rounds, settings).overall.as_dict()


def _lengths(each: Asked, answers: Answers) -> LengthComparison:
    policy, reference = (_length(side.get(each.speech_id)) for side in (answers.policy, answers.reference))
    return LengthComparison(each.speech_id, each.outcome().points, policy, reference)


def _length(answer: Candidate | None) -> int:
    return 0 if answer is None else word_count(answer.text)
