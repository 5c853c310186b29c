"""`psychocounsel STAGE CONFIG`, `psychocounsel run RECIPE` -> artifacts."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psychocounsel import console
from psychocounsel.cli.options import DEFAULT_STORE, DryRun, Offline, Sets, StoreFolder, open_store
from psychocounsel.cli.telling import next_words, show_costs, show_plans, tell, tell_end, tell_end_of_recipe
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from psychocounsel.config.base import Settings
    from psychocounsel.recipe import StageName

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Folder with a recipe.yaml, or the name of a bundled recipe.")
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the stage.")]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Ask again what failed in sealed results; new artifacts are made."),
]

Batch = Annotated[
    bool,
    typer.Option("--batch", help="Ask the judge in batches: half the price, an answer within a day."),
]
IN_BATCHES = "judge.batch.enabled=true"

RETRYING: tuple["StageName", ...] = ("build-preferences", "eval-winrate")
STAGES: dict["StageName", str] = {
    "make-base-model": "Make a tiny Llama 3 on this machine.\n\n"
    "It lets the pipeline be tried without a download.",
    "build-preferences": "Judge responses to clients and pair them.\n\n"
    "Client speeches and candidate responses become a preference dataset.",
    "train-reward": "Train a reward model and test it.\n\n"
    "It is a Bradley-Terry model of a preference dataset, measured on its test split.",
    "align": "Align a policy, by DPO or in online rounds.\n\n"
    "DPO learns from a preference dataset, online rounds from a reward model.",
    "eval-winrate": "Judge a policy against a reference.\n\n"
    "Their answers to held-out speeches are compared pairwise and in both orders.",
    "report": "Write one HTML page about a run.\n\n"
    "The page is self-contained: it loads nothing from elsewhere.",
}


def add_stages_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("run")(run)
    for stage, text in STAGES.items():
        made = retrying_command(stage, text) if stage in RETRYING else stage_command(stage, text)
        app.command(stage)(made)


def run(
    recipe: Recipe,
    sets: Sets = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Run the stages of a recipe in order.

    What exists is reused; run again, a recipe owes nothing.
    """
    from psychocounsel import recipe as recipes

    _go_offline(offline)
    changes = [*(sets or []), *([IN_BATCHES] if batch else [])]
    steps = recipes.load_recipe(recipes.recipe_folder(recipe), changes)
    opened = open_store(store, offline)
    if dry_run:
        for planned in recipes.plan_recipe(steps, opened):
            console.result(f"# {planned.step.name}")
            show_plans(planned.plans, opened)
            show_costs(planned.costs)
        return
    results = recipes.run_recipe(
        steps, opened, lambda number, step: console.note(f"[{number}/{len(steps)}] {step.name}")
    )
    made = [result.artifact for result in results]
    tell(made, opened)
    tell_end_of_recipe(made, opened)


def stage_command(stage: "StageName", text: str) -> Callable[..., None]:
    """Return the command of a stage that asks nobody."""

    def command(
        config: Config,
        sets: Sets = None,
        dry_run: DryRun = False,
        offline: Offline = False,
        store: StoreFolder = DEFAULT_STORE,
    ) -> None:
        _run_stage(stage, config, sets or [], dry_run, open_store(store, offline))

    command.__doc__ = text
    return command


def retrying_command(stage: "StageName", text: str) -> Callable[..., None]:
    """Return the command of a stage that asks models, some of which may fail."""

    def command(  # noqa: PLR0913, every option of a command is a parameter
        config: Config,
        sets: Sets = None,
        retry_failed: RetryFailed = False,
        batch: Batch = False,
        dry_run: DryRun = False,
        offline: Offline = False,
        store: StoreFolder = DEFAULT_STORE,
    ) -> None:
        retry = ["retry_failed=true"] if retry_failed else []
        batches = [IN_BATCHES] if batch else []
        _run_stage(stage, config, [*(sets or []), *retry, *batches], dry_run, open_store(store, offline))

    command.__doc__ = text
    return command


def _run_stage(stage: "StageName", path: Path, sets: Sequence[str], is_dry_run: bool, store: Store) -> None:
    from psychocounsel.config.loading import load_config
    from psychocounsel.recipe import CONFIGS

    made = run_config(stage, load_config(CONFIGS[stage], path, sets), is_dry_run, store)
    if made is not None:
        tell_end(made, next_words(made, stage, path), store)


def run_config(stage: "StageName", config: "Settings", is_dry_run: bool, store: Store) -> Artifact | None:
    """Run a stage, print what it made and return it; a dry run prints what it would make."""
    from psychocounsel.recipe import stage_tools

    _go_offline(store.offline)
    tools = stage_tools(stage)
    if is_dry_run:
        plans, costs = tools.plans(config, store), tools.costs(config, store)
        console.result(config.model_dump_json(indent=2))
        show_plans(plans, store)
        show_costs(costs)
        return None
    made = tools.run(config, store)
    tell([made], store)
    return made


def _go_offline(is_offline: bool) -> None:
    if is_offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
