"""How good a judge is, as pure functions: halo, ties, gains, and the spread of samples and votes."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from statistics import fmean, pstdev, stdev
from typing import Any

from psychocounsel.evaluation.agreement import (
    Ratings,
    agreement_by_principle,
    interval_alpha,
    jackknife,
    pearson,
)
from psychocounsel.evaluation.statistics import student_t
from psychocounsel.store.shapes import Gain, Halo
from psychocounsel.types import (
    OVERALL,
    Comparison,
    Judgement,
    Rating,
    RatingSample,
    ReplyStatus,
    Vote,
    exact_mean,
    mean_ratings,
)


def mean_difference(first: Sequence[Ratings], second: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    """Return the mean absolute difference of two ratings of the same responses, in points."""
    both = zip(first, second, strict=True)
    differences = [abs(one[name] - other[name]) for one, other in both for name in principles]
    return fmean(differences) if differences else None


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


# --- Halo: do principles rated in one reply correlate more than each rated alone? ------------------------------------


def halo(ratings: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    """Return the mean correlation between two principles; None where no two of them vary.

    Near 1, the judge has one impression and writes it under every name.
    """
    known = [each for each in _correlations(ratings, principles) if each is not None]
    return fmean(known) if known else None


def halo_both_ways(together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]) -> Halo | None:
    """Return the halo of ratings made together and one by one; None where no two principles vary both ways."""
    known = _known_both_ways(together, alone, principles)
    if not known:
        return None
    n, first, second = len(together), fmean(one for one, _ in known), fmean(other for _, other in known)
    difference = first - second
    reach = jackknife(
        lambda rows: _difference([one for one, _ in rows], [other for _, other in rows], principles),
        list(zip(together, alone, strict=True)),
        range(n),
    )
    low, high = (None, None) if reach is None else (difference - reach, difference + reach)
    return Halo(n, len(known), first, second, difference, low, high)


def _difference(together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]) -> float | None:
    known = _known_both_ways(together, alone, principles)
    return fmean(one for one, _ in known) - fmean(other for _, other in known) if known else None


def _known_both_ways(
    together: Sequence[Ratings], alone: Sequence[Ratings], principles: Sequence[str]
) -> list[tuple[float, float]]:
    both = zip(_correlations(together, principles), _correlations(alone, principles), strict=True)
    return [(one, other) for one, other in both if one is not None and other is not None]


def _correlations(ratings: Sequence[Ratings], principles: Sequence[str]) -> list[float | None]:
    columns = [[each[name] for each in ratings] for name in principles]
    return [pearson(one, other) for one, other in combinations(columns, 2)]


# --- Replies behind judgements and comparisons, for `metrics.json` ---------------------------------------------------


def histograms(
    judgements: Sequence[Judgement], principles: Sequence[str], scale: Sequence[Rating]
) -> dict[str, dict[str, int]]:
    """Return by principle how often each point of the scale was given, over all replies.

    A mean counts as the nearest point, halfway as the higher one.
    """
    given = [reply.ratings for each in judgements for reply in (each.samples or (each,)) if reply.ratings]

    def nearest(rating: Rating) -> Rating:
        return min(scale, key=lambda point: (abs(point - rating), -point))

    counts = {name: Counter(nearest(ratings[name]) for ratings in given) for name in principles}
    return {name: {str(point): by[point] for point in scale} for name, by in counts.items()}


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
    spreads = {name: [pstdev(unit) for unit in units[name]] for name in principles}
    own = {judge: [opinion[judge] for opinion in opinions if judge in opinion] for judge in judges}
    means = {judge: {name: fmean(each[name] for each in own[judge]) for name in principles} for judge in judges}
    pairs: list[dict[str, Any]] = []
    for one, other in combinations(judges, 2):
        both = [(opinion[one], opinion[other]) for opinion in opinions if one in opinion and other in opinion]
        found = agreement_by_principle([left for left, _ in both], [right for _, right in both], principles)
        pairs.append({"judges": [one, other], "by_principle": found})
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
