"""Win rates at equal length: what is left of a win rate when neither side's answer is the longer one.

A judge may favour length. The model `P(win) = sigmoid(theta + beta * tanh(difference / sigma))` (Dubois et al. 2024,
arXiv 2404.04475) gives the win rate at a difference of zero, `sigmoid(theta)`. Where one side is always the longer,
merit and length cannot be told apart, and nothing is reported.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from psychocounsel.evaluation.statistics import FloatArray, present, sigmoid, student_t
from psychocounsel.store.shapes import LengthControlled, LengthEffect
from psychocounsel.types import Rate

MIN_COMPARISONS = 100
MIN_OUTCOMES = 10
"""Wins, and losses, below which a slope over length is not to be estimated."""
MIN_SIDE, MIN_SIDE_SHARE = 5, 0.05
"""Comparisons in which the policy's answer is the shorter one, and in which it is the longer: the larger of both."""

_RIDGE = 1e-2  # on beta, which nothing else holds where the longer answer always wins
_MAX_STEPS = 100
_STEP_TOLERANCE = 1e-9


class LengthComparison(NamedTuple):
    """One comparison: the policy's points (1, a half, 0; None if missing) and both lengths in one unit."""

    speech_id: str
    points: float | None
    policy_length: float
    reference_length: float


def length_controlled_rate(comparisons: Sequence[LengthComparison], confidence: float = 0.95) -> LengthControlled:
    """Return the win rate at equal length of a policy.

    Intervals are `theta ± t·s` on the logit scale. `s` is from the sandwich variance HC3 over speeches, and t has as
    many degrees of freedom as there are speeches less the two coefficients. A pseudo-tie at zero difference keeps theta
    finite.

    Raises:
        DataQualityError: every outcome is missing.
    """
    used = present([row.points for row in comparisons], [row.speech_id for row in comparisons])
    apart = np.array([row.policy_length - row.reference_length for row in comparisons if row.points is not None])
    sides = {"shorter": float((apart < 0).mean()), "longer": float((apart > 0).mean())}
    if reason := _reason(used.values, apart):
        return LengthControlled(None, reason, None, None, **sides)
    sigma = float(np.std(apart))
    coefficients, variances = _fit(np.tanh(apart / sigma), used.values, used.clusters)
    reach = student_t(max(1, len(set(used.clusters)) - 2), confidence) * np.sqrt(variances)
    ends = (coefficients, coefficients - reach, coefficients + reach)
    rate = Rate(*(float(sigmoid(each)[0]) for each in ends), n=len(used.values), missing=used.missing)
    return LengthControlled(rate, "", LengthEffect(*(float(each[1]) for each in ends)), sigma, **sides)


def _reason(points: FloatArray, differences: FloatArray) -> str:
    """Return why merit cannot be told from length in these comparisons; empty where it can."""
    wins, losses = int((points == 1).sum()), int((points == 0).sum())
    sides = {"shorter": int((differences < 0).sum()), "longer": int((differences > 0).sum())}
    needed = max(MIN_SIDE, MIN_SIDE_SHARE * len(points))
    if len(points) < MIN_COMPARISONS:
        return f"{len(points)} comparisons, fewer than {MIN_COMPARISONS}"
    for side, count in sides.items():
        if count < needed:
            return f"the policy's answer is the {side} one in only {count} of {len(points)} comparisons"
    for outcome, count in (("wins", wins), ("losses", losses)):
        if count < MIN_OUTCOMES:
            return f"{count} {outcome}, fewer than {MIN_OUTCOMES}"
    return ""


def _fit(lengths: FloatArray, points: FloatArray, speeches: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Return theta and beta, and their variances, both `[2]`.

    The penalised quasi-likelihood of soft outcomes in 0..1 is maximised by Newton's method with halved steps. The
    variance sums, over speeches c, the squares of (H - H_c)^-1 g_c, one Newton step to the fit without c: HC3
    (MacKinnon and White 1985) where a speech has one comparison, CR3 (Bell and McCaffrey 2002) where it has several.
    """
    design = np.stack([np.ones(len(lengths) + 1), np.append(lengths, 0)], axis=1)  # the last row is the pseudo-tie
    outcomes = np.append(points, 0.5)
    names = np.unique(np.array(speeches, dtype=object), return_inverse=True)[1]
    cluster = np.append(names, names.max() + 1)
    ridge = np.array([0, _RIDGE])

    def loss(at: FloatArray) -> float:
        logits = design @ at
        return float((np.logaddexp(0, logits) - outcomes * logits).sum() + ridge @ at**2 / 2)

    coefficients = np.zeros(2)
    for _ in range(_MAX_STEPS):
        chances = sigmoid(design @ coefficients)
        hessian = (design * (chances * (1 - chances))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(hessian, design.T @ (outcomes - chances) - ridge * coefficients)
        if np.abs(step).max() < _STEP_TOLERANCE:
            break
        while loss(coefficients + step) > loss(coefficients) and np.abs(step).max() >= _STEP_TOLERANCE:
            step = step / 2
        coefficients = coefficients + step
    chances = sigmoid(design @ coefficients)
    informations = np.zeros((cluster.max() + 1, *hessian.shape))
    weights = (chances * (1 - chances))[:, None, None]
    np.add.at(informations, cluster, weights * design[:, :, None] * design[:, None, :])
    scores = np.zeros((len(informations), 2))
    np.add.at(scores, cluster, design * (outcomes - chances)[:, None])
    without = np.linalg.solve(hessian - informations, scores[:, :, None])[:, :, 0]
    return coefficients, (without**2).sum(axis=0)
