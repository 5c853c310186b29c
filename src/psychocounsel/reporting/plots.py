"""Numbers -> SVG: the plots of a report.

Colours are written as CSS variables, so that one drawing serves a light page, a dark one and paper. Text
stays text, laid out with a wide font, so it fits whatever font the reader has. Equal numbers, equal bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psychocounsel.types import Rate

# matplotlib leaves the type of its keyword arguments open, which strict checking reports at every call.
# pyright: reportUnknownMemberType=false


# Stand-ins that matplotlib draws with; each becomes the CSS variable of the page.
INK, FAINT = "#010101", "#020202"
SERIES = ("#030303", "#040404", "#050505", "#060606")
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
_MARKERS = ("o", "s", "^", "D")
_DASHES = ("-", "--", "-.", ":")
_WIDTH_INCHES = 4.6
_MAX_LABEL = 30
_MARKED_POINTS = 20
_SHIFT = 0.05
"""How far apart, in steps or rounds, the intervals of two lines stand, so that none hides the other."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "psychocounsel",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class Dot(NamedTuple):
    """One row of a dot-and-interval plot; `group` chooses colour and marker."""

    label: str
    rate: Rate
    group: int = 0


class Series(NamedTuple):
    """A line: its name, where it stands and, where measured, the ends of its intervals."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def rating_histograms(counts: Mapping[str, Mapping[str, int]], key: str = "ratings") -> Markup:
    """Draw how often each rating was given, one small panel per principle; `key` names the drawing."""
    columns = min(4, len(counts))
    rows = math.ceil(len(counts) / columns)
    with _drawing(key, 1.25 * rows + 0.3) as drawing:
        axes = drawing.figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        ratings = sorted({rating for by in counts.values() for rating in by}, key=_as_number)
        for panel in axes.flat[len(counts) :]:
            panel.set_axis_off()
        for panel, (name, by) in zip(axes.flat, counts.items(), strict=False):
            panel.bar(range(len(ratings)), [by.get(rating, 0) for rating in ratings], color=SERIES[0])
            panel.set_xticks(range(len(ratings)), labels=ratings)
            panel.set_title(_shortened(name), fontsize=8.5)
            panel.tick_params(labelbottom=True, length=2)
    return drawing.svg


def margin_histogram(margins: Sequence[float], key: str = "margins") -> Markup:
    """Draw the distribution of r(chosen) - r(rejected); what lies left of zero is ranked wrongly."""
    with _drawing(key, 2.6) as drawing:
        axes = drawing.figure.subplots()
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
    return drawing.svg


def dots_and_intervals(key: str, dots: Sequence[Dot], *, reference: float | None = 0.5, axis: str = "share") -> Markup:
    """Draw rates in 0..1 as percent, one row each, the first on top.

    Args:
        key: names the drawing within its page.
        dots: the rows.
        reference: where to draw the line to compare with, a share.
        axis: what the axis says.
    """
    with _drawing(key, 0.75 + 0.24 * len(dots)) as drawing:
        axes = drawing.figure.subplots()
        for place, dot in enumerate(dots):
            colour = SERIES[dot.group % len(SERIES)]
            rate = dot.rate
            axes.plot([100 * rate.low, 100 * rate.high], [place, place], color=colour, linewidth=2)
            axes.plot([100 * rate.estimate], [place], _MARKERS[dot.group % len(_MARKERS)], color=colour)
        if reference is not None:
            axes.axvline(100 * reference, color=INK, linewidth=1, linestyle="--", zorder=0)
        axes.set_yticks(range(len(dots)), labels=[_shortened(dot.label) for dot in dots])
        axes.set_ylim(len(dots) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        axes.set_xlabel(f"{axis}, percent")
        _grid(axes, "x")
    return drawing.svg


def lines(key: str, series: Sequence[Series], *, x: str, y: str, breaks: Sequence[float] = ()) -> Markup:
    """Draw lines over steps or rounds; where they have intervals, these are shown as bars.

    Args:
        key: names the drawing within its page.
        series: the lines, four at most.
        x: what the horizontal axis says.
        y: what the vertical axis says.
        breaks: where to draw thin vertical lines (the ends of rounds).
    """
    with _drawing(key, 2.4) as drawing:
        axes = drawing.figure.subplots()
        for end in breaks:
            axes.axvline(end, color=FAINT, linewidth=1, zorder=0)
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
        _grid(axes, "y")
        if len(series) > 1:
            _legend_above(axes, len(series))
    return drawing.svg


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0)


def _grid(axes: Axes, direction: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="x" if direction == "x" else "y", color=FAINT, linewidth=0.6)


class _Drawing:
    """A figure, and its SVG once it is drawn."""

    def __init__(self, height_inches: float) -> None:
        self.figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        self.svg = Markup("")


@contextmanager
def _drawing(key: str, height_inches: float) -> Generator[_Drawing]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser has the letters that the measuring font lacks.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        drawing = _Drawing(height_inches)
        yield drawing
        stream = io.StringIO()
        drawing.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawing.svg = Markup(_for_page(stream.getvalue(), key))  # noqa: S704 - matplotlib escapes every label


def _for_page(svg: str, key: str) -> str:
    """Return what stands in a page: no prologue and no addresses, colours by variable, ids of its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
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
    return body


def _shortened(label: str) -> str:
    text = " ".join(label.split())
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def _as_number(rating: str) -> tuple[int, str]:
    return (int(rating), "") if rating.isdecimal() else (0, rating)
