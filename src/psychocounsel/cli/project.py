"""The commands with which a project begins: the bundled recipes, a project of one's own, and schemas for editors."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psychocounsel.errors import ConfigError, IncompleteError, did_you_mean
from psychocounsel.reporting import console
from psychocounsel.store.artifacts import KINDS
from psychocounsel.store.files import FULL_DISK
from psychocounsel.store.store import DEFAULT_STORE

if TYPE_CHECKING:
    from psychocounsel.config.base import Settings

STARTER = "starter"
"""The recipe that a project is made from unless another is named."""
SCHEMAS = ".schemas"
"""The folder of a project with the schemas that its YAML files name."""
RUBRIC = "rubric.yaml"
"""The file with the words that a judge is shown."""
MODELINE = "# yaml-language-server: $schema="
"""By which an editor finds the schema of a YAML file."""


def recipes() -> None:
    """List the bundled recipes and what each needs.

    `run NAME` runs one; `init PROJECT --from NAME` makes a copy to edit.
    """
    from psychocounsel.config.components import recipes_folder
    from psychocounsel.config.loading import load_config
    from psychocounsel.config.recipe import RECIPE_FILE, RecipeConfig, bundled_recipes

    for name in bundled_recipes():
        recipe = load_config(RecipeConfig, recipes_folder() / name / RECIPE_FILE)
        console.result(name)
        for line in (recipe.description, f"needs: {recipe.needs}"):
            console.prose(f"  {line}")


def init(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="The folder to make; its name is the project's.")],
    source: Annotated[
        str, typer.Option("--from", metavar="RECIPE", help="The recipe to copy; `recipes` lists the bundled ones.")
    ] = STARTER,
) -> None:
    """Make a project of your own.

    A folder with a recipe, speeches, a rubric and a judge to edit. It runs as it is, without a key or a download.
    """
    from psychocounsel.config.recipe import recipe_folder

    recipe = recipe_folder(source)
    texts = _texts_for(project, recipe)
    files = [path for path in sorted(recipe.iterdir()) if path.is_file() and path.name[0] != "."]
    others = [path for path in files if path.suffix != ".yaml"]
    written = {name: text.encode() for name, text in _with_schemas(texts, recipe).items()}
    written |= {path.name: path.read_bytes() for path in others}
    written[".gitignore"] = f"/{DEFAULT_STORE}/\n".encode()  # the store has the texts of clients
    try:
        if project.exists() and (not project.is_dir() or any(project.iterdir())):
            raise ConfigError("exists already", where=str(project), remedy="choose another name, or remove it first")
        for name, content in written.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as fault:
        if fault.errno in FULL_DISK:
            remedy = "free some space and remove this folder, then run the same command again"
            raise IncompleteError(f"could not write: {fault.strerror}", where=str(project), remedy=remedy) from None
        raise ConfigError(f"cannot be written: {fault.strerror}", where=str(project), remedy="check the path") from None
    console.result(f"created: {project}, from {recipe.name}. The first lines of each file say what it is for:")
    for name in [*(path.name for path in others), *sorted(texts)]:
        console.result(f"  {project / name}")
    words = shlex.quote(str(project))
    commands = [f"run {words} --dry-run", f"run {words}"]
    following = [f"corpus {words}", *commands] if "corpus.yaml" in texts else commands
    for when, command in zip(("next", "then"), following, strict=False):
        console.result(f"{when}: psychocounsel {command}")


def schema(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A stage, or recipe, corpus, pool, judge or rubric.")],
) -> None:
    """Print the JSON schema of a config file.

    An editor completes keys and marks mistakes by it. `init` puts the schemas of a project's files into `.schemas`.
    """
    models = _models()
    if name not in models:
        raise ConfigError(f"there is no config {name!r}", remedy=did_you_mean(name, models))
    console.result(_schema(models[name]).rstrip())


def _models() -> "dict[str, type[Settings]]":
    """Return the model of every kind of YAML file: of the stages, and of those that a stage's config names."""
    from psychocounsel.config.components import JudgeConfig, PoolConfig
    from psychocounsel.config.recipe import STAGES, RecipeConfig
    from psychocounsel.judging.rubric import RubricFile

    return {"recipe": RecipeConfig, "pool": PoolConfig, "judge": JudgeConfig, "rubric": RubricFile} | {
        name: stage.config for name, stage in STAGES.items()
    }


def _schema(model: "type[Settings]") -> str:
    from psychocounsel.config.json_schema import json_schema

    return json.dumps(json_schema(model), indent=1) + "\n"


def _texts_for(project: Path, recipe: Path) -> dict[str, str]:
    """Return the YAML files of a recipe for a project: with a rubric of their own, and named after the project.

    Raises:
        ConfigError: the name of its folder has no letter or digit.
    """
    name = re.sub(r"[^a-z0-9_.-]+", "-", project.resolve().name.lower()).strip("_.-")[:40]
    if not name:
        raise ConfigError("has no letter or digit to name artifacts after", where=str(project), remedy="rename it")
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(recipe.glob("*.yaml"))}
    if RUBRIC not in texts:
        texts = _with_rubric(texts)
    named = [line.split()[1] for text in texts.values() for line in text.splitlines() if line.startswith("name: ")]
    prefix = min(named, key=len, default="")
    is_shared = prefix != "" and all(each.startswith(prefix) for each in named)
    for file, text in texts.items():
        if is_shared and file != RUBRIC:
            text = _renamed(text, prefix, name)
        command = rf"(psychocounsel [\w-]+ ){re.escape(recipe.name)}\b"
        texts[file] = re.sub(command, lambda found: found[1] + shlex.quote(str(project)), text)
    return texts


def _with_schemas(texts: dict[str, str], recipe: Path) -> dict[str, str]:
    """Return the files, each with the line by which an editor finds its schema, and the schemas."""
    from psychocounsel.config.loading import load_config
    from psychocounsel.config.recipe import RECIPE_FILE, RecipeConfig

    stages = {each.config: each.stage for each in load_config(RecipeConfig, recipe / RECIPE_FILE).steps}
    models, files = _models(), dict[str, str]()
    for file, text in texts.items():
        files[file] = re.sub(rf"\A{re.escape(MODELINE)}.*\n", "", text)  # of a project that is copied
        kind = stages.get(file, file.removesuffix(".yaml"))
        if kind in models:
            files[f"{SCHEMAS}/{kind}.json"] = _schema(models[kind])
            files[file] = f"{MODELINE}{SCHEMAS}/{kind}.json\n{files[file]}"
    return files


def _with_rubric(texts: dict[str, str]) -> dict[str, str]:
    """Return the files with a copy of the rubric that the bundled recipes name, where a judge names it."""
    from psychocounsel.config.components import JudgeConfig
    from psychocounsel.judging.rubric import load_rubric

    bundled = JudgeConfig().rubric
    named = {file: text.replace(f"rubric: {bundled}", f"rubric: {RUBRIC}") for file, text in texts.items()}
    if named == texts:
        return texts
    return {**named, RUBRIC: Path(load_rubric(bundled).source).read_text(encoding="utf-8")}


def _renamed(text: str, prefix: str, name: str) -> str:
    """Return a config in which artifacts begin with `name` where they began with `prefix`; comments stay."""
    artifact = re.compile(rf"(?<![\w.:/-])((?:{'|'.join(KINDS)})/)?{re.escape(prefix)}(?=$|[\s@,\]}}\"'-])")

    def line(written: str) -> str:
        code, mark, comment = written.partition("#")
        return artifact.sub(rf"\g<1>{name}", code) + mark + comment

    return "\n".join(each if each.startswith("description:") else line(each) for each in text.split("\n"))
