"""Figures -> Section: what a page is made of, before it is HTML."""

from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from psychocounsel.domain import Rate
from psychocounsel.reporting.report_data import ArtifactFacts, Example


class Block:
    """One piece of a section; `template` names the macro that writes it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Share:
    """A table cell with a bar: how much of something (0 to 1), and the words for it."""

    part: float
    words: str


Cell = str | Share


@dataclass(frozen=True)
class Paragraph(Block):
    """Plain words."""

    template: ClassVar[str] = "paragraph"
    words: str


@dataclass(frozen=True)
class Heading(Block):
    """A title within a section, and the artifacts that it is about."""

    template: ClassVar[str] = "heading"
    words: str
    sources: tuple[ArtifactFacts, ...] = ()


@dataclass(frozen=True)
class Table(Block):
    """Rows under a header; the first column is a label. `align` has l or r per column."""

    template: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    align: str
    rows: tuple[tuple[Cell, ...], ...]
    sources: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Plot(Block):
    """A drawing with its caption; `alternative` tells in words what it shows."""

    template: ClassVar[str] = "plot"
    svg: Markup
    caption: str
    alternative: str
    sources: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Plots(Block):
    """Drawings side by side where there is room."""

    template: ClassVar[str] = "plots"
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Card(Block):
    """A headline figure: label, value, its interval in words and a remark."""

    template: ClassVar[str] = "card"
    label: str
    value: str
    interval: str
    remark: str
    sources: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Cards(Block):
    """Headline figures side by side."""

    template: ClassVar[str] = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Lineage(Block):
    """The picture of where everything came from, drawn for a wide and for a narrow page."""

    template: ClassVar[str] = "lineage"
    wide: Markup
    tall: Markup
    caption: str


@dataclass(frozen=True)
class Answers(Block):
    """One client speech with both answers side by side and the verdict."""

    template: ClassVar[str] = "answers"
    example: Example
    verdict: str
    policy_author: str
    reference_author: str


@dataclass(frozen=True)
class Ledger(Block):
    """Every artifact with its parents, settings, files and versions."""

    template: ClassVar[str] = "ledger"
    artifacts: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page with a title."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]


PERCENT = "\N{NO-BREAK SPACE}%"


def percent(value: float) -> str:
    """Return a share as `63.2 %`."""
    return f"{100 * value:.1f}{PERCENT}"


def decimal(value: float) -> str:
    """Return a figure with three decimals."""
    return f"{value:.3f}"


def interval_words(rate: Rate, *, as_percent: bool = True) -> str:
    """Return `55.1 to 70.9 %` or `0.551 to 0.709`."""
    if as_percent:
        return f"{100 * rate.low:.1f} to {100 * rate.high:.1f}{PERCENT}"
    return f"{decimal(rate.low)} to {decimal(rate.high)}"


def count_words(rate: Rate) -> str:
    """Return how many units a rate rests on and how many are missing."""
    return f"n = {rate.n}, {rate.missing} missing"


def reason_words(counts: dict[str, int]) -> str:
    """Return `12 too short, 3 empty`; a dash for nothing."""
    named = [f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count]
    return ", ".join(named) or "–"  # noqa: RUF001 - an en dash stands for an empty cell
