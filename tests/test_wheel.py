"""The wheel, built from the source distribution, runs without the clone: recipes, samples and templates are in it."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from psychocounsel.store.store import Store
from running import ENVIRONMENT

CLONE = Path(__file__).parents[1]
FEWEST = ["--set", "pool=null", "--set", "corpus.cleaning.max_speeches=40"]


def python(folder: Path, *argv: str | Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the wheel is installed; beside it is `dist` with the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    python(folder, "-m", "build", "--no-isolation", "--outdir", folder / "dist", CLONE)
    (wheel,) = (folder / "dist").glob("*.whl")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-warn-script-location"]
    python(folder, "-m", "pip", "install", *quiet, "--no-index", "--no-deps", "--target", folder / "site", wheel)
    return folder / "site"


def test_every_file_of_the_package_is_in_the_wheel(site: Path) -> None:
    source = CLONE / "src" / "psychocounsel"
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    kept = [path for path in files if "__pycache__" not in path.parts]
    assert len(kept) > 100
    assert [str(path) for path in kept if not (site / "psychocounsel" / path).is_file()] == []


def test_whoever_has_the_source_distribution_can_test_it_and_build_its_pages(site: Path) -> None:
    (sources,) = (site.parent / "dist").glob("*.tar.gz")
    with tarfile.open(sources) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = [path for folder in ("docs", "tests", "scripts", "configs") for path in (CLONE / folder).rglob("*.*")]
    files = [str(path.relative_to(CLONE)) for path in tracked if path.is_file() and "__pycache__" not in path.parts]
    files += [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "mkdocs.yml",
        "requirements-dev.txt",
        "scripts/test",
    ]
    assert [name for name in files if name not in names] == []


def test_a_recipe_is_found_by_its_name(site: Path, tmp_path: Path) -> None:
    package = python(tmp_path, "-c", "import psychocounsel; print(psychocounsel.__file__)", PYTHONPATH=str(site))
    assert Path(package.strip()).is_relative_to(site)
    command = (site / "bin" / "psychocounsel", "run", "quickstart", "--dry-run", "--offline")
    out = python(tmp_path, *command, PYTHONPATH=str(site))
    assert len(set(re.findall(r"@[0-9a-f]{8}", out))) > 10
    assert list(tmp_path.iterdir()) == []


def test_python_finds_rubrics_and_word_lists(site: Path, tmp_path: Path) -> None:
    script = (
        "import psychocounsel; print(psychocounsel.Judge().rate('I cannot sleep.', 'What keeps you awake?').status)"
    )
    assert python(tmp_path, "-c", script, PYTHONPATH=str(site)) == "valid\n"
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_samples_become_preferences(site: Path, tmp_path: Path) -> None:
    config = site / "psychocounsel" / "_bundled" / "configs" / "quickstart" / "build-preferences.yaml"
    command = ("-m", "psychocounsel", "build-preferences", config, "--offline", *FEWEST)
    out = python(tmp_path, *command, PYTHONPATH=str(site))
    (made,) = Store(tmp_path / "data").artifacts("preferences")
    assert made.ref in out
    assert made.metrics["pairing"]["train"]["kept"] > 10
