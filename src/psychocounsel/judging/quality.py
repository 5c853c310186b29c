"""Judgements -> what the judge is worth: agreement with itself, halo, ties, the part of length."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from psychocounsel.domain import Rating

Ratings = Mapping[str, Rating]
"""One response's rating on every principle."""


_ROUNDING = 1e-9
"""Means that are one point apart may look a little more so."""


class Agreement(NamedTuple):
    """How far two ratings of the same things agree.

    Attributes:
        n: things rated twice.
        exact: share of equal ratings.
        within_one: share that differ by one point at most.
        kappa: Cohen's kappa with quadratic weights; None where all ratings are one and the same.
    """

    n: int
    exact: float
    within_one: float
    kappa: float | None


def agreement(pairs: Sequence[tuple[Rating, Rating]]) -> Agreement | None:
    """Return how far the ratings of each pair agree; None without pairs.

    kappa = 1 - sum (a - b)^2 / expected sum, where the expectation takes every first rating with every second
    (Cohen 1968, with quadratic weights).
    """
    if not pairs:
        return None
    n = len(pairs)
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    distance = math.fsum((first - second) ** 2 for first, second in pairs) / n
    # What every first rating with every second comes to, without n^2 steps.
    apart = fmean(firsts) - fmean(seconds)
    by_chance = (squared_deviations(firsts) + squared_deviations(seconds)) / n + apart * apart
    return Agreement(
        n,
        sum(first == second for first, second in pairs) / n,
        sum(abs(first - second) <= 1 + _ROUNDING for first, second in pairs) / n,
        1 - distance / by_chance if len({*firsts, *seconds}) > 1 else None,
    )


def squared_deviations(values: Sequence[Rating]) -> float:
    """Return the sum of squared deviations from the mean."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values)


def agreement_by_principle(
    first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]
) -> dict[str, Agreement | None]:
    """Return the agreement of two ratings of the same responses, principle by principle."""
    return {
        name: agreement([(one[name], other[name]) for one, other in zip(first, second, strict=True)])
        for name in principles
    }


class Correlation(NamedTuple):
    """A correlation, its 95 % interval, and the number of points."""

    estimate: float
    low: float
    high: float
    n: int


def spearman(xs: Sequence[float], ys: Sequence[float]) -> Correlation | None:
    """Return the rank correlation, ties at their mean rank; None where one side does not vary.

    The interval is Fisher's, with the standard error sqrt((1 + r^2 / 2) / (n - 3)) of Bonett and Wright
    (2000); from -1 to 1 for fewer than four points.
    """
    r = pearson(_ranks(xs), _ranks(ys))
    if r is None:
        return None
    n = len(xs)
    if n < 4 or abs(r) == 1:
        return Correlation(r, r if n >= 4 else -1.0, r if n >= 4 else 1.0, n)
    half = 1.959964 * math.sqrt((1 + r * r / 2) / (n - 3))
    middle = math.atanh(r)
    return Correlation(r, math.tanh(middle - half), math.tanh(middle + half), n)


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the product-moment correlation; None where one side does not vary."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    x_mean, y_mean = fmean(xs), fmean(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    spread = math.sqrt(sum((x - x_mean) ** 2 for x in xs) * sum((y - y_mean) ** 2 for y in ys))
    return max(-1.0, min(1.0, covariance / spread))


def halo(ratings: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    """Return the mean correlation between two principles; None where no two of them vary.

    Near 1, the judge has one impression and writes it under every name.
    """
    found = (
        pearson([each[one] for each in ratings], [each[other] for each in ratings])
        for one, other in combinations(principles, 2)
    )
    known = [each for each in found if each is not None]
    return fmean(known) if known else None


def mean_difference(
    first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]
) -> float | None:
    """Return the mean absolute difference of two ratings of the same responses, in points."""
    differences = [
        abs(one[name] - other[name]) for one, other in zip(first, second, strict=True) for name in principles
    ]
    return fmean(differences) if differences else None


def tied_share(totals_by_speech: Iterable[Sequence[int | Fraction]]) -> float | None:
    """Return the share of pairs of responses to one speech that have the same total; None without pairs."""
    ties = [one == other for totals in totals_by_speech for one, other in combinations(totals, 2)]
    return fmean(ties) if ties else None


class Gain(NamedTuple):
    """What words to the judge win: points of the mean rating, over the copies of some responses.

    Attributes:
        n: copies that were rated.
        mean: of all copies.
        low: end of its 95 % interval, by the normal approximation.
        high: the other end.
        largest: of one copy.
    """

    n: int
    mean: float
    low: float
    high: float
    largest: float


def gain(plain: Sequence[Ratings], planted: Sequence[Ratings]) -> Gain | None:
    """Return by how much the copies are rated higher than what they are copies of; None without copies."""
    gains = [fmean(copy.values()) - fmean(own.values()) for own, copy in zip(plain, planted, strict=True)]
    if not gains:
        return None
    mean = fmean(gains)
    variance = sum((each - mean) ** 2 for each in gains) / (len(gains) - 1) if len(gains) > 1 else 0.0
    half = 1.959964 * math.sqrt(variance / len(gains))
    return Gain(len(gains), mean, mean - half, mean + half, max(gains))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - 1) / 2 + 1
        start = end
    return ranks
