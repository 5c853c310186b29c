"""What raters' labels say: the policy's win rate or mean ratings, each rater's counts, and how far raters agree."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from psychocounsel.evaluation.agreement import (
    coefficient,
    interval_alpha,
    nominal_alpha,
    nominal_kappa,
    weighted_kappa,
)
from psychocounsel.evaluation.statistics import clustered_rate
from psychocounsel.store.schemas import AnnotationItem
from psychocounsel.types import OVERALL, Rating

Value = str | Rating
"""`left`, `right` or `tie`, or a rating."""
Label = Mapping[str, Value] | None
"""What a rater says of an item, by question; None where it was skipped."""
LabelsByRater = Mapping[str, Mapping[str, Label]]
"""Labels by rater and item; an item that a rater has not seen is absent."""

_LEFT_POINTS = {"left": 1.0, "tie": 0.5, "right": 0.0}


def policy_points(choice: Value, item: AnnotationItem) -> float:
    """Return the policy's share of a win."""
    left = _LEFT_POINTS[str(choice)]
    return 1 - left if item.policy_at else left


def is_random_sample(items: Sequence[AnnotationItem], labels: LabelsByRater) -> bool:
    """Return whether the items that raters saw come first in the random order of all: nobody chose among them."""
    seen = {item for own in labels.values() for item in own}
    return seen == {each.item for each in items[: len(seen)]}


def annotation_metrics(
    items: Sequence[AnnotationItem], labels: LabelsByRater, questions: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of `AnnotationMetrics` that follow from the labels; intervals are over speeches."""
    given: dict[str, dict[str, Mapping[str, Value]]] = {each.item: {} for each in items}
    for rater, own in labels.items():
        for item, label in own.items():
            if label is not None:
                given[item][rater] = label
    labelled = [each for each in items if given[each.item]]
    seen = {item for own in labels.values() for item in own}
    speeches = [each.speech_id for each in labelled]
    are_compared = items[0].policy_at is not None
    means = {
        name: [fmean(_points(each, label[name]) for label in given[each.item].values()) for each in labelled]
        for name in questions
    }
    rows = [given[each.item] for each in labelled]
    return {
        "items": len(items),
        "labelled": len(labelled),
        "skipped": len(seen) - len(labelled),
        "raters": {rater: _rater_counts(items, own, are_compared) for rater, own in labels.items()},
        "win_rate": clustered_rate(means[OVERALL], speeches) if are_compared else None,
        "mean_rating": {} if are_compared else {name: fmean(of) for name, of in means.items()},
        "agreement": _agreement(rows, speeches, list(labels), questions),
        "pairs": [
            {"raters": pair, "by_question": _agreement(rows, speeches, pair, questions)}
            for pair in combinations(labels, 2)
        ],
    }


def _points(item: AnnotationItem, value: Value) -> float:
    return policy_points(value, item) if isinstance(value, str) else float(value)


def _rater_counts(items: Sequence[AnnotationItem], own: Mapping[str, Label], are_compared: bool) -> dict[str, Any]:
    labels = {item: label for item, label in own.items() if label is not None}
    speeches = {each.item: each.speech_id for each in items}
    left = [_LEFT_POINTS[str(label[OVERALL])] for label in labels.values()] if are_compared else []
    given = {str(value) for label in labels.values() for value in label.values()}
    return {
        "labelled": len(labels),
        "skipped": len(own) - len(labels),
        "pending": len(items) - len(own),
        "left": clustered_rate(left, [speeches[item] for item in labels]) if left else None,
        "always": given.pop() if len(given) == 1 else None,
    }


def _agreement(
    rows: Sequence[Mapping[str, Mapping[str, Value]]],
    speeches: Sequence[str],
    raters: Sequence[str],
    questions: Sequence[str],
) -> dict[str, Any]:
    """Return how far raters agree on each question, over the items that at least two of them labelled."""
    both = [
        ({rater: row[rater] for rater in raters if rater in row}, speech)
        for row, speech in zip(rows, speeches, strict=True)
    ]
    shared = [(row, speech) for row, speech in both if len(row) > 1]
    clusters = [speech for _, speech in shared]
    return {
        name: inter_rater([{rater: label[name] for rater, label in row.items()} for row, _ in shared], clusters)
        for name in questions
    }


def inter_rater(rows: Sequence[Mapping[str, Value]], clusters: Sequence[str]) -> dict[str, Any]:
    """Return the agreement of the labels of each row, by rater; every row has two at least.

    Kappa is the mean over pairs of raters (Light 1971, Psychological Bulletin 76, 365-377). Words are nominal labels,
    numbers have quadratic weights.
    """
    are_ratings = any(not isinstance(value, str) for row in rows for value in row.values())
    equal = [
        (float(one == other), cluster)
        for row, cluster in zip(rows, clusters, strict=True)
        for one, other in combinations(row.values(), 2)
    ]

    def kappa(some: Sequence[Mapping[str, Any]]) -> float | None:
        raters = dict.fromkeys(rater for row in some for rater in row)
        of_pair = weighted_kappa if are_ratings else nominal_kappa
        found = [
            of_pair([(row[one], row[other]) for row in some if one in row and other in row])
            for one, other in combinations(raters, 2)
        ]
        known = [each for each in found if each is not None]
        return fmean(known) if known else None

    def alpha(some: Sequence[Mapping[str, Any]]) -> float | None:
        units = [list(row.values()) for row in some]
        return interval_alpha(units) if are_ratings else nominal_alpha(units)

    raw = clustered_rate([each for each, _ in equal], [cluster for _, cluster in equal]) if equal else None
    return {
        "items": len(rows),
        "raw": raw,
        "kappa": coefficient(kappa, rows, clusters),
        "alpha": coefficient(alpha, rows, clusters),
    }
