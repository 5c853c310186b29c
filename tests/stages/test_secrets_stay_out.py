"""A run through every kind of fault leaves the API key nowhere: no file, no output, no process argument."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Fault, Reply, answer_by_schema, error_fault

from miniature import write_build_config
from running import ENVIRONMENT, Cli, Ended

KEY = "sk-90210-never-to-be-seen"
GATEWAY_KEY = "gw-90211-never-to-be-seen"
QUOTED = f"Incorrect API key provided: {KEY}. Authorization: Bearer {KEY}, X-Gateway-Key: {GATEWAY_KEY}"
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


def _commands() -> Iterator[bytes]:
    """Yield the command line of every process of this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue


def arguments(config: Path, folder: Path) -> list[str]:
    return ["build-preferences", str(config), "--store", str(folder / "store")]


def in_a_process(argv: list[str]) -> Ended:
    """Run the command line with the key in its environment; other processes can read its arguments."""
    command = [sys.executable, "-m", "psychocounsel", *argv]
    env = {**os.environ, **ENVIRONMENT, "OPENAI_API_KEY": KEY, "GATEWAY_KEY": GATEWAY_KEY}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def config_for(recipe: Path, base_url: str) -> Path:
    endpoint = {"model": "scripted-judge-2025-01-01", "base_url": base_url, "concurrency": 4}
    endpoint |= {"headers": {"X-Gateway-Key": "${GATEWAY_KEY}"}, "extra_body": {"gateway": {"user": "${GATEWAY_KEY}"}}}
    judge = {"backend": "endpoint", "endpoint": endpoint, "max_missing_share": 0.5}
    return write_build_config(recipe, judge=judge)


def test_the_key_is_nowhere_after_every_fault(
    tmp_path: Path, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GATEWAY_KEY", GATEWAY_KEY)
    commands: set[bytes] = set()

    def answer_through_all_faults(body: Mapping[str, Any], number: int) -> Reply | Fault:
        if number % 10 == 0:
            commands.update(_commands())
        return FAULTS.get(number) or answer_by_schema(body, number)

    with ChatServer(answer_through_all_faults) as server:
        config = config_for(recipe, server.base_url)
        again = arguments(config, tmp_path)
        ended = [cli(*again, "--dry-run"), in_a_process(again)]
        assert server.count > max(FAULTS), "a fault was not met"
        server.script = lambda body, number: error_fault(401, QUOTED)
        ended.append(cli(*again, "--set", "judge.temperature=0.5"))
        server.script = lambda body, number: error_fault(429, QUOTED, "insufficient_quota")
        ended.append(cli(*again, "--set", "judge.temperature=0.25"))
        assert {each.authorization for each in server.received} == {f"Bearer {KEY}"}
        assert {each.headers["x-gateway-key"] for each in server.received} == {GATEWAY_KEY}
        assert {each.body["gateway"]["user"] for each in server.received} == {GATEWAY_KEY}
    assert [each.code for each in ended] == [0, 0, 2, 2], ended
    assert "[key]" in ended[2].err, "the server's words are shown, without the key"
    printed = "".join(each.out + each.err for each in ended)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in files)
    assert any(path.parent.name == "journal" for path in files)
    assert any(b"build-preferences" in command for command in commands)
    for secret in (KEY, GATEWAY_KEY):
        assert secret not in printed
        assert not [command for command in commands if secret.encode() in command]
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_server_with_an_identity_may_move_and_nothing_is_paid_twice(
    tmp_path: Path, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEY", GATEWAY_KEY)
    with ChatServer() as first, ChatServer() as second:
        config = config_for(recipe, first.base_url)
        assert cli(*arguments(config, tmp_path)).code == 0
        paid = first.count
        config_for(recipe, second.base_url)
        moved = cli(*arguments(config, tmp_path), "--set", f"judge.endpoint.identity={first.base_url}")
        assert (moved.code, second.count) == (0, 0), "the identity may be the address under which replies were paid"
        assert "up to date" in moved.out
        again = cli(*arguments(config, tmp_path), "--set", "judge.endpoint.identity=my-vllm")
        assert (again.code, second.count) == (0, paid)
        config_for(recipe, first.base_url)
        again = cli(*arguments(config, tmp_path), "--set", "judge.endpoint.identity=my-vllm")
        assert (again.code, first.count) == (0, paid)
        changed = cli(*arguments(config, tmp_path), "--set", "judge.endpoint.extra_body={top_k: 3}")
        assert (changed.code, first.count) == (0, 2 * paid), "what is sent in the body makes other replies"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("headers={X-Api-Key: sk-1}", "looks like a secret"),
        ("extra_body={gateway: [{api_key: sk-1}]}", "looks like a secret"),
        ("headers={X-Team: '${NO_SUCH_VARIABLE}'}", "NO_SUCH_VARIABLE is not set"),
        ("extra_body={temperature: 1}", "is decided by another key"),
    ],
)
def test_headers_and_bodies_that_cannot_be_sent(
    tmp_path: Path, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, change: str, words: str
) -> None:
    monkeypatch.setenv("GATEWAY_KEY", GATEWAY_KEY)
    with ChatServer() as server:
        argv = arguments(config_for(recipe, server.base_url), tmp_path)
        cli(*argv, "--set", f"judge.endpoint.{change}").says(2, words)
        assert not server.count
