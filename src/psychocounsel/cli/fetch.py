"""`psychocounsel fetch`: the datasets and models of a recipe, from the Hub to this machine."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from psychocounsel.cli.output import RecipeArgument
from psychocounsel.reporting import console

Weights = Annotated[bool, typer.Option("--weights", help="Fetch the weights of models too: many gigabytes.")]

_DATASET_KEYS = {"path", "source", "on", "file", "preferences"}
"""Keys of configs under which `hub:` names a dataset; under the others it names a model."""


def fetch(recipe: RecipeArgument, weights: Weights = False) -> None:
    """Download what a recipe reads from the Hub.

    Its datasets, and of its models the configs and tokenizers, so that a dry run knows calls, tokens and dollars.
    """
    from psychocounsel.config.recipe import load_recipe, recipe_folder
    from psychocounsel.store import hub
    from psychocounsel.store.files import human_bytes

    steps = load_recipe(recipe_folder(recipe), [])
    names = dict.fromkeys(name for step in steps for name in _names(step.config.model_dump()))
    for kind, name in names:
        folder = hub.fetch(name, kind, weights=weights)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        console.result(f"{kind} {name}: {human_bytes(size)} in {folder}")
    if not names:
        console.result("the recipe reads nothing from the Hub")


def _names(value: Any, key: str = "") -> Iterator[tuple[Any, str]]:
    """Yield what a config names with `hub:`, as the kind of repository and its name."""
    if isinstance(value, dict):
        for each, inner in value.items():
            yield from _names(inner, each)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _names(inner, key)
    elif isinstance(value, str) and value.startswith("hub:"):
        yield "dataset" if key in _DATASET_KEYS else "model", value.removeprefix("hub:")
