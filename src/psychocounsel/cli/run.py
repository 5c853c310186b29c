"""`psychocounsel run`: a recipe, some of its steps, or the points of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from psychocounsel.cli.output import (
    Accelerate,
    AllowLeakage,
    Batch,
    DryRun,
    NumProcesses,
    Offline,
    Sets,
    StoreFolder,
    launch_overrides,
    open_store,
    overrides_of,
    rubric_line,
    show_artifacts,
    show_dry_run,
    show_end,
    show_end_of_recipe,
    show_results,
    warn_of_unread_rubric,
)
from psychocounsel.reporting import console
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from psychocounsel.config.recipe import Step
    from psychocounsel.stages.recipe import PointRun

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A folder with a recipe.yaml, or the name of a bundled recipe.")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="STEP", help="Run this step, and no other. Repeatable.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="STEP", help="Run no step after this one.")]
From = Annotated[str | None, typer.Option("--from", metavar="STEP", help="Run no step before this one.")]
Sweep = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=VALUE,...", help="Run with each value, and compare. Repeatable: the product."),
]


def run(
    recipe: RecipeArgument,
    sets: Sets = None,
    only: Only = None,
    start: From = None,
    until: Until = None,
    sweep: Sweep = None,
    batch: Batch = False,
    allow_leakage: AllowLeakage = False,
    num_processes: NumProcesses = None,
    accelerate: Accelerate = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = None,
) -> None:
    """Run the stages of a recipe in order.

    Existing artifacts are reused, and unfinished ones are resumed. A sweep ends with a table of its points.
    """
    from psychocounsel.config.recipe import load_points, recipe_folder, select_steps
    from psychocounsel.stages.recipe import dry_run as preview
    from psychocounsel.stages.recipe import run_recipe

    overrides = overrides_of(
        launch_overrides(sets, num_processes, accelerate), batch=batch, allow_leakage=allow_leakage
    )
    folder = recipe_folder(recipe)
    points = load_points(folder, overrides, sweep or [])
    steps = points[0].steps
    chosen = select_steps(steps, only or [], until, start)
    opened = open_store(store, offline, folder)
    warn_of_unread_rubric([step.config for step in steps], folder)
    if dry_run:
        show_dry_run(preview(points, chosen, opened), opened)
        return

    def announce(number: int, step: "Step", label: str) -> None:
        about = [step.name, label, rubric_line(step.config)]
        console.note(f"[{number}/{len(steps)}] {', '.join(filter(None, about))}")

    runs = run_recipe(points, chosen, opened, announce)
    if len(runs) > 1:
        _show_sweep(runs, opened)
    else:
        show_results(runs[0].artifacts, opened)
        show_end_of_recipe(runs[0].artifacts, opened)


def _show_sweep(runs: "Sequence[PointRun]", store: Store) -> None:
    """Print what was made, one table of the points, and the next command.

    Raises:
        DataQualityError: a point has no result.
    """
    from psychocounsel.reporting.compare_tables import sweep_table

    made = list({each.id: each for run in runs for each in run.artifacts}.values())
    show_artifacts(made)
    console.show(sweep_table([(run.point.label, run.artifacts) for run in runs], store))
    for run in runs:
        if run.fault is not None:
            console.result(f"{run.point.label} has no result: {run.fault}")
    fault = next((run.fault for run in runs if run.fault is not None), None)
    if fault is not None:
        raise fault
    compared = [f"{each.kind}/{each.ref}" for each in made if each.kind == "comparisons"]
    if any(each.kind == "reports" for each in made) or len(compared) < 2:
        show_end_of_recipe(made, store)
    else:
        show_end(made[-1], ["compare", *compared], store)
