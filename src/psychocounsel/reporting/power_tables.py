"""Tables of `psychocounsel power`: half widths by speeches and draws, and what a target costs."""

import math

from psychocounsel.evaluation.power import VarianceComponents
from psychocounsel.reporting.tables import Row, Table

DRAWS = (1, 2, 4, 8, 16)
SPEECHES = (50, 100, 200, 500, 1000, 2324)
"""The last is the paper's test split."""


def power_tables(
    components: VarianceComponents,
    target: float,
    calls: float,
    origin: str,
    speeches: int | None = None,
    varies: bool = True,
) -> list[Table]:
    """Return what speeches and draws do to the interval of a win rate, and the ways to a half width of `target`.

    `calls` are those of the judge for one pair of answers, `origin` says where the components come from, and
    `speeches` are those that there are, and `varies` says whether another draw gives either side another answer.
    """
    rows: list[Row] = [
        (f"{count:,}", *(_points(components.half_width(count, draws)) for draws in DRAWS), _floor(components, count))
        for count in sorted({*SPEECHES, *([speeches] if speeches else [])})
    ]
    high = "" if components.between_high is None else f" (at most {components.between_high:.4f})"
    title = (
        f"Half of the 95 % interval of a win rate, in points, by speeches and draws. Variance {components.between:.4f} "
        f"between speeches{high}, {components.within:.4f} between draws to one: {origin}."
    )
    header = ("speeches", *(f"{draws} draw{'s' if draws > 1 else ''}" for draws in DRAWS), "floor: any number of draws")
    needed = [(draws, components.speeches_for(target, draws)) for draws in DRAWS]
    ways: list[Row] = [
        (str(draws), f"{count:,}", f"{count * draws:,}", f"{math.ceil(count * draws * calls):,}")
        for draws, count in needed
    ]
    reach = f"What an interval of ±{_points(target)} points needs; {calls:g} calls of the judge for a pair of answers."
    return [
        Table("half_width", title, header, "l" + "r" * (len(DRAWS) + 1), tuple(rows)),
        Table(
            "target",
            reach + _with_these(components, target, speeches, varies),
            ("draws", "speeches", "answers of each side", "calls of the judge"),
            "lrrr",
            tuple(ways),
        ),
    ]


def _with_these(components: VarianceComponents, target: float, speeches: int | None, varies: bool) -> str:
    if speeches is None:
        return ""
    draws = components.draws_for(target, speeches)
    if draws is not None:
        most = components.at_most.draws_for(target, speeches) if components.at_most else draws
        upper = "" if most == draws else f", at most {most}" if most else ", if that is possible at all"
        fixed = (
            " Neither side's answers vary: take more speeches, or give a side a temperature above 0, or a file with "
            "several answers to each speech and several_answers: true."
            if draws > 1 and not varies
            else ""
        )
        return f" These {speeches:,} speeches need {draws} draw{'s' if draws > 1 else ''}{upper}.{fixed}"
    floor = _floor(components, speeches)
    return f" No number of draws is enough for these {speeches:,} speeches: their floor is ±{floor}."


def _floor(components: VarianceComponents, speeches: int) -> str:
    floor, highest = _points(components.half_width(speeches, math.inf)), components.at_most
    return floor if highest is None else f"{floor}, at most {_points(highest.half_width(speeches, math.inf))}"


def _points(half_width: float) -> str:
    return f"{100 * half_width:.1f}"
