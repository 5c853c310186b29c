"""Agreement of ratings and labels: kappa, alpha, ICC, correlations, and intervals by the jackknife over clusters."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import correlation, fmean, variance
from typing import TypeVar

import numpy as np

from psychocounsel.evaluation.statistics import FloatArray, student_t, wilson_interval
from psychocounsel.store.shapes import Agreement
from psychocounsel.types import Coefficient, Rating, exact_rating

Ratings = Mapping[str, Rating]
"""One response's rating on every principle."""

Row = TypeVar("Row")

_Z = 1.959964
_JACKKNIFE_GROUPS = 50
_ROUNDING = 1e-9  # replicates that are equal differ by less


# --- Intervals -------------------------------------------------------------------------------------------------------


def jackknife(
    statistic: Callable[[Sequence[Row]], float | None],
    rows: Sequence[Row],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
) -> float | None:
    """Return how far the interval of a statistic reaches to either side; None for fewer than three replicates.

    The jackknife leaves out one cluster of rows after another, of many one of fifty groups of them. Its variance is
    (g - 1) / g times the sum of squares about the mean of the g values that are left (Efron and Stein 1981), and the
    interval takes Student's t with g - 1 degrees of freedom. A replicate without a value is left out.
    """
    numbers = {cluster: at for at, cluster in enumerate(dict.fromkeys(clusters))}
    groups = min(len(numbers), _JACKKNIFE_GROUPS)
    group_of_row = [numbers[cluster] % groups for cluster in clusters]
    values = [
        statistic([row for row, group in zip(rows, group_of_row, strict=True) if group != left])
        for left in range(groups)
    ]
    known = [value for value in values if value is not None]
    if len(known) < 3:
        return None
    return student_t(len(known) - 1, confidence) * math.sqrt(variance(known) * (len(known) - 1) ** 2 / len(known))


def coefficient(
    statistic: Callable[[Sequence[Row]], float | None],
    rows: Sequence[Row],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
) -> Coefficient | None:
    """Return a statistic in -1..1 with its jackknife interval; None where it has no value.

    Where the replicates do not differ, as in perfect agreement, it reaches as far as twice the share of clusters that
    could still be otherwise, by Wilson's interval of none of them: perfect agreement of a few says little about more.
    """
    estimate = statistic(rows)
    if estimate is None:
        return None
    unseen = wilson_interval(0.0, len(set(clusters)), confidence)[1]
    reach = jackknife(statistic, rows, clusters, confidence)
    if reach is None or reach < _ROUNDING:
        reach = 2 * unseen
    return Coefficient(estimate, max(-1.0, estimate - reach), min(1.0, estimate + reach), len(rows))


# --- Agreement -------------------------------------------------------------------------------------------------------


def is_within(points: int, first: Rating, second: Rating) -> bool:
    """Return whether two ratings lie at most so many points apart: as the fractions that they stand for."""
    return abs(exact_rating(first) - exact_rating(second)) <= points


def agreement(pairs: Sequence[tuple[Rating, Rating]]) -> Agreement | None:
    """Return how far the ratings of each pair agree; None without pairs."""
    if not pairs:
        return None
    n = len(pairs)
    equal = sum(is_within(0, first, second) for first, second in pairs) / n
    return Agreement(n, equal, sum(is_within(1, first, second) for first, second in pairs) / n, weighted_kappa(pairs))


def agreement_by_principle(
    first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]
) -> dict[str, Agreement | None]:
    """Return the agreement of two ratings of the same responses, principle by principle."""
    both = list(zip(first, second, strict=True))
    return {name: agreement([(one[name], other[name]) for one, other in both]) for name in principles}


def weighted_kappa(pairs: Sequence[tuple[Rating, Rating]] | FloatArray) -> float | None:
    """Return Cohen's kappa with quadratic weights; None where all ratings are one and the same.

    kappa = 1 - sum (a - b)^2 / expected sum, where the expectation takes every first rating with every second
    (Cohen 1968). Points of the scale that nobody gave leave it as it is.
    """
    ratings = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if len(ratings) == 0 or np.ptp(ratings) == 0:
        return None
    # The mean over every first rating with every second, without n^2 steps.
    by_chance = ratings.var(axis=0).sum() + (ratings[:, 0].mean() - ratings[:, 1].mean()) ** 2
    return float(1 - np.mean((ratings[:, 0] - ratings[:, 1]) ** 2) / by_chance)


def nominal_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Return Cohen's kappa of two raters' labels without an order; None where all labels are one and the same.

    kappa = (observed - expected) / (1 - expected) of the share of equal labels (Cohen 1960).
    """
    n = len(pairs)
    firsts, seconds = Counter(first for first, _ in pairs), Counter(second for _, second in pairs)
    if len({*firsts, *seconds}) < 2:
        return None
    observed = sum(first == second for first, second in pairs) / n
    expected = sum(count * seconds[label] for label, count in firsts.items()) / n**2
    return (observed - expected) / (1 - expected)


def interval_alpha(units: Iterable[Sequence[Rating]]) -> float | None:
    """Return Krippendorff's alpha for interval data; None where nothing differs, or nothing was rated twice.

    alpha = 1 - observed / expected squared difference, over all values of units with at least two of them
    (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). A unit has the ratings of one thing.
    """
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if len(set(values)) < 2:
        return None
    # Over all ordered pairs of n values, squared differences add up to 2n times the squared deviations.
    observed = math.fsum(2 * len(unit) * _squared_deviations(unit) / (len(unit) - 1) for unit in paired)
    return 1 - observed * (len(values) - 1) / (2 * len(values) * _squared_deviations(values))


def nominal_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for labels without an order; None where nothing differs, or has two labels.

    As `interval_alpha`, with a difference of 1 between any two labels that are not equal.
    """
    paired = [unit for unit in units if len(unit) > 1]
    labels = Counter(label for unit in paired for label in unit)
    if len(labels) < 2:
        return None
    n = labels.total()
    observed = math.fsum(_unequal_pairs(Counter(unit)) / (len(unit) - 1) for unit in paired)
    return 1 - (n - 1) * observed / _unequal_pairs(labels)


def _unequal_pairs(labels: Counter[Hashable]) -> int:
    return labels.total() ** 2 - sum(count**2 for count in labels.values())


def absolute_icc(rows: Sequence[Sequence[Rating]] | FloatArray) -> float | None:
    """Return the intraclass correlation ICC(A,1); None for fewer than two rows, or where nothing differs.

    Each row has one thing's rating by every one of k raters: (R - E) / (R + (k - 1) E + k (C - E) / n), with the mean
    squares R of rows, C of raters and E of the rest. A constant difference between raters lowers it.
    Source: McGraw and Wong 1996, Psychological Methods 1, 30-46, case 2A.
    """
    ratings = np.asarray(rows, dtype=np.float64)
    if len(ratings) < 2 or np.ptp(ratings) == 0:
        return None
    n, k = ratings.shape
    of_rows = k * ratings.mean(axis=1).var(ddof=1)
    of_raters = n * ratings.mean(axis=0).var(ddof=1)
    error = (ratings.var() * n * k - (n - 1) * of_rows - (k - 1) * of_raters) / ((n - 1) * (k - 1))
    return float((of_rows - error) / (of_rows + (k - 1) * error + k * (of_raters - error) / n))


def _squared_deviations(values: Sequence[Rating]) -> float:
    """Return the sum of squared deviations from the mean."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values)


# --- Correlations ----------------------------------------------------------------------------------------------------


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the product-moment correlation; None where one side does not vary."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return max(-1.0, min(1.0, correlation(xs, ys)))


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return Spearman's correlation, ties at their mean rank; None where one side does not vary."""
    return pearson(_ranks(xs), _ranks(ys))


def spearman(xs: Sequence[float], ys: Sequence[float]) -> Coefficient | None:
    """Return the rank correlation, ties at their mean rank; None where one side does not vary.

    The interval is Fisher's, with the standard error sqrt((1 + r^2 / 2) / (n - 3)) of Bonett and Wright
    (2000), for independent points. From -1 to 1 for fewer than four, and without width where r is -1 or 1.
    """
    r = rank_correlation(xs, ys)
    if r is None:
        return None
    n = len(xs)
    if n < 4:
        return Coefficient(r, -1.0, 1.0, n)
    if abs(r) == 1:
        return Coefficient(r, r, r, n)
    half = _Z * math.sqrt((1 + r * r / 2) / (n - 3))
    return Coefficient(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)


def _ranks(values: Sequence[float]) -> list[float]:
    _, at, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: list[float] = (np.cumsum(counts) - (counts - 1) / 2)[at].tolist()
    return ranks
