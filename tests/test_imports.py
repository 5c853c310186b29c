"""What no other checker holds the package to: no import cycles, and bundled files where the code looks for them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_modules_have_no_import_cycle() -> None:
    script = ROOT / "scripts" / "import_closure.py"
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "stages.align" in ended.stdout


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
