"""RewardModel, Policy -> Section: what training did, and what it is worth beside its baselines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from psychocounsel.reporting.plots import Dot, Series, dots_and_intervals, lines, margin_histogram
from psychocounsel.reporting.tables import (
    BASELINES,
    SAME_TIER,
    ArtifactFacts,
    Block,
    Cell,
    Heading,
    Paragraph,
    Plot,
    Plots,
    ReportData,
    Section,
    Table,
    as_rate,
    count_words,
    decimal,
    funnel_line,
    funnel_table,
    interval_words,
    percent,
    reason_words,
)
from psychocounsel.types import Rate

_METRICS = {"accuracy": "accuracy", "auc": "AUC", "ece": "ECE", "brier": "Brier"}


def reward_section(data: ReportData) -> Section:
    """Return what each reward model is worth on test, beside its baselines, and how it was trained."""
    blocks: list[Block] = []
    for model in data.of_kind("reward-models"):
        blocks += [Heading(model.name, (model,)), _metric_table(model)]
        plots = [*_accuracy_plot(model), *_margin_plot(model), *_curves([model], _REWARD_CURVES)]
        blocks += [Plots(tuple(plots))] if plots else []
        blocks += [*_length_table({"pairs read": model}), *_remarks(model)]
    return Section("Reward model", "reward", tuple(blocks))


def _metric_table(model: ArtifactFacts) -> Table:
    rows = [
        (f"{words}, {split}", *_figures(rate, as_percent=name == "accuracy"))
        for split in ("test", "dev")
        for name, words in _METRICS.items()
        if (rate := model.rate(split, name)) is not None
    ]
    rates = {words.full: model.rate("baselines", name) for name, words in BASELINES.items()}
    rows += [
        (f"beside it: {words}", *(_figures(rate) if rate else ("–", "no such pair", "")))  # noqa: RUF001
        for words, rate in rates.items()
    ]
    caption = (
        "Held-out pairs, 95 % intervals by bootstrap over speeches. Low is good for ECE and Brier. The "
        "better author is the one with the higher mean rating in train; authors of one tier are about equal "
        "there, and that accuracy is the reward model's own."
    )
    return Table(caption, ("figure", "estimate", "interval", "pairs"), "lrll", tuple(rows), (model,))


def _figures(rate: Rate, *, as_percent: bool = True) -> tuple[str, str, str]:
    estimate = percent(rate.estimate) if as_percent else decimal(rate.estimate)
    return estimate, interval_words(rate, as_percent=as_percent), count_words(rate)


def _accuracy_plot(model: ArtifactFacts) -> list[Plot]:
    accuracy = model.rate("test", "accuracy")
    if accuracy is None:
        return []
    dots = [Dot("reward model", accuracy)]
    dots += [
        Dot(words.short, rate, 0 if name == SAME_TIER else 1)
        for name, words in BASELINES.items()
        if (rate := model.rate("baselines", name)) is not None
    ]
    caption = "Accuracy on test pairs beside predictors that read no text; the dashed line is a coin."
    svg = dots_and_intervals(f"accuracy-{model.id[:8]}", dots, axis="accuracy")
    return [Plot(svg, caption, dot_words(dots), (model,))]


def dot_words(dots: Sequence[Dot]) -> str:
    """Return a dot-and-interval plot in words."""
    return "; ".join(f"{dot.label}: {percent(dot.rate.estimate)} ({interval_words(dot.rate)})" for dot in dots)


def _margin_plot(model: ArtifactFacts) -> list[Plot]:
    margins = [float(each) for each in model.sequence("test_margins") if each is not None]
    if not margins:
        return []
    wrong = sum(margin < 0 for margin in margins)
    span = f"{min(margins):.2f} to {max(margins):.2f}"
    told = f"Histogram of {len(margins)} margins from {span}; {wrong} below zero."
    return [Plot(margin_histogram(margins, f"margins-{model.id[:8]}"), "Margins on test pairs.", told, (model,))]


def _remarks(model: ArtifactFacts) -> list[Block]:
    remarks: list[str] = []
    scale = model.table("normalisation")
    if scale:
        remarks.append(
            f"Rewards are normalised by mean {scale['mean']:.3f} and deviation {scale['std']:.3f} of the "
            f"{scale['split']} split."
        )
    return _told([*remarks, *_time_words(model)])


def _told(sentences: Sequence[str]) -> list[Block]:
    return [Paragraph(" ".join(sentences))] if sentences else []


def _length_table(trainings: Mapping[str, ArtifactFacts]) -> list[Block]:
    """Return how many pairs of each training fit the length policy, and why the others were dropped."""
    lines: list[tuple[Cell, ...]] = []
    for step, each in trainings.items():
        counts = cast(Mapping[str, int], each.table("training", "lengths"))
        if counts:
            dropped = {reason: count for reason, count in counts.items() if reason != "kept"}
            lines.append(funnel_line(step, sum(counts.values()), counts["kept"], dropped))
    caption = "Pairs trained on: one that does not fit max_length_tokens is dropped, never cut."
    return [funnel_table(caption, lines, *trainings.values())] if lines else []


def _time_words(artifact: ArtifactFacts) -> list[str]:
    steps, seconds = artifact.number("training", "steps"), artifact.number("training", "seconds")
    return [] if steps is None else [f"{steps:.0f} steps in {seconds or 0:.0f} s."]


class Curve(NamedTuple):
    """A plot of training by step: its title, the axis, and which columns of the history it shows."""

    title: str
    axis: str
    columns: Mapping[str, str]


_REWARD_CURVES = (Curve("Training loss by step.", "loss", {"loss": "loss"}),)
_POLICY_CURVES = (
    Curve("Training loss by step; ln 2 = 0.693 is a policy like its reference.", "loss", {"loss": "loss"}),
    Curve("Implicit reward margin, chosen minus rejected.", "margin", {"margin": "margin"}),
    Curve(
        "Log-probability of the two sides: both falling is a warning.",
        "log-probability, nats",
        {"logps_chosen": "chosen", "logps_rejected": "rejected"},
    ),
)


class StepHistory(NamedTuple):
    """Logged rows of all rounds with steps counted on, and where each round ends."""

    rows: list[dict[str, float]]
    ends: list[float]


def step_history(rounds: Sequence[ArtifactFacts]) -> StepHistory:
    """Join the histories of the rounds of a run; a plain training is one round."""
    rows: list[dict[str, float]] = []
    ends: list[float] = []
    offset = 0.0
    for each in rounds:
        logged = cast(Sequence[Mapping[str, float]], each.sequence("training", "history"))
        rows += [{**row, "step": row["step"] + offset} for row in logged if "step" in row]
        offset += each.number("training", "steps") or 0
        ends.append(offset)
    return StepHistory(rows, ends[:-1])


def _curves(rounds: Sequence[ArtifactFacts], curves: Sequence[Curve]) -> list[Plot]:
    history = step_history(rounds)
    plots: list[Plot] = []
    for curve in curves:
        series = [_series(history.rows, column, words) for column, words in curve.columns.items()]
        drawn = [each for each in series if each.x]
        if drawn:
            key = f"{'-'.join(curve.columns)}-{rounds[-1].id[:8]}"
            svg = lines(key, drawn, x="step", y=curve.axis, breaks=history.ends)
            plots.append(Plot(svg, curve.title, " ".join(map(_series_words, drawn)), tuple(rounds[-1:])))
    return plots


def _series(rows: Sequence[Mapping[str, float]], column: str, words: str) -> Series:
    there = [row for row in rows if column in row]
    return Series(words, [row["step"] for row in there], [row[column] for row in there])


def _series_words(series: Series) -> str:
    return f"{series.label} from {series.y[0]:.3g} at {series.x[0]:g} to {series.y[-1]:.3g} at {series.x[-1]:g}."


def policy_section(data: ReportData) -> Section:
    """Return how each policy was trained, and what each round of an online run did to its answers."""
    blocks: list[Block] = []
    for policy in data.final_policies:
        rounds = data.rounds_of(policy)
        blocks.append(Heading(policy.name, (policy,)))
        plots = [*_curves(rounds, _POLICY_CURVES), *_round_plots(policy)]
        blocks += [Plots(tuple(plots))] if plots else []
        blocks += _round_table(data, policy, rounds)
        blocks += [*_length_table(_by_training(policy, rounds)), *_told(_time_words(policy))]
    return Section("Policy", "policy", tuple(blocks))


def _by_training(policy: ArtifactFacts, rounds: Sequence[ArtifactFacts]) -> dict[str, ArtifactFacts]:
    if not policy.sequence("rounds"):
        return {"pairs read": policy}
    return {f"pairs of round {number}": each for number, each in _numbered(policy, rounds)}


def _numbered(policy: ArtifactFacts, rounds: Sequence[ArtifactFacts]) -> Iterator[tuple[int, ArtifactFacts]]:
    """Yield the rounds with their numbers; the earliest may not be in the report."""
    return enumerate(rounds, start=len(policy.sequence("rounds")) - len(rounds) + 1)


class RoundPlot(NamedTuple):
    """A plot by round: title, axis, where in `dev` each figure stands, and by what it is multiplied."""

    title: str
    axis: str
    paths: Mapping[str, tuple[str, ...]]
    scale: float


_ROUND_PLOTS = (
    RoundPlot("Mean normalised reward of answers to dev speeches, by round.", "reward", {"reward": ("reward",)}, 1),
    RoundPlot(
        "Signs of decay in answers to dev speeches, by round.",
        "percent",
        {"unfinished": ("text_quality", "unfinished_rate"), "repetitive": ("text_quality", "repetition_rate")},
        100,
    ),
    RoundPlot(
        "Mean length of answers to dev speeches, by round.", "words", {"mean": ("text_quality", "length_words")}, 1
    ),
)


def _round_plots(policy: ArtifactFacts) -> list[Plot]:
    rounds = cast(Sequence[Mapping[str, Any]], policy.sequence("rounds"))
    plots: list[Plot] = []
    for plot in _ROUND_PLOTS:
        series = [_by_round(rounds, words, path, plot.scale) for words, path in plot.paths.items()]
        drawn = [each for each in series if each.x]
        if drawn:
            key = f"rounds-{plot.axis}-{policy.id[:8]}"
            svg = lines(key, drawn, x="round", y=plot.axis)
            plots.append(Plot(svg, plot.title, " ".join(map(_series_words, drawn)), (policy,)))
    return plots


def _by_round(rounds: Sequence[Mapping[str, Any]], words: str, path: tuple[str, ...], scale: float) -> Series:
    points: list[tuple[int, Rate]] = []
    for number, each in enumerate(rounds, start=1):
        rate = _dev_figure(each, path)
        if rate is not None:
            points.append((number, rate))
    low = [scale * rate.low for _, rate in points]
    high = [scale * rate.high for _, rate in points]
    measured = low != high
    return Series(
        words,
        [number for number, _ in points],
        [scale * rate.estimate for _, rate in points],
        low if measured else (),
        high if measured else (),
    )


def _dev_figure(made_round: Mapping[str, Any], path: tuple[str, ...]) -> Rate | None:
    """Return a figure of a round's dev answers; a bare mean is given no interval."""
    value: Any = made_round.get("dev")
    for key in path:
        value = cast(Mapping[str, Any], value).get(key) if isinstance(value, Mapping) else None
    rate = as_rate(value)
    if rate is None and isinstance(value, Mapping) and "mean" in value:
        mean = float(cast(Mapping[str, Any], value)["mean"])
        return Rate(mean, mean, mean, 0)
    return rate


def _round_table(data: ReportData, policy: ArtifactFacts, rounds: Sequence[ArtifactFacts]) -> list[Block]:
    if not policy.sequence("rounds"):
        return []
    rows = [_round_row(data, number, each) for number, each in _numbered(policy, rounds)]
    header = ("round", "speeches", "pairs", "no pair or left out", "dev reward", "deviation", "answers")
    caption = "Rounds: speeches drawn, pairs kept of them, normalised reward of fresh answers to dev speeches."
    return [Table(caption, header, "lrrlrrr", tuple(rows), tuple(rounds))]


def _round_row(data: ReportData, number: int, policy: ArtifactFacts) -> tuple[str, ...]:
    pairs = data.parent_of(policy, "pairs")
    sampled = data.parent_of(pairs, "candidates") if pairs else None
    counts: dict[str, int] = {}
    if pairs is not None:
        counts = {**pairs.table("pairing", "dropped")}
        counts |= {f"{reason} answers": count for reason, count in pairs.table("left_out").items()}
    speeches = sampled.number("speeches") if sampled else None
    mean, deviation, answers = (policy.number("dev", "reward", name) for name in ("mean", "std", "n"))
    return (
        str(number),
        "" if speeches is None else f"{speeches:.0f}",
        f"{policy.number('pairs') or 0:.0f}",
        reason_words(counts),
        "" if mean is None else f"{mean:+.3f}",
        "" if deviation is None else f"{deviation:.3f}",
        "" if answers is None else f"{answers:.0f}",
    )
