"""A judge's win rate, corrected by human labels of a random sample of the same comparison.

Prediction-powered inference with a tuned weight of the judge (PPI++: Angelopoulos, Duchi and Zrnic 2023, arXiv
2311.01453). The judge may be wrong in any way: what it says of the many is corrected by its errors on the labelled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.agreement import pearson
from psychocounsel.evaluation.statistics import FloatArray, clustered_rate, student_t
from psychocounsel.store.shapes import Anchored
from psychocounsel.types import Coefficient, Rate

FEWEST_LABELS = 30
"""Labelled speeches below which nothing is estimated."""
ENOUGH_LABELS, ENOUGH_OF_RARER = 100, 10
"""Labelled speeches, and among them those of the rarer of win and loss, from which Student's t holds."""

Draw = tuple[str, int]
"""A speech and the number of the answers to it."""


class Units(NamedTuple):
    """Points of the policy by speech, from 0 to 1.

    `labels` by humans and `judged` by the judge are `[n]`, of the same `speeches`; `unlabelled`, by the judge, `[N]`. A
    missing verdict is half a point: the correction holds for whatever stands for a judge, and leaving these speeches
    out would answer for the others only. `has_verdict`, `[n]`, is False where one is missing.
    """

    speeches: list[str]
    labels: FloatArray
    judged: FloatArray
    unlabelled: FloatArray
    has_verdict: NDArray[np.bool_]


def units_of(judged: Mapping[Draw, float | None], labels: Mapping[Draw, Sequence[float]]) -> Units:
    """Return the points by speech, of which each weighs alike.

    `judged` holds the judge's points of every draw, None for a missing verdict, `labels` those of every rater. Of a
    labelled speech only the labelled draws count.
    """
    draws: dict[str, list[Draw]] = {}
    for draw in judged:
        draws.setdefault(draw[0], []).append(draw)
    both = {speech: own for speech, every in draws.items() if (own := [draw for draw in every if labels.get(draw)])}

    def by_judge(own: Sequence[Draw]) -> float:
        return fmean(0.5 if (points := judged[draw]) is None else points for draw in own)

    return Units(
        list(both),
        np.array([fmean(fmean(labels[draw]) for draw in own) for own in both.values()], dtype=np.float64),
        np.array([by_judge(own) for own in both.values()], dtype=np.float64),
        np.array([by_judge(own) for speech, own in draws.items() if speech not in both], dtype=np.float64),
        np.array([all(judged[draw] is not None for draw in own) for own in both.values()], dtype=np.bool_),
    )


def judge_weight(units: Units) -> float:
    """Return lambda, 0 to 1, at which the corrected mean varies least: Cov(h, f) / ((1 + n/N) Var f).

    The variance is over labelled and unlabelled speeches. 0 where there is no unlabelled one, or the judge always says
    the same.
    """
    every = np.concatenate([units.judged, units.unlabelled])
    if len(units.unlabelled) == 0 or np.ptp(every) == 0:
        return 0.0
    covariance = np.mean((units.labels - units.labels.mean()) * (units.judged - units.judged.mean()))
    ratio = 1 + len(units.labels) / len(units.unlabelled)
    return float(np.clip(covariance / (ratio * every.var()), 0, 1))


def corrected_mean(units: Units, weight: float) -> tuple[float, float]:
    """Return the corrected mean and its standard error, given lambda.

    theta = lambda mean_N f + mean_n(h - lambda f), V = lambda^2 Var_N(f) / N + Var_n(h - lambda f) / n.
    """
    rest = units.labels - weight * units.judged
    mean, variance = float(rest.mean()), float(rest.var()) / len(rest)
    if weight:
        mean += weight * float(units.unlabelled.mean())
        variance += weight**2 * float(units.unlabelled.var()) / len(units.unlabelled)
    return mean, variance**0.5


def more_speeches(there: int) -> str:
    """Return what to do about a comparison of too few speeches for any labels to correct it."""
    return (
        f"the comparison has only {there}, so no labels of it are enough: evaluate on more test speeches (a larger "
        "split.test_share, or a larger corpus)"
    )


def anchor(units: Units) -> Anchored:
    """Correct the judge's win rate by the labels.

    The intervals of the corrected rate and of the bias are by Student's t with n - 1 degrees of freedom. Where n is
    below 100, the judge weighs nothing, or fewer than 10 labels are of the rarer of win and loss, the rate by the
    labels alone is the one to believe. Its interval is that of `clustered_rate`; where wins or losses are that few, it
    reaches half a label further to either side: a continuity correction, for the rate then moves in wide steps.

    Raises:
        DataQualityError: fewer than 30 speeches are labelled.
    """
    labels, judged = units.labels, units.judged
    n = len(labels)
    if n < FEWEST_LABELS:
        raise DataQualityError(
            f"only {n} speeches have a label",
            remedy=more_speeches(there)
            if (there := n + len(units.unlabelled)) < FEWEST_LABELS
            else f"label at least {FEWEST_LABELS}, better {ENOUGH_LABELS} or more",
        )
    t, weight = student_t(n - 1), judge_weight(units)
    mean, error = corrected_mean(units, weight)
    has_few = min(int((labels > 0.5).sum()), int((labels < 0.5).sum())) < ENOUGH_OF_RARER
    human = clustered_rate(labels.tolist(), units.speeches)
    if has_few:
        human = replace(human, low=max(0.0, human.low - 0.5 / n), high=min(1.0, human.high + 0.5 / n))
    return Anchored(
        labelled=n,
        unlabelled=len(units.unlabelled),
        human_only=human,
        anchored=Rate(*(min(1.0, max(0.0, end)) for end in (mean, mean - t * error, mean + t * error)), n=n),
        headline="human_only" if n < ENOUGH_LABELS or weight == 0 or has_few else "anchored",
        bias=_interval_of_mean((judged - labels)[units.has_verdict]),
        rho=pearson(labels[units.has_verdict].tolist(), judged[units.has_verdict].tolist()),
        weight=weight,
        labels_worth=float(labels.var()) / n / error**2 if error else None,
    )


def _interval_of_mean(values: FloatArray) -> Coefficient | None:
    n = len(values)
    if n < 2:
        return None
    mean, reach = float(values.mean()), student_t(n - 1) * float(values.std(ddof=1)) / n**0.5
    return Coefficient(mean, mean - reach, mean + reach, n)
