"""Verdicts -> Section: how often the policy is preferred, how healthy its answers are, and some of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from psychocounsel.domain import OVERALL, Rate
from psychocounsel.reporting.blocks import (
    Answers,
    Block,
    Heading,
    Paragraph,
    Plot,
    Plots,
    Section,
    Table,
    count_words,
    interval_words,
    percent,
)
from psychocounsel.reporting.missing import missing_by_topic, unanswered
from psychocounsel.reporting.plots import Dot, dots_and_intervals
from psychocounsel.reporting.report_data import ArtifactFacts, Example, ExampleSet, ReportData
from psychocounsel.reporting.training_sections import dot_words

_HEALTH = {
    "repetition_rate": "repeats itself",
    "unfinished_rate": "unfinished",
    "empty_rate": "empty",
    "distinct_4gram_ratio": "distinct runs of four words, mean ratio",
}
_WORDS = {
    "win": "The policy's answer is preferred in both orders.",
    "loss": "The reference's answer is preferred in both orders.",
    "tie": "A tie in both orders.",
    "flip": "The two orders disagree, which counts as a tie.",
    "missing": "No verdict: at least one order failed.",
}


class Sides(NamedTuple):
    """The authors of the two answers."""

    policy: str
    reference: str


def sides_of(data: ReportData, verdicts: ArtifactFacts) -> Sides:
    """Return who was compared; the roles themselves where the answers name no author."""
    names: list[str] = []
    for role in ("policy", "reference"):
        answers = data.parent_of(verdicts, f"{role} answers")
        responder = cast(Mapping[str, Any], answers.settings.get("responder", {}) if answers else {})
        names.append(str(responder.get("author", role)))
    return Sides(*names)


def confidence_words(verdicts: ArtifactFacts) -> str:
    """Return the confidence of the intervals of a win rate, as `95 %`."""
    return f"{100 * float(verdicts.settings.get('confidence', 0.95)):g} %"


def winrate_section(data: ReportData) -> Section:
    """Return the win rates of each comparison: raw, length-controlled, crisis, by principle and by topic."""
    blocks: list[Block] = []
    for verdicts in data.of_kind("verdicts"):
        sides = sides_of(data, verdicts)
        blocks.append(Heading(f"{sides.policy} against {sides.reference}", (verdicts,)))
        blocks += [_judge_words(verdicts), *unanswered(verdicts, sides._asdict()), _counts(verdicts, sides)]
        blocks += missing_by_topic(verdicts, "comparisons")
        plots = [
            *_rates_plot(verdicts, "overall", _overall_dots(verdicts), "overall and on the crisis slice"),
            *_rates_plot(verdicts, "principle", _dots(verdicts, "win_rate_by_criterion"), "by principle"),
            *_rates_plot(verdicts, "topic", _dots(verdicts, "by_topic"), "by topic"),
        ]
        blocks += [Plots(tuple(plots))] if plots else []
    return Section("Win rate", "win-rate", tuple(blocks))


def _judge_words(verdicts: ArtifactFacts) -> Paragraph:
    labels = ", ".join(str(each) for each in verdicts.sequence("judges", "labels")) or "none in the lineage"
    evaluation = verdicts.value("judges", "evaluation") or "unknown"
    return Paragraph(
        f"Judge of the labels: {labels}. Judge of this result: {evaluation}. Each pair of answers is "
        "judged in both orders; a disagreement is a tie, ties count half. Intervals: "
        f"{confidence_words(verdicts)}, bootstrap over speeches."
    )


def _counts(verdicts: ArtifactFacts, sides: Sides) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, words in (
        ("win_rate", "win rate, raw"),
        ("length_controlled", "win rate, length-controlled"),
        ("flip_rate", "flip rate: the two orders disagree"),
        ("first_position_rate", "share of verdicts for the first place"),
    ):
        rate = (
            verdicts.rate("length_controlled", "rate") if name == "length_controlled" else verdicts.rate(name)
        )
        if rate is not None:
            rows.append((words, percent(rate.estimate), interval_words(rate), count_words(rate)))
    outcomes = ("wins", "ties", "losses", "missing")
    told = ", ".join(f"{verdicts.value(name) or 0} {name}" for name in outcomes)
    compared = sum(int(verdicts.number(name) or 0) for name in outcomes)
    remark = "" if verdicts.value("length_controlled", "controlled") is not False else _UNCONTROLLED
    caption = f"{sides.policy} over {sides.reference}: {told}; together {compared} speeches.{remark}"
    return Table(caption, ("figure", "estimate", "interval", "comparisons"), "lrll", tuple(rows), (verdicts,))


_UNCONTROLLED = (
    " Length could not be controlled for (it does not vary, or all outcomes are equal): the raw rate stands."
)


def _overall_dots(verdicts: ArtifactFacts) -> list[Dot]:
    raw, controlled = verdicts.rate("win_rate"), verdicts.rate("length_controlled", "rate")
    crisis = verdicts.rate("crisis")
    rows = [("raw", raw, 0), ("length-controlled", controlled, 1), ("crisis slice, raw", crisis, 2)]
    return [Dot(label, rate, group) for label, rate, group in rows if rate is not None]


def _dots(verdicts: ArtifactFacts, name: str) -> list[Dot]:
    return [
        Dot(_with_count(label or "(no topic)", rate), rate) for label, rate in verdicts.rates(name).items()
    ]


def _with_count(label: str, rate: Rate) -> str:
    return f"{label} ({rate.n})"


def _rates_plot(verdicts: ArtifactFacts, key: str, dots: list[Dot], words: str) -> list[Plot]:
    if not dots:
        return []
    svg = dots_and_intervals(f"winrate-{key}-{verdicts.id[:8]}", dots, axis="win rate")
    caption = f"Win rate {words}; the dashed line is 50 %."
    return [Plot(svg, caption, f"Win rate {words}. {dot_words(dots)}", (verdicts,))]


def health_section(data: ReportData) -> Section:
    """Return signs of decay of both sides' answers, side by side."""
    tables: list[Block] = []
    for verdicts in data.of_kind("verdicts"):
        if verdicts.table("policy_health") or verdicts.table("reference_health"):
            tables.append(_health_table(verdicts, sides_of(data, verdicts)))
    return Section("Text health", "health", tuple(tables))


def _health_table(verdicts: ArtifactFacts, sides: Sides) -> Table:
    names = ("policy_health", "reference_health")
    rows = [
        (words, *(_rate_words(verdicts.rate(side, figure)) for side in names))
        for figure, words in _HEALTH.items()
    ]
    rows.append(
        ("length in words: mean, median, 95th percentile", *(_length_words(verdicts, side) for side in names))
    )
    caption = "Answers to the test speeches: share of answers with its interval."
    header = ("figure", f"{sides.policy} (policy)", f"{sides.reference} (reference)")
    return Table(caption, header, "lrr", tuple(rows), (verdicts,))


def _rate_words(rate: Rate | None) -> str:
    return "–" if rate is None else f"{percent(rate.estimate)} ({interval_words(rate)})"  # noqa: RUF001


def _length_words(verdicts: ArtifactFacts, side: str) -> str:
    length = cast(Mapping[str, float], verdicts.table(side, "length_words"))
    return ", ".join(f"{length[name]:.1f}" for name in ("mean", "median", "p95")) if length else "–"  # noqa: RUF001


def examples_section(data: ReportData) -> Section:
    """Return some answers of both sides, crisis ones folded away."""
    by_ref = {each.ref: each for each in data.artifacts}
    blocks: list[Block] = []
    for group in data.examples:
        sources = (by_ref[group.verdicts_ref],) if group.verdicts_ref in by_ref else ()
        blocks.append(Heading(f"{group.policy_author} against {group.reference_author}", sources))
        blocks += [_answers(group, each) for each in group.examples]
    if blocks:
        intro = "Drawn by the hash of the speech, not chosen. Speeches about crisis are folded away."
        blocks.insert(0, Paragraph(intro))
    return Section("Examples", "examples", tuple(blocks))


def _answers(group: ExampleSet, example: Example) -> Answers:
    overall = _WORDS.get(example.outcomes.get(OVERALL, "missing"), "")
    details = [f"{name}: {outcome}" for name, outcome in example.outcomes.items() if name != OVERALL]
    verdict = overall + (f" By principle, for the policy: {', '.join(details)}." if details else "")
    return Answers(example, verdict, group.policy_author, group.reference_author)
