"""`psychocounsel import-preferences SOURCE` -> a preference dataset of others as an artifact."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psychocounsel.cli.options import DEFAULT_STORE, DryRun, Offline, Sets, StoreFolder, open_store
from psychocounsel.cli.stages import run_config
from psychocounsel.cli.telling import next_config, tell_end

if TYPE_CHECKING:
    from psychocounsel.config.stages import ImportPreferencesConfig

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
    from psychocounsel.config.stages import ImportPreferencesConfig

    named = [] if name is None else [f"name={json.dumps(name)}"]
    if source.endswith(".yaml"):
        return load_config(ImportPreferencesConfig, Path(source), [*named, *sets])
    return config_of(ImportPreferencesConfig, {"name": RELEASED, "source": source}, [*named, *sets])


def _next_words(source: Path, name: str) -> list[str]:
    """Return the command that trains on what was made: by the config beside, or by the recipe that ships."""
    from psychocounsel.config.bundled import recipes_folder

    following = next_config("import-preferences", source) if source.suffix == ".yaml" else None
    if following is not None:
        return [following.stage, str(following.config)]
    shipped = recipes_folder() / RELEASED / "train-reward.yaml"
    place = shipped.relative_to(Path.cwd()) if shipped.is_relative_to(Path.cwd()) else shipped
    return ["train-reward", str(place), *([] if name == RELEASED else ["--set", f"preferences={name}"])]
