"""configs/** -> validated steps: no recipe that ships may rot."""

from pathlib import Path

import pytest

from psychocounsel.config.bundled import locate, recipes_folder, samples_folder
from psychocounsel.config.loading import read_config_file
from psychocounsel.recipe import RECIPE_FILE, load_recipe

FOLDERS = sorted(path.parent for path in recipes_folder().glob(f"*/{RECIPE_FILE}"))


def named_files(path: Path) -> set[str]:
    """Return the YAML files that a config names as steps or in place of a block."""
    data = read_config_file(path).data
    steps = {step["config"] for step in data.get("steps", [])}
    blocks = {value for value in data.values() if isinstance(value, str) and value.endswith(".yaml")}
    return steps | blocks


def test_there_are_recipes() -> None:
    assert "quickstart" in {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_of_a_recipe_is_loaded_by_it(folder: Path) -> None:
    steps = load_recipe(folder)
    files = {path.name for path in folder.glob("*.yaml")}
    reached = {RECIPE_FILE}.union(*(named_files(folder / name) for name in files))
    assert files - reached == set()
    assert [f"{step.name}.yaml" for step in steps if f"{step.name}.yaml" not in files] == []


@pytest.mark.parametrize(
    "path", sorted(recipes_folder().rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_file_opens_with_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_bundled_names_the_samples() -> None:
    assert locate("bundled:speeches.jsonl") == samples_folder() / "speeches.jsonl"
    assert locate("bundled:speeches.jsonl").is_file()
    assert locate("speeches.jsonl") == Path("speeches.jsonl")
