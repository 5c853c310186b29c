"""`chat`: models side by side, from a pipe and on a terminal."""

import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply

from psychocounsel.corpus.crisis import crisis_services
from psychocounsel.stages.chat import RESOURCES
from running import ENVIRONMENT, Cli, Ended, Miniature


@pytest.fixture
def talk(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs `chat` with these lines on stdin."""

    def run(said: str, *argv: str | Path) -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        return cli("chat", *argv)

    return run


def files(folder: Path) -> dict[str, int]:
    return {str(each): each.stat().st_mtime_ns for each in folder.rglob("*")}


def echo(request: Mapping[str, Any], number: int) -> Reply:
    said = request["messages"][-1]["content"]
    if said in ("refuse", "nothing"):
        return Reply(None, refusal="I cannot." if said == "refuse" else None)
    text = f"<think>Hm</think>You said {said}. \x1b[2J[b]{number}[/b]"
    return Reply(text, finish_reason="length" if said == "long" else "stop")


def test_base_and_tuned_model_answer_with_rewards_and_nothing_is_written(miniature: Miniature, talk: Any) -> None:
    before = files(miniature.store)
    words = ["mini-base", "mini-online", "--reward", "mini", "--max-new-tokens", "8", "--store", miniature.store]
    ended = talk("I cannot sleep.\n\n  \nI cannot sleep.\n", *words)
    assert ended.code == 0, ended.err
    assert ended.out.count("[mini-base]  reward ") == ended.out.count("[mini-online]  reward ") == 2
    first, second = ended.out.split("[mini-base]")[1:]
    assert first.strip() != second.strip()  # another sample
    assert files(miniature.store) == before
    assert "988" in ended.err  # words do not tell every danger
    assert "988" not in ended.out


def test_endpoint_sees_one_line_at_a_time(talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with ChatServer(echo) as server:
        ref, saved = f"endpoint:any@{server.base_url}", tmp_path / "said.jsonl"
        own = tmp_path / "own.yaml"
        endpoint = f"endpoint: {{model: other, base_url: '{server.base_url}'}}"
        own.write_text(f"author: own\n{endpoint}\nsampling: {{temperature: 0, max_new_tokens: 9}}\n")
        options = ["--system", "bundled:counsellor", "--save", saved, "--store", tmp_path / "store"]
        ended = talk("long\nI want to kill myself\nrefuse\nnothing\n", ref, own, *options)
        asked = [each.body for each in server.received]
        talk("long\n", ref, "--save", tmp_path, "--store", tmp_path / "store").says(3, "could not write")
    assert ended.code == 0, ended.err
    assert ended.out.index("988") < ended.out.index("You said I want")
    assert "long" in ended.out[: ended.out.index("988")]
    assert "cut at its token limit" in ended.out
    assert "I cannot." in ended.out
    assert "Hm" not in ended.out
    assert ended.out.count("[any]") == ended.out.count("[own]") == 4
    assert "(no answer: " in ended.out
    assert "\x1b" not in ended.out
    prompts = [[message["role"] for message in each["messages"]] for each in asked if each["model"] == "any"]
    assert prompts == [["system", "user"]] * 4
    assert {each["max_tokens"] for each in asked if each["model"] == "other"} == {9}
    rows = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert [row["speech"] for row in rows] == ["long", "I want to kill myself", "refuse", "nothing"]
    assert [each["finished"] for each in rows[0]["answers"]] == [False, False]
    assert [each["text"] for each in rows[3]["answers"]] == ["", ""]
    assert not (tmp_path / "store").exists()


def test_the_resources_are_listed_crisis_services() -> None:
    services, others = crisis_services().told_apart(RESOURCES)
    found = {RESOURCES[start:end] for start, end in services}
    assert {"988", "116 123", "13 11 14", "https://findahelpline.com"} <= found
    assert others == []


def test_faults_are_told_with_a_remedy(talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk("", "no-such-model", "--store", tmp_path).says(2, "no-such-model")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    talk("Hello.\n", "endpoint:any@http://127.0.0.1:9/v1", "--store", tmp_path).says(3, "no server answers")
    talk("", "endpoint:any", "--save", tmp_path / "no" / "file", "--store", tmp_path).says(2, "no such folder")


class Terminal:
    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.seen = descriptor, ""

    def await_text(self, text: str, times: int = 1) -> None:
        """Read until a text has come; a fault of the program ends that with an error of its own."""
        while self.seen.count(text) < times:
            self.seen += os.read(self._descriptor, 4096).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())


def take_the_terminal() -> None:
    """Make stdin the terminal whose keys send signals, also where a shell in the background had them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def on_a_terminal(*argv: str | Path) -> Iterator[tuple[Terminal, "subprocess.Popen[bytes]"]]:
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "psychocounsel", "chat", *map(str, argv)],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True},
        env={**os.environ, **ENVIRONMENT, "OPENAI_API_KEY": "none", "TERM": "xterm", "COLUMNS": "80"},
        preexec_fn=take_the_terminal,
    )
    os.close(theirs)
    try:
        yield Terminal(ours), program
    finally:
        program.kill()
        program.wait()
        os.close(ours)


@pytest.mark.parametrize("ending", ["\x03", "\x04"], ids=["ctrl-c", "ctrl-d"])
@pytest.mark.integration
def test_a_key_ends_the_chat_on_a_terminal(ending: str, tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        refs = [f"endpoint:{name}@{server.base_url}" for name in ("left", "right")]
        with on_a_terminal(*refs, "--store", tmp_path / "store") as (terminal, program):
            terminal.await_text("> ")
            terminal.press("hello\n")
            terminal.await_text("You said hello")
            terminal.await_text("> ", times=2)
            rows = [line for line in terminal.seen.splitlines() if "You said hello" in line]
            assert [line.count("You said hello") for line in rows] == [2]  # side by side
            assert "\x1b[2J" not in terminal.seen
            assert "[b]" in terminal.seen
            for _ in range(60):  # Python misses a Ctrl-C that comes just before it waits for keys
                terminal.press(ending)
                with suppress(subprocess.TimeoutExpired):
                    program.wait(timeout=2)
                    break
            assert program.wait(timeout=60) == 0
