"""Win rates: how often a judge prefers the policy's answers to the reference's, raw and at equal length.

Judges favour a position, so each pair of answers is compared in both orders, and only a win in both is a win.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from psychocounsel.evaluation.agreement import coefficient, nominal_kappa
from psychocounsel.evaluation.length_control import LengthComparison, length_controlled_rate
from psychocounsel.evaluation.statistics import clustered_rate, rate_if_known
from psychocounsel.evaluation.text_quality import copies, measure_text_quality, word_count
from psychocounsel.store.schemas import OrderedComparison
from psychocounsel.store.shapes import WinRates
from psychocounsel.types import (
    OVERALL,
    Candidate,
    Comparison,
    Rate,
    ReplyStatus,
    Speech,
    Winner,
    sample_by_hash,
)

_FIRST_POINTS = {Winner.FIRST: 1.0, Winner.TIE: 0.5, Winner.SECOND: 0.0}


class Outcome(StrEnum):
    """The result for the policy of two comparisons in opposite orders; disagreement counts as a tie."""

    WIN = "win"
    TIE = "tie"
    POSITION_INCONSISTENT = "position-inconsistent"
    LOSS = "loss"
    MISSING = "missing"


POINTS: Mapping[Outcome, float | None] = {
    Outcome.WIN: 1.0,
    Outcome.TIE: 0.5,
    Outcome.POSITION_INCONSISTENT: 0.5,
    Outcome.LOSS: 0.0,
    Outcome.MISSING: None,
}
"""The policy's share of a win; None where a comparison failed."""
_AGREED = {Winner.FIRST: Outcome.WIN, Winner.TIE: Outcome.TIE, Winner.SECOND: Outcome.LOSS}


@dataclass(frozen=True)
class BothOrders:
    """Two answers compared twice: the policy's response first in `forward`, second in `backward`."""

    forward: Comparison
    backward: Comparison

    def __post_init__(self) -> None:
        if self.forward.speech_id != self.backward.speech_id:
            raise ValueError("both orders answer one speech")
        if (self.forward.first_id, self.forward.second_id) != (self.backward.second_id, self.backward.first_id):
            raise ValueError("the second order shows the same two responses in exchanged places")

    @property
    def speech_id(self) -> str:
        """The speech that both responses answer."""
        return self.forward.speech_id

    def outcome(self, criterion: str = OVERALL) -> Outcome:
        """Return the joint outcome on one criterion; one failed comparison makes it missing."""
        forward, backward = self.forward.winners.get(criterion), self.backward.winners.get(criterion)
        if forward is None or backward is None:
            return Outcome.MISSING
        return _AGREED[forward] if forward is backward.swap() else Outcome.POSITION_INCONSISTENT

    def first_position_points(self) -> float | None:
        """Return the share of the two comparisons that the first position won, ties half; None if one failed.

        Only both together cancel the responses' merit, so a comparison whose partner failed is left out.
        """
        forward, backward = self.forward.winners.get(OVERALL), self.backward.winners.get(OVERALL)
        return None if forward is None or backward is None else (_FIRST_POINTS[forward] + _FIRST_POINTS[backward]) / 2


@dataclass(frozen=True)
class Unanswered:
    """A draw for which one side gave no answer: nothing can be compared, so its outcome is missing."""

    speech_id: str

    def outcome(self, criterion: str = OVERALL) -> Outcome:
        """Return MISSING for every criterion."""
        del criterion
        return Outcome.MISSING

    def first_position_points(self) -> None:
        """Return None: no comparison was made."""


Compared = BothOrders | Unanswered


def in_both_orders(rows: Iterable[OrderedComparison]) -> dict[tuple[str, int], BothOrders]:
    """Return both orders of the comparisons of a table, by speech and draw."""
    orders: dict[str, dict[tuple[str, int], Comparison]] = {"forward": {}, "backward": {}}
    for row in rows:
        orders[row.order][row.comparison.speech_id, row.draw] = row.comparison
    forward, backward = orders.values()
    return {at: BothOrders(each, backward[at]) for at, each in forward.items()}


def win_rates(compared: Sequence[Compared], confidence: float = 0.95) -> WinRates:
    """Return win rates, overall and by criterion, with intervals over speeches; a speech may have several comparisons.

    Raises:
        DataQualityError: no comparison is valid in both orders.
    """
    speeches = [each.speech_id for each in compared]

    def mean(values: Sequence[float | None], clusters: Sequence[str] = speeches) -> Rate:
        return clustered_rate(values, clusters, confidence)

    def rate(criterion: str) -> Rate:
        return mean([POINTS[each.outcome(criterion)] for each in compared])

    outcomes = [each.outcome() for each in compared]
    inconsistent = [
        None if each is Outcome.MISSING else float(each is Outcome.POSITION_INCONSISTENT) for each in outcomes
    ]
    points = [POINTS[each] for each in outcomes]
    not_tied = [at for at, each in enumerate(points) if each != POINTS[Outcome.TIE]]
    any_decided = {Outcome.WIN, Outcome.LOSS} & set(outcomes)
    decided = mean([points[at] for at in not_tied], [speeches[at] for at in not_tied]) if any_decided else None
    at_worst, at_best = ([missing if each is None else each for each in points] for missing in (0.0, 1.0))
    verdicts = [
        (each.forward.winners[OVERALL], each.backward.winners[OVERALL].swap())
        for each in compared
        if isinstance(each, BothOrders) and each.outcome() is not Outcome.MISSING
    ]
    judged_in = [speech for speech, outcome in zip(speeches, outcomes, strict=True) if outcome is not Outcome.MISSING]
    both = [each for each in compared if isinstance(each, BothOrders)]
    judged = [each for each in both if each.forward.status is each.backward.status is ReplyStatus.VALID]
    criteria = dict.fromkeys(name for each in judged for name in each.forward.winners if name != OVERALL)
    return WinRates(
        win_rate=rate(OVERALL),
        win_rate_decided=decided,
        missing_as_losses=mean(at_worst),
        missing_as_wins=mean(at_best),
        win_rate_by_criterion={name: rate(name) for name in criteria},
        wins=outcomes.count(Outcome.WIN),
        ties=outcomes.count(Outcome.TIE) + outcomes.count(Outcome.POSITION_INCONSISTENT),
        losses=outcomes.count(Outcome.LOSS),
        missing=outcomes.count(Outcome.MISSING),
        position_inconsistent_rate=mean(inconsistent),
        first_position_rate=mean([each.first_position_points() for each in compared]),
        order_kappa=coefficient(nominal_kappa, verdicts, judged_in, confidence),
    )


def length_comparisons(compared: Iterable[Compared], answers: Iterable[Candidate]) -> list[LengthComparison]:
    """Return what length control needs to know of comparisons of these answers: the points, and lengths in words."""
    words = {each.id: word_count(each.text) for each in answers}
    return [
        LengthComparison(each.speech_id, None, 0, 0)
        if isinstance(each, Unanswered)
        else LengthComparison(
            each.speech_id, POINTS[each.outcome()], words[each.forward.first_id], words[each.forward.second_id]
        )
        for each in compared
    ]


def winrate_metrics(
    compared: Sequence[Compared],
    speeches: Mapping[str, Speech],
    policy: Sequence[Candidate],
    reference: Sequence[Candidate],
    confidence: float = 0.95,
    trained_on: Sequence[str] | None = None,
    is_foreign: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Return the figures for `metrics.json`: win rates raw, length-controlled and by topic, text quality of both sides.

    Speeches are given by id, and answers as all draws of a side; `trained_on` are answers of the policy's training
    pairs, as far as they are known, and `is_foreign` says whether a text is in another language than the speeches. A
    topic in which nothing was judged is None.
    """
    lengths = length_comparisons(compared, [*policy, *reference])

    def overall(part: Sequence[Compared]) -> Rate | None:
        return rate_if_known([POINTS[each.outcome()] for each in part], [each.speech_id for each in part], confidence)

    texts = {each.id: each.text.strip() for each in (*policy, *reference)}
    shown = [(each.forward.first_id, each.forward.second_id) for each in compared if isinstance(each, BothOrders)]
    ours = theirs = None
    if trained_on is not None:
        copied = copies([each.text for each in (*policy, *reference)], trained_on)
        ours, theirs = copied[: len(policy)], copied[len(policy) :]
    topics = sorted({speeches[each.speech_id].topic for each in compared})
    by_topic = {topic: [each for each in compared if speeches[each.speech_id].topic == topic] for topic in topics}
    return {
        **win_rates(compared, confidence).model_dump(by_alias=True),
        "identical": sum(texts[one] == texts[other] for one, other in shown),
        "length_controlled": length_controlled_rate(lengths, confidence),
        "missing_by_topic": {
            topic: {"missing": sum(each.outcome() is Outcome.MISSING for each in part), "total": len(part)}
            for topic, part in by_topic.items()
        },
        "crisis": overall([each for each in compared if speeches[each.speech_id].crisis]),
        "by_topic": {topic: overall(part) for topic, part in by_topic.items()},
        "by_speech_length": {
            words: overall([each for each in compared if each.speech_id in part])
            for words, part in _thirds_by_length(speeches.values()).items()
        },
        "policy_text_quality": measure_text_quality(policy, confidence, ours, speeches, is_foreign),
        "reference_text_quality": measure_text_quality(reference, confidence, theirs, speeches, is_foreign),
    }


def _thirds_by_length(speeches: Iterable[Speech]) -> dict[str, set[str]]:
    """Return the ids of the short, middle and long third of some speeches, by their numbers of words.

    Speeches of equal length are in one part, so there may be fewer parts than three.
    """
    lengths = sorted((word_count(each.text), each.id) for each in speeches)
    ends = sorted({lengths[(len(lengths) - 1) * part // 3][0] for part in (1, 2, 3)})
    starts = [lengths[0][0], *(end + 1 for end in ends)]
    return {
        f"{low} to {high}": {each for length, each in lengths if low <= length <= high}
        for low, high in zip(starts, ends, strict=False)
    }


def sample_speeches(speeches: Sequence[Speech], max_speeches: int | None, seed: int) -> list[Speech]:
    """Return at most `max_speeches` of some speeches, in their order.

    A hash of seed and content decides which: a corpus sorted by topic gives every topic, and a larger sample contains
    the smaller one.
    """
    sampled = {each.id for each in sample_by_hash(speeches, max_speeches, "held out", seed)}
    return [each for each in speeches if each.id in sampled]
