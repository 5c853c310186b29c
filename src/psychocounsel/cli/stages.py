"""`psychocounsel STAGE CONFIG`, `psychocounsel run RECIPE` -> artifacts."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from psychocounsel import console
from psychocounsel.cli.options import DEFAULT_STORE, DryRun, Offline, Sets, StoreFolder, open_store
from psychocounsel.store.artifacts import Artifact, Plan
from psychocounsel.store.store import Store

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the stage.")]

NEXT_STAGE = {
    "make-base-model": "build-preferences",
    "build-preferences": "train-reward",
    "train-reward": "align",
    "align": "eval-winrate",
    "eval-winrate": "report",
    "report": "",
}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("run")(run)
    app.command("make-base-model")(make_base_model)
    app.command("build-preferences")(build_preferences)
    app.command("train-reward")(train_reward)
    app.command("align")(align)
    app.command("eval-winrate")(eval_winrate)
    app.command("report")(report)


def run(
    recipe: Annotated[
        str, typer.Argument(help="A folder with recipe.yaml, or the name of a bundled recipe.")
    ],
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Run every stage of a recipe in order; what exists is reused."""
    from psychocounsel import recipe as recipes

    _go_offline(offline)
    steps = recipes.load_recipe(recipes.recipe_folder(recipe), sets or [])
    opened = open_store(store, offline)
    if dry_run:
        for step, plans in recipes.plan_recipe(steps, opened):
            console.result(f"# {step.name}")
            _show_plans(plans, opened)
        return
    results = recipes.run_recipe(
        steps, opened, lambda number, step: console.note(f"[{number}/{len(steps)}] {step.name}")
    )
    for result in results:
        _tell(result.artifact)
    console.result(f"next: psychocounsel show {results[-1].artifact.kind}/{results[-1].artifact.ref}")


def make_base_model(
    config: Config,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Make a tiny Llama 3 on this machine, to try the pipeline without a download."""
    _run_stage("make-base-model", config, sets or [], dry_run, open_store(store, offline))


def build_preferences(
    config: Config,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Turn client speeches and candidate responses into a judged preference dataset."""
    _run_stage("build-preferences", config, sets or [], dry_run, open_store(store, offline))


def train_reward(
    config: Config,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Train a Bradley-Terry reward model on preferences and measure it on the test split."""
    _run_stage("train-reward", config, sets or [], dry_run, open_store(store, offline))


def align(
    config: Config,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Align a policy by DPO, or in online rounds with a reward model."""
    _run_stage("align", config, sets or [], dry_run, open_store(store, offline))


def eval_winrate(
    config: Config,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Judge a policy's answers against a reference's, pairwise and in both orders."""
    _run_stage("eval-winrate", config, sets or [], dry_run, open_store(store, offline))


def report(
    config: Config,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Write one self-contained HTML page about the artifacts of a run."""
    _run_stage("report", config, sets or [], dry_run, open_store(store, offline))


def _run_stage(stage: Any, config_path: Path, sets: Sequence[str], is_dry_run: bool, store: Store) -> None:
    from psychocounsel.config.loading import load_config
    from psychocounsel.recipe import CONFIGS, stage_tools

    _go_offline(store.offline)
    config = load_config(CONFIGS[stage], config_path, sets)
    tools = stage_tools(stage)
    if is_dry_run:
        console.result(config.model_dump_json(indent=2))
        _show_plans(tools.plans(config, store), store)
        return
    _tell(tools.run(config, store))
    if NEXT_STAGE[stage]:
        near = config_path.parent / f"{NEXT_STAGE[stage]}.yaml"
        console.result(f"next: psychocounsel {NEXT_STAGE[stage]} {shlex.quote(str(near))}")


def _go_offline(is_offline: bool) -> None:
    if is_offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def _show_plans(plans: Sequence[Plan], store: Store) -> None:
    for plan in plans:
        state = "exists, would be reused" if store.find(plan) else "owed"
        console.result(f"{plan.kind:15} {plan.ref:40} {state}")


def _tell(artifact: Artifact) -> None:
    state = "made" if artifact.is_new else "nothing owed"
    console.result(f"{state}: {artifact.kind} {artifact.ref}  ({artifact.folder})")
