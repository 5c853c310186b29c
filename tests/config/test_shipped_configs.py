"""configs/** -> validated steps: no recipe that ships may rot."""

import re
from pathlib import Path

import pytest

from psychocounsel.config.components import locate, recipes_folder, samples_folder
from psychocounsel.config.loading import load_config, read_config_file
from psychocounsel.config.recipe import RECIPE_FILE, load_recipe
from psychocounsel.config.schema import CorpusConfig

FOLDERS = sorted(path.parent for path in recipes_folder().glob(f"*/{RECIPE_FILE}"))


def named_files(path: Path) -> set[str]:
    """Return the YAML files that a config names as steps or in place of a block."""
    data = read_config_file(path).data
    steps = {step["config"] for step in data.get("steps", [])}
    blocks = {value for value in data.values() if isinstance(value, str) and value.endswith(".yaml")}
    return steps | blocks


def test_the_corpus_in_the_guide_is_a_valid_one(tmp_path: Path) -> None:
    guide = (recipes_folder().parent / "docs" / "guide.md").read_text(encoding="utf-8")
    shown = next(block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "speeches:" in block)
    path = tmp_path / "corpus.yaml"
    path.write_text(shown, encoding="utf-8")
    assert load_config(CorpusConfig, path).candidates[0].columns.speech_key == "id"


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
