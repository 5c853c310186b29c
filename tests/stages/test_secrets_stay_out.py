"""A run through every kind of fault leaves the API key nowhere: no file, no output, no process argument."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Fault, Reply, answer_by_schema, error_fault

from miniature import write_recipe, write_yaml
from running import ENVIRONMENT, Cli, Ended, await_until

KEY = "sk-planted-90210-never-to-be-seen"
QUOTED = f"Incorrect API key provided: {KEY}. Authorization: Bearer {KEY}"
FAULTS: Mapping[int, Reply | Fault] = {
    2: error_fault(429, QUOTED, headers={"Retry-After": "0"}),
    5: error_fault(500, QUOTED, headers={"Retry-After": "0"}),
    8: Fault(reset=True),
    11: Fault(cut=True),
    14: Fault(body=f"<html>{QUOTED}</html>".encode()),
    17: error_fault(400, QUOTED, "invalid_request_error"),
    20: error_fault(400, QUOTED, "content_filter"),
    23: Reply(None, refusal="I would rather not."),
    26: Reply("no JSON at all"),
    29: Reply("{", finish_reason="length"),
    32: error_fault(422, QUOTED),
}
Run = Callable[[Path], Ended]


class Faulty:
    """Answers through all the faults, and looks at what the processes of the machine are called with."""

    def __init__(self) -> None:
        self.commands: set[bytes] = set()

    def __call__(self, body: Mapping[str, Any], number: int) -> Reply | Fault:
        if number % 10 == 0:
            self.commands.update(_commands())
        return FAULTS.get(number) or answer_by_schema(body, number)


def _commands() -> Iterator[bytes]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue


def arguments(config: Path, folder: Path) -> list[str]:
    return ["build-preferences", str(config), "--store", str(folder / "store")]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(config: Path) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "psychocounsel", *arguments(config, tmp_path)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **ENVIRONMENT, "OPENAI_API_KEY": KEY},
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return command


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


def config_for(recipe: Path, base_url: str) -> Path:
    endpoint = {"model": "scripted-judge-2025-01-01", "base_url": base_url, "concurrency": 4}
    judge = {"backend": "endpoint", "endpoint": endpoint, "max_missing_share": 0.5}
    path = recipe / "judged.yaml"
    write_yaml(path, {"name": "mini", "corpus": "corpus.yaml", "pairing": {"min_gap": 0.5}, "judge": judge})
    return path


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_key_is_nowhere_after_a_run_with_every_fault(
    tmp_path: Path, recipe: Path, run: Run, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faulty = Faulty()
    with ChatServer(faulty) as server:
        config = config_for(recipe, server.base_url)
        again = arguments(config, tmp_path)
        ended = [cli(*again, "--dry-run"), run(config)]
        assert server.count > max(FAULTS), "a fault was not met"
        server.script = lambda body, number: error_fault(401, QUOTED)
        ended.append(cli(*again, "--set", "judge.temperature=0.5"))
        server.script = lambda body, number: error_fault(429, QUOTED, "insufficient_quota")
        ended.append(cli(*again, "--set", "judge.temperature=0.25"))
        assert {each.authorization for each in server.received} == {f"Bearer {KEY}"}
    assert [each.code for each in ended] == [0, 0, 2, 2], ended
    assert "[key]" in ended[2].err, "the server's words are told, without the key"
    told = "".join(each.out + each.err for each in ended)
    assert KEY not in told
    assert any(b"build-preferences" in command for command in faulty.commands)
    assert not [command for command in faulty.commands if KEY.encode() in command]
    files = left(tmp_path)
    assert any(path.name == "manifest.json" for path in files)
    assert any(path.parent.name == "journal" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_what_looks_for_the_key_finds_it(tmp_path: Path) -> None:
    planted = tmp_path / "deep" / "log.txt"
    planted.parent.mkdir()
    planted.write_text(f"x{KEY}y", encoding="utf-8")
    assert [path for path in left(tmp_path) if KEY.encode() in path.read_bytes()] == [planted]
    sleeper = subprocess.Popen([sys.executable, "-c", "input()", KEY], stdin=subprocess.PIPE)
    try:
        await_until(lambda: any(KEY.encode() in command for command in _commands()), seconds=20)
    finally:
        sleeper.communicate(b"\n")
