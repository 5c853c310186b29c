"""Accuracy, AUC, calibration error and Brier score of a reward model, and the baselines to compare them with.

A pair has no natural order, so each is counted in both: "is the first response preferred?" with the chosen response
first (margin m, truth 1) and with the rejected first (margin -m, truth 0). The model's answer is p = sigmoid(m), its
Bradley-Terry probability (arXiv 2502.19731), where m is r(chosen) - r(rejected) on the raw scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from psychocounsel.evaluation.statistics import (
    BootstrapSettings,
    FloatArray,
    bootstrap_rate,
    bootstrap_statistic,
    present,
    sigmoid,
)
from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.types import PreferencePair, Rate, exact_mean

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class RewardMetrics:
    """The quality of a reward model on preference pairs, each figure with its interval.

    Attributes:
        accuracy: share of pairs with a positive margin; equal rewards count half.
        auc: probability that a margin with truth 1 exceeds one with truth 0; equal ones count half.
        ece: expected calibration error over ten bins of equal width.
        brier: mean squared distance of p from the truth.
        ties: number of pairs with equal rewards.
    """

    accuracy: Rate
    auc: Rate
    ece: Rate
    brier: Rate
    ties: int


def reward_metrics(
    margins: Sequence[float | None], speech_ids: Sequence[str], settings: BootstrapSettings
) -> RewardMetrics:
    """Return the four figures from r(chosen) - r(rejected) of each pair, None where it could not be scored.

    Raises:
        ValueError: a margin is not finite.
        DataQualityError: no pair was scored.
    """
    values, speeches, missing = present(margins, speech_ids)
    order: list[int] = np.argsort(values, kind="stable").tolist()
    # In the other order the squared error is (0 - (1 - p))², the same, so one order per pair is enough.
    squared_errors = [float(error) for error in sigmoid(-values) ** 2]
    return RewardMetrics(
        accuracy=bootstrap_rate(correctness(margins), speech_ids, settings),
        auc=bootstrap_statistic(values[order], [speeches[i] for i in order], _weighted_auc, settings, missing),
        ece=bootstrap_statistic(_residuals_by_bin(values), speeches, _calibration_error, settings, missing),
        brier=replace(bootstrap_rate(squared_errors, speeches, settings), missing=missing),
        ties=int(np.count_nonzero(values == 0)),
    )


def correctness(margins: Sequence[float | None]) -> list[float | None]:
    """Return 1 for a positive margin, a half for zero, 0 for a negative one, None for a missing one."""
    return [None if margin is None else 0.5 + 0.5 * float(np.sign(margin)) for margin in margins]


def _weighted_auc(margins: FloatArray, weights: FloatArray) -> FloatArray:
    """Return P(m_i > -m_j) + P(m_i = -m_j) / 2 over all i, j, for `margins` in ascending order.

    For each i the weight of the j with m_j > -m_i is a tail of the running sum of weights, so a resample costs n, not
    n².
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

    Bins are closed on the left; the last one contains 1 as well.
    """
    residuals = np.zeros((len(margins), CALIBRATION_BINS))
    pair = np.arange(len(margins))
    for truth, chance in ((1.0, sigmoid(margins)), (0.0, sigmoid(-margins))):
        bins = np.minimum((chance * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
        residuals[pair, bins] += truth - chance
    return residuals


def _calibration_error(residuals: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the sum over bins of (share of the bin) · |mean truth - mean probability|, over 2n orders."""
    gaps = np.abs(weights @ residuals).sum(axis=1)
    return gaps / (2 * weights.sum(axis=1))


SAME_TIER_SHARE = Fraction(1, 16)
"""Authors whose mean ratings in train differ by less than this share of the rating scale are of one tier."""

DEFAULT_SCALE = (1, 5)
"""Lowest and highest rating of released datasets, and of those that do not name their scale."""


@dataclass(frozen=True)
class Baselines:
    """Three figures to compare an accuracy with, on the same test pairs.

    Attributes:
        author_identity: accuracy of preferring the author with the better mean in train.
        longer_wins: accuracy of preferring the answer with more words.
        same_tier: the reward model's own accuracy where both authors are of one tier; None without such a pair.
    """

    author_identity: Rate
    longer_wins: Rate
    same_tier: Rate | None


def measure_baselines(
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    margins: Sequence[float | None],
    settings: BootstrapSettings,
    scale: tuple[int, int] = DEFAULT_SCALE,
) -> Baselines:
    """Return the baselines of a reward model with these margins on the test pairs, None where it could not score.

    Raises:
        DataQualityError: there are no test pairs.
    """
    speeches = [pair.speech.id for pair in test]
    scored = zip(correctness(margins), speeches, same_tier(train, test, scale), strict=True)
    close = [(credit, speech) for credit, speech, is_same in scored if is_same]
    any_scored = any(credit is not None for credit, _ in close)
    return Baselines(
        author_identity=bootstrap_rate(author_identity(train, test), speeches, settings),
        longer_wins=bootstrap_rate(longer_wins(test), speeches, settings),
        same_tier=bootstrap_rate([c for c, _ in close], [s for _, s in close], settings) if any_scored else None,
    )


def author_means(pairs: Sequence[PreferencePair]) -> Mapping[str, Fraction]:
    """Return each author's mean rating over the unique candidates of `pairs`.

    A candidate's score is the mean of its ratings; one without ratings is left out. The means are fractions, because a
    floating mean puts gaps that lie on a threshold on either side of it.
    """
    rated = {side.candidate.id: side for pair in pairs for side in (pair.chosen, pair.rejected) if side.ratings}
    by_author: dict[str, list[Fraction]] = {}
    for side in rated.values():
        by_author.setdefault(side.candidate.author, []).append(exact_mean(side.ratings.values()))
    return {author: sum(scores, Fraction(0)) / len(scores) for author, scores in by_author.items()}


def author_identity(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the author with the better mean in train.

    Equal means, or an author who is not in train, give a half.
    """
    return [_credit(gap or 0) for gap in _author_gaps(train, test)]


def longer_wins(test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the longer answer; equal word counts give a half."""
    return [_credit(word_count(pair.chosen.candidate.text) - word_count(pair.rejected.candidate.text)) for pair in test]


def same_tier(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], scale: tuple[int, int] = DEFAULT_SCALE
) -> list[bool]:
    """Return per test pair whether its authors' means in train differ by less than `SAME_TIER_SHARE` of the scale.

    An author who is not in train has no tier, so such a pair is not of one.
    """
    largest_gap = SAME_TIER_SHARE * (scale[1] - scale[0])
    return [gap is not None and abs(gap) < largest_gap for gap in _author_gaps(train, test)]


def _author_gaps(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[Fraction | None]:
    """Return per test pair the chosen author's mean minus the other's; None if either is unknown."""
    means = author_means(train)
    authors = [(pair.chosen.candidate.author, pair.rejected.candidate.author) for pair in test]
    return [
        means[chosen] - means[rejected] if {chosen, rejected} <= means.keys() else None for chosen, rejected in authors
    ]


def _credit(gap: Fraction | int) -> float:
    return 0.5 if gap == 0 else float(gap > 0)
