"""Numbers as SVG for the report. Equal numbers give equal bytes.

Colours are CSS variables, so that one picture serves a light page, a dark one and paper; text stays text, laid
out with a wide font, so that it fits whatever font the reader has.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from psychocounsel.evaluation.statistics import MIN_SLICE
from psychocounsel.reporting.reward_tables import BASELINES
from psychocounsel.reporting.tables import interval, percent
from psychocounsel.store import metrics as m
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.metrics import metrics_of
from psychocounsel.store.shapes import Counts, RankedPairs
from psychocounsel.types import Rate

# Placeholder colours that matplotlib draws with; each becomes a CSS variable of the page.
INK, GRID = "#010101", "#020202"
SERIES = ("#030303", "#040404", "#050505", "#060606")
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
_MARKERS = ("o", "s", "^", "D")
_DASHES = ("-", "--", "-.", ":")
_WIDTH_INCHES = 4.6
_COLUMNS = 4  # of panels
_MARKED_POINTS = 20
_SHIFT = 0.05
"""Distance between the intervals of two lines, in steps or rounds, so that none hides the other."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "psychocounsel",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """A picture of the report with its caption; `alternative` says in words what it shows."""

    svg: Markup
    caption: str
    alternative: str
    sources: tuple[Artifact, ...]


class Dot(NamedTuple):
    """One row of a dot-and-interval plot; `group` chooses colour and marker."""

    label: str
    rate: Rate
    group: int = 0


class Series(NamedTuple):
    """A line: its name, its points and, where measured, the ends of their intervals."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def figures(artifact: Artifact, rounds: Sequence[Artifact] = ()) -> list[Plot]:
    """Return the plots of an artifact for the report; `rounds` are the policies of an online run that ends with it."""
    short = artifact.id[:8]
    match metrics_of(artifact):
        case m.JudgementMetrics(histograms=counts) if counts:
            given = "; ".join(
                f"{name}: {', '.join(f'{count} times {rating}' for rating, count in by.items())}"
                for name, by in counts.items()
            )
            caption = "Number of responses by rating, one panel per principle."
            svg = rating_histograms(counts, f"ratings-{short}")
            return [Plot(svg, caption, f"Ratings by principle. {given}", (artifact,))]
        case m.RewardModelMetrics() as model:
            return [*_reward_plots(artifact, model), *_curves(_REWARD_CURVES, [artifact])]
        case m.PairEvaluationMetrics() as evaluated:
            return _margin_plots(artifact, evaluated)
        case m.PolicyMetrics() as policy:
            return [*_curves(_POLICY_CURVES, rounds or [artifact]), *_round_plots(artifact, policy)]
        case m.ComparisonMetrics() as compared:
            slices = {
                "principle": _dots(compared.by_criterion),
                "topic": _dots({"speeches about crisis": compared.crisis, **compared.by_topic}),
            }
            caption = "Win rate by {} (number of comparisons); the dashed line is 50 %."
            return [
                rate_plot(f"winrate-{key}-{short}", dots, "win rate", caption.format(key), artifact)
                for key, dots in slices.items()
                if dots
            ]
        case _:
            return []


def _dots(rates: Mapping[str, Rate | None]) -> list[Dot]:
    known = [(label or "(no topic)", rate) for label, rate in rates.items() if rate is not None]
    return [Dot(f"{label} ({rate.n})", rate) for label, rate in known if rate.n >= MIN_SLICE]


def rate_plot(key: str, dots: Sequence[Dot], axis: str, caption: str, *sources: Artifact) -> Plot:
    """Return rates with their intervals as a plot."""
    rows = "; ".join(f"{dot.label}: {percent(dot.rate.estimate)} ({interval(dot.rate)})" for dot in dots)
    return Plot(dots_and_intervals(key, dots, axis=axis), caption, f"{caption} {rows}", sources)


def _reward_plots(artifact: Artifact, model: m.RewardModelMetrics) -> list[Plot]:
    rates = {label: getattr(model.baselines, name) for name, label in BASELINES.items()}
    dots = [Dot("reward model", model.test.accuracy)]
    dots += [Dot(label, rate, label != BASELINES["same_tier"]) for label, rate in rates.items() if rate is not None]
    caption = "Accuracy on test pairs and of predictors that read no text; the dashed line is a coin."
    return [
        rate_plot(f"accuracy-{artifact.id[:8]}", dots, "accuracy", caption, artifact),
        *_margin_plots(artifact, model),
    ]


def _margin_plots(artifact: Artifact, model: RankedPairs) -> list[Plot]:
    plots: list[Plot] = []
    if margins := [each for each in model.test_margins if each is not None]:
        wrong = sum(margin < 0 for margin in margins)
        span = f"{min(margins):.2f} to {max(margins):.2f}"
        alternative = f"Histogram of {len(margins)} margins from {span}; {wrong} below zero."
        svg = margin_histogram(margins, f"margins-{artifact.id[:8]}")
        plots.append(Plot(svg, "Margins on test pairs.", alternative, (artifact,)))
    if bins := [(each, each.right) for each in model.reliability if each.right is not None]:
        points = "; ".join(f"{percent(right.estimate)} at {percent(each.confidence)}" for each, right in bins)
        caption = (
            "Reliability: how often the side that the model prefers is the chosen one; on the line it is calibrated."
        )
        svg = reliability_diagram([(each.confidence, right) for each, right in bins], f"reliability-{artifact.id[:8]}")
        plots.append(Plot(svg, caption, f"{caption} {points}.", (artifact,)))
    return plots


Curve = tuple[str, str, Mapping[str, str]]
"""A plot of training by step: its title, the axis, and which columns of the history it shows."""
_REWARD_CURVES: Sequence[Curve] = (("Training loss by step.", "loss", {"loss": "loss"}),)
_POLICY_CURVES: Sequence[Curve] = (
    (
        "Training loss by step, nll_weight times NLL included; without, DPO's is ln 2 = 0.693 in a policy like its "
        "reference.",
        "loss",
        {"loss": "loss"},
    ),
    ("Implicit reward margin, chosen minus rejected.", "margin", {"margin": "margin"}),
    (
        "Log-probability of the two sides: both falling is a warning.",
        "log-probability, nats",
        {"logps_chosen": "chosen", "logps_rejected": "rejected"},
    ),
)


def _curves(curves: Sequence[Curve], trained: Sequence[Artifact]) -> list[Plot]:
    """Plot the histories of trainings one after the other, as steps of one run."""
    rows: list[dict[str, float]] = []
    ends: list[float] = []
    for each in trained:
        metrics = metrics_of(each)
        if isinstance(metrics, m.RewardModelMetrics | m.PolicyMetrics):
            before = ends[-1] if ends else 0
            rows += [{**row, "step": row["step"] + before} for row in metrics.training.history if "step" in row]
            ends.append(before + metrics.training.steps)
    plots: list[Plot] = []
    for title, axis, columns in curves:
        series = [
            Series(
                label, [row["step"] for row in rows if column in row], [row[column] for row in rows if column in row]
            )
            for column, label in columns.items()
        ]
        key = f"{'-'.join(columns)}-{trained[-1].id[:8]}"
        plots += _line_plot(key, series, "step", axis, title, trained[-1], ends[:-1])
    return plots


def _line_plot(
    key: str, series: Sequence[Series], x: str, y: str, title: str, artifact: Artifact, breaks: Sequence[float] = ()
) -> list[Plot]:
    known = [each for each in series if each.x]
    if not known:
        return []
    alternative = " ".join(
        f"{each.label} from {each.y[0]:.3g} at {each.x[0]:g} to {each.y[-1]:.3g} at {each.x[-1]:g}." for each in known
    )
    return [Plot(lines(key, known, x=x, y=y, breaks=breaks), title, alternative, (artifact,))]


def _round_plots(artifact: Artifact, policy: m.PolicyMetrics) -> list[Plot]:
    if policy.initial is None:
        return []
    probes = [policy.initial, *(each.probe for each in policy.rounds)]
    numbers = list(range(len(probes)))  # round 0 is the initial policy

    def rates(label: str, found: Sequence[Rate | None]) -> Series:
        known = {number: rate for number, rate in zip(numbers, found, strict=True) if rate is not None}
        shares = [[100 * getattr(rate, end) for rate in known.values()] for end in ("estimate", "low", "high")]
        return Series(label, list(known), *shares)

    qualities = [each.text_quality for each in probes]
    unfinished = rates("unfinished", [each.unfinished_rate for each in qualities])
    repetitive = rates("repetitive", [each.repetition_rate for each in qualities])
    in_crisis = {number: each.crisis.reward for number, each in zip(numbers, probes, strict=True) if each.crisis}
    rewards = [
        Series("reward", numbers, [each.reward.mean for each in probes]),
        Series("on speeches about crisis", list(in_crisis), list(in_crisis.values())),
    ]
    shown: tuple[tuple[str, str, str, list[Series]], ...] = (
        ("mean-normalised-reward", "Mean normalised reward, by round.", "reward", rewards),
        *(
            (
                label.split(",")[0].lower().replace(" ", "-"),
                f"{label}, by round.",
                axis,
                [Series(axis, numbers, values)],
            )
            for label, axis, values in (
                ("KL to the initial policy", "nats per answer", [each.kl.per_answer for each in probes]),
                ("Entropy", "nats per token", [each.entropy for each in probes]),
                ("Mean length", "words", [each.length_words.mean for each in qualities]),
                ("Questions", "per answer", [each.questions_per_answer for each in probes]),
            )
        ),
        ("degeneration", "Signs of degeneration, by round.", "percent", [unfinished, repetitive]),
        (
            "judge",
            "The probe's judge: win rate over the initial policy, and agreement with the reward, by round.",
            "percent",
            [
                rates("win rate", [each.win_rate for each in probes]),
                rates("agreement", [each.agreement for each in probes]),
            ],
        ),
    )
    return [
        plot
        for key, title, axis, series in shown
        for plot in _line_plot(f"rounds-{key}-{artifact.id[:8]}", series, "round", axis, title, artifact)
    ]


def rating_histograms(counts: Mapping[str, Counts], key: str = "ratings") -> Markup:
    """Draw how often each rating was given, one small panel per principle; `key` names the picture in its page."""
    points, columns = m.rating_points(counts), min(_COLUMNS, len(counts))
    rows = math.ceil(len(counts) / columns)
    with _svg_figure(1.25 * rows + 0.4) as figure:
        panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes, (name, by) in zip(panels, counts.items(), strict=False):
            axes.bar(points, [by.get(point, 0) for point in points], width=0.92, color=SERIES[0])
            axes.set_title(shortened(name), fontsize=7.5)
            axes.tick_params(length=2, labelsize=8)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in panels[::columns]:
            axes.set_ylabel("responses", fontsize=8)
        for axes in panels[len(counts) :]:
            axes.remove()
        return _svg(figure, key)


def margin_histogram(margins: Sequence[float], key: str = "margins") -> Markup:
    """Draw the distribution of r(chosen) - r(rejected); what lies left of zero is ranked wrongly."""
    with _svg_figure(2.6) as figure:
        axes = figure.subplots()
        bins = max(4, min(20, round(math.sqrt(len(margins)))))
        widest = max((abs(margin) for margin in margins), default=0.0) or 1.0
        edges = [widest * place / bins for place in range(-bins, bins + 1)]
        rightly = "ranked rightly or tied" if 0 in margins else "ranked rightly"
        for side, colour in ((True, SERIES[1]), (False, SERIES[0])):
            label = "ranked wrongly" if side else rightly
            values = [margin for margin in margins if (margin < 0) == side]
            axes.hist(values, bins=edges, color=colour, label=f"{label}: {len(values)}")
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("reward of chosen minus reward of rejected (raw)")
        axes.set_ylabel("pairs")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _legend_above(axes, 2)
        return _svg(figure, key)


def reliability_diagram(points: Sequence[tuple[float, Rate]], key: str = "reliability") -> Markup:
    """Draw how often the preferred side is the chosen one over the model's mean probability of it, both in percent."""
    with _svg_figure(2.6) as figure:
        axes = figure.subplots()
        axes.plot([50, 100], [50, 100], color=INK, linewidth=1, linestyle="--", zorder=0)
        for confidence, rate in points:
            axes.plot([100 * confidence] * 2, [100 * rate.low, 100 * rate.high], color=SERIES[0], linewidth=2)
            axes.plot([100 * confidence], [100 * rate.estimate], _MARKERS[0], color=SERIES[0])
        axes.set_xlim(48, 102)
        axes.set_xlabel("probability of the preferred side, percent")
        axes.set_ylabel("it is the chosen one, percent")
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        return _svg(figure, key)


def dots_and_intervals(key: str, dots: Sequence[Dot], *, axis: str = "share") -> Markup:
    """Draw rates in 0..1 as percent, one row each, the first on top, and a line at a half."""
    with _svg_figure(0.75 + 0.24 * len(dots)) as figure:
        axes = figure.subplots()
        for place, dot in enumerate(dots):
            colour = SERIES[dot.group % len(SERIES)]
            rate = dot.rate
            axes.plot([100 * rate.low, 100 * rate.high], [place, place], color=colour, linewidth=2)
            axes.plot([100 * rate.estimate], [place], _MARKERS[dot.group % len(_MARKERS)], color=colour)
        axes.axvline(50, color=INK, linewidth=1, linestyle="--", zorder=0)
        axes.set_yticks(range(len(dots)), labels=[shortened(dot.label, 30) for dot in dots])
        axes.set_ylim(len(dots) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        axes.set_xlabel(f"{axis}, percent")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        return _svg(figure, key)


def rates_on_a_circle(key: str, rates: Mapping[str, Mapping[str, Rate]]) -> Markup:
    """Draw the rates of up to four lines around a circle, a spoke for each name; bands are intervals."""
    spokes = list(dict.fromkeys(name for by in rates.values() for name in by))
    angles = [2 * math.pi * place / len(spokes) for place in range(len(spokes) + 1)]
    with _svg_figure(3.6) as figure:
        axes = cast("PolarAxes", figure.subplots(subplot_kw={"projection": "polar"}))
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for number, (label, by) in enumerate(rates.items()):
            known = [by.get(name) for name in (*spokes, spokes[0])]
            estimate, low, high = (
                [math.nan if rate is None else 100 * getattr(rate, end) for rate in known]
                for end in ("estimate", "low", "high")
            )
            colour, dash = SERIES[number % len(SERIES)], _DASHES[number % len(_DASHES)]
            axes.fill_between(angles, low, high, color=colour, alpha=0.12, linewidth=0)
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot(angles, estimate, color=colour, linestyle=dash, marker=marker, markersize=4)
            axes.lines[-1].set_label(shortened(label, 60))  # a wider legend leaves no room for the circle
        around = [2 * math.pi * place / 90 for place in range(91)]
        axes.plot(around, [50] * len(around), color=INK, linewidth=1, linestyle="--", zorder=0)
        axes.set_ylim(0, 100)
        axes.set_yticks([25, 50, 75, 100])
        axes.set_rlabel_position(180 / len(spokes))
        axes.tick_params(labelsize=7.5)
        axes.set_xticks(angles[:-1], labels=[shortened(name, 14) for name in spokes])
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines["polar"].set_color(GRID)
        if len(rates) > 1:
            columns = 2 if max(map(len, rates)) <= 30 else 1  # names wider than the figure leave no room for the circle
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=columns)
        return _svg(figure, key)


def lines(key: str, series: Sequence[Series], *, x: str, y: str, breaks: Sequence[float] = ()) -> Markup:
    """Draw up to four lines with their intervals over steps or rounds; `breaks` are the ends of rounds."""
    with _svg_figure(2.4) as figure:
        axes = figure.subplots()
        for end in breaks:
            axes.axvline(end, color=GRID, linewidth=1, zorder=0)
        for number, each in enumerate(series):
            colour, dash = SERIES[number % len(SERIES)], _DASHES[number % len(_DASHES)]
            marker = _MARKERS[number % len(_MARKERS)] if each.low or len(each.x) <= _MARKED_POINTS else ""
            shift = _SHIFT * (number - (len(series) - 1) / 2) if each.low else 0.0
            at = [value + shift for value in each.x]
            axes.plot(at, each.y, color=colour, linestyle=dash, marker=marker, label=each.label, linewidth=1.5)
            if each.low:
                axes.vlines(at, each.low, each.high, color=colour, linewidth=1.5)
        if all(float(value).is_integer() for each in series for value in each.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        if len(series) > 1:
            _legend_above(axes, len(series))
        return _svg(figure, key)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0)


@contextmanager
def _svg_figure(height: float) -> Generator[Figure]:
    """Yield an empty figure of a height in inches."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with mpl.rc_context({**_STYLE, **dict.fromkeys(inked, INK)}), warnings.catch_warnings():
        # The reader's browser has the letters that the measuring font lacks.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")


def _svg(figure: Figure, key: str) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    # For a page: no prologue and no addresses, colours by variable, ids of its own.
    body = "<svg" + stream.getvalue().partition("<svg")[2]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # the page's own sheet has its one rule
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', body, count=1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"'DejaVu Sans',[^;\"]*", "system-ui, sans-serif", body)
    prefix = re.sub(r"[^a-z0-9]+", "-", key.lower())
    substitutions: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
        (r'\bid="([^"]+)"', lambda found: f'id="{prefix}-{found[1]}"'),
        (r'\bhref="#([^"]+)"', lambda found: f'href="#{prefix}-{found[1]}"'),
        (r"url\(#([^)]+)\)", lambda found: f"url(#{prefix}-{found[1]})"),
    )
    for pattern, written in substitutions:
        body = re.sub(pattern, written, body)
    return Markup(body)  # noqa: S704 - matplotlib escapes every label


def shortened(label: str, limit: int = 26) -> str:
    """Return a label on one line; a cut shows."""
    text = " ".join(label.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
