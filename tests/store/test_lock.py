"""One run per artifact: real processes, one of them killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import ArtifactSpec, ArtifactWriter
from psychocounsel.store.store import Store, hold_lock

PLAN = ArtifactSpec("speeches", "talk", "stage", 1, {})
HOLD = """
import sys, time
from pathlib import Path
from psychocounsel.store.artifacts import ArtifactSpec
from psychocounsel.store.store import Store

def build(writer):
    writer.file("half.txt").write_text("half", encoding="utf-8")
    print("building", flush=True)
    time.sleep(60)

Store(Path(sys.argv[1])).make(ArtifactSpec("speeches", "talk", "stage", 1, {}), build)
"""


def write_whole(writer: ArtifactWriter) -> None:
    assert writer.file("half.txt").read_text(encoding="utf-8") == "half"
    writer.file("whole.txt").write_text("whole", encoding="utf-8")


def test_the_second_maker_is_told_of_the_first_and_a_dead_one_is_forgotten(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"building\n"
        with pytest.raises(StoreError) as fault:
            Store(tmp_path).make(PLAN, write_whole)
        assert f"{PLAN.ref} is being made by process {first.pid}" in str(fault.value)
        assert "wait for it to end" in fault.value.remedy
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=10)
    made = Store(tmp_path).make(PLAN, write_whole)
    assert set(made.manifest["files"]) == {"half.txt", "whole.txt"}


def test_another_artifact_is_not_held_up(tmp_path: Path) -> None:
    def build_another(_: ArtifactWriter) -> None:
        Store(tmp_path).make(ArtifactSpec("speeches", "other", "stage", 1, {"x": 1}), lambda writer: None)

    assert Store(tmp_path).make(PLAN, build_another).is_new


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_lock(tmp_path / "a.lock", "a thing"):
        raise KeyError
    second = hold_lock(tmp_path / "a.lock", "a thing")
    with (
        hold_lock(tmp_path / "a.lock", "a thing"),
        pytest.raises(StoreError, match="a thing is being made by process"),
    ):
        second.__enter__()
