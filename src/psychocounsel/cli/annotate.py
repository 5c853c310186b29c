"""The commands for experts: `annotate export` writes a page and a spreadsheet, `annotate import` reads them back."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from psychocounsel.cli.output import StoreFolder, show_end, show_results
from psychocounsel.reporting import console
from psychocounsel.store.store import open_store


class Labeller(StrEnum):
    """Who labelled."""

    HUMAN = "human"
    MODEL = "model"


Source = Annotated[str, typer.Argument(metavar="REF", help="Comparisons, or the judgements of a preference dataset.")]
Sample = Annotated[int, typer.Option("--sample", metavar="N", min=1, help="How many items to draw at random.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides which items, their order and the sides.")]
RubricName = Annotated[str, typer.Option("--rubric", metavar="NAME|FILE", help="Of judgements: the judge's rubric.")]
Tasks = Annotated[str, typer.Argument(metavar="TASKS", help="The export that raters were given.")]
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="What raters sent back: a .json or .csv file of each.")
]
By = Annotated[Labeller, typer.Option("--labeller", help="Who labelled: a model's labels anchor nothing.")]


def export(
    ref: Source,
    sample: Sample,
    seed: Seed = 0,
    rubric: RubricName = "seven-principles",
    store: StoreFolder = None,
) -> None:
    """Write a random sample for experts to label.

    One page that works offline in a browser, and the same as CSV: blinded, shuffled, sides at random.
    """
    from psychocounsel.stages.annotate import CSV_FILE, PAGE_FILE, RESTRICTED, export_tasks

    opened = open_store(store)
    created = export_tasks(ref, opened, sample, seed, rubric)
    # Older exports say so in a warning.
    is_restricted = created.manifest["notes"].get("restricted", RESTRICTED in created.warnings)
    if is_restricted:
        console.prose(f"! {RESTRICTED}")
    show_results([created], opened)
    todo = "label on this computer" if is_restricted else "send to raters"
    for name in (PAGE_FILE, CSV_FILE):
        console.result(f"{todo}: {created.file(name).resolve()}")
    command = ["annotate", "import", f"{created.kind}/{created.ref}", "FILE", "--labeller", "human"]
    show_end(created, command, opened)


def import_(tasks: Tasks, files: Files, labeller: By, store: StoreFolder = None) -> None:
    """Add raters' labels to the store.

    Refuses what does not fit the export, and shows how far raters agree.
    """
    from psychocounsel.stages.anchor import can_correct
    from psychocounsel.stages.annotate import import_labels

    opened = open_store(store)
    created = import_labels(tasks, files, labeller.value, opened)
    show_results([created], opened)
    reference = f"{created.kind}/{created.ref}"
    compared = [each.ref for each in opened.open(created.parents[0]).parents if each.kind == "comparisons"]
    corrects = compared and can_correct(created)
    show_end(created, ["anchor", *compared, "--labels", reference] if corrects else ["show", reference], opened)


def add_annotate(app: typer.Typer) -> None:
    """Register the group."""
    group = typer.Typer(help="Have experts label a random sample.", no_args_is_help=True)
    for name, command in {"export": export, "import": import_}.items():
        group.command(name)(command)
    app.add_typer(group, name="annotate")
