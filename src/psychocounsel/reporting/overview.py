"""What a report says first: a sentence for each comparison, the policies side by side, and the paper beside ours."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from psychocounsel.evaluation.statistics import MIN_SLICE, clustered_rate
from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.evaluation.winrate import POINTS
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.reporting.artifact_tables import warnings_of
from psychocounsel.reporting.comparison_tables import no_rate_at_equal_length
from psychocounsel.reporting.evaluation_tables import anchor_warnings
from psychocounsel.reporting.item_browser import ItemSet
from psychocounsel.reporting.plots import Dot, Plot, Series, lines, rate_plot, rates_on_a_circle
from psychocounsel.reporting.tables import (
    NONE,
    PERCENT,
    Row,
    Table,
    draws_each,
    interval,
    percent,
    with_interval,
)
from psychocounsel.store import metrics as m
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.evaluation_metrics import AnchorMetrics
from psychocounsel.types import OVERALL, Rate


class Compared(NamedTuple):
    """A comparison in the report: `sides` is `policy against reference`."""

    artifact: Artifact
    sides: str
    metrics: m.ComparisonMetrics


class Headline(NamedTuple):
    """The result of a comparison in a sentence, and the warnings that are about it alone."""

    sentence: str
    warnings: tuple[str, ...]
    source: Artifact


def headlines(
    compared: Sequence[Compared], warnings: Sequence[str], anchored: Mapping[str, AnchorMetrics]
) -> list[Headline]:
    """Return a sentence for each comparison, with those of the page's `warnings` that no other artifact gives.

    `anchored` has what human labels make of comparisons, by the id of the comparison; their warnings are its own, too.
    """
    own = [
        [
            *dict.fromkeys([*each.artifact.manifest["warnings"], *warnings_of(each.artifact)]),
            *(anchor_warnings(anchored[each.artifact.id]) if each.artifact.id in anchored else ()),
        ]
        for each in compared
    ]
    sides = [each.sides for each in compared]
    return [
        Headline(
            _sentence(each, sides.count(each.sides) > 1) + _by_people(anchored.get(each.artifact.id)),
            tuple(warning for warning in given if warning in warnings and sum(warning in all_ for all_ in own) == 1),
            each.artifact,
        )
        for each, given in zip(compared, own, strict=True)
    ]


def _sentence(compared: Compared, is_named: bool) -> str:
    metrics = compared.metrics
    rate = metrics.win_rate
    verdict = _against_half(rate)
    if rate.low > 0.5 >= metrics.missing_as_losses.low:
        verdict += ", unless what is missing was lost"
    if rate.high < 0.5 <= metrics.missing_as_wins.high:
        verdict += ", unless what is missing was won"
    at_equal_length = metrics.length_controlled.rate
    if rate.low > 0.5 and at_equal_length and at_equal_length.low <= 0.5:
        verdict += (
            f"; at equal length {percent(at_equal_length.estimate)} ({interval(at_equal_length)}): "
            f"{_against_half(at_equal_length)}"
        )
    if without := no_rate_at_equal_length(metrics):
        verdict += f"; {without}"
    worst, best = metrics.missing_as_losses.estimate, metrics.missing_as_wins.estimate
    missing = (
        f" {rate.missing} of {rate.n + rate.missing} comparisons have no result: if they were lost or won, the rate "
        f"would be {100 * worst:.1f} to {percent(best)}."
        if rate.missing
        else ""
    )
    leak = metrics.leakage
    leaked = f" {leak.leaked} of {leak.speeches} speeches were in the training data." if leak and leak.leaked else ""
    name = f" ({compared.artifact.name})" if is_named else ""
    return (
        f"{compared.sides}{name}: the judge ({metrics.judges.evaluation}) prefers the policy in "
        f"{percent(rate.estimate)} ({interval(rate)}) of the comparisons, ties half, on {metrics.speeches} speeches"
        f"{draws_each(metrics.draws)}: {verdict}.{missing}{leaked}"
    )


def _against_half(rate: Rate) -> str:
    if rate.low > 0.5:
        return f"better than 50{PERCENT}"
    return f"worse than 50{PERCENT}" if rate.high < 0.5 else f"not distinguishable from 50{PERCENT}"


def _by_people(anchored: AnchorMetrics | None) -> str:
    if anchored is None:
        return ""
    rate = f"{percent(anchored.rate.estimate)} ({interval(anchored.rate)})"
    if anchored.headline == "human_only":
        return f" By people's labels of {anchored.labelled} of these speeches it is {rate}."
    return f" Corrected by people's labels of {anchored.labelled} of these speeches it is {rate}."


PAPER: Mapping[str, tuple[float, float]] = {
    "Llama3-3B": (28.5, 15.0),
    "Llama3-3B + DPO": (58.5, 37.0),
    "Llama3-3B + DPO-Iter": (69.4, 46.4),
    "Llama3-8B": (29.3, 18.5),
    "Llama3-8B + DPO": (72.9, 49.3),
    "Llama3-8B + DPO-Iter": (87.0, 77.0),
}
"""Win rates over GPT-4o in percent, as GPT-4o judges, without and with a length constraint (arXiv 2502.19731)."""


def paper_table(compared: Sequence[Compared]) -> list[Table]:
    """Return the paper's win rates under ours by its principles, each of ours with its own reference and judge."""
    principles = {*load_rubric("seven-principles").principle_ids}
    compared = [each for each in compared if {*each.metrics.by_criterion} == principles]
    if not compared:
        return []
    rows: list[Row] = []
    for each in compared:
        rate = with_interval(each.metrics.win_rate)
        arms = (NONE, rate) if each.metrics.constraint else (rate, NONE)
        rows.append((f"ours: {each.sides}", each.metrics.judges.evaluation, *arms))
    for name, arms in PAPER.items():
        rows.append((f"paper: {name} against GPT-4o", "GPT-4o", *(f"{arm:.1f}{PERCENT}" for arm in arms)))
    title = (
        "Our win rates and those of the paper (arXiv 2502.19731, 2,324 test speeches). They compare only over the same "
        "reference, judge and speeches; the paper gives no intervals and no rule for ties."
    )
    header = ("policy and reference", "judge", "no constraint", "length constraint")
    sources = tuple(each.artifact for each in compared)
    return [Table("paper", title, header, "llrr", tuple(rows), sources)]


def overview_plots(compared: Sequence[Compared]) -> list[Plot]:
    """Return the win rates of several policies, overall and by principle."""
    if not compared:
        return []
    sources = tuple(each.artifact for each in compared)
    plots: list[Plot] = []
    labels = _distinct(compared)
    if len(compared) > 1:
        dots = [Dot(label, each.metrics.win_rate) for label, each in zip(labels, compared, strict=True)]
        caption = "Win rates of the policies over their references; the dashed line is 50 %."
        plots.append(rate_plot("across", dots, "win rate", caption, *sources))
    by_principle = {
        label: {name: rate for name, rate in each.metrics.by_criterion.items() if rate.n >= MIN_SLICE}
        for label, each in zip(labels, compared, strict=True)
    }
    drawn = {label: rates for label, rates in by_principle.items() if len(rates) > 2}
    if drawn:
        plots.append(_radar(drawn, sources))
    return plots


_ON_ONE_CIRCLE = 4


def _radar(rates: Mapping[str, Mapping[str, Rate]], sources: tuple[Artifact, ...]) -> Plot:
    shown = dict(list(rates.items())[:_ON_ONE_CIRCLE])
    caption = "Win rate by principle with its interval, in percent from the middle; the dashed circle is 50 %."
    if len(shown) < len(rates):
        caption += f" The first {len(shown)} of {len(rates)} comparisons."
    words = "; ".join(
        f"{label}: {', '.join(f'{name} {percent(rate.estimate)}' for name, rate in by.items())}"
        for label, by in shown.items()
    )
    return Plot(rates_on_a_circle("principles", shown), caption, f"{caption} {words}.", sources)


def _distinct(compared: Sequence[Compared]) -> list[str]:
    """Return a label for each: the two sides, after the artifact's id where several have the same."""
    sides = [each.sides for each in compared]
    return [  # a plot cuts the end of a label
        each.sides if sides.count(each.sides) == 1 else f"{each.artifact.id[:8]}: {each.sides}" for each in compared
    ]


_BINS = 5


def length_plot(group: ItemSet) -> list[Plot]:
    """Return the win rate against the difference in length, in up to five parts of about equal size."""
    rows: list[tuple[float, float, str]] = []
    for item in group.items:
        points = POINTS[item.outcome(OVERALL)]
        if points is not None:
            ours, theirs = (word_count(answer.text) for answer in item.answers)
            rows.append((ours - theirs, points, item.speech.id))
    bins = min(_BINS, len(rows) // MIN_SLICE)
    if bins < 2:
        return []
    rows.sort(key=lambda row: row[0])
    # Equal differences stay together.
    differences = np.array([row[0] for row in rows])
    ends = np.unique(np.searchsorted(differences, np.quantile(differences, np.linspace(0, 1, bins + 1)[1:]), "right"))
    parts = list[list[tuple[float, float, str]]]()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        if parts and min(len(parts[-1]), end - start) < MIN_SLICE:
            parts[-1] += rows[start:end]
        else:
            parts.append(rows[start:end])
    if len(parts) < 2:
        return []
    rates = [clustered_rate([row[1] for row in part], [row[2] for row in part]) for part in parts]
    middles = [float(np.mean([row[0] for row in part])) for part in parts]
    shares = [[100 * getattr(rate, name) for rate in rates] for name in ("estimate", "low", "high")]
    caption = (
        "Win rate against the difference in length, policy minus reference; the upright line is no difference. A line "
        "that rises says that the judge favours length."
    )
    words = "; ".join(
        f"{middle:+.1f} words: {percent(rate.estimate)} ({rate.n})" for middle, rate in zip(middles, rates, strict=True)
    )
    svg = lines(
        f"length-{group.source.id[:8]}",
        [Series("win rate", middles, *shares)],
        x="mean difference in words",
        y="win rate, percent",
        breaks=[0.0],
    )
    return [Plot(svg, caption, f"{caption} {words}.", (group.source,))]
