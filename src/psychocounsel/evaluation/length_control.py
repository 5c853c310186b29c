"""Points and lengths -> LengthControlled: the win rate that would be seen if both answers were equally long.

Judges like long answers. A logistic model explains each outcome by a constant and by the difference in
length,

    P(win) = sigmoid(theta + beta * tanh((policy length - reference length) / sigma)),

with sigma the standard deviation of the differences, and the controlled rate is sigmoid(theta): the
difference set to zero. Ties enter as a half win. Exchanging the two sides turns theta into -theta, so the
rate into one minus itself.

Where length separates wins from losses the likelihood grows with beta for ever. A small ridge keeps the fit
finite: a normal prior on beta with standard deviation 10 (beta 1 already turns 50 % into 73 %), and one on
theta with standard deviation 1,000, which only resamples without a single loss (or win) feel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from psychocounsel.domain import Rate
from psychocounsel.evaluation.intervals import (
    BootstrapSettings,
    FloatArray,
    bootstrap_rate,
    bootstrap_statistic,
    present,
)

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


def length_controlled_rate(
    comparisons: Sequence[LengthComparison], settings: BootstrapSettings
) -> LengthControlled:
    """Fit the model and return the win rate at equal length, refitted on every resample of speeches.

    At most 1,000 refits are made, enough for the ends of an interval; sigma stays that of all comparisons,
    for it is a unit of measure.

    Raises:
        DataQualityError: when every outcome is missing.
    """
    clusters = [row.speech_id for row in comparisons]
    used = present([row.points for row in comparisons], clusters)
    differences = np.array(
        [row.policy_length - row.reference_length for row in comparisons if row.points is not None]
    )
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


def _newton_step(
    design: FloatArray, y: FloatArray, weights: FloatArray, coefficients: FloatArray
) -> FloatArray:
    """Return inverse Hessian times gradient, `[resamples, 2]`."""
    chance = _sigmoid(coefficients @ design.T)  # [resamples, n]
    gradient = (weights * (chance - y)) @ design + coefficients * _RIDGE
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), 4)
    hessian = ((weights * chance * (1 - chance)) @ products).reshape(-1, 2, 2) + np.diag(_RIDGE)
    step: FloatArray = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0].astype(np.float64)
    return step
