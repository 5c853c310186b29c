"""Judgements -> what the judge is worth: agreement with itself, halo, ties, length, gains by asking."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from statistics import fmean, stdev, variance
from typing import NamedTuple

from psychocounsel.types import Rating, exact_mean, exact_rating

Ratings = Mapping[str, Rating]
"""One response's rating on every principle."""

_Z = 1.959964
_STUDENT_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_JACKKNIFE_GROUPS = 50


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


def is_within(points: int, first: Rating, second: Rating) -> bool:
    """Say whether two ratings lie at most so many points apart: as the fractions that they stand for."""
    return abs(exact_rating(first) - exact_rating(second)) <= points


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
        sum(is_within(0, first, second) for first, second in pairs) / n,
        sum(is_within(1, first, second) for first, second in pairs) / n,
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
    (2000), for independent points. From -1 to 1 for fewer than four, and without width where r is -1 or 1.
    """
    r = pearson(_ranks(xs), _ranks(ys))
    if r is None:
        return None
    n = len(xs)
    if n < 4:
        return Correlation(r, -1.0, 1.0, n)
    if abs(r) == 1:
        return Correlation(r, r, r, n)
    half = _Z * math.sqrt((1 + r * r / 2) / (n - 3))
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
    known = [each for each in _correlations(ratings, principles).values() if each is not None]
    return fmean(known) if known else None


class Halo(NamedTuple):
    """The mean correlation between principles, rated together and each alone, over the same responses.

    Attributes:
        responses: rated both ways.
        pairs: of principles, those of which both vary both ways.
        together: all principles in one reply.
        alone: every principle in a reply of its own.
        difference: together minus alone, what one reply adds to them.
        low: end of its 95 % interval, by the jackknife over responses; None for fewer than three.
        high: the other end.
    """

    responses: int
    pairs: int
    together: float
    alone: float
    difference: float
    low: float | None
    high: float | None


def halo_both_ways(together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]) -> Halo | None:
    """Return the halo of ratings made together and one by one; None where no two principles vary both ways.

    The jackknife leaves out one response after another, of many one of fifty groups. Its variance is
    (g - 1) / g times the sum of squares about the mean of the g differences that are left (Efron and Stein
    1981), and the interval takes Student's t with g - 1 degrees of freedom.
    """
    found = _halo_means(together, alone, principles)
    if found is None:
        return None
    n, difference = len(together), found.together - found.alone
    groups = min(n, _JACKKNIFE_GROUPS)
    kept = [[at for at in range(n) if at % groups != group] for group in range(groups)]
    without = [
        _halo_means([together[at] for at in places], [alone[at] for at in places], principles) for places in kept
    ]
    left = [each.together - each.alone for each in without if each is not None]
    if len(left) < 3:
        return Halo(n, *found, difference, None, None)
    half = student_t(len(left) - 1) * math.sqrt(variance(left) * (len(left) - 1) ** 2 / len(left))
    return Halo(n, *found, difference, difference - half, difference + half)


class _HaloMeans(NamedTuple):
    pairs: int
    together: float
    alone: float


def _halo_means(together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]) -> _HaloMeans | None:
    first, second = _correlations(together, principles), _correlations(alone, principles)
    both = [(r, second[pair]) for pair, r in first.items()]
    known = [(one, other) for one, other in both if one is not None and other is not None]
    if not known:
        return None
    return _HaloMeans(len(known), fmean(one for one, _ in known), fmean(other for _, other in known))


def _correlations(ratings: Sequence[Ratings], principles: Sequence[str]) -> dict[tuple[str, str], float | None]:
    columns = {name: [each[name] for each in ratings] for name in principles}
    return {pair: pearson(columns[pair[0]], columns[pair[1]]) for pair in combinations(principles, 2)}


def mean_difference(first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    """Return the mean absolute difference of two ratings of the same responses, in points."""
    differences = [
        abs(one[name] - other[name]) for one, other in zip(first, second, strict=True) for name in principles
    ]
    return fmean(differences) if differences else None


def ties(totals: Sequence[int | Fraction]) -> list[bool]:
    """Return of each pair of responses to one speech whether they have the same total."""
    return [one == other for one, other in combinations(totals, 2)]


class Gain(NamedTuple):
    """By how much second ratings lie above the first: points of the mean rating, over some responses.

    Attributes:
        n: responses that were rated twice.
        mean: of all of them.
        low: end of its 95 % interval, by Student's t; None for a single response.
        high: the other end.
        largest: of one response.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    largest: float


def gains(first: Sequence[Ratings], second: Sequence[Ratings]) -> list[float]:
    """Return by how many points the mean rating of each response rose; a whole point is exactly 1."""
    return [
        float(exact_mean(later.values()) - exact_mean(earlier.values()))
        for earlier, later in zip(first, second, strict=True)
    ]


def gain(first: Sequence[Ratings], second: Sequence[Ratings]) -> Gain | None:
    """Return by how much the second ratings lie above the first; None without any."""
    rises = gains(first, second)
    if not rises:
        return None
    mean = fmean(rises)
    if len(rises) == 1:
        return Gain(1, mean, None, None, mean)
    half = student_t(len(rises) - 1) * stdev(rises) / math.sqrt(len(rises))
    return Gain(len(rises), mean, mean - half, mean + half, max(rises))


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    From a table up to 30 degrees of freedom, then by the first two terms of Cornish and Fisher's expansion in
    z, (z^3 + z) / 4d + (5z^5 + 16z^3 + 3z) / 96d^2, right to 0.001.
    """
    if degrees < 1:
        raise ValueError("a quantile of t needs a degree of freedom")
    if degrees <= len(_STUDENT_T):
        return _STUDENT_T[degrees - 1]
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)
    return _Z + (_Z**3 + _Z) / (4 * degrees) + second


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
