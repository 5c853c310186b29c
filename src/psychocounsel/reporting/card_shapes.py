"""Cells -> a table of a card: short, without columns in which nothing is known."""

from collections.abc import Iterable, Mapping

from psychocounsel.reporting.blocks import Table, percent
from psychocounsel.reporting.report_data import ArtifactFacts

_MAX_ROWS = 50
NOTHING = ""


def card_table(
    caption: str,
    header: tuple[str, ...],
    align: str,
    rows: Iterable[tuple[str, ...]],
    *read: ArtifactFacts,
) -> Table:
    """Return a table short enough for a card: what is left out is counted in its last line.

    A column in which nothing is known is left out.
    """
    every = list(rows)
    filled = [at for at in range(len(header)) if any(row[at] for row in every)]
    shown = [tuple(row[at] for at in filled) for row in every[:_MAX_ROWS]]
    if len(every) > _MAX_ROWS:
        shown.append((f"and {len(every) - _MAX_ROWS} more", *[NOTHING] * (len(filled) - 1)))
    names, sides = tuple(header[at] for at in filled), "".join(align[at] for at in filled)
    return Table(caption, names, sides, tuple(shown), read)


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts, the largest first; equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def share(part: int, whole: int) -> str:
    """Return a part as a percentage; nothing of nothing is not known."""
    return percent(part / whole) if whole else NOTHING


def words(name: str) -> str:
    """Return the name of a step or a flaw as words."""
    return name.replace("_", " ")
