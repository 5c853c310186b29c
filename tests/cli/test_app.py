"""`--help` is quick and light; whatever ends a command has its exit code and shows no traceback of ours."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from running import SOURCE, Cli, Miniature, Warm

GOLDEN = Path(__file__).parents[1] / "golden" / "cli" / "help.txt"
STAGES = ("make-base-model", "build-preferences", "train-reward", "align", "eval-winrate", "report")
COMMANDS = ("run", *STAGES, "import-preferences", "list", "show", "verify", "diff", "push")
HEAVY = ("torch", "transformers", "pyarrow", "datasets", "openai", "trl", "peft", "numpy", "matplotlib")
NAMES_HEAVY = f"""
import sys
from psychocounsel.cli.main import main
try:
    main()
except SystemExit:
    sys.exit(" ".join(name for name in {HEAVY!r} if name in sys.modules) or 0)
"""


def in_python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
        check=False,
    )


@pytest.mark.parametrize("argv", [["--help"], ["list", "--help"], ["run", "--help"]])
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    ended = in_python("-c", NAMES_HEAVY, *argv)
    assert ended.stdout.startswith("Usage: ")
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_help_texts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set PSYCHOCOUNSEL_REWRITE_GOLDEN=1 to write the file anew after a change that is meant."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    told = [cli(*([] if command is None else [command]), "--help") for command in (None, *COMMANDS)]
    assert {each.code for each in told} == {0}
    text = "\n".join(each.out for each in told)
    if os.environ.get("PSYCHOCOUNSEL_REWRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_help_lists_every_command_in_full(cli: Cli) -> None:
    listed = cli("--help").out
    assert all(f"\n  {command} " in listed for command in COMMANDS)
    assert "..." not in listed.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["alignn"], "Did you mean 'align'?"),
        (["run"], "Missing argument"),
        (["run", "x", "--dry"], "--dry-run"),
        (["list", "--store"], "requires an argument"),
    ],
)
def test_misspelt_commands_are_the_users_errors(cli: Cli, argv: list[str], told: str) -> None:
    ended = cli(*argv)
    assert ended.code == 2
    assert told in ended.err
    assert "Traceback" not in ended.err


def test_no_command_shows_the_help(cli: Cli) -> None:
    ended = cli()
    assert ended.code == 2
    assert "build-preferences" in ended.err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_where_nothing_is_saved_ends_as_preempted(
    warm: Warm, miniature: Miniature, tmp_path: Path, signum: signal.Signals
) -> None:
    many = ["--set", "sft.epochs=100000"]
    config = miniature.recipe / "make-base-model.yaml"
    run = warm.start("make-base-model", config, "--store", tmp_path, *many)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("base-models/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send(signum)
    ended = run.wait()
    assert ended.code == 75
    assert "Traceback" not in ended.err
    assert "the same command goes on" in ended.err


def test_nobody_else_may_read_what_a_run_wrote(miniature: Miniature) -> None:
    paths = [miniature.store, *miniature.store.rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in paths}
    assert len(modes) > 100
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_fault_of_ours_shows_its_traceback(warm: Warm, tmp_path: Path, miniature: Miniature) -> None:
    """A metrics file that we wrote and cannot read is no user's error."""
    import shutil

    store = Path(shutil.copytree(miniature.store, tmp_path / "store"))
    metrics = next(store.glob("policies/mini-dpo-*/metrics.json"))
    metrics.write_bytes(b"{" * metrics.stat().st_size)
    ended = warm.run("align", miniature.recipe / "align-dpo.yaml", "--store", store)
    assert ended.code == 1
    assert "Traceback" in ended.err
