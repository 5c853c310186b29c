"""Options that several commands share, and what commands print: results, pending work, the next command."""

import inspect
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, get_args, get_type_hints

import typer

from psychocounsel.errors import ConfigError
from psychocounsel.reporting import console
from psychocounsel.store.artifacts import ROUND, Artifact
from psychocounsel.store.store import STORE_VARIABLE, Store, open_store

if TYPE_CHECKING:
    from psychocounsel.config.base import Settings
    from psychocounsel.config.recipe import StageName, Step
    from psychocounsel.stages.recipe import StepPreview
    from psychocounsel.store.artifacts import ArtifactSpec


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A folder with a recipe.yaml, or the name of a bundled recipe.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the config. Repeatable.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be created and paid; with -v all settings. Create nothing.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection beyond this machine.")]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", envvar=STORE_VARIABLE, help="Folder of the artifacts; else PROJECT/data, or data."),
]
Batch = Annotated[
    bool, typer.Option("--batch", help="Send the judge's requests in batches: half the price, within a day.")
]
AllowLeakage = Annotated[
    bool, typer.Option("--allow-leakage", help="Evaluate on training speeches too, and say so in the result.")
]


class StageOptions(TypedDict):
    """The options of every command that runs stages."""

    sets: Sets
    dry_run: DryRun
    offline: Offline
    store: StoreFolder


class LaunchOptions(StageOptions):
    """Those of a command that trains."""

    num_processes: Annotated[
        int | None,
        typer.Option("--num-processes", metavar="N", min=1, help="Train, sample and score in so many processes."),
    ]
    accelerate: Annotated[
        str | None,
        typer.Option("--accelerate", metavar="NAME|FILE", help="Launch them as this says: ddp, fsdp2, ... or a file."),
    ]


class JudgeOptions(StageOptions):
    """Those of a command that asks a judge."""

    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send the failed requests of completed artifacts again.")
    ]
    batch: Batch


_KEYS = {
    "retry_failed": "retry_failed",
    "allow_leakage": "allow_leakage",
    "batch": "judge.batch.enabled",
    "num_processes": "launch.num_processes",
    "accelerate": "launch.accelerate",
}
"""The key of a config that an option changes."""
_Command = TypeVar("_Command", bound=Callable[..., None])


def with_options(command: _Command) -> _Command:
    """Give a command with `**options: Unpack[StageOptions]` a parameter for each key in its signature, for typer."""
    signature = inspect.signature(command)
    *own, last = signature.parameters.values()
    if last.kind is last.VAR_KEYWORD:
        keys = get_type_hints(*get_args(last.annotation), include_extras=True)
        shared = [
            inspect.Parameter(
                name, last.KEYWORD_ONLY, default=False if hint.__origin__ is bool else None, annotation=hint
            )
            for name, hint in keys.items()
        ]
        typed: Any = command
        typed.__signature__ = signature.replace(parameters=[*own, *shared])
    return command


def overrides_of(options: StageOptions, **flags: bool) -> list[str]:
    """Return the texts of `--set`, and after them what the other options of a command stand for."""
    given = {**options, **flags}
    own = [f"{key}={json.dumps(given[name])}" for name, key in _KEYS.items() if given.get(name)]
    return [*(options["sets"] or []), *own]


_FUNNEL_KINDS = ("speeches", "candidates", "judgements")
_NEXT_STAGE: "dict[StageName, StageName]" = {
    "make-base-model": "build-preferences",
    "corpus": "build-preferences",
    "build-preferences": "train-reward",
    "import-preferences": "train-reward",
    "train-reward": "align",
    "align": "eval-winrate",
}
_SETTING = {
    "preferences": "preferences={ref}",
    "reward-models": "online.reward_model={ref}",
    "policies": "policy.model={ref}",
}
"""How a config of the next stage names an artifact of a kind."""


def show_results(artifacts: Sequence[Artifact], store: Store, before: Sequence[Artifact] = ()) -> None:
    """Print artifacts with their numbers; a dataset with the funnel from raw rows to pairs.

    First come the warnings that those shown `before` did not have.
    """
    from psychocounsel.reporting.artifact_tables import summary  # pydantic: not for --help

    _show_warnings(artifacts, before)
    room = console.width()
    for artifact in artifacts:
        _show_state(artifact)
        parents = artifact.parents if artifact.kind in ("preferences", "candidates") else ()
        sources = sorted(
            (each for each in parents if each.kind in _FUNNEL_KINDS), key=lambda each: _FUNNEL_KINDS.index(each.kind)
        )
        for shown in (*map(store.open, sources), artifact):
            for line in summary(shown, room and room - 2).splitlines():
                console.result(f"  {line}")


def show_artifact(artifact: Artifact, before: Sequence[Artifact]) -> None:
    """Print an artifact in a line, after the warnings that those shown `before` did not have."""
    _show_warnings([artifact], before)
    _show_state(artifact)


def _show_warnings(artifacts: Sequence[Artifact], before: Sequence[Artifact]) -> None:
    known = {warning for artifact in before for warning in artifact.warnings}
    for warning in dict.fromkeys(warning for artifact in artifacts for warning in artifact.warnings):
        if warning not in known:
            console.prose(f"! {warning}")


def _show_state(artifact: Artifact) -> None:
    state = "created" if artifact.is_new else "up to date"
    console.result(f"{state}: {artifact.kind} {artifact.ref}  ({artifact.folder})")


def next_step(stage: "StageName", config: Path) -> tuple[str, str] | None:
    """Return the stage after a stage's config and its own config, or None if the folder has none for it.

    It is the recipe's next step where a `recipe.yaml` in the folder names the config; else that of the next stage:
    `align-dpo.yaml` is followed by `eval-winrate-dpo.yaml` where that exists, else by `eval-winrate.yaml`.
    """
    from psychocounsel.config.recipe import config_argument

    step, following = _next_in_recipe(config), _NEXT_STAGE.get(stage)
    if step is None and following is not None:
        names = [f"{following}{config.stem.removeprefix(stage)}.yaml", f"{following}.yaml"]
        found = [config.with_name(name) for name in names if config.with_name(name).is_file()]
        step = (following, found[0]) if found else None
    return None if step is None else (step[0], config_argument(*step))


def _next_in_recipe(config: Path) -> "tuple[StageName, Path] | None":
    from psychocounsel.config.loading import load_config
    from psychocounsel.config.recipe import RECIPE_FILE, RecipeConfig

    recipe = config.with_name(RECIPE_FILE)
    if not recipe.is_file():
        return None
    try:
        steps = load_config(RecipeConfig, recipe).steps
    except ConfigError:  # the user ran a stage, not the recipe
        return None
    for step, following in pairwise(steps):
        if step.config == config.name and config.with_name(following.config).is_file():
            return following.stage, config.with_name(following.config)
    return None


def next_command(created: Artifact, stage: "StageName", config: Path) -> list[str]:
    """Return the command that reads the result of a stage; CONFIG stands for a file that does not exist yet."""
    following = next_step(stage, config)
    if following is not None:
        return list(following)
    if stage not in _NEXT_STAGE:
        return ["open", f"{created.kind}/{created.ref}"]
    setting = _SETTING.get(created.kind)
    return [_NEXT_STAGE[stage], "CONFIG", *([] if setting is None else ["--set", setting.format(ref=created.ref)])]


def show_end(artifact: Artifact, command: Sequence[str], store: Store) -> None:
    """Print the last line: the next command, ready to be pasted, or the path of a report."""
    from psychocounsel.reporting.tables import REPORT_FILE

    if artifact.kind == "reports":
        console.result(f"report: {artifact.file(REPORT_FILE).resolve()}")
        return
    # A recipe or its config, in whose folder the command looks for the store; else a reference.
    named = Path(command[1])
    own = open_store(recipe=named.parent if named.suffix == ".yaml" else named).root
    words = shlex.join([*command, *([] if store.root == own else ["--store", str(store.root)])])
    console.result(f"{artifact.kind} {artifact.ref} is ready; next: psychocounsel {words}")


def show_end_of_recipe(created: Sequence[Artifact], store: Store) -> None:
    """Print the path of a recipe's report; without one, the command that opens the last result."""
    last = next((each for each in reversed(created) if each.kind == "reports"), created[-1])
    show_end(last, ["open", f"{last.kind}/{last.ref}"], store)


def rubric_line(config: "Settings") -> str:
    """Return the rubric by which a step judges, with the number of its principles; empty where nothing is judged."""
    from psychocounsel.config.components import JudgeConfig
    from psychocounsel.judging.rubric import load_rubric

    judge = getattr(config, "judge", None)
    if not isinstance(judge, JudgeConfig):
        return ""
    count = len(load_rubric(judge.rubric).principles)
    return f"rubric: {judge.rubric} ({count} principle{'s' if count > 1 else ''})"


def warn_of_unread_rubric(configs: "Iterable[Settings]", folder: Path) -> None:
    """Print a warning if a folder has a rubric.yaml, and a judge of its configs names no rubric at all."""
    from psychocounsel.config.components import JudgeConfig

    own = folder / "rubric.yaml"
    judges = [judge for each in configs if isinstance(judge := getattr(each, "judge", None), JudgeConfig)]
    if own.is_file() and any("rubric" not in judge.model_fields_set for judge in judges):
        default = JudgeConfig().rubric
        console.note(
            f"! a judge names no rubric: it uses {default}, and not {own}; write `rubric: {own.name}` under judge"
        )


def heading(step: "Step", label: str) -> str:
    """Return what names a step: also the policy that it evaluates, and what differs at a point of a sweep."""
    author = getattr(getattr(step.config, "policy", None), "author", "")
    return ", ".join(filter(None, [step.name, author and f"policy {author}", label]))


def show_dry_run(previews: "Sequence[StepPreview]", store: Store) -> None:
    """Print what each step would create and pay; of an online run its result, and how much of its rounds is there.

    With `-v` every round and every setting.
    """
    from psychocounsel.llm.session import bill_of

    for preview in previews:
        console.result(f"# {heading(preview.step, preview.label)}")
        if console.is_verbose():
            console.result(preview.step.config.model_dump_json(indent=2))
        if rubric := rubric_line(preview.step.config):
            console.result(rubric)
        pending = {spec.id for spec in preview.specs if store.find(spec) is None}
        rounds: list[ArtifactSpec] = []
        for spec in preview.specs:
            if ROUND.search(spec.name) and not console.is_verbose():
                rounds.append(spec)
            else:
                console.result(f"{spec.kind:15} {spec.ref:40} {'pending' if spec.id in pending else 'up to date'}")
        if rounds:
            left = sum(spec.id in pending for spec in rounds)
            state = f"{left} pending" if left else "up to date"
            console.result(f"{'rounds':15} {f'{len(rounds)} artifacts':40} {state}")
        for calls in preview.calls:
            console.prose(f"to pay: {calls}")
        if isinstance(preview.needs, str):
            console.prose(preview.needs)
        else:
            for need in preview.needs:
                console.show(need)
    asked = [calls for preview in previews for calls in preview.calls]
    if sum(each.calls is not None for each in asked) > 1 or any(each.estimate for each in asked):
        console.prose(f"to pay in all: {bill_of(asked)}")
    if not asked:
        console.prose("nothing to pay: no calls to an endpoint")
    if not console.is_verbose():
        console.note("with -v: every setting and every artifact of the rounds")
