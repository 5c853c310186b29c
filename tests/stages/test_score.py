"""score: rewards beside the rows of a file, in every format, resumed after a kill."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from miniature import write_rows
from psychocounsel.store.schemas import read_pairs, read_scores
from psychocounsel.store.store import Store
from running import Cli, Warm, await_until

ROWS = [{"id": at, "speech": f"I am {at} years old.", "response": f"And {at % 7}?", "tags": ["x"]} for at in range(300)]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


def test_rewards_are_those_of_training(cli: Cli, store: Path, tmp_path: Path) -> None:
    opened = Store(store)
    (model,) = opened.artifacts("reward-models")
    pairs = read_pairs(opened.open(model.parent("preferences")), "test")
    write_rows(
        tmp_path / "in.jsonl", [{"said": each.speech.text, "answer": each.chosen.candidate.text} for each in pairs]
    )
    columns = ("--speech", "said", "--response", "answer")
    target = tmp_path / "out.jsonl"
    ended = cli("score", "mini", "--in", tmp_path / "in.jsonl", "--out", target, *columns, "--store", store)
    assert ended.code == 0, ended.err
    known = {each.candidate_id: each for each in read_scores(model)}
    for row, pair in zip(read(target), pairs, strict=True):
        score = known[pair.chosen.candidate.id]
        assert row["said"] == pair.speech.text
        assert [row["raw_reward"], row["reward"]] == pytest.approx([score.raw_reward, score.reward], abs=1e-5)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_formats(cli: Cli, store: Path, tmp_path: Path, ending: str) -> None:
    write_rows(tmp_path / "in.jsonl", ROWS[:20])
    target = tmp_path / "new" / f"out{ending}"
    assert cli("score", "mini", "--in", tmp_path / "in.jsonl", "--out", target, "--store", store).code == 0
    rows = read(target)
    assert [str(row["id"]) for row in rows] == [str(row["id"]) for row in ROWS[:20]]
    assert all(float(row["raw_reward"]) != float(row["reward"]) for row in rows)


def test_a_killed_run_is_resumed(cli: Cli, warm: Warm, store: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_rows(source, ROWS)
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    command = ("score", "mini", "--in", source, "--batch-size", "1", "--store", store, "--out")
    assert cli(*command, whole).code == 0
    run = warm.start(*command, killed)
    spool = killed.with_name(killed.name + ".rewards")
    await_until(lambda: killed.exists() or (spool.exists() and spool.stat().st_size > 200))
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    ended = cli(*command, killed)
    assert ended.code == 0, ended.err
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.rglob("*.rewards")) + list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"response": " "}, "line 2: the speech or the response is empty"),
        ({"response": None}, "line 2: the speech or the response is empty"),
        ({"speech": 5}, "line 2"),
        ({"reward": 1}, "line 2"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(
    cli: Cli, store: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_rows(tmp_path / "in.jsonl", [ROWS[0], {**ROWS[1], **changes}])
    target = tmp_path / "out.jsonl"
    ended = cli("score", "mini", "--in", tmp_path / "in.jsonl", "--out", target, "--store", store)
    assert ended.code == 2
    assert words in ended.err
    assert not target.exists()


def test_wrong_columns_and_endings(cli: Cli, store: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ROWS[:1])
    command = ("score", "mini", "--in", tmp_path / "in.jsonl", "--store", store)
    cli(*command, "--out", tmp_path / "out.jsonl", "--speech", "text").says(2, "'text'", "--speech")
    assert cli(*command, "--out", tmp_path / "out.txt").code == 2
    cli(*command, "--out", tmp_path / "in.jsonl" / "out.jsonl").says(3, "could not write")
    write_rows(tmp_path / "in.jsonl", [{**ROWS[0], "before": [{"role": "user", "content": "Hi."}]}])
    ended = cli(*command, "--out", tmp_path / "out.jsonl", "--history", "before")
    ended.says(2, "in.jsonl line 1", "'before' ends with the client")
