"""No import cycles."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_modules_have_no_import_cycle() -> None:
    script = ROOT / "scripts" / "import_closure.py"
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "stages.align" in ended.stdout
