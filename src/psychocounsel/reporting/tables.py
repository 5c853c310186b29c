"""A table of numbers and its renderers: text for the terminal and Markdown for cards. HTML is in `templates/`."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from psychocounsel.store.artifacts import Artifact
from psychocounsel.types import PERCENT, SPLITS, Coefficient, Rate, percent


class Share(NamedTuple):
    """A cell that HTML shows with a bar: a part of a whole (0 to 1) and its text."""

    part: float
    text: str


Cell = str | Share
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column is a label.

    `key` says which table of its artifact this is. `align` has `l` or `r` for each column. `sources` are the artifacts
    that the numbers were read from. The summary at the end of a stage leaves a table out that `is_detail`.
    """

    key: str
    title: str
    header: tuple[str, ...]
    align: str
    rows: tuple[Row, ...]
    sources: tuple[Artifact, ...] = ()
    is_detail: bool = False


REPORT_FILE = "report.html"
LEAST_COLUMN = 24
"""Characters that a column of words keeps when it wraps."""
NONE = "–"  # noqa: RUF001 - an en dash stands for an unknown value
RATE_HEADER = ("figure", "estimate", "interval", "over")


def anchor(artifact: Artifact) -> str:
    """Return the id of an artifact's row in the last table of the report."""
    return f"artifact-{artifact.id[:8]}"


def interval(rate: Rate, *, as_percent: bool = True) -> str:
    """Return `55.1 to 70.9 %` or `0.551 to 0.709`."""
    if as_percent:
        return f"{100 * rate.low:.1f} to {100 * rate.high:.1f}{PERCENT}"
    return f"{rate.low:.3f} to {rate.high:.3f}"


def draws_each(draws: int) -> str:
    """Return `, 3 draws each`; one draw is named too, because another gives other answers and another rate."""
    return f", {draws} draws each" if draws > 1 else ", one draw each"


def with_interval(rate: Rate) -> str:
    """Return `63.2 % [55.1 to 70.9 %]`."""
    return f"{percent(rate.estimate)} [{interval(rate)}]"


def share_of(part: int, whole: int) -> Share:
    """Return a part of a whole as a cell."""
    value = part / whole if whole else 0.0
    return Share(value, percent(value))


def over(rate: Rate) -> str:
    """Return how many units a rate rests on and how many are missing."""
    return f"n = {rate.n}, {rate.missing} missing"


def rate_row(label: str, rate: Rate | None, *, as_percent: bool = True) -> Row:
    """Return a row under `RATE_HEADER`."""
    if rate is None:
        return (label, NONE, "", "")
    estimate = percent(rate.estimate) if as_percent else f"{rate.estimate:.3f}"
    return (label, estimate, interval(rate, as_percent=as_percent), over(rate))


def coefficient(found: Coefficient | None, form: str = ".2f") -> str:
    """Return `0.41 [0.30 to 0.52]`."""
    return NONE if found is None else f"{found.estimate:{form}} [{found.low:{form}} to {found.high:{form}}]"


def coefficient_row(label: str, found: Coefficient | None, why_none: str = "") -> Row:
    """Return a row under `RATE_HEADER`."""
    if found is None:
        return (label, NONE, "", why_none)
    return (label, f"{found.estimate:.2f}", f"{found.low:.2f} to {found.high:.2f}", f"n = {found.n}")


def reasons(counts: Mapping[str, int]) -> str:
    """Return `12 too short, 3 empty`, or a dash."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count) or NONE


def by_split(values: Mapping[str, object]) -> list[str]:
    """Return the splits that occur, in the order train, dev, test."""
    return [split for split in SPLITS if split in values]


def differences(left: Sequence[Table], right: Sequence[Table], names: tuple[str, str]) -> Table:
    """Return every cell in which the tables of two artifacts differ, side by side under their `names`."""

    def cells(found: Sequence[Table]) -> dict[tuple[str, str, str], str]:
        return {
            (table.key, _text(row[0]), name): _text(cell)
            for table in found
            for row in table.rows
            for name, cell in zip(table.header[1:], row[1:], strict=True)
        }

    one, other = cells(left), cells(right)
    rows = [
        (f"{key[1]}: {key[2]}", one.get(key, NONE), other.get(key, NONE))
        for key in {**one, **other}
        if one.get(key) != other.get(key)
    ]
    return Table("differences", "Metrics that differ.", ("metric", *names), "lll", tuple(rows))


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def as_text(table: Table, width: int | None = None) -> str:
    """Return a table for the terminal: columns of equal width, indented under the title if there is one.

    Where that is wider than `width`, the widest column of words wraps. If too little would be left of it, each row
    becomes a block: its label, and below it the other cells under the names of their columns.
    """
    title = [table.title] if table.title else []
    indent = "  " if title else ""
    lines = [[_text(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    excess = 0 if width is None else len(indent) + sum(widths) + 2 * len(widths) - 2 - width
    widest = max(range(len(widths)), key=lambda at: (table.align[at] == "l", widths[at]))
    if width is None or excess <= 0:
        rows = [_aligned(line, widths, table.align) for line in lines]
    elif widths[widest] - excess >= max(LEAST_COLUMN, *(len(word) for line in lines for word in line[widest].split())):
        widths[widest] -= excess
        rows = [part for line in lines for part in _wrapped(line, widths, table.align, widest)]
    else:
        rows = [part for line in lines[1:] for part in _stacked(lines[0], line, width - len(indent))]
    return "\n".join([*(fit(each, width) for each in title), *(indent + row for row in rows)])


def fit(text: str, width: int | None) -> str:
    """Return a line of prose as lines of at most `width` characters; those after the first begin below its words.

    A longer word, such as a path, stays in one piece.
    """
    indent = " " * (len(text) - len(text.lstrip(" !")))
    if width is None or len(text) <= width:
        return text
    return textwrap.fill(text, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _aligned(cells: Sequence[str], widths: Sequence[int], align: str) -> str:
    padded = (
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(cells, widths, align, strict=True)
    )
    return "  ".join(padded).rstrip()


def _wrapped(cells: Sequence[str], widths: Sequence[int], align: str, widest: int) -> Iterator[str]:
    """Yield the lines of a row in which one cell wraps."""
    parts = textwrap.wrap(cells[widest], widths[widest], subsequent_indent="  ", break_on_hyphens=False)
    for number, part in enumerate(parts or [""]):
        shown = [part if at == widest else "" if number else cell for at, cell in enumerate(cells)]
        yield _aligned(shown, widths, align)


def _stacked(header: Sequence[str], cells: Sequence[str], width: int) -> Iterator[str]:
    """Yield the lines of a row whose cells stand under its label, as many in a line as there is room for."""
    wrap = partial(textwrap.wrap, width=width, subsequent_indent="    ", break_on_hyphens=False)
    yield from textwrap.wrap(cells[0], width)
    line = ""
    for name, cell in zip(header[1:], cells[1:], strict=True):
        said = "" if cell in ("", NONE) else f"{name}: {cell}"
        if line and len(line) + len(said) + 4 > width:
            yield from wrap(line, initial_indent="  ")
            line = ""
        line = "; ".join(filter(None, (line, said)))
    yield from wrap(line, initial_indent="  ")


_MARKUP = re.compile(r"[\\`*|<\[\]]")


def escaped(text: str) -> str:
    """Return text for one line of Markdown, in which nothing is markup."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def as_markdown(table: Table, max_rows: int = 50) -> str:
    """Return a table as GitHub-flavoured Markdown; its last line counts the rows beyond `max_rows`."""
    rows = list(table.rows[:max_rows])
    if len(table.rows) > max_rows:
        rows.append((f"and {len(table.rows) - max_rows} more", *[""] * (len(table.header) - 1)))
    lines = ["| " + " | ".join(escaped(_text(cell)) for cell in row) + " |" for row in (table.header, *rows)]
    rule = "|" + "|".join("---:" if side == "r" else "---" for side in table.align) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
