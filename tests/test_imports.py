"""No import cycles, and every bundled folder has its files."""

import subprocess
import sys
from pathlib import Path

import psychocounsel

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(psychocounsel.__file__).parent


def test_modules_have_no_import_cycle() -> None:
    script = ROOT / "scripts" / "import_closure.py"
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "stages.align" in ended.stdout


def test_every_bundled_folder_has_files() -> None:
    folders = [
        "config/prompts",
        "corpus/deidentify/lists",
        "corpus/prompts",
        "corpus/taxonomies",
        "judging/lexicons",
        "judging/prompts",
        "judging/rubrics",
        "reporting/templates",
        "training/templates",
    ]
    assert not [name for name in folders if not any((SOURCE / name).iterdir())]
