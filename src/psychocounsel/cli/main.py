"""`psychocounsel STAGE CONFIG`, `psychocounsel run RECIPE` -> artifacts."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psychocounsel.cli.artifacts import add_artifacts_to, add_journal_to, add_push_to
from psychocounsel.cli.output import (
    DEFAULT_STORE,
    DryRun,
    Offline,
    Sets,
    StoreFolder,
    next_config,
    next_words,
    open_store,
    show_costs,
    show_plans,
    tell,
    tell_end,
    tell_end_of_recipe,
)
from psychocounsel.errors import ExitCode, PsychoCounselError
from psychocounsel.reporting import console
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from psychocounsel.config.components import Settings
    from psychocounsel.config.recipe import StageName
    from psychocounsel.config.schema import ImportPreferencesConfig


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
    "make-base-model": "Make a tiny Llama 3 on this machine.\n\nIt lets the pipeline be tried without a download.",
    "build-preferences": "Judge responses to clients and pair them.\n\n"
    "Client speeches and candidate responses become a preference dataset.",
    "train-reward": "Train a reward model and test it.\n\n"
    "It is a Bradley-Terry model of a preference dataset, measured on its test split.",
    "align": "Align a policy, by DPO or in online rounds.\n\n"
    "DPO learns from a preference dataset, online rounds from a reward model.",
    "eval-winrate": "Judge a policy against a reference.\n\n"
    "Their answers to held-out speeches are compared pairwise and in both orders.",
    "report": "Write one HTML page about a run.\n\nThe page is self-contained: it loads nothing from elsewhere.",
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
    from psychocounsel.config.recipe import load_recipe, recipe_folder
    from psychocounsel.stages.recipe import plan_recipe, run_recipe

    _go_offline(offline)
    changes = [*(sets or []), *([IN_BATCHES] if batch else [])]
    steps = load_recipe(recipe_folder(recipe), changes)
    opened = open_store(store, offline)
    if dry_run:
        for planned in plan_recipe(steps, opened):
            console.result(f"# {planned.step.name}")
            show_plans(planned.plans, opened)
            show_costs(planned.costs)
        return
    results = run_recipe(steps, opened, lambda number, step: console.note(f"[{number}/{len(steps)}] {step.name}"))
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

    def command(
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
    from psychocounsel.config.recipe import CONFIGS

    made = run_config(stage, load_config(CONFIGS[stage], path, sets), is_dry_run, store)
    if made is not None:
        tell_end(made, next_words(made, stage, path), store)


def run_config(stage: "StageName", config: "Settings", is_dry_run: bool, store: Store) -> Artifact | None:
    """Run a stage, print what it made and return it; a dry run prints what it would make."""
    from psychocounsel.stages.recipe import stage_tools

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


RELEASED = "released"
"""Name of what is imported, where nobody names it, and of the recipe that trains on it."""

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="hub:owner/name@revision, a folder, or the stage's YAML file.")
]
Named = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help=f"Name of what is made; {RELEASED}, or what the file says."),
]


def add_import_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("import-preferences")(import_preferences)


def import_preferences(
    source: Source,
    name: Named = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Import a released preference dataset.

    Its flaws are counted; train-reward, align and eval-winrate read it like one made here.
    """
    config = _config(source, name, sets or [])
    opened = open_store(store, offline)
    made = run_config("import-preferences", config, dry_run, opened)
    if made is not None:
        tell_end(made, _next_words(Path(source), config.name), opened)


def _config(source: str, name: str | None, sets: list[str]) -> "ImportPreferencesConfig":
    from psychocounsel.config.loading import config_of, load_config
    from psychocounsel.config.schema import ImportPreferencesConfig

    named = [] if name is None else [f"name={json.dumps(name)}"]
    if source.endswith(".yaml"):
        return load_config(ImportPreferencesConfig, Path(source), [*named, *sets])
    return config_of(ImportPreferencesConfig, {"name": RELEASED, "source": source}, [*named, *sets])


def _next_words(source: Path, name: str) -> list[str]:
    """Return the command that trains on what was made: by the config beside, or by the recipe that ships."""
    from psychocounsel.config.components import recipes_folder

    following = next_config("import-preferences", source) if source.suffix == ".yaml" else None
    if following is not None:
        return [following.stage, str(following.config)]
    shipped = recipes_folder() / RELEASED / "train-reward.yaml"
    place = shipped.relative_to(Path.cwd()) if shipped.is_relative_to(Path.cwd()) else shipped
    return ["train-reward", str(place), *([] if name == RELEASED else ["--set", f"preferences={name}"])]


app = typer.Typer(
    name="psychocounsel",
    help="Teach a language model to answer counselling clients, and measure how well it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
add_stages_to(app)
add_import_to(app)
add_artifacts_to(app)
add_push_to(app)
add_journal_to(app)


INTERRUPTED = 130
"""With which typer ends the process after a KeyboardInterrupt."""


def main() -> None:
    """Run the command line; the user's errors end without a traceback, ours always show one."""
    console.show_log()
    # Threads that wait by spinning slow everything down on a machine that others use as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Clients' words are nobody else's business on a machine that others use as well.
    os.umask(0o077)
    # Stages that save their work listen for both signals themselves; elsewhere one ends like the other.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="psychocounsel")
    except PsychoCounselError as fault:
        console.error(fault)
        sys.exit(fault.exit_code)
    except SystemExit as ending:
        if ending.code != INTERRUPTED:
            raise
        console.note("stopped; the same command goes on where it was")
        sys.exit(ExitCode.PREEMPTED)
