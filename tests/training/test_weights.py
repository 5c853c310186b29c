"""Weights in bfloat16 or in 4 bits: they learn what fp32 weights learn, and are saved as they were trained."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from preference_runs import (
    align_config,
    make_pairs,
    optimisation,
    output_in,
    reference_rows,
    reward_config,
    run_dpo,
    run_reward,
    same_weights,
    stopping_after,
    weights_of,
)
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from psychocounsel.errors import ConfigError, Preempted
from psychocounsel.training.optimizers import REMAINDER, Bf16AdamW, exact_values, join, keep_remainder, split
from psychocounsel.training.reward import Exchange, RewardScorer
from psychocounsel.types import Policy

LORA = {"rank": 4, "alpha": 8}
BF16: dict[str, Any] = {"weights": "bf16", "optimizer": "adamw_bf16_sr"}
BF16_LORA: dict[str, Any] = {"weights": "bf16", "lora": LORA}
NF4: dict[str, Any] = {"weights": "nf4", "lora": LORA}
SLOW = {"learning_rate": 5e-7, "scheduler": "constant", "warmup_share": 0.0}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra: gpu)"
)


def movement(folder: Path, base: Path) -> torch.Tensor:
    after, before = weights_of(folder), weights_of(base)
    return torch.cat([(after[name].float() - before[name].float()).flatten() for name in sorted(before)])


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1), st.integers(0, 2**31))
def test_a_split_loses_at_most_the_last_of_24_bits(values: list[float], seed: int) -> None:
    tensor = torch.tensor(values)
    noise = torch.randint(256, tensor.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    nearest, remainder = split(tensor, noise)
    assert torch.all((join(nearest, remainder) - tensor).abs() <= tensor.abs() * 2**-14 + 1e-40)
    assert torch.all((nearest.float() - tensor).abs() <= tensor.abs() * (2**-8 + 2**-14) + 1e-40)


def test_a_split_keeps_every_remainder() -> None:
    values = torch.arange(0x3C800000, 0x3C840000, 256, dtype=torch.int32).view(torch.float32)
    for each in (values, -values):
        assert torch.equal(join(*split(each, 0)), each)


def test_steps_below_the_last_bit_add_up_wherever_a_weight_is() -> None:
    start = torch.linspace(0.016, 0.03, 1000)
    weights = torch.nn.Parameter(start.clone())
    keep_remainder(weights)
    optimizer = Bf16AdamW([weights], lr=2e-7)
    for _ in range(400):
        weights.grad = -torch.ones_like(weights)
        optimizer.step()
    moved = exact_values(weights, optimizer) - start
    torch.testing.assert_close(moved, torch.full_like(moved, 8e-5), rtol=0, atol=4e-6)


def test_an_update_below_the_last_bit_is_kept_in_the_mean() -> None:
    weight = torch.nn.Parameter(torch.full((20_000,), 0.75))
    keep_remainder(weight)
    optimizer = Bf16AdamW([weight], lr=1e-6)  # a 15th of the last of 24 bits
    for _ in range(5):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = exact_values(weight, optimizer) - 0.75
    assert float(moved.mean()) == pytest.approx(-5e-6, rel=0.1)


def test_values_are_exact_on_another_device_than_the_remainders() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 8))
    keep_remainder(parameter)
    # A trainer moves parameters to a GPU, not their attributes.
    moved = torch.nn.Parameter(parameter.data.to("meta"))
    setattr(moved, REMAINDER, getattr(parameter, REMAINDER))
    assert exact_values(moved, None).device.type == "meta"


def test_bf16_weights_follow_fp32_weights_at_a_tiny_learning_rate(tmp_path: Path, tiny_model_folder: Path) -> None:
    folders: list[Path] = []
    for name, changes in (("fp32", {}), ("bf16", BF16)):
        output = output_in(tmp_path / name)
        run_dpo(tiny_model_folder, output, align_config(optimisation(**SLOW, **changes)), max_steps=200)
        folders.append(output.folder)
    exact, ours = (movement(each, tiny_model_folder) for each in folders)
    assert cosine(exact, ours) >= 0.99
    assert float(ours.norm() / exact.norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("train", [run_reward, run_dpo])
def test_stopped_bf16_training_resumes_to_equal_bits(
    tmp_path: Path, tiny_model_folder: Path, train: Callable[..., object]
) -> None:
    changes = {"save_every_steps": 1, "per_device_batch_size": 4, **BF16}
    make = reward_config if train is run_reward else align_config
    whole, stopped = output_in(tmp_path / "whole"), output_in(tmp_path / "stopped")
    train(tiny_model_folder, whole, make(optimisation(**changes)))
    with pytest.raises(Preempted):
        train(tiny_model_folder, stopping_after(2, stopped), make(optimisation(**changes)))
    train(tiny_model_folder, stopped, make(optimisation(**changes)))
    assert same_weights(weights_of(whole.folder), weights_of(stopped.folder))
    train(tiny_model_folder, stopped, make(optimisation(**changes)))  # from the checkpoint of the last step
    assert same_weights(weights_of(whole.folder), weights_of(stopped.folder))


@pytest.mark.parametrize("changes", [BF16, BF16_LORA, pytest.param(NF4, marks=needs_bitsandbytes)])
def test_training_starts_at_its_reference_and_saves_what_it_trained(
    tmp_path: Path, tiny_model_folder: Path, changes: dict[str, Any]
) -> None:
    output = output_in(tmp_path)
    config = align_config(optimisation(**changes, learning_rate=1e-2))
    history = run_dpo(tiny_model_folder, output, config, max_steps=6).history
    assert history[0]["loss"] == pytest.approx(0.6931, abs=0.01)
    assert history[-1]["loss"] < 0.6
    assert {each.dtype for each in weights_of(output.folder).values()} == {torch.float32}
    AutoModelForCausalLM.from_pretrained(output.folder)
    # The saved policy gives what the trained one gave, so its margin stays.
    plain = align_config(optimisation(precision="fp32"))
    before, after = (reference_rows(each, make_pairs(), plain) for each in (tiny_model_folder, output.folder))
    gains = [
        new.chosen_logps - old.chosen_logps - new.rejected_logps + old.rejected_logps
        for old, new in zip(before, after, strict=True)
    ]
    assert 0.1 * sum(gains) / len(gains) > 0.5 * history[-1]["margin"] > 0


@pytest.mark.parametrize("changes", [BF16, BF16_LORA, pytest.param(NF4, marks=needs_bitsandbytes)])
def test_reward_model_is_saved_with_its_head(tmp_path: Path, tiny_model_folder: Path, changes: dict[str, Any]) -> None:
    output = output_in(tmp_path)
    config = reward_config(optimisation(**changes, learning_rate=1e-2), epochs=6)
    history = run_reward(tiny_model_folder, output, config).history
    assert history[-1]["loss"] < 0.5
    scorer = RewardScorer.load(Policy(str(output.folder)), config.chat)
    sides = [
        [Exchange(pair.speech.text, side.candidate.text) for side in (pair.chosen, pair.rejected)]
        for pair in make_pairs()
    ]
    scored = [scorer.rewards(side, 2) for side in sides]
    assert sum(chosen.raw > rejected.raw for chosen, rejected in scored) >= 12


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged"])
def test_optimizers_of_bitsandbytes_train(tmp_path: Path, tiny_model_folder: Path, optimizer: str) -> None:
    config = align_config(optimisation(optimizer=optimizer))
    history = run_dpo(tiny_model_folder, output_in(tmp_path), config).history
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("changes", [{"weights": "nf4", "lora": LORA}, {"optimizer": "paged"}])
def test_missing_library_is_named(
    tmp_path: Path, tiny_model_folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ConfigError, match="bitsandbytes") as caught:
        run_dpo(tiny_model_folder, output_in(tmp_path), align_config(optimisation(**changes)))
    assert caught.value.where == f"optimisation.{'weights' if 'weights' in changes else 'optimizer'}"


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "nf4"},
        {"weights": "bf16"},
        {"weights": "bf16", "lora": LORA, "optimizer": "adamw_bf16_sr"},
        {"optimizer": "adamw_bf16_sr"},
        {"weights": "nf4", "lora": LORA, "precision": "fp32"},
    ],
)
def test_weights_that_cannot_be_trained_so_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        optimisation(**changes)
