"""Counts of kept and dropped -> Table: lines in which kept and dropped are all that came in."""

from collections.abc import Mapping, Sequence

from psychocounsel.reporting.blocks import Cell, Share, Table, percent, reason_words
from psychocounsel.reporting.report_data import ArtifactFacts

_HEADER = ("step", "in", "kept", "share kept", "dropped, by reason")


def funnel_line(step: str, rows_in: int, kept: int, dropped: Mapping[str, int]) -> tuple[Cell, ...]:
    """Return a line of the funnel; it says so where the parts are not the whole."""
    lost = rows_in - kept - sum(dropped.values())
    reasons = reason_words({**dropped, "unaccounted for": lost} if lost else dict(dropped))
    part = kept / rows_in if rows_in else 0.0
    return (step, str(rows_in), str(kept), Share(part, percent(part)), reasons)


def funnel_table(caption: str, lines: Sequence[tuple[Cell, ...]], *sources: ArtifactFacts) -> Table:
    """Return the table of some lines and the artifacts that they are about."""
    return Table(caption, _HEADER, "lrrll", tuple(lines), sources)
