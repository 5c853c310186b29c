"""What a training needs is predicted from a model's config alone; what cannot fit is refused before it starts."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import GPT2Config, LlamaConfig

from psychocounsel.config.schema import AlignConfig, LaunchConfig, OptimisationConfig, TrainRewardConfig
from psychocounsel.errors import ConfigError, ExitCode, IncompleteError
from psychocounsel.stages.preflight import preflight, require_disk, require_launchable
from psychocounsel.store.store import Store
from psychocounsel.training import memory
from psychocounsel.training.memory import GB, Machine, ModelSize, memory_per_device
from psychocounsel.types import Policy

LORA = {"rank": 64, "alpha": 128}
BF16 = {"weights": "bf16", "optimizer": "adamw_bf16_sr"}
BF16_LORA: dict[str, Any] = {"weights": "bf16", "lora": LORA}
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a config and no weights."""
    folder = tmp_path_factory.mktemp("llama-8b")
    LlamaConfig(**LLAMA_8B).save_pretrained(folder)
    return folder


def optimisation(**changes: object) -> OptimisationConfig:
    settings = {"learning_rate": 5e-7, "global_batch_size": 64, "per_device_batch_size": 1}
    return OptimisationConfig.model_validate({**settings, "gradient_checkpointing": True, **changes})


def align_config(folder: Path, **changes: object) -> AlignConfig:
    settings = {"name": "x", "mode": "dpo", "policy": str(folder), "preferences": "p", "max_steps": 1600}
    return AlignConfig.model_validate({**settings, "optimisation": optimisation(**changes)})


def test_weights_are_counted_from_the_config(llama_8b: Path) -> None:
    size = ModelSize.of(Policy(str(llama_8b)))
    per_layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert size.linear == 32 * per_layer
    assert size.weights == size.linear + 2 * 128256 * 4096 + (2 * 32 + 1) * 4096 == 8_030_261_248  # as published


def test_a_config_that_leaves_the_width_of_its_layers_out_has_four_times_the_hidden_size() -> None:
    size = ModelSize.of_config(GPT2Config(n_embd=64, n_layer=2, n_head=4))
    assert (size.hidden, size.intermediate) == (64, 256)


@pytest.mark.parametrize(
    ("changes", "below"),
    [
        (BF16, 80),  # of a GPU with 141
        (BF16_LORA, 40),
        ({"weights": "nf4", "lora": LORA}, 24),
    ],
)
def test_an_8b_model_fits(llama_8b: Path, changes: dict[str, Any], below: int) -> None:
    size = ModelSize.of(Policy(str(llama_8b)))
    for tokens in (4096, 8192):
        assert memory_per_device(size, optimisation(**changes), tokens).total < below * GB
    assert memory_per_device(size, optimisation(), 4096).total > 141 * GB


def test_parts_are_those_of_the_formulas(llama_8b: Path) -> None:
    size = ModelSize.of(Policy(str(llama_8b)))
    full, half = (memory_per_device(size, optimisation(**changes), 4096) for changes in ({}, BF16))
    assert (full.gradients, full.optimizer) == (4 * size.weights, 8 * size.weights)
    assert (half.weights, half.gradients, half.optimizer) == tuple(each * size.weights for each in (2, 2, 5))
    sharded = memory_per_device(size, optimisation(), 4096, 8, "zero3")
    assert (sharded.gradients, sharded.optimizer) == (size.weights / 2, size.weights)
    gathered = [memory_per_device(size, optimisation(**BF16_LORA), 4096, 8, way).weights for way in ("fsdp2", "zero3")]
    assert gathered[1] - gathered[0] == pytest.approx(2 * size.weights / 8)  # frozen weights are fp32 under DeepSpeed
    every, kept = (
        memory_per_device(size, optimisation(gradient_checkpointing=on), 4096).activations for on in (False, True)
    )
    assert every > 9 * kept
    adapters = sum(
        64 * (inputs + outputs)
        for inputs, outputs in [(4096, 4096)] * 2 + [(4096, 1024)] * 2 + [(4096, 14336)] * 2 + [(14336, 4096)]
    )
    assert memory_per_device(size, optimisation(lora=LORA), 4096).optimizer == 8 * 32 * adapters


def test_tables_show_this_config_alternatives_and_machines(llama_8b: Path, tmp_path: Path) -> None:
    (llama_8b / "model.safetensors").touch()
    tables = preflight(align_config(llama_8b, **BF16), Store(tmp_path))
    assert not isinstance(tables, str)
    needs, time = tables
    assert [row[0] for row in needs.rows[:2]] == ["this config", "full, fp32"]
    assert needs.rows[0][1:] == needs.rows[2][1:]  # full, bf16
    assert {row[0]: row[2] for row in time.rows[1:]} == {
        "1 x H100-80": "yes",
        "8 x H100-80": "on one device",  # ddp keeps the gradients twice, and these weights cannot be sharded
        "1 x H200-141": "yes",
        "8 x H200-141": "ddp",
    }
    assert time.rows[1][3] == time.rows[2][3]
    assert "1600 steps" in time.title


@pytest.mark.parametrize(
    ("online", "disk"),
    [({}, 305), ({"optimizer_state": "reset"}, 265), ({"rounds": 1}, 201)],  # 3 x 7, 5 to go on from, 4 per model
)
def test_an_online_run_is_told_what_its_rounds_keep_and_sample(
    llama_8b: Path, tmp_path: Path, online: dict[str, Any], disk: int
) -> None:
    (llama_8b / "model.safetensors").touch()
    settings = {"name": "x", "mode": "online", "policy": str(llama_8b), "optimisation": optimisation(**BF16)}
    config = AlignConfig.model_validate({**settings, "online": {"speeches": "s", "reward_model": "r", **online}})
    tables = preflight(config, Store(tmp_path))
    assert not isinstance(tables, str)
    assert f"{disk} GB of disk, 32 GB of main memory" in tables[1].title
    assert f"{51_200 * config.online.rounds if config.online else 0:,} answers" in tables[1].title


def test_a_small_model_needs_a_line(tmp_path: Path) -> None:
    LlamaConfig(**LLAMA_8B | {"hidden_size": 128, "num_hidden_layers": 2}).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    needs = preflight(align_config(tmp_path, **BF16), Store(tmp_path))
    assert isinstance(needs, str)
    assert "million weights" in needs


def test_a_model_that_is_not_there_leaves_the_needs_unknown(tmp_path: Path) -> None:
    assert isinstance(preflight(align_config(tmp_path / "none"), Store(tmp_path)), str)


@pytest.mark.parametrize(
    ("gigabytes", "changes", "remedy"),
    [
        (80, {}, "weights: bf16"),
        (80, {"gradient_checkpointing": False, **BF16}, "gradient_checkpointing: true"),
        (40, BF16, "set optimizer: adamw, lora: {rank: 64"),
        (16, {"weights": "bf16", "lora": LORA}, "weights: nf4"),
        (4, {"weights": "nf4", "lora": LORA}, "fsdp2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting_to_change(
    llama_8b: Path,
    monkeypatch: pytest.MonkeyPatch,
    gigabytes: int,
    changes: dict[str, Any],
    remedy: str,
) -> None:
    monkeypatch.setattr(memory, "machine_at_hand", lambda: Machine("a GPU", 1, gigabytes * GB, None))
    with pytest.raises(ConfigError) as caught:
        require_launchable(align_config(llama_8b, **changes), Policy(str(llama_8b)))
    assert caught.value.exit_code == ExitCode.USER_ERROR
    assert remedy in str(caught.value.remedy)


def test_no_online_run_is_told_to_quantize_its_weights(llama_8b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_at_hand", lambda: Machine("a GPU", 1, 16 * GB, None))
    online = {"mode": "online", "preferences": None, "online": {"speeches": "s", "reward_model": "r"}}
    config = AlignConfig.model_validate(align_config(llama_8b, weights="bf16", lora=LORA).model_dump() | online)
    with pytest.raises(ConfigError) as caught:
        require_launchable(config, Policy(str(llama_8b)))
    assert "nf4" not in str(caught.value.remedy)
    tables = preflight(config, Store(llama_8b))
    assert not any("nf4" in row[0] for table in tables if not isinstance(table, str) for row in table.rows)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (BF16, "optimizer: adamw_bf16_sr"),
        ({"weights": "nf4", "lora": LORA}, "weights: nf4"),
        ({"optimizer": "adamw_8bit"}, "optimizer: adamw_8bit"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_it_starts(
    tmp_path: Path, changes: dict[str, Any], setting: str
) -> None:
    LlamaConfig(**LLAMA_8B | {"hidden_size": 128, "num_hidden_layers": 2}).save_pretrained(tmp_path)
    config = align_config(tmp_path, **changes)
    require_launchable(config, Policy(str(tmp_path)))
    sharded = config.model_copy(update={"launch": LaunchConfig(num_processes=2, accelerate="fsdp2")})
    with pytest.raises(ConfigError, match=setting) as caught:
        require_launchable(sharded, Policy(str(tmp_path)))
    assert "ddp" in str(caught.value.remedy)


@pytest.mark.parametrize("accelerate", ["fsdp2", "zero3"])
def test_weights_that_exceed_a_device_are_no_hindrance_where_they_are_divided(
    llama_8b: Path, monkeypatch: pytest.MonkeyPatch, accelerate: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json" if name == "deepspeed" else name))
    monkeypatch.setattr(memory, "machine_at_hand", lambda: Machine("8 GPUs", 8, 16 * GB, None))
    whole = align_config(llama_8b, weights="bf16", lora=LORA)
    divided = whole.model_copy(update={"launch": LaunchConfig(num_processes=8, accelerate=accelerate)})
    with pytest.raises(ConfigError, match="needs about"):
        require_launchable(whole, Policy(str(llama_8b)))
    require_launchable(divided, Policy(str(llama_8b)))


def test_a_remedy_counts_on_the_devices_of_the_launch(llama_8b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_at_hand", lambda: Machine("8 GPUs", 8, 40 * GB, None))
    launch = LaunchConfig(num_processes=8, accelerate="fsdp2")
    config = align_config(llama_8b, gradient_checkpointing=False, per_device_batch_size=4)
    with pytest.raises(ConfigError) as caught:
        require_launchable(config.model_copy(update={"launch": launch}), Policy(str(llama_8b)))
    assert str(caught.value.remedy).endswith("set per_device_batch_size: 1, gradient_checkpointing: true")


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_is_too_small_is_named_with_what_is_missing(
    llama_8b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(500 * GB, 400 * GB, 100 * GB))
    config = TrainRewardConfig.model_validate(
        {"name": "x", "base_model": "b", "preferences": "p", "optimisation": optimisation(**BF16)}
    )
    with pytest.raises(IncompleteError, match=r"100\.8 GB more") as caught:  # 3 x 7 + 4 bytes per weight
        require_disk(config, Policy(str(llama_8b)), tmp_path)
    assert caught.value.exit_code == ExitCode.INCOMPLETE
