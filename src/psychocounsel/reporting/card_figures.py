"""DatasetFacts -> PNG: the pictures beside a dataset's card. Equal facts, equal bytes."""

import io
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psychocounsel.reporting.card_facts import BINS_PER_POINT, CardFigure, DatasetFacts
from psychocounsel.reporting.card_tables import ratings_by_principle, scale
from psychocounsel.reporting.tables import most_first

# matplotlib leaves the type of its keyword arguments open, which strict checking reports at every call.
# pyright: reportUnknownMemberType=false


INK, FAINT = "#1c2430", "#d9dee5"
CHOSEN, REJECTED = "#0072b2", "#c24e00"
_WIDTH_INCHES = 7.2
_DOTS_PER_INCH = 150
_ROW_INCHES = 1.5
_LABEL_INCHES = 1.9
_LEFT_INCHES, _RIGHT_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 0.65, 0.1, 0.36, 0.45
_COLUMNS = 4
_MAX_AUTHORS = 20
_MAX_TOPICS = 20
_MAX_LABEL = 26
_LENGTH_BINS = 30
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class _Panel(NamedTuple):
    """A small histogram among others; `mark` is where a line stands, in bars from the left."""

    title: str
    heights: Sequence[float]
    mark: float | None = None


class _Tick(NamedTuple):
    """A mark under every panel, in bars from the left."""

    place: float
    label: str


def draw_figures(facts: DatasetFacts) -> list[CardFigure]:
    """Return the pictures for which there are figures."""
    drawn = (_ratings(facts), _authors(facts), _lengths(facts), _topics(facts))
    return [figure for figure in drawn if figure is not None]


def _ratings(facts: DatasetFacts) -> CardFigure | None:
    counts, ratings = ratings_by_principle(facts), scale(facts)
    if not counts or not ratings:
        return None
    panels = [_Panel(_shortened(name), [by.get(rating, 0) for rating in ratings]) for name, by in counts.items()]
    ticks = [_Tick(place + 0.5, rating) for place, rating in enumerate(ratings)]
    caption = "Number of responses by rating, one panel per principle."
    png = _small_multiples(panels, ticks, "responses", MaxNLocator(4, integer=True))
    return CardFigure("ratings", "Ratings by principle", caption, png)


def _authors(facts: DatasetFacts) -> CardFigure | None:
    shown = facts.scores_by_author[:_MAX_AUTHORS]
    if not shown or facts.rubric is None:
        return None
    lowest, highest = facts.rubric.minimum, facts.rubric.maximum
    panels = [
        _Panel(
            f"{_shortened(each.author)}\nn = {each.responses}",
            [100 * count / each.responses for count in each.counts],
            BINS_PER_POINT * (each.mean - lowest),
        )
        for each in shown
    ]
    ticks = [_Tick(BINS_PER_POINT * (at - lowest), str(at)) for at in range(lowest, highest + 1)]
    left_out = len(facts.scores_by_author) - len(shown)
    caption = (
        "Mean rating of a response over the principles, unweighted: share of each author's responses; "
        "the line is the author's mean."
    ) + (f" {left_out} authors with fewer responses are left out." if left_out else "")
    png = _small_multiples(panels, ticks, "percent of responses", MaxNLocator(4))
    return CardFigure("authors", "Mean ratings by author", caption, png)


def _small_multiples(panels: Sequence[_Panel], ticks: Sequence[_Tick], y: str, locator: MaxNLocator) -> bytes:
    """Draw panels on one scale, four in a row; a row shares one pair of axes, for axes are slow to draw."""
    columns = min(_COLUMNS, len(panels))
    rows = [panels[at : at + columns] for at in range(0, len(panels), columns)]
    highest = max(height for panel in panels for height in panel.heights) or 1.0
    with _drawing(_ROW_INCHES * len(rows), _WIDTH_INCHES * max(2, columns) / _COLUMNS) as figure:
        grid = figure.subplots(len(rows), 1, squeeze=False)
        for axes, row in zip(grid.flat, rows, strict=True):
            _draw_row(axes, row, ticks, columns)
            axes.set_ylim(0, 1.06 * highest)
            axes.yaxis.set_major_locator(locator)
            axes.set_ylabel(y, fontsize=8)
        return _png(figure)


def _draw_row(axes: Axes, row: Sequence[_Panel], ticks: Sequence[_Tick], columns: int) -> None:
    bars = len(row[0].heights)
    step = 1.14 * bars
    starts = [place * step for place in range(len(row))]
    for start, panel in zip(starts, row, strict=True):
        axes.bar([start + at for at in range(bars)], panel.heights, width=0.92, align="edge", color=CHOSEN)
        if panel.mark is not None:
            axes.axvline(start + panel.mark, color=REJECTED, linewidth=1.2)
        middle = start + bars / 2
        axes.text(middle, 1.02, panel.title, ha="center", fontsize=7.5, transform=axes.get_xaxis_transform())
    axes.hlines([0] * len(row), starts, [start + bars for start in starts], color=INK, linewidth=1.6)
    axes.spines.bottom.set_visible(False)
    places = [(start + tick.place, tick.label) for start in starts for tick in ticks]
    axes.set_xticks([place for place, _ in places], labels=[label for _, label in places])
    axes.set_xlim(-0.02 * bars, columns * step - 0.14 * bars)
    axes.tick_params(length=2, labelsize=8)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)


def _lengths(facts: DatasetFacts) -> CardFigure | None:
    sides = {side: _added(facts.words, side) for side in ("chosen", "rejected")}
    if not any(sides.values()):
        return None
    longest = max(max(counts, default=0) for counts in sides.values())
    width = max(1, math.ceil((longest + 1) / _LENGTH_BINS))
    edges = [width * place for place in range(math.ceil((longest + 1) / width) + 1)]
    with _drawing(2.8) as figure:
        axes = figure.subplots()
        for (side, counts), colour in zip(sides.items(), (CHOSEN, REJECTED), strict=True):
            heights = [sum(counts.get(at, 0) for at in range(start, start + width)) for start in edges[:-1]]
            axes.stairs(heights, edges, color=colour, linewidth=1.6, label=side)
        axes.set_xlabel("words of a response")
        axes.set_ylabel("pairs")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        png = _png(figure)
    caption = "Number of pairs by the length of each side, all splits together."
    return CardFigure("lengths", "Length of the chosen and the rejected responses in words", caption, png)


def _added(words: Mapping[str, Mapping[str, Mapping[int, int]]], side: str) -> dict[int, int]:
    total: dict[int, int] = {}
    for sides in words.values():
        for length, count in sides.get(side, {}).items():
            total[length] = total.get(length, 0) + count
    return total


def _topics(facts: DatasetFacts) -> CardFigure | None:
    counts = most_first(facts.speeches.table("topics")) if facts.speeches else {}
    if not counts:
        return None
    shown = dict(list(counts.items())[:_MAX_TOPICS])
    with _drawing(0.9 + 0.24 * len(shown)) as figure:
        figure.subplots_adjust(left=_LABEL_INCHES / _WIDTH_INCHES)
        axes = figure.subplots()
        bars = axes.barh(range(len(shown)), list(shown.values()), color=CHOSEN, height=0.72)
        axes.bar_label(bars, padding=3, fontsize=8)
        axes.set_yticks(range(len(shown)), labels=[_shortened(name or "no topic") for name in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1.1 * max(shown.values()))
        axes.set_xlabel("speeches")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        png = _png(figure)
    left_out = len(counts) - len(shown)
    caption = "Client speeches by topic." + (f" {left_out} rarer topics are left out." if left_out else "")
    return CardFigure("topics", "Client speeches by topic", caption, png)


@contextmanager
def _drawing(height_inches: float, width_inches: float = _WIDTH_INCHES) -> Generator[Figure]:
    """Yield an empty picture; margins are set by hand, for matplotlib's own layout draws everything twice."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the card's tables have the name in full.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(width_inches, height_inches), facecolor="white")
        figure.subplots_adjust(
            left=_LEFT_INCHES / width_inches,
            right=1 - _RIGHT_INCHES / width_inches,
            top=1 - _TOP_INCHES / height_inches,
            bottom=_BOTTOM_INCHES / height_inches,
            hspace=0.75,
        )
        yield figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # The name and version of the library would change the bytes of a picture that did not change.
    figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()


def _shortened(label: str) -> str:
    text = " ".join(label.split())
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
