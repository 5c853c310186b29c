"""Fixtures of the stages: a recipe to change, and a copy of the store that the miniature run filled."""

import shutil
from pathlib import Path

import pytest

from miniature import write_recipe
from running import Miniature


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


@pytest.fixture
def store(miniature: Miniature, tmp_path: Path) -> Path:
    return Path(shutil.copytree(miniature.store, tmp_path / "store"))
