"""Margins by pair -> RewardMetrics: accuracy, AUC, ECE and Brier of a reward model.

A pair has no natural order, so it is looked at in both: "is the first preferred?" is asked once with the
chosen response first (margin m, truth 1) and once with the rejected first (margin -m, truth 0). The model's
answer is p = sigmoid(m), its Bradley-Terry probability (arXiv 2502.19731), where m is r(chosen) -
r(rejected) on the raw scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psychocounsel.domain import Rate
from psychocounsel.evaluation.intervals import (
    BootstrapSettings,
    FloatArray,
    Present,
    bootstrap_rate,
    bootstrap_statistic,
    present,
)

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class RewardMetrics:
    """What a reward model is worth on preference pairs, each figure with its interval.

    Args:
        accuracy: share of pairs with a positive margin; equal rewards count half.
        auc: chance that a margin with truth 1 exceeds one with truth 0, equal ones half.
        ece: expected calibration error, over ten bins of equal width.
        brier: mean squared distance of p from the truth.
        ties: number of pairs with equal rewards.
    """

    accuracy: Rate
    auc: Rate
    ece: Rate
    brier: Rate
    ties: int

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        return {
            "accuracy": self.accuracy.as_dict(),
            "auc": self.auc.as_dict(),
            "ece": self.ece.as_dict(),
            "brier": self.brier.as_dict(),
            "ties": self.ties,
        }


def reward_metrics(
    margins: Sequence[float | None], speech_ids: Sequence[str], settings: BootstrapSettings
) -> RewardMetrics:
    """Return the four figures with intervals by bootstrap over speeches.

    Args:
        margins: r(chosen) - r(rejected) of each pair; None for a pair that could not be scored.
        speech_ids: the speech of each pair.
        settings: how the intervals are drawn.

    Raises:
        ValueError: when a margin is not finite.
        DataQualityError: when no pair was scored.
    """
    pairs = present(margins, speech_ids)
    return RewardMetrics(
        accuracy=bootstrap_rate(correctness(margins), speech_ids, settings),
        auc=_auc(pairs, settings),
        ece=bootstrap_statistic(
            _residuals_by_bin(pairs.values), pairs.clusters, _calibration_error, settings, pairs.missing
        ),
        brier=_brier(pairs, settings),
        ties=int(np.count_nonzero(pairs.values == 0)),
    )


def correctness(margins: Sequence[float | None]) -> list[float | None]:
    """Return 1 for a positive margin, a half for zero, 0 for a negative one, None for a missing one."""
    return [None if margin is None else 0.5 + 0.5 * float(np.sign(margin)) for margin in margins]


def _brier(pairs: Present, settings: BootstrapSettings) -> Rate:
    """Mean of (1 - p)²: the other order has (0 - (1 - p))², which is the same."""
    squares = [float(square) for square in _sigmoid(-pairs.values) ** 2]
    rate = bootstrap_rate(squares, pairs.clusters, settings)
    return Rate(rate.estimate, rate.low, rate.high, rate.n, pairs.missing)


def _auc(pairs: Present, settings: BootstrapSettings) -> Rate:
    order = np.argsort(pairs.values, kind="stable")
    clusters = [pairs.clusters[int(index)] for index in order.tolist()]
    return bootstrap_statistic(pairs.values[order], clusters, _weighted_auc, settings, pairs.missing)


def _weighted_auc(margins: FloatArray, weights: FloatArray) -> FloatArray:
    """Return P(m_i > -m_j) + P(m_i = -m_j) / 2 over all i, j, for `margins` in ascending order.

    For each i the weight of the j with m_j > -m_i is a tail of the running sum of weights, so a resample
    costs n, not n².
    """
    running = np.zeros((len(weights), len(margins) + 1))
    np.cumsum(weights, axis=1, out=running[:, 1:])
    below = running[:, np.searchsorted(margins, -margins, side="left")]  # weight with m_j < -m_i
    below += running[:, np.searchsorted(margins, -margins, side="right")]
    total = running[:, -1]
    won = total**2 - 0.5 * np.einsum("rn,rn->r", weights, below)
    return won / total**2


def _residuals_by_bin(margins: FloatArray) -> FloatArray:
    """Return `[n, bins]`: truth minus probability of both orders of a pair, in the bins of the latter.

    Bins are closed on the left; the last one holds 1 as well.
    """
    residuals = np.zeros((len(margins), CALIBRATION_BINS))
    pair = np.arange(len(margins))
    for truth, chance in ((1.0, _sigmoid(margins)), (0.0, _sigmoid(-margins))):
        bins = np.minimum((chance * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
        residuals[pair, bins] += truth - chance
    return residuals


def _calibration_error(residuals: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the sum over bins of (share of the bin) · |mean truth - mean probability|, over 2n orders."""
    gaps = np.abs(weights @ residuals).sum(axis=1)
    return gaps / (2 * weights.sum(axis=1))


def _sigmoid(logits: FloatArray) -> FloatArray:
    return 0.5 * (1 + np.tanh(logits / 2))
