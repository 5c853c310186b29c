"""What reward and DPO training share: the order of rows, accumulation, and their arguments."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from preference_runs import (
    align_config,
    optimisation,
    output_in,
    relative_difference,
    reward_config,
    run_dpo,
    run_reward,
    same_weights,
    weights_of,
)

from psychocounsel.errors import ConfigError
from psychocounsel.training import weights as weights_module
from psychocounsel.training.trainer import HISTORY_ROWS, LengthGroupedSampler, trainable_values, training_arguments

LENGTHS = [30, 10, 50, 20, 40, 60, 15, 25]


def test_seed_and_epoch_decide_the_rows_of_a_step_and_the_longest_come_first() -> None:
    def order(lengths: Sequence[int], seed: int = 1, epoch: int = 0) -> list[int]:
        sampler = LengthGroupedSampler(lengths, 4, 2, seed)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(sampler) == len(batches)
        return [row for batch in batches for row in batch]

    by_length, equally_long = order(LENGTHS), order([1] * 8)
    for step in (slice(4), slice(4, 8)):
        assert sorted(by_length[step], key=LENGTHS.__getitem__, reverse=True) == by_length[step]
        assert set(by_length[step]) == set(equally_long[step])
    assert sorted(order(range(101))) == list(range(101))
    assert order(range(100)) not in (order(range(100), seed=2), order(range(100), epoch=1))


def arguments(rows: int = 100, epochs: int = 1, **changes: object) -> dict[str, Any]:
    return training_arguments(optimisation(**changes), Path("work"), rows=rows, epochs=epochs, seed=0)


@given(rows=st.integers(1, 100_000), epochs=st.integers(1, 5), batch=st.sampled_from([1, 8, 128]))
def test_history_stays_small_enough_to_plot(rows: int, epochs: int, batch: int) -> None:
    every = arguments(rows, epochs, global_batch_size=batch, per_device_batch_size=1)["logging_steps"]
    steps = epochs * -(-rows // batch)
    assert len({1, *range(every, steps + 1, every)}) <= HISTORY_ROWS


def test_processes_share_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert arguments(global_batch_size=64, per_device_batch_size=8)["gradient_accumulation_steps"] == 2
    assert arguments(global_batch_size=24, per_device_batch_size=8)["per_device_train_batch_size"] == 2
    with pytest.raises(ConfigError, match="do not divide"):
        arguments(global_batch_size=6, per_device_batch_size=6)


@given(rows=st.integers(1, 40), per_step=st.integers(1, 9), per_batch=st.integers(1, 4), processes=st.integers(1, 5))
def test_processes_take_every_row_of_a_step_once_and_as_many_micro_batches(
    rows: int, per_step: int, per_batch: int, processes: int
) -> None:
    single = LengthGroupedSampler(range(rows), per_step, per_step, seed=3)
    samplers = [
        LengthGroupedSampler(range(rows), per_step, per_batch, 3, (each, processes)) for each in range(processes)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert {len(each) for each in batches} == {len(samplers[0])}
    taken = [batch for turn in zip(*batches, strict=True) for batch in turn]
    for step, expected in enumerate(single):
        sizes = samplers[0].batch_sizes(step)
        of_step, taken = taken[: len(sizes)], taken[len(sizes) :]
        assert [row for size, batch in zip(sizes, of_step, strict=True) for row in batch[:size]] == expected
        assert max(sizes) <= per_batch
    assert not taken


@pytest.mark.parametrize("available", [False, True])
def test_bf16_is_used_only_where_an_accelerator_has_it(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(weights_module, "is_torch_bf16_gpu_available", lambda: available)
    assert arguments(precision="bf16")["bf16"] is available
    assert arguments(precision="fp32")["bf16"] is False


def test_model_without_trainable_weights_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no trainable"):
        trainable_values(torch.nn.Linear(2, 2).requires_grad_(False))


LORA = {"rank": 4, "alpha": 8}


def trained(kind: str, base: Path, folder: Path, nll_weight: float = 0.0, **changes: object) -> dict[str, torch.Tensor]:
    """Return the weights after training with these changes to the optimisation."""
    output = output_in(folder)
    if kind == "reward":
        run_reward(base, output, reward_config(optimisation(**changes)))
    else:
        run_dpo(base, output, align_config(optimisation(**changes), nll_weight=nll_weight))
    return weights_of(output.folder)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize(("per_device", "nll_weight"), [(1, 0.0), (4, 0.5)])
def test_accumulated_micro_batches_equal_one_large_batch(
    tmp_path: Path, tiny_model_folder: Path, kind: str, per_device: int, nll_weight: float
) -> None:
    # 14 pairs in batches of 8: with 4 a device, the last step holds micro-batches of 4 and of 2.
    large = trained(kind, tiny_model_folder, tmp_path / "large", nll_weight)
    small = trained(kind, tiny_model_folder, tmp_path / "small", nll_weight, per_device_batch_size=per_device)
    assert relative_difference(large, small, weights_of(tiny_model_folder)) < 1e-3


@pytest.mark.parametrize(("kind", "lora"), [("reward", None), ("dpo", None), ("dpo", LORA)])
def test_gradient_checkpointing_affects_the_speed_only(
    tmp_path: Path, tiny_model_folder: Path, kind: str, lora: object
) -> None:
    plain = trained(kind, tiny_model_folder, tmp_path / "plain", lora=lora)
    frugal = trained(kind, tiny_model_folder, tmp_path / "frugal", lora=lora, gradient_checkpointing=True)
    assert same_weights(plain, frugal)


def test_checkpoints_of_adapters_ask_the_hub_nothing(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--acme--base", "a" * 40
    shutil.copytree(tiny_model_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    trained("dpo", Path("acme/base"), tmp_path / "run", lora=LORA)
    assert not [each.message for each in recwarn if "acme/base" in str(each.message)]
