"""Verdicts in both orders -> WinRates: how often the policy is preferred to the reference.

A judge leans towards a place on the page, so every comparison is made twice with the places exchanged, and
only a win in both orders is a win.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.config.schema import EvalWinrateConfig
from psychocounsel.evaluation.statistics import (
    BootstrapSettings,
    FloatArray,
    bootstrap_rate,
    bootstrap_statistic,
    present,
)
from psychocounsel.evaluation.text_quality import measure_text_quality, word_count
from psychocounsel.store.schemas import SplitSpeech
from psychocounsel.types import OVERALL, Candidate, Comparison, Rate, ReplyStatus, Speech, Winner, content_id

_FIRST_POINTS = {Winner.FIRST: 1.0, Winner.TIE: 0.5, Winner.SECOND: 0.0}


class Outcome(StrEnum):
    """What two orders together say of the policy; a FLIP is a disagreement and counts as a tie."""

    WIN = "win"
    TIE = "tie"
    FLIP = "flip"
    LOSS = "loss"
    MISSING = "missing"

    @property
    def points(self) -> float | None:
        """The policy's share of the win: 1, a half or 0; None where a verdict failed."""
        return _POINTS[self]


_POINTS: Mapping[Outcome, float | None] = {
    Outcome.WIN: 1.0,
    Outcome.TIE: 0.5,
    Outcome.FLIP: 0.5,
    Outcome.LOSS: 0.0,
    Outcome.MISSING: None,
}
_AGREED = {Winner.FIRST: Outcome.WIN, Winner.TIE: Outcome.TIE, Winner.SECOND: Outcome.LOSS}


@dataclass(frozen=True)
class BothOrders:
    """One comparison judged twice: the policy's response first in `forward`, second in `backward`."""

    forward: Comparison
    backward: Comparison

    def __post_init__(self) -> None:
        if self.forward.speech_id != self.backward.speech_id:
            raise ValueError("both orders answer one speech")
        shown_swapped = (self.backward.second_id, self.backward.first_id)
        if (self.forward.first_id, self.forward.second_id) != shown_swapped:
            raise ValueError("the second order shows the same two responses in exchanged places")

    @property
    def speech_id(self) -> str:
        """The speech that both responses answer."""
        return self.forward.speech_id

    @property
    def valid(self) -> bool:
        """Whether both verdicts succeeded."""
        return self.forward.status is self.backward.status is ReplyStatus.VALID

    def swap(self) -> "BothOrders":
        """Return the same comparison told from the reference's side."""
        return BothOrders(forward=self.backward, backward=self.forward)

    def outcome(self, criterion: str = OVERALL) -> Outcome:
        """Return what the two verdicts together say on one criterion; one failed verdict makes it missing."""
        forward = self.forward.winners.get(criterion)
        backward = self.backward.winners.get(criterion)
        if forward is None or backward is None:
            return Outcome.MISSING
        return _AGREED[forward] if forward is backward.swap() else Outcome.FLIP

    def first_position_points(self, criterion: str = OVERALL) -> float | None:
        """Return the share of the two verdicts that went to the first place, ties half; None if one failed.

        A failed partner leaves the other verdict out as well: only the two together cancel the responses'
        merit.
        """
        forward = self.forward.winners.get(criterion)
        backward = self.backward.winners.get(criterion)
        if forward is None or backward is None:
            return None
        return (_FIRST_POINTS[forward] + _FIRST_POINTS[backward]) / 2


@dataclass(frozen=True)
class Unanswered:
    """A speech that a side left without an answer: there is nothing to compare, and it is missing."""

    speech_id: str

    def swap(self) -> "Unanswered":
        """Return the same: it is missing from either side."""
        return self

    def outcome(self, criterion: str = OVERALL) -> Outcome:
        """Return that the outcome is missing, whatever the criterion."""
        del criterion
        return Outcome.MISSING

    def first_position_points(self, criterion: str = OVERALL) -> None:
        """Return that nobody was shown first."""
        del criterion


Asked = BothOrders | Unanswered
"""What became of a speech that both sides were asked to answer."""


@dataclass(frozen=True)
class WinRates:
    """The policy's win rates over the reference, ties half, with what they rest on.

    `wins`, `ties`, `losses` and `missing` count speeches on the overall criterion and add up to all that were
    asked; `ties` holds the flips too. `by_criterion` holds every criterion but the overall one. A judge
    without a favourite place has a `first_position_rate` of one half.
    """

    overall: Rate
    by_criterion: Mapping[str, Rate]
    wins: int
    ties: int
    losses: int
    missing: int
    flip_rate: Rate
    first_position_rate: Rate

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        return {
            "win_rate": self.overall.as_dict(),
            "win_rate_by_criterion": {name: rate.as_dict() for name, rate in self.by_criterion.items()},
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "missing": self.missing,
            "flip_rate": self.flip_rate.as_dict(),
            "first_position_rate": self.first_position_rate.as_dict(),
        }


def win_rates(rounds: Sequence[Asked], settings: BootstrapSettings) -> WinRates:
    """Return win rates, overall and by criterion, with intervals by bootstrap over speeches.

    Args:
        rounds: the comparisons (a speech may have several), and the speeches that could not be compared.
        settings: how the intervals are drawn.

    Raises:
        DataQualityError: when no comparison has two valid verdicts.
    """
    speeches = [both.speech_id for both in rounds]
    outcomes = [both.outcome() for both in rounds]
    flips = [None if outcome is Outcome.MISSING else float(outcome is Outcome.FLIP) for outcome in outcomes]
    first_places = [both.first_position_points() for both in rounds]
    return WinRates(
        overall=_rate(rounds, OVERALL, settings),
        by_criterion={name: _rate(rounds, name, settings) for name in _criteria(rounds)},
        wins=outcomes.count(Outcome.WIN),
        ties=outcomes.count(Outcome.TIE) + outcomes.count(Outcome.FLIP),
        losses=outcomes.count(Outcome.LOSS),
        missing=outcomes.count(Outcome.MISSING),
        flip_rate=bootstrap_rate(flips, speeches, settings),
        first_position_rate=bootstrap_rate(first_places, speeches, settings),
    )


def _rate(rounds: Sequence[Asked], criterion: str, settings: BootstrapSettings) -> Rate:
    points = [both.outcome(criterion).points for both in rounds]
    return bootstrap_rate(points, [both.speech_id for both in rounds], settings)


def _criteria(rounds: Sequence[Asked]) -> list[str]:
    """Return the criteria of the valid comparisons but the overall one, in the order of the judge."""
    judged = [both for both in rounds if isinstance(both, BothOrders) and both.valid]
    named = dict.fromkeys(name for both in judged for name in both.forward.winners)
    return [name for name in named if name != OVERALL]


_RIDGE = np.array([1e-6, 1e-2])  # on theta, on beta
_MAX_REFITS = 1_000
_MAX_STEPS = 100
_STEP_TOLERANCE = 1e-9


class LengthComparison(NamedTuple):
    """One comparison: the policy's points (1, a half, 0; None if missing) and both lengths in one unit."""

    speech_id: str
    points: float | None
    policy_length: float
    reference_length: float


@dataclass(frozen=True)
class LengthControlled:
    """The length-controlled win rate.

    Args:
        rate: sigmoid(theta), or the raw rate where `controlled` is False.
        length_effect: beta; positive where the longer answer is favoured, 0 where `controlled` is False.
        sigma: standard deviation of the length differences, in their unit.
        controlled: False when length cannot explain anything, because all differences in length are equal
            or all outcomes are.
    """

    rate: Rate
    length_effect: float
    sigma: float
    controlled: bool

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        return {
            "rate": self.rate.as_dict(),
            "length_effect": self.length_effect,
            "sigma": self.sigma,
            "controlled": self.controlled,
        }


class LogisticFit(NamedTuple):
    """Coefficients of the model for each vector of weights, both `[resamples]`."""

    theta: FloatArray
    beta: FloatArray


def length_controlled_rate(comparisons: Sequence[LengthComparison], settings: BootstrapSettings) -> LengthControlled:
    """Fit the model and return the win rate at equal length, refitted on every resample of speeches.

    At most 1,000 refits are made, enough for the ends of an interval; sigma stays that of all comparisons,
    for it is a unit of measure.

    Raises:
        DataQualityError: when every outcome is missing.
    """
    clusters = [row.speech_id for row in comparisons]
    used = present([row.points for row in comparisons], clusters)
    differences = np.array([row.policy_length - row.reference_length for row in comparisons if row.points is not None])
    sigma = 0.0 if np.ptp(differences) == 0 else float(np.std(differences))
    if sigma == 0 or np.ptp(used.values) == 0:
        raw = bootstrap_rate([row.points for row in comparisons], clusters, settings)
        return LengthControlled(raw, length_effect=0.0, sigma=sigma, controlled=False)
    rows = np.stack([np.tanh(differences / sigma), used.values], axis=1)  # [n, 2]
    refits = replace(settings, samples=min(settings.samples, _MAX_REFITS))
    rate = bootstrap_statistic(rows, used.clusters, _rate_at_equal_length, refits, used.missing)
    beta = fit_logistic(rows[:, 0], rows[:, 1], np.ones((1, len(rows)))).beta
    return LengthControlled(rate, float(beta[0]), sigma, controlled=True)


def fit_logistic(x: FloatArray, y: FloatArray, weights: FloatArray) -> LogisticFit:
    """Fit `P(y) = sigmoid(theta + beta * x)` by Newton's method for many weightings at once.

    A step that does not lower the penalised loss is halved and tried again, so the fit converges from zero
    even where the outcomes are nearly separated.

    Args:
        x: `[n]`, within -1..1.
        y: `[n]`, soft labels in 0..1.
        weights: `[resamples, n]`.
    """
    design = np.stack([np.ones_like(x), x], axis=1)  # [n, 2]
    coefficients = np.zeros((len(weights), 2))
    loss = _loss(design, y, weights, coefficients)
    reach = np.ones(len(weights))
    for _ in range(_MAX_STEPS):
        step = _newton_step(design, y, weights, coefficients)
        if np.abs(step).max() < _STEP_TOLERANCE:
            break
        proposed = coefficients - reach[:, None] * step
        proposed_loss = _loss(design, y, weights, proposed)
        better = proposed_loss <= loss + 1e-12 * np.abs(loss)
        coefficients = np.where(better[:, None], proposed, coefficients)
        loss = np.where(better, proposed_loss, loss)
        reach = np.where(better, np.minimum(1.0, 2 * reach), reach / 2)
    return LogisticFit(theta=coefficients[:, 0], beta=coefficients[:, 1])


def _rate_at_equal_length(rows: FloatArray, weights: FloatArray) -> FloatArray:
    return _sigmoid(fit_logistic(rows[:, 0], rows[:, 1], weights).theta)


def _sigmoid(logits: FloatArray) -> FloatArray:
    return 0.5 * (1 + np.tanh(logits / 2))


def _loss(design: FloatArray, y: FloatArray, weights: FloatArray, coefficients: FloatArray) -> FloatArray:
    """Return the penalised cross-entropy `[resamples]`: sum of w (log(1 + e^z) - y z), plus the ridge."""
    logits = coefficients @ design.T  # [resamples, n]
    entropy = np.einsum("rn,rn->r", weights, np.logaddexp(0, logits) - y * logits)
    return entropy + 0.5 * (coefficients**2) @ _RIDGE


def _newton_step(design: FloatArray, y: FloatArray, weights: FloatArray, coefficients: FloatArray) -> FloatArray:
    """Return inverse Hessian times gradient, `[resamples, 2]`."""
    chance = _sigmoid(coefficients @ design.T)  # [resamples, n]
    gradient = (weights * (chance - y)) @ design + coefficients * _RIDGE
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), 4)
    hessian = ((weights * chance * (1 - chance)) @ products).reshape(-1, 2, 2) + np.diag(_RIDGE)
    step: FloatArray = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0].astype(np.float64)
    return step


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
        "policy_health": measure_text_quality(list(answers.policy.values()), settings).as_dict(),
        "reference_health": measure_text_quality(list(answers.reference.values()), settings).as_dict(),
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


def held_out_speeches(rows: Iterable[SplitSpeech], config: EvalWinrateConfig) -> list[Speech]:
    """Return the speeches of the config's split, `max_speeches` of them at most, in their order.

    Which ones is decided by a hash of seed and content: a corpus sorted by topic gives every topic, and a
    larger sample holds the smaller one.
    """
    speeches = [row.speech for row in rows if row.split == config.split]
    by_draw = sorted(speeches, key=lambda each: content_id("held out", str(config.seed), each.id))
    drawn = {each.id for each in by_draw[: config.max_speeches]}
    return [each for each in speeches if each.id in drawn]
