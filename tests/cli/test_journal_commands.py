"""`journal export`, `import` and `verify`."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from psychocounsel.cli.main import app
from psychocounsel.errors import InputError, StoreError
from psychocounsel.llm.endpoints import JOURNAL_FILE
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus
from running import ENVIRONMENT, drop_override


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Journal(tmp_path / "store" / JOURNAL_FILE) as journal:
        journal.record_many([Entry("a", ChatReply(ReplyStatus.VALID, "one", "judge-1", 10, 3))])
        journal.record_many([Entry("b", ChatReply(ReplyStatus.REFUSAL, "no", "judge-1", 10, 1, "the model refused"))])
    return tmp_path / "store"


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["journal", *map(str, words)])


def test_replies_travel_from_store_to_store(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    assert call("export", file, "--store", store).output == f"exported 2 replies to {file}\n"
    said = call("import", file, "--store", tmp_path / "other").output
    assert said == "imported 2 of 2 replies; the others were known\n"
    assert "imported 0 of 2" in call("import", file, "--store", tmp_path / "other").output
    assert call("verify", "--store", tmp_path / "other").output == "2 replies intact, 0 damaged\n"


def test_a_journal_is_read_where_nothing_can_be_written(store: Path, tmp_path: Path) -> None:
    folder = (store / JOURNAL_FILE).parent
    read = [sys.executable, "-m", "psychocounsel", "journal", "verify", "--store", str(store)]

    def verify() -> str:
        folder.chmod(0o500)
        env = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(read, capture_output=True, text=True, check=False, env=env, preexec_fn=drop_override)
        folder.chmod(0o700)
        return done.stdout + done.stderr

    assert verify() == "2 replies intact, 0 damaged\n"
    with Journal(store / JOURNAL_FILE) as journal:  # another run is at work, or was killed
        journal.record_many([Entry("c", ChatReply(ReplyStatus.VALID, "three", "judge-1", 10, 3))])
        assert verify() == "3 replies intact, 0 damaged\n"


def test_lost_responses_travel_too(store: Path, tmp_path: Path) -> None:
    with Journal(store / JOURNAL_FILE) as journal:
        journal.record_lost_responses(["c"])
    file, other = tmp_path / "replies.jsonl", tmp_path / "other"
    assert call("export", file, "--store", store).output.startswith("exported 2 replies and 1 ")
    said = call("import", file, "--store", other).output
    assert said.startswith("imported 3 of 3 replies")
    assert call("verify", "--store", other).output.startswith("2 replies and 1 ")
    with sqlite3.connect(other / JOURNAL_FILE) as database:
        database.execute("UPDATE lost_responses SET digest = 'd'")
    result = call("verify", "--store", other)
    assert isinstance(result.exception, StoreError)
    assert "2 replies intact, 1 damaged" in result.output


def test_what_can_be_read_of_a_damaged_file_is_exported(store: Path, tmp_path: Path) -> None:
    file, path = tmp_path / "replies.jsonl", store / JOURNAL_FILE
    with Journal(path) as journal:
        for number in range(200):
            journal.record_many([Entry(f"d{number}", ChatReply(ReplyStatus.VALID, "words " * 99, "judge-1", 10, 3))])
    whole = path.read_bytes()
    exported: list[int] = []
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        result = call("export", file, "--store", store)
        if result.exit_code == 0:
            exported.append(int(result.output.split()[1]))
            assert ("damaged" in result.output) == (exported[-1] < 202)
    assert sum(count > 190 for count in exported) >= len(whole) // 4096 - 3, "few pages lead to many others"


def test_a_damaged_reply_is_a_failure_until_it_is_received_again(store: Path) -> None:
    with sqlite3.connect(store / JOURNAL_FILE) as database:
        database.execute("UPDATE replies SET prompt_tokens = 11 WHERE digest = 'a'")
    result = call("verify", "--store", store)
    assert isinstance(result.exception, StoreError)
    assert "1 replies intact, 1 damaged" in result.output
    with Journal(store / JOURNAL_FILE) as journal:
        journal.record_many([Entry("a", ChatReply(ReplyStatus.VALID, "again", "judge-1", 10, 3))])
    result = call("verify", "--store", store)
    assert result.exit_code == 0
    assert result.output.startswith("2 replies intact, 0 damaged, 1 damaged")


@pytest.mark.parametrize("words", [("export", "x.jsonl"), ("verify",)])
def test_a_store_without_a_journal_is_an_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = call(*words, "--store", tmp_path)
    assert isinstance(result.exception, InputError)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_or_folder_is_an_error(store: Path, tmp_path: Path) -> None:
    calls = [("import", tmp_path / "none.jsonl"), ("export", tmp_path / "none" / "x.jsonl"), ("export", tmp_path)]
    assert all(isinstance(call(*words, "--store", store).exception, InputError) for words in calls)
    # A file that is no export leaves no journal behind.
    result = call("import", store / JOURNAL_FILE, "--store", tmp_path / "new")
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "new" / JOURNAL_FILE).exists()
