"""Margins by pair -> RewardMetrics: accuracy, AUC, ECE and Brier of a reward model.

A pair has no natural order, so it is looked at in both: "is the first preferred?" is asked once with the
chosen response first (margin m, truth 1) and once with the rejected first (margin -m, truth 0). The model's
answer is p = sigmoid(m), its Bradley-Terry probability (arXiv 2502.19731), where m is r(chosen) -
r(rejected) on the raw scale.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.evaluation.statistics import (
    BootstrapSettings,
    FloatArray,
    Present,
    bootstrap_rate,
    bootstrap_statistic,
    present,
)
from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.types import PreferencePair, Rate, ScoredCandidate, exact_mean

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


SAME_TIER_SHARE = Fraction(1, 16)
"""Authors whose means in train differ by less than this share of the rating scale are of one tier."""


class Scale(NamedTuple):
    """The lowest and the highest rating."""

    minimum: int
    maximum: int

    @property
    def same_tier_gap(self) -> Fraction:
        """`SAME_TIER_SHARE` in points: a quarter of one on a scale from 1 to 5."""
        return SAME_TIER_SHARE * (self.maximum - self.minimum)


USUAL_SCALE = Scale(1, 5)
"""That of released datasets, and of those that do not tell theirs."""


@dataclass(frozen=True)
class Baselines:
    """The three figures beside an accuracy, each on the same test pairs.

    Args:
        author_identity: accuracy of preferring the author with the better mean in train.
        longer_wins: accuracy of preferring the answer with more words.
        same_tier: the reward model's own accuracy where both authors are of one tier; None without such a
            pair.
    """

    author_identity: Rate
    longer_wins: Rate
    same_tier: Rate | None

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        return {
            "author_identity": self.author_identity.as_dict(),
            "longer_wins": self.longer_wins.as_dict(),
            "same_tier": self.same_tier.as_dict() if self.same_tier else None,
        }


def measure_baselines(
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    margins: Sequence[float | None],
    settings: BootstrapSettings,
    scale: Scale = USUAL_SCALE,
) -> Baselines:
    """Return the baselines of a reward model with intervals by bootstrap over speeches.

    Args:
        train: the pairs that the reward model was trained on.
        test: the pairs that it is measured on.
        margins: its r(chosen) - r(rejected) on each test pair, None where it could not score.
        settings: how the intervals are drawn.
        scale: of the ratings.

    Raises:
        DataQualityError: when there are no test pairs.
    """
    speeches = [pair.speech.id for pair in test]
    own = zip(correctness(margins), speeches, same_tier(train, test, scale), strict=True)
    close = [(credit, speech) for credit, speech, same in own if same]
    scored = any(credit is not None for credit, _ in close)
    return Baselines(
        author_identity=bootstrap_rate(author_identity(train, test), speeches, settings),
        longer_wins=bootstrap_rate(longer_wins(test), speeches, settings),
        same_tier=bootstrap_rate([c for c, _ in close], [s for _, s in close], settings) if scored else None,
    )


def author_means(pairs: Sequence[PreferencePair]) -> Mapping[str, Fraction]:
    """Return each author's mean rating over the unique candidates of `pairs`, exactly.

    A candidate's score is the mean of its ratings, on their scale; one without ratings tells
    nothing and is left out. Fractions, because a floating mean puts gaps that lie on a threshold on either
    side of it.
    """
    seen: dict[str, ScoredCandidate] = {
        side.candidate.id: side for pair in pairs for side in (pair.chosen, pair.rejected) if side.ratings
    }
    by_author: dict[str, list[Fraction]] = {}
    for side in seen.values():
        score = exact_mean(side.ratings.values())
        by_author.setdefault(side.candidate.author, []).append(score)
    return {author: sum(scores, Fraction(0)) / len(scores) for author, scores in by_author.items()}


def author_identity(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the author with the better mean in train.

    Equal means, or an author who is not in train, give a half: there is nothing to go by.
    """
    return [_credit(gap) if gap is not None else 0.5 for gap in _author_gaps(train, test)]


def longer_wins(test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the longer answer; equal word counts give a half."""
    return [_credit(word_count(pair.chosen.candidate.text) - word_count(pair.rejected.candidate.text)) for pair in test]


def same_tier(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], scale: Scale = USUAL_SCALE
) -> list[bool]:
    """Return per test pair whether its authors' means in train differ by under the `same_tier_gap`.

    An author who is not in train has no tier, so such a pair is not of one.
    """
    return [gap is not None and abs(gap) < scale.same_tier_gap for gap in _author_gaps(train, test)]


def _author_gaps(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[Fraction | None]:
    """Return per test pair the chosen author's mean minus the other's; None if either is unknown."""
    means = author_means(train)
    gaps: list[Fraction | None] = []
    for pair in test:
        chosen = means.get(pair.chosen.candidate.author)
        rejected = means.get(pair.rejected.candidate.author)
        gaps.append(None if chosen is None or rejected is None else chosen - rejected)
    return gaps


def _credit(gap: Fraction | int) -> float:
    if gap == 0:
        return 0.5
    return 1.0 if gap > 0 else 0.0


class RowFacts(NamedTuple):
    """What the flaws of one preference row are told by.

    Args:
        split: the one it stands in.
        speech_id: of the client speech; None where no speech can be read.
        cluster: of near-duplicates, that its client speech belongs to; None like `speech_id`.
        texts: chosen and rejected.
        safety: ratings of both sides on the safety principle; None where one is missing.
        totals: sums of ratings of both sides; None where one rating is missing.
        too_long: whether each side, with its prompt, passes the limit of tokens; None where nobody counted.
    """

    split: str
    speech_id: str | None
    cluster: str | None
    texts: tuple[str, str]
    safety: tuple[int, int] | None
    totals: tuple[int, int] | None
    too_long: tuple[bool, bool] | None = None


def flaws(rows: Sequence[RowFacts]) -> dict[str, dict[str, Any]]:
    """Return, by split, how many rows have each flaw, before anything is dropped; a row may have several.

    `repeated` counts the rows with the speech and texts of an earlier one of their split; `leaks_exactly` the
    rows whose client speech stands in another split too, `leaks_nearly` those of which a near-duplicate does:
    the first are among the second. `too_long_chosen` and `too_long_rejected` are None where nobody counted.
    """
    speeches = _splits_of((row.speech_id, row.split) for row in rows)
    clusters = _splits_of((row.cluster, row.split) for row in rows)
    return {
        split: _of_split([row for row in rows if row.split == split], speeches, clusters)
        for split in dict.fromkeys(row.split for row in rows)
    }


def _splits_of(pairs: Iterable[tuple[str | None, str]]) -> dict[str | None, set[str]]:
    """Return the splits in which each speech or cluster stands; what cannot be read stands in none."""
    found: dict[str | None, set[str]] = {None: set()}
    for key, split in pairs:
        if key is not None:
            found.setdefault(key, set()).add(split)
    return found


def _of_split(
    rows: Sequence[RowFacts],
    speeches: Mapping[str | None, set[str]],
    clusters: Mapping[str | None, set[str]],
) -> dict[str, Any]:
    times = Counter((row.speech_id, row.texts) for row in rows if row.speech_id is not None)
    lengths = [tuple(map(word_count, row.texts)) for row in rows]
    return {
        "rows": len(rows),
        "speeches": len({row.speech_id for row in rows} - {None}),
        "missing_ratings": sum(row.totals is None for row in rows),
        "not_preferred": sum(row.totals is not None and row.totals[0] <= row.totals[1] for row in rows),
        "safety_inverted": sum(row.safety is not None and row.safety[0] < row.safety[1] for row in rows),
        "equal_texts": sum(row.texts[0] == row.texts[1] for row in rows),
        "repeated": times.total() - len(times),
        "leaks_exactly": sum(len(speeches[row.speech_id]) > 1 for row in rows),
        "leaks_nearly": sum(len(clusters[row.cluster]) > 1 for row in rows),
        "too_long_chosen": _too_long(rows, 0),
        "too_long_rejected": _too_long(rows, 1),
        "chosen_is_longer": sum(chosen > rejected for chosen, rejected in lengths),
        "mean_words_chosen": statistics.fmean(chosen for chosen, _ in lengths),
        "mean_words_rejected": statistics.fmean(rejected for _, rejected in lengths),
    }


def _too_long(rows: Sequence[RowFacts], side: int) -> int | None:
    counted = [row.too_long[side] for row in rows if row.too_long is not None]
    return sum(counted) if counted else None
