"""The commands that run stages: one for each, and `run` for a recipe, some of its steps, or the points of a sweep."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from psychocounsel.cli.output import (
    AllowLeakage,
    Batch,
    JudgeOptions,
    LaunchOptions,
    Offline,
    RecipeArgument,
    StageOptions,
    StoreFolder,
    heading,
    next_command,
    next_step,
    overrides_of,
    rubric_line,
    show_artifact,
    show_dry_run,
    show_end,
    show_end_of_recipe,
    show_results,
    warn_of_unread_rubric,
    with_options,
)
from psychocounsel.reporting import console
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.files import write_bytes
from psychocounsel.store.store import Store, open_store

if TYPE_CHECKING:
    from psychocounsel.config.components import Settings
    from psychocounsel.config.recipe import StageName, Step
    from psychocounsel.stages.recipe import PointRun


ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="The YAML file of the stage, RECIPE, or RECIPE/STEP.")
]
SourceArgument = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="hub:owner/name@revision, a file or folder, or as CONFIG of other stages."),
]
ResultName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the result; else that of what is measured.")
]
ImportName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the result; else 'released', or the file's.")
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

RELEASED = "released"
"""Default name of an imported dataset, and the name of the recipe that trains on it."""


def run(
    recipe: RecipeArgument,
    only: Only = None,
    start: From = None,
    until: Until = None,
    sweep: Sweep = None,
    batch: Batch = False,
    allow_leakage: AllowLeakage = False,
    **options: Unpack[LaunchOptions],
) -> None:
    """Run the stages of a recipe in order.

    Existing artifacts are reused, and unfinished ones are resumed. A sweep ends with a table of its points.
    """
    from psychocounsel.config.recipe import load_points, recipe_folder, select_steps
    from psychocounsel.stages.recipe import dry_run as preview
    from psychocounsel.stages.recipe import run_recipe

    overrides = overrides_of(options, batch=batch, allow_leakage=allow_leakage)
    folder = recipe_folder(recipe)
    points = load_points(folder, overrides, sweep or [])
    steps = points[0].steps
    chosen = select_steps(steps, only or [], until, start)
    opened = open_store(options["store"], options["offline"], folder)
    warn_of_unread_rubric([step.config for step in steps], folder)
    if options["dry_run"]:
        show_dry_run(preview(points, chosen, opened), opened)
        return

    def announce(number: int, step: "Step", label: str) -> None:
        about = [heading(step, label), rubric_line(step.config)]
        console.note(f"[{number}/{len(steps)}] {', '.join(filter(None, about))}")

    made: dict[str, Artifact] = {}

    def show(artifact: Artifact) -> None:
        before = list(made.values())
        if len(points) == 1:
            show_results([artifact], opened, before)
        elif artifact.id not in made:
            show_artifact(artifact, before)
        made[artifact.id] = artifact

    runs = run_recipe(points, chosen, opened, announce, show)
    if len(runs) > 1:
        _show_sweep(runs, opened)
    else:
        show_end_of_recipe(runs[0].artifacts, opened)


def _show_sweep(runs: "Sequence[PointRun]", store: Store) -> None:
    """Print one table of the points, and the next command.

    Raises:
        DataQualityError: a point has no result.
    """
    from psychocounsel.reporting.compare_tables import sweep_table

    made = list({each.id: each for run in runs for each in run.artifacts}.values())
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


def make_base_model(config: ConfigArgument, **options: Unpack[StageOptions]) -> None:
    """Train a tiny Llama 3 on this machine.

    With it the pipeline runs without a download.
    """
    _run_stage("make-base-model", config, options)


def corpus(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="The YAML file of a corpus or of build-preferences, or RECIPE.")
    ],
    **options: Unpack[StageOptions],
) -> None:
    """Build a corpus and show what each rule did to it.

    Reads, cleans, de-identifies, de-duplicates and splits. Writes a private page of the largest changes.
    """
    from psychocounsel.config.corpus import CorpusConfig
    from psychocounsel.config.loading import load_config, read_config_file
    from psychocounsel.config.recipe import RECIPE_FILE, is_project, stage_config
    from psychocounsel.config.schema import BuildPreferencesConfig

    path = stage_config("corpus", config)
    data = read_config_file(path).data
    is_part = isinstance(data, dict) and "corpus" in data
    changes = overrides_of(options)
    loaded = (
        load_config(BuildPreferencesConfig, path, changes).corpus
        if is_part
        else load_config(CorpusConfig, path, changes, "corpus")
    )
    created, opened = _run_configs("corpus", [loaded], options, path.parent)
    if created:
        is_of_recipe = (path.parent / RECIPE_FILE).is_file()
        if is_of_recipe and (is_part or path.stem == "corpus"):
            words = ["run", str(path.parent) if is_project(path.parent) else path.parent.name]
        elif is_of_recipe:  # another corpus, which no step of the recipe reads
            words = ["show", f"{created[0].kind}/{created[0].ref}"]
        else:
            words = ["build-preferences", str(path)] if is_part else next_command(created[0], "corpus", path)
        show_end(created[0], words, opened)


def build_preferences(config: ConfigArgument, **options: Unpack[JudgeOptions]) -> None:
    """Build a preference dataset with a judge.

    Rates candidate responses to client speeches and pairs them.
    """
    _run_stage("build-preferences", config, options)


def train_reward(config: ConfigArgument, allow_leakage: AllowLeakage = False, **options: Unpack[LaunchOptions]) -> None:
    """Train and test a reward model.

    A Bradley-Terry model of a preference dataset, measured on its test split.
    """
    _run_stage("train-reward", config, options, allow_leakage=allow_leakage)


def eval_reward(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An artifact, a folder, hub:owner/name, or the stage's YAML file.")
    ],
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="PREFERENCES", help="A preferences artifact, a file, a folder or hub:owner/name."),
    ] = None,
    name: ResultName = None,
    allow_leakage: AllowLeakage = False,
    **options: Unpack[StageOptions],
) -> None:
    """Measure a reward model on pairs or best-of-k rows.

    Any model with a sequence-classification head, on a test split or on a file like RewardBench 2's.
    """
    given = {"model": model, "on": on, "name": name}
    _run_on_arguments("eval-reward", given, options, allow_leakage=allow_leakage)


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An artifact, a folder, or hub:owner/name@revision.")],
    source: Annotated[str, typer.Option("--in", metavar="FILE", help="Rows to score: .jsonl, .csv or .parquet.")],
    target: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write, of any of these endings.")],
    speech: Annotated[str, typer.Option("--speech", metavar="COLUMN", help="What the client says.")] = "speech",
    response: Annotated[str, typer.Option("--response", metavar="COLUMN", help="What is answered.")] = "response",
    history: Annotated[str | None, typer.Option("--history", metavar="COLUMN", help="Messages before it.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Responses at once.")] = 8,
    offline: Offline = False,
    store: StoreFolder = None,
) -> None:
    """Score the responses in a file with a reward model.

    Writes the rows with their rewards. The same command resumes.
    """
    from psychocounsel.stages.score import ScoreJob, score_file

    job = ScoreJob(model, source, target, speech, response, batch_size, history)
    count = score_file(job, open_store(store, offline))
    console.result(f"{count} rows scored: {target}")


def align(config: ConfigArgument, **options: Unpack[LaunchOptions]) -> None:
    """Align a policy by DPO or online DPO.

    DPO learns from a preference dataset, online DPO from a reward model.
    """
    _run_stage("align", config, options)


def eval_winrate(config: ConfigArgument, allow_leakage: AllowLeakage = False, **options: Unpack[JudgeOptions]) -> None:
    """Measure a policy's win rate.

    A judge compares its responses to held-out speeches with a reference's, in both orders.
    """
    _run_stage("eval-winrate", config, options, allow_leakage=allow_leakage)


def anchor(
    comparisons: Annotated[
        str, typer.Argument(metavar="COMPARISONS", help="The comparisons artifact, or the stage's YAML file.")
    ],
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="ANNOTATIONS", help="People's labels of a random sample of it.")
    ] = None,
    name: ResultName = None,
    **options: Unpack[StageOptions],
) -> None:
    """Correct a judge's win rate by human labels.

    The labels are those of `annotate import`, of a random sample of the same comparison.
    """
    _run_on_arguments("anchor", {"comparisons": comparisons, "labels": labels, "name": name}, options)


def eval_crisis(config: ConfigArgument, **options: Unpack[JudgeOptions]) -> None:
    """Look for harm in answers to people at risk.

    A judge checks a policy and its base with yes-or-no questions; says whether the policy is ready for release.
    """
    _run_stage("eval-crisis", config, options)


def calibrate_judge(
    human: Annotated[
        str, typer.Argument(metavar="HUMAN", help="People's ratings: a table, annotations, or the stage's YAML file.")
    ],
    judge: Annotated[
        str | None, typer.Argument(metavar="JUDGE", help="The judge's ratings: a table or a judgements artifact.")
    ] = None,
    name: ResultName = None,
    **options: Unpack[StageOptions],
) -> None:
    """Measure a judge against human ratings.

    Tables are .csv, .jsonl, .parquet or .xlsx with the columns item, rater, principle and score, and where they are
    known speech, author and text.
    """
    given = {"human": human, "judge": judge, "name": name}
    _run_on_arguments("calibrate-judge", given, options, named_after=judge or "")


def report(
    config: ConfigArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the page there, and nothing into the store.")
    ] = None,
    **options: Unpack[StageOptions],
) -> None:
    """Write an HTML report about a run.

    The page is self-contained and loads nothing from elsewhere.
    """
    if out is None or options["dry_run"]:
        _run_stage("report", config, options)
        return
    from psychocounsel.config.loading import load_config
    from psychocounsel.config.recipe import stage_config
    from psychocounsel.config.schema import ReportConfig
    from psychocounsel.reporting.tables import REPORT_FILE
    from psychocounsel.stages.report import make_report

    path = stage_config("report", config)
    loaded = load_config(ReportConfig, path, overrides_of(options))
    opened = open_store(options["store"], options["offline"], path.parent)
    with TemporaryDirectory() as folder:
        page = make_report(loaded, opened.overlay(Path(folder))).file(REPORT_FILE).read_bytes()
    write_bytes(out, page)
    console.result(f"report: {out.resolve()}")


def import_preferences(source: SourceArgument, name: ImportName = None, **options: Unpack[StageOptions]) -> None:
    """Import a preference dataset of others.

    Its licence and class have to be given (`--set licence=mit --set data_class=public`). Counts its flaws. The other
    stages read the result like a dataset built here.
    """
    from psychocounsel.config.loading import config_of, load_config
    from psychocounsel.config.recipe import RECIPE_FILE, bundled_recipes, stage_config
    from psychocounsel.config.schema import ImportPreferencesConfig
    from psychocounsel.store.schemas import pairs_file

    overrides = [*([] if name is None else [f"name={json.dumps(name)}"]), *overrides_of(options)]
    place = Path(source)
    is_recipe = (place / RECIPE_FILE).is_file() or (source in bundled_recipes() and not place.exists())
    path = stage_config("import-preferences", source) if is_recipe or source.endswith(".yaml") else None
    if path is not None:
        config = load_config(ImportPreferencesConfig, path, overrides)
    else:
        config = config_of(ImportPreferencesConfig, {"name": RELEASED, "source": source}, overrides)
    created, opened = _run_configs("import-preferences", [config], options, path.parent if path is not None else None)
    if not created:
        return
    following = next_step("import-preferences", path) if path is not None else None
    change: list[str] = [] if config.name == RELEASED else ["--set", f"preferences={config.name}"]
    command = ["train-reward", RELEASED, *change]
    if pairs_file("train") not in created[0].manifest["files"]:  # a benchmark
        command = ["eval-reward", "MODEL", "--on", f"preferences/{config.name}"]
    show_end(created[0], list(following or command), opened)


def _run_on_arguments(
    stage: "StageName",
    given: Mapping[str, str | None],
    options: StageOptions,
    named_after: str = "",
    **flags: bool,
) -> None:
    """Run a stage by the YAML file that is the first argument, or else by the arguments, `given` by key.

    Without a name the result is called as `named_after`, a reference or a path, or as the first argument.
    """
    from psychocounsel.config.loading import config_of, load_config
    from psychocounsel.config.recipe import STAGES

    keys = {key: value for key, value in given.items() if value is not None}
    first = next(iter(keys.values()))
    overrides = overrides_of(options, **flags)
    if first.endswith(".yaml"):
        own = [f"{key}={json.dumps(value)}" for key, value in keys.items() if value != first]
        config = load_config(STAGES[stage].config, Path(first), [*own, *overrides])
    else:
        word = (named_after or first).rpartition("/")[2].partition("@")[0].lower()
        word = re.sub(r"\.(csv|tsv|jsonl|json|parquet|xlsx)(\.gz|\.zst)?$", "", word)
        known_as = re.sub(r"[^a-z0-9_.-]+", "-", word).lstrip("_.-")
        config = config_of(STAGES[stage].config, {"name": known_as, **keys}, overrides)
    created, opened = _run_configs(stage, [config], options, Path(first).parent)
    for each in created:
        show_end(each, ["open", f"{each.kind}/{each.ref}"], opened)


def _run_stage(stage: "StageName", name: str, options: StageOptions, **flags: bool) -> None:
    from psychocounsel.config.recipe import load_stage_configs, stage_config

    path = stage_config(stage, name)
    configs = load_stage_configs(stage, path, overrides_of(options, **flags))
    warn_of_unread_rubric(configs, path.parent)
    created, opened = _run_configs(stage, configs, options, path.parent)
    if len(created) > 1:
        show_end(created[-1], ["compare", *(f"{each.kind}/{each.ref}" for each in created)], opened)
    elif created:
        show_end(created[0], next_command(created[0], stage, path), opened)


def _run_configs(
    stage: "StageName", configs: "Sequence[Settings]", options: StageOptions, folder: Path | None
) -> tuple[list[Artifact], Store]:
    """Run a stage for each config, whose file is in `folder`, and print the results; nothing in a dry run.

    Returns the results, and the store in which they are.
    """
    from psychocounsel.config.recipe import Step, SweepPoint
    from psychocounsel.stages.recipe import dry_run, run_stage

    store = open_store(options["store"], options["offline"], folder)
    if options["dry_run"]:
        steps = [Step(stage, stage, each) for each in configs]
        show_dry_run(dry_run([SweepPoint((), steps)], [True] * len(steps), store), store)
        return [], store
    if rubric := rubric_line(configs[0]):
        console.note(rubric)
    created = [run_stage(stage, each, store) for each in configs]
    show_results(created, store)
    return created, store


def add_stages(app: typer.Typer) -> None:
    """Register the commands."""
    commands: tuple[Callable[..., None], ...] = (
        run,
        make_base_model,
        corpus,
        build_preferences,
        train_reward,
        eval_reward,
        score,
        align,
        eval_winrate,
        anchor,
        eval_crisis,
        calibrate_judge,
        report,
        import_preferences,
    )
    for command in commands:
        app.command()(with_options(command))
