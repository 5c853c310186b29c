"""Win rates at equal length: what is left of a win rate when neither side's answer is the longer one.

A judge may favour length. The model `P(win) = sigmoid(theta + beta * tanh(difference / sigma))` (Dubois et al. 2024,
arXiv 2404.04475) gives the win rate at a difference of zero, `sigmoid(theta)`. Where one side is always the longer,
merit and length cannot be told apart, and nothing is reported.
"""

from collections.abc import Sequence
from dataclasses import replace
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
    """Return the win rate at equal length of one policy; see `length_controlled_rates`."""
    return length_controlled_rates([comparisons], confidence)[0]


def length_controlled_rates(
    policies: Sequence[Sequence[LengthComparison]], confidence: float = 0.95
) -> list[LengthControlled]:
    """Return the win rate at equal length of each policy, with one beta for all: they share a judge and a reference.

    Intervals are `theta ± t·s` on the logit scale. `s` is from the sandwich variance HC3 over speeches, and t has as
    many degrees of freedom as there are speeches less the coefficients. Each policy has a pseudo-tie at zero
    difference, which keeps theta finite. A policy whose lengths do not overlap with the reference's takes no part.

    Raises:
        DataQualityError: every outcome of a policy is missing.
    """
    used = [present([row.points for row in rows], [row.speech_id for row in rows]) for rows in policies]
    apart = [
        np.array([row.policy_length - row.reference_length for row in rows if row.points is not None])
        for rows in policies
    ]
    reasons = [_reason(each.values, differences) for each, differences in zip(used, apart, strict=True)]
    fitted = [at for at, reason in enumerate(reasons) if not reason]
    results = [
        LengthControlled(None, reason, None, None, float((each < 0).mean()), float((each > 0).mean()))
        for reason, each in zip(reasons, apart, strict=True)
    ]
    if not fitted:
        return results
    sigma = float(np.std(np.concatenate([apart[at] for at in fitted])))
    lengths = [np.tanh(apart[at] / sigma) for at in fitted]
    speeches = [name for at in fitted for name in used[at].clusters]
    coefficients, variances = _fit(lengths, [used[at].values for at in fitted], speeches)
    quantile = student_t(max(1, len(set(speeches)) - len(coefficients)), confidence)
    reach = quantile * np.sqrt(variances)
    low, high = coefficients - reach, coefficients + reach
    effect = LengthEffect(float(coefficients[-1]), float(low[-1]), float(high[-1]))
    for place, at in enumerate(fitted):
        estimate, lowest, highest = (float(sigmoid(figures)[place]) for figures in (coefficients, low, high))
        rate = Rate(estimate, lowest, highest, len(used[at].values), used[at].missing)
        results[at] = replace(results[at], rate=rate, length_effect=effect, sigma=sigma)
    return results


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


def _fit(
    lengths: Sequence[FloatArray], points: Sequence[FloatArray], speeches: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Return the coefficients, a theta for each policy and beta, and their variances, both `[policies + 1]`.

    The penalised quasi-likelihood of soft outcomes in 0..1 is maximised by Newton's method with halved steps. The
    variance sums, over speeches c, the squares of (H - H_c)^-1 g_c, one Newton step to the fit without c: HC3
    (MacKinnon and White 1985) where a speech has one comparison, CR3 (Bell and McCaffrey 2002) where it has several.
    """
    n_policies = len(lengths)
    design = np.zeros((sum(map(len, lengths)) + n_policies, n_policies + 1))
    policy = np.concatenate([np.repeat(np.arange(n_policies), [len(each) for each in lengths]), np.arange(n_policies)])
    design[np.arange(len(design)), policy] = 1
    design[: len(design) - n_policies, -1] = np.concatenate(lengths)
    outcomes = np.concatenate([*points, np.full(n_policies, 0.5)])  # the pseudo-ties
    names = np.unique(np.array(speeches, dtype=object), return_inverse=True)[1]
    cluster = np.concatenate([names, names.max() + 1 + np.arange(n_policies)])
    ridge = np.zeros(n_policies + 1)
    ridge[-1] = _RIDGE

    def loss(at: FloatArray) -> float:
        logits = design @ at
        return float((np.logaddexp(0, logits) - outcomes * logits).sum() + ridge @ at**2 / 2)

    coefficients = np.zeros(n_policies + 1)
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
    scores = np.zeros((len(informations), n_policies + 1))
    np.add.at(scores, cluster, design * (outcomes - chances)[:, None])
    without = np.linalg.solve(hessian - informations, scores[:, :, None])[:, :, 0]
    return coefficients, (without**2).sum(axis=0)
