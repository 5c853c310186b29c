"""Verdicts in both orders + the answers compared -> every figure of a comparison. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from psychocounsel.domain import Candidate, Speech
from psychocounsel.evaluation.decay import text_health
from psychocounsel.evaluation.intervals import BootstrapSettings
from psychocounsel.evaluation.length_control import LengthComparison, length_controlled_rate
from psychocounsel.evaluation.win_rate import BothOrders, win_rates
from psychocounsel.evaluation.words import words


class Answers(NamedTuple):
    """Speeches by id, and each side's answer by speech id."""

    speeches: Mapping[str, Speech]
    policy: Mapping[str, Candidate]
    reference: Mapping[str, Candidate]


def measure(rounds: Sequence[BothOrders], answers: Answers, settings: BootstrapSettings) -> dict[str, Any]:
    """Return what `metrics.json` holds of a comparison: win rates, raw, length-controlled and by slice.

    Beside them stands the health of each side's texts. The crisis slice is None when no speech is about one.
    """
    crisis = [each for each in rounds if answers.speeches[each.speech_id].crisis]
    compared = [_lengths(each, answers) for each in rounds]
    by_topic: dict[str, list[BothOrders]] = {}
    for each in rounds:
        by_topic.setdefault(answers.speeches[each.speech_id].topic, []).append(each)
    return {
        **win_rates(rounds, settings).as_dict(),
        "length_controlled": length_controlled_rate(compared, settings).as_dict(),
        "crisis": win_rates(crisis, settings).overall.as_dict() if crisis else None,
        "by_topic": {
            topic: win_rates(group, settings).overall.as_dict() for topic, group in sorted(by_topic.items())
        },
        "policy_health": text_health(list(answers.policy.values()), settings).as_dict(),
        "reference_health": text_health(list(answers.reference.values()), settings).as_dict(),
    }


def _lengths(both: BothOrders, answers: Answers) -> LengthComparison:
    return LengthComparison(
        both.speech_id,
        both.outcome().points,
        len(words(answers.policy[both.speech_id].text)),
        len(words(answers.reference[both.speech_id].text)),
    )
