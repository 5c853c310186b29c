"""The command line: help without heavy imports, exit codes, and tracebacks for bugs only."""

import logging
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from miniature import write_recipe
from psychocounsel.store.store import Store
from running import ENVIRONMENT, SOURCE, Cli, Ended, Miniature, Warm, await_until, write_listed

STAGES = ("make-base-model", "build-preferences", "train-reward", "align", "eval-winrate", "report")
COMMANDS = (
    "run",
    STAGES[0],
    "corpus",
    *STAGES[1:3],
    "eval-reward",
    "score",
    *STAGES[3:5],
    "anchor",
    "eval-crisis",
    "calibrate-judge",
    STAGES[5],
    "import-preferences",
    "list",
    "show",
    "open",
    "verify",
    "diff",
    "compare",
    "push",
    "power",
    "gc",
    "fetch",
    "chat",
    "recipes",
    "init",
    "schema",
    "journal",
    "annotate",
)
HEAVY = {"torch", "transformers", "pyarrow", "datasets", "openai", "trl", "peft", "numpy", "matplotlib", "jinja2"}
PRINT_MODULES = """
import sys
from psychocounsel.cli.main import main
try:
    main()
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["--help"], ["list", "--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", PRINT_MODULES, *argv]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.startswith("Usage: ")
    assert HEAVY.isdisjoint(ended.stderr.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_under_both_names(cli: Cli, command: str) -> None:
    short, long = cli(command, "-h"), cli(command, "--help")
    assert short == long
    assert short.code == 0
    assert short.out.startswith(f"Usage: psychocounsel {command} ")
    assert "..." not in short.out.partition("\nCommands:")[2]


def test_help_lists_every_command_in_full(cli: Cli) -> None:
    listed = cli("-h").out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == [*COMMANDS]
    assert "..." not in listed
    assert cli("--version").out == f"psychocounsel {version('psychocounsel')}\n"


@pytest.mark.parametrize("argv", [["--help"], ["list"]])
def test_a_closed_pipe_ends_quietly(tmp_path: Path, argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, **ENVIRONMENT, "PSYCHOCOUNSEL_STORE": str(tmp_path)}
    command = [sys.executable, "-m", "psychocounsel", *argv]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_an_encoding_that_lacks_a_character_costs_no_table() -> None:
    command = [sys.executable, "-m", "psychocounsel", "power", "--target", "0.1"]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "interval of ?10.0 points" in ended.stdout


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ([], "build-preferences"),
        (["alignn"], "Did you mean 'align'?"),
        (["run"], "Missing argument"),
        (["run", "x", "--dry"], "--dry-run"),
        (["list", "--store"], "requires an argument"),
    ],
)
def test_a_misspelt_command_is_a_user_error(cli: Cli, argv: list[str], hint: str) -> None:
    ended = cli(*argv)
    ended.says(2, hint)


def test_a_verbose_dry_run_of_a_recipe_prints_the_config_of_every_step(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    change = ["--set", "train-reward.optimisation.learning_rate=0.125"]
    short = cli("run", recipe, "--store", tmp_path / "store", "--dry-run", *change)
    assert short.code == 0, short.err
    assert "learning_rate" not in short.out
    assert len(short.out.splitlines()) < 110  # most of them are tables of memory and time
    ended = cli("run", recipe, "--store", tmp_path / "store", "--dry-run", "-v", "--num-processes", "2", *change)
    assert ended.out.count('"num_processes": 2') == 3
    assert '"learning_rate": 0.125' in ended.out
    assert '"confidence": 0.95' in ended.out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_preempts_a_stage(warm: Warm, miniature: Miniature, tmp_path: Path, signum: signal.Signals) -> None:
    config = miniature.recipe / "make-base-model.yaml"
    run = warm.start("make-base-model", config, "--store", tmp_path, "--set", "sft.epochs=100000")
    await_until(lambda: bool(list(tmp_path.glob("base-models/*"))))
    run.send(signum)
    ended = run.wait()
    ended.says(75)
    assert "error:" not in ended.err


def test_only_the_owner_may_read_what_a_run_wrote(miniature: Miniature) -> None:
    paths = [miniature.store, *miniature.store.rglob("*")]
    assert len(paths) > 100
    assert [each for each in paths if each.stat().st_mode & 0o777 != (0o700 if each.is_dir() else 0o600)] == []


def test_a_full_disk_behind_the_output_is_said_and_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "psychocounsel", "recipes"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
        )
    Ended(done.returncode, "", done.stderr).says(3, "stdout: could not write: No space left")


FAIL = """
import torch
from psychocounsel.cli import main as command_line

def fail(*_, **__):
    raise {fault}

command_line.app = fail
command_line.main()
"""


@pytest.mark.slow  # it loads torch
def test_a_device_without_memory_left_is_no_bug() -> None:
    for fault, code in (("torch.OutOfMemoryError('CUDA out of memory. Tried')", 3), ("RuntimeError('a bug')", 1)):
        command = [sys.executable, "-c", FAIL.format(fault=fault)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
        assert (done.returncode, "Traceback" in done.stderr) == (code, code == 1)
        assert ("batch" in done.stderr) == (code == 3)


def test_a_store_at_a_path_that_is_no_text_is_refused(cli: Cli, tmp_path: Path) -> None:
    cli("list", "--store", tmp_path / os.fsdecode(b"\xff")).says(2, "\\udcff", "UTF-8")


@pytest.mark.parametrize("words", [("report",), ("journal", "import"), ("list", "--store")])
def test_a_path_that_is_too_long_is_no_bug(cli: Cli, words: tuple[str, ...]) -> None:
    cli(*words, "b" * 300).says(2, "b" * 300, "choose a shorter one")


def test_a_bug_shows_its_traceback(warm: Warm, store: Path, miniature: Miniature) -> None:
    """A metrics file that we wrote and cannot read is not the user's error."""
    metrics = next(store.glob("policies/mini-dpo-*/metrics.json"))
    write_listed(metrics, b"{" * metrics.stat().st_size)
    ended = warm.run("align", miniature.recipe / "align-dpo.yaml", "--store", store)
    assert ended.code == 1
    assert "Traceback" in ended.err


def test_a_config_of_another_stage_is_named_once(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    for file, stage in (("train-reward", "train-reward"), ("corpus", "corpus"), ("recipe", "recipe")):
        ended = cli("align", recipe / f"{file}.yaml", "--store", tmp_path / "store")
        ended.says(2, f"{file}.yaml", stage)
        assert len(ended.err.splitlines()) == 1


def test_a_reference_to_nothing_names_the_key_and_the_config(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    for command in (["run", recipe, "--only", "train-reward"], ["train-reward", recipe / "train-reward.yaml"]):
        words = ["--store", tmp_path / "store", "--set", "train-reward.base_model=elsewhere"]
        words[-1] = words[-1] if command[0] == "run" else "base_model=elsewhere"
        for more in ([], ["--dry-run"]):
            cli(*command, *words, *more).says(2, "base_model of mini", "--set base_model=")


def test_a_missing_artifact_that_is_called_like_the_result_is_named_by_the_key_of_the_reference(
    cli: Cli, tmp_path: Path
) -> None:
    cli("init", tmp_path / "mine")
    aligned = cli("align", tmp_path / "mine" / "align-dpo.yaml", "--set", "name=same", "--set", "policy=same")
    aligned.says(2, "policy of same", "--set policy=")


def test_the_target_of_power_is_a_share(cli: Cli) -> None:
    cli("power", "--target", "5").says(2, "--target", "0.05")


def test_verbose_shows_what_libraries_log_and_leaves_results_alone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_nothing(*_: object) -> list[object]:
        logging.getLogger("library").info("loading")
        return []

    monkeypatch.setattr(Store, "artifacts", list_nothing)
    quiet = cli("list", "--json", "--store", tmp_path)
    assert (quiet.out, quiet.err) == ("[]\n", "")
    for words in (("-v", "list"), ("list", "--verbose")):
        loud = cli(*words, "--json", "--store", tmp_path)
        assert (loud.out, loud.err) == ("[]\n", "  library: loading\n")
