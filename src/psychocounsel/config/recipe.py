"""Recipes: a folder with a `recipe.yaml` that lists stages, and the config file of each."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from psychocounsel.config.base import NAME_CHARS, OneOrMore
from psychocounsel.config.components import Settings, recipes_folder
from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import keys_of, load_config, load_configs, read_config_file, read_yaml
from psychocounsel.config.schema import (
    AlignConfig,
    AnchorConfig,
    BaseModelConfig,
    BuildPreferencesConfig,
    CalibrateJudgeConfig,
    EvalCrisisConfig,
    EvalRewardConfig,
    EvalWinrateConfig,
    ImportPreferencesConfig,
    ReportConfig,
    TrainRewardConfig,
)
from psychocounsel.errors import ConfigError, did_you_mean

StageName = Literal[
    "make-base-model",
    "corpus",
    "build-preferences",
    "import-preferences",
    "train-reward",
    "eval-reward",
    "align",
    "eval-winrate",
    "anchor",
    "eval-crisis",
    "calibrate-judge",
    "report",
]


class Stage(NamedTuple):
    """A stage: its config, and the function of `stages/` that runs it, as `module.function`.

    One that `asks` sends requests to endpoints, or makes speeches for which others do.
    """

    config: type[Settings]
    run: str
    asks: bool = False
    trains: bool = False


STAGES: dict[StageName, Stage] = {
    "make-base-model": Stage(BaseModelConfig, "base_model.create_base_model"),
    "corpus": Stage(CorpusConfig, "corpus.build_corpus", asks=True),
    "build-preferences": Stage(BuildPreferencesConfig, "build_preferences.build_preferences", asks=True),
    "import-preferences": Stage(ImportPreferencesConfig, "import_preferences.import_preferences", asks=True),
    "train-reward": Stage(TrainRewardConfig, "train_reward.train_reward", trains=True),
    "eval-reward": Stage(EvalRewardConfig, "eval_reward.eval_reward"),
    "align": Stage(AlignConfig, "align.align", asks=True, trains=True),
    "eval-winrate": Stage(EvalWinrateConfig, "eval_winrate.eval_winrate", asks=True),
    "anchor": Stage(AnchorConfig, "anchor.correct"),
    "eval-crisis": Stage(EvalCrisisConfig, "eval_crisis.eval_crisis", asks=True),
    "calibrate-judge": Stage(CalibrateJudgeConfig, "judge_calibration.calibrate_judge"),
    "report": Stage(ReportConfig, "report.make_report"),
}
"""Functions are names, for some of their modules take seconds to import."""
RECIPE_FILE = "recipe.yaml"
SHARED = ("corpus", "judge", "allow_leakage", "launch")
"""Keys and blocks that several steps have; `--set` of one without a step's name reaches all of these steps."""


class StepConfig(Settings):
    """One stage of a recipe and its config file."""

    stage: StageName
    config: str


class RecipeConfig(Settings):
    """The steps of a recipe, in order. `seed`, if given, goes to every step whose seed `--set` does not change.

    `needs` says what a user has to have: minutes, a key, a GPU, a download.
    """

    description: str
    needs: str = ""
    steps: OneOrMore[StepConfig]
    seed: int | None = None


class Step(NamedTuple):
    """A step with its validated config. Its name is that of the config file, without `.yaml`, as of others from it."""

    name: str
    stage: StageName
    config: Any


def recipe_folder(name: str) -> Path:
    """Return the folder of a recipe, given as a path, also of its `recipe.yaml`, or as the name of a bundled recipe."""
    path = Path(name)
    for folder in (path.parent if path.name == RECIPE_FILE else path, recipes_folder() / name):
        if (folder / RECIPE_FILE).is_file():
            return folder
    fault = "is not a recipe: it has no recipe.yaml" if path.exists() else "there is no such recipe or folder"
    projects = sorted(str(each.parent) for each in path.parent.glob(f"*/{RECIPE_FILE}"))
    remedy = did_you_mean(name, [*projects, *bundled_recipes()])
    if path.is_file() and (path.parent / RECIPE_FILE).is_file():
        remedy = f"the recipe is {path.parent}, of which --only {path.stem} runs this step"
    raise ConfigError(fault, where=name, remedy=remedy)


def is_project(folder: Path) -> bool:
    """Return whether a folder has a recipe and is none of the bundled ones."""
    return (folder / RECIPE_FILE).is_file() and folder.resolve().parent != recipes_folder()


def bundled_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.parent.name for path in recipes_folder().glob(f"*/{RECIPE_FILE}"))


def stage_config(stage: StageName, name: str) -> Path:
    """Return the config file of a stage, given as its path, as RECIPE/STEP, or as a recipe that has the stage.

    Of several steps of a stage, the one that is called like the stage is meant.

    Raises:
        ConfigError: there is no such recipe or step, or it has several of the stage.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    is_step = path.parent != Path() and not (path / RECIPE_FILE).is_file()
    folder = recipe_folder(str(path.parent) if is_step else name)
    config = folder / f"{path.name if is_step else stage}.yaml"
    if config.is_file():
        return config
    steps = load_config(RecipeConfig, folder / RECIPE_FILE).steps
    found = [each.config for each in steps if each.stage == stage]
    if is_step or len(found) != 1:
        known = ", ".join(f"{folder.name}/{Path(each).stem}" for each in found) or "none"
        raise ConfigError(f"names no config of {stage}", where=name, remedy=f"those of the recipe: {known}")
    return folder / found[0]


def config_argument(stage: StageName, config: Path) -> str:
    """Return how a command names a config: a bundled one as RECIPE or RECIPE/STEP, any other one by its path."""
    recipe = config.parent
    if recipe.parent != recipes_folder():
        return str(config)
    return recipe.name if config.stem == stage else f"{recipe.name}/{config.stem}"


def load_recipe(folder: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """Read every config of a recipe before anything runs; a ConfigError lists the faults of all files.

    `overrides` are `seed=N`, `STEP.key=value`, or begin with one of `SHARED` for every step that has it.
    """
    first_keys = {text: text.partition("=")[0].partition(".")[0] for text in overrides}
    own = [text for text, key in first_keys.items() if key in RecipeConfig.model_fields or "=" not in text]
    recipe = load_config(RecipeConfig, folder / RECIPE_FILE, own)
    steps = [(Path(step.config).stem, step) for step in recipe.steps]
    for text, key in first_keys.items():
        if text not in own and key not in (*SHARED, *(name for name, _ in steps)):
            raise _unknown_key(text, steps)
    read: list[Step] = []
    faults: list[str] = []
    for name, step in steps:
        model = STAGES[step.stage].config
        reaching = [name, *(block for block in SHARED if block in model.model_fields)]
        mine = [text for text, key in first_keys.items() if key in reaching]
        seed = [f"seed={recipe.seed}"] if recipe.seed is not None and "seed" in model.model_fields else []
        try:
            configs = load_stage_configs(step.stage, folder / step.config, [*seed, *mine], name)
            read += [Step(name, step.stage, each) for each in configs]
        except ConfigError as fault:
            faults.append(str(fault))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))  # a wrong key of a shared block is wrong in every step
    return read


def _unknown_key(override: str, steps: Sequence[tuple[str, StepConfig]]) -> ConfigError:
    """Suggest the full path of the key if some step has it, or else a similar name."""
    key = override.partition("=")[0]
    paths = dict.fromkeys(
        path if path.partition(".")[0] in SHARED else f"{name}.{path}"
        for name, step in steps
        for path in keys_of(STAGES[step.stage].config, ending=key)
    )
    known = [*(name for name, _ in steps), *SHARED, *RecipeConfig.model_fields]
    likely = " or ".join(map(repr, list(paths)[:4]))
    hint = f"did you mean {likely}?" if likely else did_you_mean(key.partition(".")[0], known)
    return ConfigError("there is no such key in the recipe", where=f"--set {override}", remedy=hint)


def load_stage_configs(stage: StageName, path: Path, overrides: Sequence[str] = (), step: str = "") -> list[Any]:
    """Return what `load_configs` does for a stage; of a file for another stage the error says for which."""
    try:
        return load_configs(STAGES[stage].config, path, overrides, step)
    except ConfigError:
        fitting = _stages_of(path)
        if not fitting or stage in fitting:
            raise
        other = " or ".join(fitting)
        raise ConfigError(
            f"this is no config of {stage}", where=str(path), remedy=f"it looks like one of {other}"
        ) from None


def _stages_of(path: Path) -> list[str]:
    """Return the stages for which a file has all keys that are required, and none that is unknown."""
    data = read_config_file(path).data
    given = {"policy" if key == "policies" else key for key in data} if isinstance(data, dict) else set[str]()
    models: dict[str, type[Settings]] = {name: stage.config for name, stage in STAGES.items()}
    models["run (it is a recipe)"] = RecipeConfig
    return [
        name
        for name, model in models.items()
        if given <= model.model_fields.keys()
        and {key for key, field in model.model_fields.items() if field.is_required()} <= given
    ]


def select_steps(steps: Sequence[Step], only: Sequence[str], until: str | None, start: str | None) -> list[bool]:
    """Return for each step whether it is to run: those in `only`, or those from `start` until `until`, both included.

    Raises:
        ConfigError: a name is that of no step, or no step is left.
    """
    names = [step.name for step in steps]
    for option, given in (("--only", only), ("--until", [until]), ("--from", [start])):
        for name in given:
            if name is not None and name not in names:
                raise ConfigError(
                    f"the recipe has no step {name!r}", where=option, remedy=did_you_mean(name, dict.fromkeys(names))
                )
    first = 0 if start is None else names.index(start)
    last = len(names) - 1 if until is None else len(names) - 1 - names[::-1].index(until)
    chosen = [first <= at <= last and (not only or name in only) for at, name in enumerate(names)]
    if not any(chosen):
        raise ConfigError("no step is left", where="--only, --until, --from", remedy="name steps that lie within")
    return chosen


class SweepPoint(NamedTuple):
    """One point of a sweep, or the only one of a run without: what differs, and its steps.

    `is_alike` says that another point has the same suffix.
    """

    overrides: tuple[str, ...]
    steps: list[Step]
    is_alike: bool = False

    @property
    def label(self) -> str:
        """What differs, for people: `align.beta=0.05`."""
        return ", ".join(self.overrides)

    @property
    def suffix(self) -> str:
        """What differs, as the end of an artifact's name: `align.beta-0.05`, and with two hyphens if negative."""
        return re.sub(r"[^a-z0-9_.-]+", "-", ",".join(self.overrides).lower()).strip("-._")

    def named(self, name: str) -> str:
        """Return the name with the suffix; with digits of a hash where that is too long, or also another point's."""
        full = f"{name}-{self.suffix}"
        if not self.is_alike and len(full) <= NAME_CHARS:
            return full
        digits = hashlib.sha256(f"{name} {self.label}".encode()).hexdigest()[:6]
        return f"{full[: NAME_CHARS - 7].rstrip('-._')}-{digits}"


def load_points(folder: Path, overrides: Sequence[str], sweeps: Sequence[str]) -> list[SweepPoint]:
    """Return a recipe at each point of a sweep: the product of the values of every `KEY=VALUE,VALUE...`.

    Raises:
        ConfigError: as of `load_recipe`, or a sweep changes how many steps there are.
    """
    values: list[list[str]] = []
    for text in sweeps:
        key, _, listed = text.partition("=")
        given = read_yaml(f"[{listed}]", f"--sweep {key}").data
        if not given:
            raise ConfigError("is not KEY=VALUE,VALUE...", where=f"--sweep {text}", remedy="write align.beta=0.05,0.1")
        values.append(list(dict.fromkeys(f"{key}={json.dumps(each)}" for each in given)))
    points = [SweepPoint(each, load_recipe(folder, [*overrides, *each])) for each in product(*values)]
    if len({len(point.steps) for point in points}) > 1:
        raise ConfigError("changes how many steps there are", where="--sweep", remedy="sweep one setting of a step")
    count = Counter(point.suffix for point in points)
    return [point._replace(is_alike=count[point.suffix] > 1) for point in points]
