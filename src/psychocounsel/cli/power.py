"""`psychocounsel power`: how many speeches, draws and calls a win rate of a given precision needs."""

from statistics import pvariance
from typing import Annotated, cast

import typer

from psychocounsel.cli.output import StoreFolder
from psychocounsel.errors import ConfigError
from psychocounsel.reporting import console
from psychocounsel.store.store import open_store

Target = Annotated[
    float, typer.Option("--target", metavar="SHARE", help="Half of the interval as a share: 0.05 is 5 points.")
]
From = Annotated[
    str | None, typer.Option("--from", metavar="COMPARISONS", help="Take the variances from this comparison.")
]
Correlation = Annotated[
    float,
    typer.Option(
        "--icc",
        min=0.0,
        max=1.0,
        help="Share of the variance that lies between speeches, where no comparison with several draws tells it.",
    ),
]


def power(
    target: Target = 0.05,
    comparisons: From = None,
    icc: Correlation = 0.5,
    store: StoreFolder = None,
) -> None:
    """Show what a precise win rate costs.

    Half widths by speeches and draws, the floor that more draws cannot pass, and the calls of the judge.
    """
    if not 0.001 <= target <= 0.5:
        remedy = f"{target:g} points are {target / 100:g}" if 0.1 <= target <= 50 else "5 points are 0.05"
        raise ConfigError("is no share from 0.001 to 0.5", where=f"--target {target:g}", remedy=remedy)
    from psychocounsel.config.schema import SIDES
    from psychocounsel.evaluation.power import VarianceComponents, variance_components
    from psychocounsel.evaluation.winrate import POINTS, in_both_orders
    from psychocounsel.reporting.artifact_tables import warnings_of
    from psychocounsel.reporting.power_tables import power_tables
    from psychocounsel.reporting.tables import draws_each
    from psychocounsel.store.metrics import ComparisonMetrics, metrics_of
    from psychocounsel.store.references import resolve_existing
    from psychocounsel.store.schemas import read_comparisons

    if comparisons is None:
        total, measured, calls, speeches, varies = 0.25, None, 2.0, None, True
        origin = "a win rate of 50 % without ties, where points vary most"
    else:
        opened = open_store(store)
        artifact = resolve_existing(opened, comparisons, "comparisons")
        metrics = cast("ComparisonMetrics", metrics_of(artifact))
        outcomes = {at: POINTS[both.outcome()] for at, both in in_both_orders(read_comparisons(artifact)).items()}
        points = {at: won for at, won in outcomes.items() if won is not None}
        # As in the interval of the win rate, a speech won and a speech lost: equal outcomes have a width too.
        points |= {(name, draw): won for name, won in (("won", 1.0), ("lost", 0.0)) for draw in range(metrics.draws)}
        total = pvariance(points.values())
        measured = variance_components(list(points.values()), [speech for speech, _ in points])
        calls = metrics.votes.asked / metrics.answered_by_both if metrics.votes else 2.0
        speeches = metrics.speeches
        sides = [opened.open(artifact.parent(f"{side} answers")).manifest["settings"]["responder"] for side in SIDES]
        varies = metrics.draws > 1 or any(each.get("sampling", {}).get("temperature") for each in sides)  # files do not
        for warning in warnings_of(artifact):  # variances of a judge that is no measure are none either
            console.prose(f"! {warning}")
        origin = f"{artifact.ref}, {speeches} speeches{draws_each(metrics.draws)}"
    if measured is None:
        measured = VarianceComponents(icc * total, (1 - icc) * total)
        origin += f"; its division, {icc:.0%} between speeches, is assumed"
    console.show(*power_tables(measured, target, calls, origin, speeches, varies))
