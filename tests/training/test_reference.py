"""What the reference of DPO gives to pairs is kept shard by shard: a killed run computes the rest only."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from preference_runs import align_config, make_pairs

from psychocounsel.store.schemas import ReferenceLogprobs
from psychocounsel.training import reference
from psychocounsel.training.reference import reference_logprobs
from psychocounsel.training.tokenize import load_tokenizer, tokenize_pairs
from psychocounsel.types import Policy

FOLDERS = os.pathsep.join(sys.path)
PAIRS = 3
"""In a shard."""
KILLED = """
import os, signal, sys
from pathlib import Path
import test_reference

def kill(done, total):
    if done > 2 * test_reference.PAIRS:
        os.kill(os.getpid(), signal.SIGKILL)

test_reference.reference.SHARD_PAIRS = test_reference.PAIRS
test_reference.compute(Path(sys.argv[1]), Path(sys.argv[2]), kill)
"""


def ignore(done: int, total: int) -> None:
    pass


def compute(model: Path, work: Path, progress: Callable[[int, int], None] = ignore) -> list[ReferenceLogprobs]:
    config, policy = align_config(), Policy(str(model))
    rows, _ = tokenize_pairs(make_pairs(), load_tokenizer(policy), config.length, config.chat)
    return reference_logprobs(policy, rows, config.optimisation, work, progress)


def test_a_killed_run_computes_the_pending_shards_only(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "SHARD_PAIRS", PAIRS)
    whole = compute(tiny_model_folder, tmp_path / "whole")
    work = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(tiny_model_folder), str(work)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": FOLDERS, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(work.iterdir())) == 2
    seen: list[tuple[int, int]] = []
    assert compute(tiny_model_folder, work, lambda *step: seen.append(step)) == whole
    assert min(done for done, _ in seen) > 2 * PAIRS
    assert seen[-1] == (len(whole), len(whole))
    assert compute(tiny_model_folder, work, lambda *_: pytest.fail("nothing is pending")) == whole
