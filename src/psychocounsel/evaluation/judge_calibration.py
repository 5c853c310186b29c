"""A judge's ratings beside people's of the same responses: by principle and author, of pairs and of unsafe ones."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.evaluation.agreement import (
    absolute_icc,
    coefficient,
    interval_alpha,
    jackknife,
    rank_correlation,
    weighted_kappa,
)
from psychocounsel.evaluation.reward_metrics import author_identity
from psychocounsel.evaluation.statistics import FloatArray, clustered_rate
from psychocounsel.types import Candidate, Coefficient, PreferencePair, Rate, ScoredCandidate, Speech

FEWEST_ITEMS = 20
"""Responses below which no figure is given."""


class RatedItem(NamedTuple):
    """One response with its mean ratings by people and by the judge, on the principles that both rated, exactly.

    `raters` has people's single ratings by principle. `speech` is the item itself where no speech is known.
    """

    item: str
    speech: str
    author: str
    human: Mapping[str, Fraction]
    judge: Mapping[str, Fraction]
    raters: Mapping[str, Sequence[float]]


def calibration(
    items: Sequence[RatedItem], principles: Sequence[str], gap: float, safety: str, unsafe_at_most: float
) -> dict[str, Any]:
    """Return the figures of `JudgeCalibrationMetrics` that follow from the ratings; intervals are over speeches.

    Every item is rated on at least one of the `principles`; pairs are of those rated on all.
    """
    authors = dict.fromkeys(each.author for each in items if each.author)
    watched = next((name for name in principles if name.casefold() == safety.casefold()), None)
    return {
        "principles": {
            name: _of_principle([each for each in items if name in each.human], name) for name in principles
        },
        "authors": {name: _of_author([each for each in items if each.author == name]) for name in sorted(authors)},
        "pairs": _pairs([each for each in items if len(each.human) == len(principles)], gap),
        "unsafe": watched and _unsafe([each for each in items if watched in each.human], watched, unsafe_at_most),
    }


def _of_principle(items: Sequence[RatedItem], name: str) -> dict[str, Any]:
    both = np.array([(each.human[name], each.judge[name]) for each in items], dtype=np.float64).reshape(-1, 2)
    clusters = [each.speech for each in items]
    repeated = [(each.raters[name], each.speech) for each in items if len(each.raters[name]) > 1]

    def over_rows(statistic: Callable[[FloatArray], float | None]) -> Coefficient | None:
        return coefficient(lambda kept: statistic(both[list(kept)]), range(len(both)), clusters)

    return {
        "n": len(items),
        "human_mean": float(both[:, 0].mean()) if items else None,
        "judge_mean": float(both[:, 1].mean()) if items else None,
        "bias": _mean_difference(both, clusters),
        "icc": over_rows(absolute_icc),
        "kappa": over_rows(weighted_kappa),
        "spearman": over_rows(lambda rows: rank_correlation(rows[:, 0].tolist(), rows[:, 1].tolist())),
        "human_alpha": coefficient(interval_alpha, [unit for unit, _ in repeated], [speech for _, speech in repeated]),
    }


def _of_author(items: Sequence[RatedItem]) -> dict[str, Any]:
    means = [(fmean(each.human.values()), fmean(each.judge.values())) for each in items]
    return {"n": len(items), "bias": _mean_difference(np.array(means), [each.speech for each in items])}


def _mean_difference(both: FloatArray, clusters: Sequence[str]) -> Coefficient | None:
    """Return the mean of judge minus humans with its jackknife interval; None for few items or speeches."""
    if len(both) < FEWEST_ITEMS:
        return None
    differences = both[:, 1] - both[:, 0]
    reach = jackknife(lambda kept: float(differences[list(kept)].mean()), range(len(both)), clusters)
    mean = float(differences.mean())
    return None if reach is None else Coefficient(mean, mean - reach, mean + reach, len(both))


def _pairs(items: Sequence[RatedItem], gap: float) -> dict[str, Any] | None:
    """Return how often the judge prefers what people prefer by at least `gap` points of the mean rating.

    A tie of the judge counts half. Beside it, how often the author alone tells: the one whom people rated higher on
    average over these pairs. None where no speech has two responses that far apart.
    """
    by_speech: dict[str, list[tuple[RatedItem, Fraction, Fraction]]] = defaultdict(list)
    for each in items:
        human, judge = (sum(ratings.values(), Fraction()) for ratings in (each.human, each.judge))
        by_speech[each.speech].append((each, human, judge))
    pairs: list[PreferencePair] = []
    credits: list[float] = []
    speeches: list[str] = []
    for speech, own in by_speech.items():
        for (better, human, judge), (worse, lower, other) in combinations(sorted(own, key=lambda each: -each[1]), 2):
            if human - lower < Fraction(str(gap)) * len(better.human) or human == lower:
                continue
            pairs.append(PreferencePair(Speech(speech), _scored(better), _scored(worse)))
            credits.append(0.5 + 0.5 * (judge > other) - 0.5 * (judge < other))
            speeches.append(speech)
    if not pairs:
        return None
    knows_authors = all(each.author for each in items)
    by_author = clustered_rate(author_identity(pairs, pairs), speeches) if knows_authors else None
    return {
        "gap": gap,
        "speeches": len(set(speeches)),
        "accuracy": clustered_rate(credits, speeches),
        "ties": clustered_rate([float(credit == 0.5) for credit in credits], speeches),
        "author_identity": by_author,
    }


def _scored(each: RatedItem) -> ScoredCandidate:
    ratings = {name: float(rating) for name, rating in each.human.items()}
    candidate = Candidate(Speech(each.speech).id, each.author, each.item)
    return ScoredCandidate(candidate, float(sum(each.human.values())), ratings)


def _unsafe(items: Sequence[RatedItem], name: str, at_most: float) -> dict[str, Any]:
    """Return which share of the responses that people call unsafe the judge does, and of the others."""
    limit = Fraction(str(at_most))  # the decimal that was written: a mean of ratings may lie on it

    def flagged(are_unsafe: bool) -> Rate | None:
        part = [each for each in items if (each.human[name] <= limit) == are_unsafe]
        flags = [float(each.judge[name] <= limit) for each in part]
        return clustered_rate(flags, [each.speech for each in part]) if part else None

    return {"principle": name, "at_most": at_most, "seen": flagged(True), "false_alarms": flagged(False)}
