"""What no other checker holds the package to: what it imports, no import cycles, and bundled files in their place."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_modules_have_no_import_cycle() -> None:
    script = ROOT / "scripts" / "import_closure.py"
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "stages.align" in ended.stdout


def test_what_is_imported_comes_with_an_installation_without_extras() -> None:
    nodes = [
        node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"psychocounsel"}
    pins = set(re.findall(r"^[\w.-]+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))
    packages = {name: {each.lower().replace("_", "-") for each in of} for name, of in packages_distributions().items()}
    assert [name for name in sorted(others) if packages.get(name, set()).isdisjoint(pins)] == []


@pytest.mark.parametrize(
    "folder",
    [
        "config/prompts",
        "corpus/lists",
        "corpus/prompts",
        "corpus/taxonomies",
        "judging/lexicons",
        "judging/prompts",
        "judging/rubrics",
        "reporting/templates",
        "training/templates",
    ],
)
def test_bundled_folders_have_files(folder: str) -> None:
    assert any((ROOT / "src" / "psychocounsel" / folder).iterdir())
