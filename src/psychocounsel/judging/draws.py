"""Judgements, verdicts -> what the replies behind them say: counts, histograms, how far judges disagree."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from psychocounsel.domain import (
    OVERALL,
    Draw,
    Judgement,
    Rating,
    ReplyStatus,
    Verdict,
    Vote,
    Winner,
)
from psychocounsel.judging.averaging import mean_ratings
from psychocounsel.judging.quality import agreement, squared_deviations

Opinions = Mapping[str, Mapping[str, Rating]]
"""By judge, its ratings of one response by principle."""


def histograms(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return by principle how often each rating was given, over all replies, to the nearest point."""
    given = [ratings for each in judgements for ratings in _given(each)]
    counts = {name: Counter(_nearest(ratings[name]) for ratings in given) for name in principles}
    return {name: {str(rating): count for rating, count in sorted(by.items())} for name, by in counts.items()}


def draw_metrics(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, Any]:
    """Return what the draws behind judgements say, for `metrics.json`; empty where there are none."""
    draws = [draw for each in judgements for draw in each.draws]
    if not draws:
        return {}
    valid = [sum(draw.status is ReplyStatus.VALID for draw in each.draws) for each in judgements]
    counts = {
        "asked": len(draws),
        "status": _by_judge(draws),
        "scored_by": _counted(draw.scored_by.value for draw in draws if draw.status is ReplyStatus.VALID),
        "valid_per_judgement": {str(count): n for count, n in sorted(Counter(valid).items())},
    }
    return {"draws": counts, "disagreement": _disagreement(judgements, principles)}


def vote_metrics(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return what the votes behind verdicts say, for `metrics.json`; empty where there are none."""
    votes = [vote for each in verdicts for vote in each.votes]
    if not votes:
        return {}
    overall = [_overall(each) for each in verdicts if each.status is ReplyStatus.VALID]
    return {
        "votes": {
            "asked": len(votes),
            "status": _by_judge(votes),
            "unanimous": sum(len(set(winners)) == 1 for winners in overall),
            "verdicts": len(overall),
        }
    }


def interval_alpha(units: Iterable[Sequence[Rating]]) -> float | None:
    """Return Krippendorff's alpha for interval data; None where nothing differs, or nothing was rated twice.

    alpha = 1 - observed / expected squared difference, over all values of units with at least two of them
    (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        units: the ratings of one thing each, as many as there are.
    """
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if len(set(values)) < 2:
        return None
    observed = math.fsum(_squared_differences(unit) / (len(unit) - 1) for unit in paired)
    return 1 - observed * (len(values) - 1) / _squared_differences(values)


def _squared_differences(values: Sequence[Rating]) -> float:
    """Return the sum over all ordered pairs of two values."""
    return 2 * len(values) * squared_deviations(values)


def _given(judgement: Judgement) -> list[Mapping[str, Rating]]:
    if judgement.draws:
        return [draw.ratings for draw in judgement.draws if draw.ratings]
    return [judgement.ratings] if judgement.ratings else []


def _nearest(rating: Rating) -> int:
    return math.floor(rating + 0.5)


def _by_judge(replies: Sequence[Draw] | Sequence[Vote]) -> dict[str, dict[str, int]]:
    judges = dict.fromkeys(reply.judge for reply in replies)
    return {
        judge: _counted(reply.status.value for reply in replies if reply.judge == judge) for judge in judges
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _disagreement(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, Any]:
    opinions = [opinion for each in judgements if len(opinion := _opinions(each)) > 1]
    judges = list(dict.fromkeys(judge for opinion in opinions for judge in opinion))
    return {
        "responses": len(opinions),
        "spread": {name: _mean_spread(opinions, name) for name in principles},
        "alpha": {
            name: interval_alpha([each[name] for each in opinion.values()] for opinion in opinions)
            for name in principles
        },
        "mean_rating": {judge: _means(opinions, judge, principles) for judge in judges},
        "pairs": [_pair(opinions, one, other, principles) for one, other in combinations(judges, 2)],
    }


def _opinions(judgement: Judgement) -> Opinions:
    """Return who said what of a response: the judges of a panel, or the repeated draws of one judge."""
    valid = [draw for draw in judgement.draws if draw.status is ReplyStatus.VALID]
    if len({draw.judge for draw in judgement.draws}) == 1:
        return {f"draw {draw.sample_index}": draw.ratings for draw in valid}
    judges = dict.fromkeys(draw.judge for draw in valid)
    if len(judges) == len(valid):
        return {draw.judge: draw.ratings for draw in valid}
    return {judge: mean_ratings([draw.ratings for draw in valid if draw.judge == judge]) for judge in judges}


def _mean_spread(opinions: Sequence[Opinions], principle: str) -> float | None:
    """Return the mean standard deviation, over the number of opinions on a response and not one less."""
    if not opinions:
        return None
    return fmean(_spread([ratings[principle] for ratings in opinion.values()]) for opinion in opinions)


def _spread(ratings: Sequence[Rating]) -> float:
    return math.sqrt(squared_deviations(ratings) / len(ratings))


def _means(opinions: Sequence[Opinions], judge: str, principles: Sequence[str]) -> dict[str, float]:
    own = [opinion[judge] for opinion in opinions if judge in opinion]
    return {name: fmean(ratings[name] for ratings in own) for name in principles}


def _pair(opinions: Sequence[Opinions], one: str, other: str, principles: Sequence[str]) -> dict[str, Any]:
    both = [(opinion[one], opinion[other]) for opinion in opinions if one in opinion and other in opinion]
    found = {name: agreement([(left[name], right[name]) for left, right in both]) for name in principles}
    told = {name: None if each is None else each._asdict() for name, each in found.items()}
    return {"judges": [one, other], "by_principle": told}


def _overall(verdict: Verdict) -> list[Winner]:
    return [vote.winners[OVERALL] for vote in verdict.votes if vote.status is ReplyStatus.VALID]
