"""Sealed checkpoints: the newest trustworthy one is found, and resuming from it changes no bit."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from preference_runs import (
    align_config,
    make_pairs,
    one_thread,  # noqa: F401 (a fixture)
    optimisation,
    output_in,
    reward_config,
    run_dpo,
    run_reward,
    same_weights,
    stopping_after,
    weights_of,
)

from psychocounsel.errors import ExitCode, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.training import dpo
from psychocounsel.training.checkpoints import (
    SEAL_NAME,
    newest_verified,
    prune,
    run_fingerprint,
    seal,
    set_aside,
)
from psychocounsel.training.dpo import DpoRun
from psychocounsel.training.trainer import TrainingOutput, TrainingSummary
from psychocounsel.types import Policy

Train = Callable[[Path, TrainingOutput], TrainingSummary]


def make_checkpoint(work: Path, step: int, fingerprint: str = "ours") -> Path:
    checkpoint = work / f"checkpoint-{step}"
    (checkpoint / "inner").mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "inner" / "weights").write_bytes(b"weights")
    seal(checkpoint, fingerprint)
    return checkpoint


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_is_found_by_step_and_not_by_time(tmp_path: Path) -> None:
    newest = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 9)
    os.utime(newest, (0, 0))
    point = newest_verified(tmp_path, "ours")
    assert (point.path, point.step, point.skipped) == (newest, 10, ())


def test_nothing_to_resume_from_is_the_start(tmp_path: Path) -> None:
    point = newest_verified(tmp_path / "missing", "ours")
    assert (point.path, point.step, point.skipped) == (None, 0, ())


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / SEAL_NAME).unlink(), "cut short"),
        (lambda folder: (folder / SEAL_NAME).write_text("{"), "cannot be read"),
        (lambda folder: (folder / SEAL_NAME).write_text("{}"), "cannot be read"),
        (lambda folder: (folder / SEAL_NAME).write_text("[]"), "cannot be read"),
        (lambda folder: flip_byte(folder / "inner" / "weights"), "inner/weights differs"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "optimizer.pt").write_text(""), "optimizer.pt does not belong"),
        (lambda folder: seal(folder, "theirs"), "other data or settings"),
    ],
)
def test_a_broken_or_foreign_checkpoint_is_skipped_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, break_it: Callable[[Path], object], reason: str
) -> None:
    older, newer = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 10)
    break_it(newer)
    point = newest_verified(tmp_path, "ours")
    assert point.path == older
    assert [skip.path for skip in point.skipped] == [newer]
    assert reason in point.skipped[0].reason
    assert reason in caplog.text


def test_pruning_keeps_the_two_newest_by_step(tmp_path: Path) -> None:
    for step in (2, 100, 30):
        os.utime(make_checkpoint(tmp_path, step), (1000 - step, 1000 - step))
    (tmp_path / "checkpoint-tmp").mkdir()
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-100",
        "checkpoint-30",
        "checkpoint-tmp",
    ]


def test_an_unsealed_checkpoint_does_not_push_out_a_sealed_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-3" / SEAL_NAME).unlink()
    prune(tmp_path)
    assert newest_verified(tmp_path, "ours").step == 2
    assert (tmp_path / "checkpoint-1").is_dir()


def test_a_skipped_checkpoint_is_set_aside_even_twice(tmp_path: Path) -> None:
    for _ in range(2):
        make_checkpoint(tmp_path, 7, fingerprint="theirs")
        set_aside(newest_verified(tmp_path, "ours").skipped)
    assert [path.name for path in tmp_path.iterdir()] == ["broken-checkpoint-7"]


def test_a_fingerprint_tells_pairs_their_order_and_settings_apart() -> None:
    pairs = make_pairs(3)
    prints = {
        run_fingerprint(pairs, {"seed": 0}),
        run_fingerprint(pairs[:2], {"seed": 0}),
        run_fingerprint(pairs[::-1], {"seed": 0}),
        run_fingerprint(pairs, {"seed": 1}),
    }
    assert len(prints) == 4
    assert run_fingerprint(make_pairs(3), {"seed": 0}) in prints


SAVING = optimisation(save_every_steps=2)


def train_reward(base: Path, output: TrainingOutput) -> TrainingSummary:
    return run_reward(base, output, reward_config(SAVING, epochs=2))


def train_dpo(base: Path, output: TrainingOutput) -> TrainingSummary:
    return run_dpo(base, output, align_config(SAVING, epochs=2))


def train_dpo_lora(base: Path, output: TrainingOutput) -> TrainingSummary:
    adapted = optimisation(save_every_steps=2, lora={"rank": 4, "alpha": 8, "dropout": 0.1})
    return run_dpo(base, output, align_config(adapted, epochs=2))


def train_reward_lora(base: Path, output: TrainingOutput) -> TrainingSummary:
    adapted = optimisation(save_every_steps=2, lora={"rank": 4, "alpha": 8, "dropout": 0.1})
    return run_reward(base, output, reward_config(adapted, epochs=2))


def stop_at_three(train: Train, base: Path, folder: Path) -> TrainingOutput:
    """Train until step 3 of 4 and return the output with which to go on."""
    output = output_in(folder)
    with pytest.raises(Preempted, match="step 3 of 4") as stop:
        train(base, stopping_after(3, output))
    assert stop.value.exit_code is ExitCode.PREEMPTED
    assert stop.value.remedy
    assert not output.folder.exists()
    assert sorted(path.name for path in output.work.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    return output


@pytest.mark.parametrize("train", [train_reward, train_dpo, train_reward_lora, train_dpo_lora])
def test_a_stopped_run_ends_bitwise_equal_to_one_that_was_not(
    tmp_path: Path, tiny_model_folder: Path, train: Train
) -> None:
    whole = output_in(tmp_path / "whole")
    straight = train(tiny_model_folder, whole)
    output = stop_at_three(train, tiny_model_folder, tmp_path / "stopped")
    resumed = train(tiny_model_folder, output)
    assert same_weights(weights_of(output.folder), weights_of(whole.folder))
    assert resumed.history == straight.history
    assert resumed.steps == straight.steps == 4


@pytest.mark.parametrize("train", [train_reward, train_dpo])
def test_a_model_whose_path_is_spelt_otherwise_is_the_same_run(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, train: Train
) -> None:
    output = stop_at_three(train, tiny_model_folder, tmp_path)
    monkeypatch.chdir(tiny_model_folder.parent)
    done: list[int] = []
    train(Path(tiny_model_folder.name), replace(output, progress=lambda now, _total: done.append(now)))
    assert done == [4]


@pytest.fixture(scope="module")
def whole_dpo(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingOutput:
    """Return the output of a run that was never stopped."""
    output = output_in(tmp_path_factory.mktemp("whole"))
    train_dpo(tiny_model_folder, output)
    return output


def lose_state(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()


def flip_weights(checkpoint: Path) -> None:
    flip_byte(checkpoint / "model.safetensors")


def lose_optimizer(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()


@pytest.mark.parametrize("break_it", [lose_state, flip_weights, lose_optimizer])
def test_a_damaged_newest_checkpoint_is_passed_over_without_a_trace_in_the_weights(
    tmp_path: Path,
    tiny_model_folder: Path,
    whole_dpo: TrainingOutput,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Path], None],
) -> None:
    output = stop_at_three(train_dpo, tiny_model_folder, tmp_path / "stopped")
    break_it(output.work / "checkpoint-3")
    steps: list[int] = []
    watched = TrainingOutput(
        output.folder, output.work, CancelToken(), lambda step, _total: steps.append(step), output.run_id
    )
    train_dpo(tiny_model_folder, watched)
    assert steps == [3, 4]
    assert "checkpoint-3" in caplog.text
    assert same_weights(weights_of(output.folder), weights_of(whole_dpo.folder))


def test_checkpoints_of_another_run_are_not_resumed_from(tmp_path: Path, tiny_model_folder: Path) -> None:
    output = stop_at_three(train_dpo, tiny_model_folder, tmp_path / "one")
    other = output_in(tmp_path / "other")
    config = align_config(SAVING, epochs=2)
    run_dpo(tiny_model_folder, other, config, seed=1)
    run_dpo(tiny_model_folder, output, config, seed=1)
    assert same_weights(weights_of(output.folder), weights_of(other.folder))


@pytest.mark.parametrize("train", [train_reward, train_dpo])
def test_checkpoints_of_another_artifact_are_not_resumed_from(
    tmp_path: Path, tiny_model_folder: Path, train: Train
) -> None:
    output = stop_at_three(train, tiny_model_folder, tmp_path)
    done: list[int] = []
    train(tiny_model_folder, replace(output, run_id="other", progress=lambda now, _total: done.append(now)))
    assert done == [1, 2, 3, 4]


def test_a_run_that_lost_its_model_after_the_last_step_writes_it_again(tmp_path: Path, tiny_model_folder: Path) -> None:
    output = output_in(tmp_path)
    first = train_reward(tiny_model_folder, output)
    before = weights_of(output.folder)
    (output.folder / "model.safetensors").unlink()
    steps: list[int] = []
    watched = TrainingOutput(
        output.folder, output.work, CancelToken(), lambda step, _total: steps.append(step), output.run_id
    )
    again = train_reward(tiny_model_folder, watched)
    assert steps == []
    assert again.history == first.history
    assert same_weights(weights_of(output.folder), before)


def test_a_stop_at_the_last_step_comes_too_late_to_matter(tmp_path: Path, tiny_model_folder: Path) -> None:
    summary = train_reward(tiny_model_folder, stopping_after(4, output_in(tmp_path)))
    assert summary.steps == 4


def test_steps_are_counted_within_epochs_when_max_steps_is_set(tmp_path: Path, tiny_model_folder: Path) -> None:
    base = Policy(str(tiny_model_folder))
    run = DpoRun(base, base, align_config(SAVING), 0, max_steps=3)
    whole, output = output_in(tmp_path / "whole"), output_in(tmp_path / "stopped")
    assert dpo.train_dpo(run, make_pairs(), whole).steps == 3
    with pytest.raises(Preempted):
        dpo.train_dpo(run, make_pairs(), stopping_after(1, output))
    dpo.train_dpo(run, make_pairs(), output)
    assert same_weights(weights_of(output.folder), weights_of(whole.folder))
    (output.folder / "model.safetensors").unlink()
    assert dpo.train_dpo(run, make_pairs(), output).steps == 3
    assert same_weights(weights_of(output.folder), weights_of(whole.folder))


def test_no_token_stands_in_a_checkpoint(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    output = stop_at_three(train_reward, tiny_model_folder, tmp_path)
    files = [path for path in output.work.rglob("*") if path.is_file()]
    assert files
    assert not any(b"hf_planted" in path.read_bytes() for path in files)
    assert json.loads((output.work / "checkpoint-3" / SEAL_NAME).read_text())["sha256"]
