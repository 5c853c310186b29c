"""Folder of configs -> a run: the stages of a recipe in order, each reading what the ones before it made.

Within a run a name means what this run made or will make, so that an older config run again does not pick up
newer artifacts of the same name.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import Field

from psychocounsel.config.components import Settings, recipes_folder
from psychocounsel.config.loading import load_config
from psychocounsel.config.schema import (
    AlignConfig,
    BaseModelConfig,
    BuildPreferencesConfig,
    EvalWinrateConfig,
    ImportPreferencesConfig,
    ReportConfig,
    TrainRewardConfig,
)
from psychocounsel.errors import ConfigError
from psychocounsel.stages.dry_run import PaidCalls
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.store import Store

StageName = Literal[
    "make-base-model",
    "build-preferences",
    "import-preferences",
    "train-reward",
    "align",
    "eval-winrate",
    "report",
]
RECIPE_FILE = "recipe.yaml"
SHARED = ("corpus", "judge")
"""Blocks that several steps have; a `--set` of one reaches them all."""


class StepConfig(Settings):
    """One stage of a recipe and the file that configures it."""

    stage: StageName
    config: str


class RecipeConfig(Settings):
    """The steps of a recipe, in order; `seed`, if given, goes to every step that sets none by `--set`."""

    description: str
    steps: Annotated[tuple[StepConfig, ...], Field(strict=False, min_length=1)]
    seed: int | None = None


class Step(NamedTuple):
    """A step with its validated config."""

    name: str
    stage: StageName
    config: Any


CONFIGS: dict[StageName, type[Settings]] = {
    "make-base-model": BaseModelConfig,
    "build-preferences": BuildPreferencesConfig,
    "import-preferences": ImportPreferencesConfig,
    "train-reward": TrainRewardConfig,
    "align": AlignConfig,
    "eval-winrate": EvalWinrateConfig,
    "report": ReportConfig,
}


def _nothing_is_paid(config: Any, store: Store) -> list[PaidCalls]:
    del config, store
    return []


class StageTools(NamedTuple):
    """What a recipe needs of a stage: what a config would make and cost, and how it is run."""

    plan: Callable[[Any, Store], object]
    run: Callable[[Any, Store], Artifact]
    costs: Callable[[Any, Store], list[PaidCalls]] = _nothing_is_paid

    def plans(self, config: Settings, store: Store) -> list[ArtifactSpec]:
        """Return what a config would make, in order."""
        return _flat(self.plan(config, store))


def stage_tools(stage: StageName) -> StageTools:
    """Return the tools of a stage; its module is imported only now, for stages import their crafts."""
    if stage == "make-base-model":
        from psychocounsel.stages import base_model as create_base_model

        return StageTools(create_base_model.plan, create_base_model.create_base_model)
    if stage == "build-preferences":
        from psychocounsel.stages import build_preferences

        return StageTools(build_preferences.plan, build_preferences.build_preferences, build_preferences.costs)
    if stage == "import-preferences":
        from psychocounsel.stages import import_preferences

        return StageTools(import_preferences.plan, import_preferences.import_preferences)
    if stage == "train-reward":
        from psychocounsel.stages import train_reward

        return StageTools(train_reward.plan, train_reward.train_reward)
    if stage == "align":
        from psychocounsel.stages import align

        return StageTools(align.plan, align.align)
    if stage == "eval-winrate":
        from psychocounsel.stages import eval_winrate

        return StageTools(eval_winrate.plan, eval_winrate.eval_winrate, eval_winrate.costs)
    from psychocounsel.stages import report as make_report

    return StageTools(make_report.plan, make_report.make_report)


def _flat(plans: object) -> list[ArtifactSpec]:
    if isinstance(plans, ArtifactSpec):
        return [plans]
    if not isinstance(plans, list | tuple):
        return []
    nested = cast("Sequence[object]", plans)
    return [each for group in nested for each in _flat(group)]


def recipe_folder(name: str) -> Path:
    """Return the folder of a recipe: a path, or the name of one that ships with the package.

    Raises:
        ConfigError: there is none; near names are told.
    """
    for folder in (Path(name), recipes_folder() / name):
        if (folder / RECIPE_FILE).is_file():
            return folder
    known = sorted(path.parent.name for path in recipes_folder().glob(f"*/{RECIPE_FILE}"))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known recipes: {', '.join(known)}"
    raise ConfigError("is no recipe: there is no recipe.yaml in it", where=name, remedy=hint)


def load_recipe(folder: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """Read every config of a recipe before anything runs, so that all errors come first.

    Args:
        folder: holds `recipe.yaml` and the files it names.
        overrides: `seed=N`; `STEP.key=value`, where STEP is a config's file name without `.yaml`; or
            `corpus.key=value` and `judge.key=value`, which reach every step that has such a block.

    Raises:
        ConfigError: every fault of every file.
    """
    own = [text for text in overrides if "." not in text.partition("=")[0]]
    recipe = load_config(RecipeConfig, folder / RECIPE_FILE, own)
    names = [Path(step.config).stem for step in recipe.steps]
    _require_known_steps(overrides, own, names)
    steps: list[Step] = []
    faults: list[str] = []
    for name, step in zip(names, recipe.steps, strict=True):
        prefix = f"{name}."
        mine = [text for text in overrides if text.startswith(prefix)]
        for block in SHARED:
            if block in CONFIGS[step.stage].model_fields:
                mine += [text for text in overrides if text.startswith(f"{block}.")]
        seed = [f"seed={recipe.seed}"] if recipe.seed is not None and step.stage != "report" else []
        try:
            config = load_config(CONFIGS[step.stage], folder / step.config, [*seed, *mine], name)
        except ConfigError as fault:
            faults.append(str(fault))
        else:
            steps.append(Step(name, step.stage, config))
    if faults:
        raise ConfigError("\n".join(faults))
    return steps


def _require_known_steps(overrides: Sequence[str], own: Sequence[str], names: Sequence[str]) -> None:
    for text in overrides:
        step = text.partition(".")[0]
        known = [*names, *SHARED]
        if text not in own and step not in known:
            close = difflib.get_close_matches(step, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known steps: {', '.join(known)}"
            raise ConfigError(f"there is no step {step!r}", where=f"--set {text}", remedy=hint)


class StepResult(NamedTuple):
    """What a step made or found."""

    step: Step
    artifact: Artifact


def run_recipe(steps: Sequence[Step], store: Store, announce: Callable[[int, Step], None]) -> list[StepResult]:
    """Run the steps in order; what exists is found again and costs nothing."""
    results: list[StepResult] = []
    for number, step in enumerate(steps, start=1):
        announce(number, step)
        tools = stage_tools(step.stage)
        planned = tools.plans(step.config, store)
        artifact = tools.run(step.config, store)
        results.append(StepResult(step, artifact))
        made = [found for found in map(store.find, planned) if found is not None]
        store = store.pinned(*reversed(made))
    return results


class StepPlan(NamedTuple):
    """What a step would make, in order, and the calls it would pay for."""

    step: Step
    plans: list[ArtifactSpec]
    costs: list[PaidCalls]


def plan_recipe(steps: Sequence[Step], store: Store) -> list[StepPlan]:
    """Return what each step would make; plans of earlier steps stand in for artifacts not made yet."""
    planned: list[StepPlan] = []
    for step in steps:
        tools = stage_tools(step.stage)
        plans = tools.plans(step.config, store)
        planned.append(StepPlan(step, plans, tools.costs(step.config, store)))
        store = store.pinned(*(store.find(plan) or plan for plan in reversed(plans)))
    return planned
