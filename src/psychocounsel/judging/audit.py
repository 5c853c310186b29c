"""How good a judge is, as pure functions: agreement, halo, ties, correlation with length, gains, spread of samples."""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from statistics import correlation, fmean, stdev, variance
from typing import Any, NamedTuple

from psychocounsel.judging.judge import mean_ratings
from psychocounsel.types import (
    OVERALL,
    Comparison,
    Judgement,
    Rating,
    RatingSample,
    ReplyStatus,
    Vote,
    exact_mean,
    exact_rating,
)

Ratings = Mapping[str, Rating]
"""One response's rating on every principle."""

_Z = 1.959964
_STUDENT_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_JACKKNIFE_GROUPS = 50


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    From a table up to 30 degrees of freedom, then by the first two terms of Cornish and Fisher's expansion in
    z, (z^3 + z) / 4d + (5z^5 + 16z^3 + 3z) / 96d^2, right to 0.001.
    """
    if degrees <= len(_STUDENT_T):
        return _STUDENT_T[degrees - 1]
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)
    return _Z + (_Z**3 + _Z) / (4 * degrees) + second


def _squared_deviations(values: Sequence[Rating]) -> float:
    """Return the sum of squared deviations from the mean."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values)


# --- Agreement of two ratings of the same responses ------------------------------------------------------------------


class Agreement(NamedTuple):
    """How far two ratings of the same `n` things agree: the share that is equal, and that differs by a point at most.

    Cohen's kappa has quadratic weights, and is None where all ratings are one and the same.
    """

    n: int
    exact: float
    within_one: float
    kappa: float | None


def is_within(points: int, first: Rating, second: Rating) -> bool:
    """Return whether two ratings lie at most so many points apart: as the fractions that they stand for."""
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
    # The mean over every first rating with every second, without n^2 steps.
    apart = fmean(firsts) - fmean(seconds)
    by_chance = (_squared_deviations(firsts) + _squared_deviations(seconds)) / n + apart * apart
    return Agreement(
        n,
        sum(is_within(0, first, second) for first, second in pairs) / n,
        sum(is_within(1, first, second) for first, second in pairs) / n,
        1 - distance / by_chance if len({*firsts, *seconds}) > 1 else None,
    )


def agreement_by_principle(
    first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]
) -> dict[str, Agreement | None]:
    """Return the agreement of two ratings of the same responses, principle by principle."""
    both = list(zip(first, second, strict=True))
    return {name: agreement([(one[name], other[name]) for one, other in both]) for name in principles}


def mean_difference(first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    """Return the mean absolute difference of two ratings of the same responses, in points."""
    both = zip(first, second, strict=True)
    differences = [abs(one[name] - other[name]) for one, other in both for name in principles]
    return fmean(differences) if differences else None


class Gain(NamedTuple):
    """By how much second ratings lie above the first, over `n` responses: points of the mean rating.

    The 95 % interval is by Student's t, and None for a single response.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    largest: float


def gains(first: Sequence[Ratings], second: Sequence[Ratings]) -> list[float]:
    """Return by how many points the mean rating of each response rose; a whole point is exactly 1."""
    both = zip(first, second, strict=True)
    return [float(exact_mean(later.values()) - exact_mean(earlier.values())) for earlier, later in both]


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


def ties(totals: Sequence[int | Fraction]) -> list[bool]:
    """Return of each pair of responses to one speech whether they have the same total."""
    return [one == other for one, other in combinations(totals, 2)]


# --- Correlations ----------------------------------------------------------------------------------------------------


class Correlation(NamedTuple):
    """A correlation, its 95 % interval, and the number of points."""

    estimate: float
    low: float
    high: float
    n: int


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the product-moment correlation; None where one side does not vary."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return max(-1.0, min(1.0, correlation(xs, ys)))


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
    return Correlation(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


# --- Halo: do principles rated in one reply correlate more than each rated alone? ------------------------------------


class Halo(NamedTuple):
    """The mean correlation between principles, rated together and each alone, over the same responses.

    It is taken over the `pairs` of principles of which both vary both ways. `difference` is together minus alone, and
    its 95 % interval is by the jackknife over responses: None for fewer than three.
    """

    responses: int
    pairs: int
    together: float
    alone: float
    difference: float
    low: float | None
    high: float | None


def halo(ratings: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    """Return the mean correlation between two principles; None where no two of them vary.

    Near 1, the judge has one impression and writes it under every name.
    """
    known = [each for each in _correlations(ratings, principles) if each is not None]
    return fmean(known) if known else None


def halo_both_ways(together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]) -> Halo | None:
    """Return the halo of ratings made together and one by one; None where no two principles vary both ways.

    The jackknife leaves out one response after another, of many one of fifty groups. Its variance is
    (g - 1) / g times the sum of squares about the mean of the g differences that are left (Efron and Stein
    1981), and the interval takes Student's t with g - 1 degrees of freedom.
    """
    known = _known_both_ways(together, alone, principles)
    if not known:
        return None
    n, first, second = len(together), fmean(one for one, _ in known), fmean(other for _, other in known)
    difference = first - second
    left: list[float] = []
    groups = min(n, _JACKKNIFE_GROUPS)
    for group in range(groups):
        kept = [at for at in range(n) if at % groups != group]
        if without := _known_both_ways([together[at] for at in kept], [alone[at] for at in kept], principles):
            left.append(fmean(one for one, _ in without) - fmean(other for _, other in without))
    if len(left) < 3:
        return Halo(n, len(known), first, second, difference, None, None)
    half = student_t(len(left) - 1) * math.sqrt(variance(left) * (len(left) - 1) ** 2 / len(left))
    return Halo(n, len(known), first, second, difference, difference - half, difference + half)


def _known_both_ways(
    together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]
) -> list[tuple[float, float]]:
    both = zip(_correlations(together, principles), _correlations(alone, principles), strict=True)
    return [(one, other) for one, other in both if one is not None and other is not None]


def _correlations(ratings: Sequence[Ratings], principles: Sequence[str]) -> list[float | None]:
    columns = [[each[name] for each in ratings] for name in principles]
    return [pearson(one, other) for one, other in combinations(columns, 2)]


# --- Replies behind judgements and comparisons, for `metrics.json` ---------------------------------------------------


def histograms(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return by principle how often each rating was given, over all replies, to the nearest point."""
    given = [reply.ratings for each in judgements for reply in (each.samples or (each,)) if reply.ratings]
    counts = {name: Counter(math.floor(ratings[name] + 0.5) for ratings in given) for name in principles}
    return {name: {str(rating): count for rating, count in sorted(by.items())} for name, by in counts.items()}


def sample_metrics(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, Any]:
    """Return counts and disagreement of the samples behind judgements; empty where there are none."""
    samples = [sample for each in judgements for sample in each.samples]
    if not samples:
        return {}
    valid = Counter(sum(sample.status is ReplyStatus.VALID for sample in each.samples) for each in judgements)
    counts = {
        "asked": len(samples),
        "status": _status_by_judge(samples),
        "scored_by": _counted(each.scored_by.value for each in samples if each.status is ReplyStatus.VALID),
        "valid_per_judgement": {str(count): n for count, n in sorted(valid.items())},
    }
    return {"samples": counts, "disagreement": _disagreement(judgements, principles)}


def vote_metrics(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return counts of the votes behind comparisons; empty where there are none."""
    votes = [vote for each in comparisons for vote in each.votes]
    if not votes:
        return {}
    valid = [each for each in comparisons if each.status is ReplyStatus.VALID]
    overall = [{vote.winners[OVERALL] for vote in each.votes if vote.status is ReplyStatus.VALID} for each in valid]
    unanimous = sum(len(winners) == 1 for winners in overall)
    counts = {"asked": len(votes), "status": _status_by_judge(votes), "unanimous": unanimous}
    return {"votes": {**counts, "comparisons": len(overall)}}


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


def _status_by_judge(replies: Sequence[RatingSample] | Sequence[Vote]) -> dict[str, dict[str, int]]:
    judges = dict.fromkeys(reply.judge for reply in replies)
    return {judge: _counted(reply.status.value for reply in replies if reply.judge == judge) for judge in judges}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _disagreement(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, Any]:
    """Return how far the opinions on each response differ, over the responses with at least two."""
    opinions = [opinion for each in judgements if len(opinion := _opinions(each)) > 1]
    judges = list(dict.fromkeys(judge for opinion in opinions for judge in opinion))
    units = {name: [[ratings[name] for ratings in opinion.values()] for opinion in opinions] for name in principles}
    # A standard deviation over the number of opinions and not one less.
    spreads = {name: [math.sqrt(_squared_deviations(unit) / len(unit)) for unit in units[name]] for name in principles}
    own = {judge: [opinion[judge] for opinion in opinions if judge in opinion] for judge in judges}
    means = {judge: {name: fmean(each[name] for each in own[judge]) for name in principles} for judge in judges}
    pairs: list[dict[str, Any]] = []
    for one, other in combinations(judges, 2):
        both = [(opinion[one], opinion[other]) for opinion in opinions if one in opinion and other in opinion]
        found = agreement_by_principle([left for left, _ in both], [right for _, right in both], principles)
        by_principle = {name: each and each._asdict() for name, each in found.items()}
        pairs.append({"judges": [one, other], "by_principle": by_principle})
    return {
        "responses": len(opinions),
        "spread": {name: fmean(each) if each else None for name, each in spreads.items()},
        "alpha": {name: interval_alpha(each) for name, each in units.items()},
        "mean_rating": means,
        "pairs": pairs,
    }


def _opinions(judgement: Judgement) -> dict[str, Ratings]:
    """Return who said what of a response: the judges of a panel, or the repeated samples of one judge."""
    valid = [sample for sample in judgement.samples if sample.status is ReplyStatus.VALID]
    if len({sample.judge for sample in judgement.samples}) == 1:
        return {f"sample {sample.sample_index}": sample.ratings for sample in valid}
    by_judge: dict[str, list[Ratings]] = {}
    for sample in valid:
        by_judge.setdefault(sample.judge, []).append(sample.ratings)
    return {judge: ratings[0] if len(ratings) == 1 else mean_ratings(ratings) for judge, ratings in by_judge.items()}
