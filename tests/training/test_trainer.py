"""The order of rows and the arguments that reward and DPO training share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from preference_runs import optimisation

from psychocounsel.errors import ConfigError
from psychocounsel.training import trainer as trainer_module
from psychocounsel.training.trainer import HISTORY_ROWS, LengthGroupedSampler, trainable_values, training_arguments

LENGTHS = [30, 10, 50, 20, 40, 60, 15, 25]


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 16), st.integers(0, 9))
def test_every_row_comes_once(lengths: list[int], rows_per_step: int, seed: int) -> None:
    order = list(LengthGroupedSampler(lengths, rows_per_step, seed))
    assert sorted(order) == list(range(len(lengths)))


def test_rows_of_a_step_come_longest_first() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 4, seed=1))
    for start in (0, 4):
        step = [LENGTHS[row] for row in order[start : start + 4]]
        assert step == sorted(step, reverse=True)


def test_lengths_do_not_decide_which_rows_make_a_step() -> None:
    by_length = list(LengthGroupedSampler(LENGTHS, 4, seed=1))
    equally_long = list(LengthGroupedSampler([1] * 8, 4, seed=1))
    assert set(by_length[:4]) == set(equally_long[:4])


def test_seed_and_epoch_decide_the_steps() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(range(100), 10, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


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
    with pytest.raises(ConfigError, match="do not divide"):
        arguments(global_batch_size=8, per_device_batch_size=8)


@pytest.mark.parametrize("available", [False, True])
def test_bf16_is_used_only_where_an_accelerator_has_it(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(trainer_module, "autocast_available", lambda: available)
    assert arguments(precision="bf16")["bf16"] is available
    assert arguments(precision="fp32")["bf16"] is False


def test_model_without_trainable_weights_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no trainable"):
        trainable_values(torch.nn.Linear(2, 2).requires_grad_(False))
