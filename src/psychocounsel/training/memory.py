"""What a training needs, from formulas and a model's `config.json`: memory per device, time and disk.

Bytes are decimal (1 GB = 1e9). The memory was compared with what the tensors of training steps take
(`scripts/bench/training_memory.py`), and none of the formulas with a GPU yet.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from psychocounsel.config.schema import LoraConfig, OptimisationConfig
from psychocounsel.errors import ConfigError
from psychocounsel.training.packing import LOGITS_BYTES
from psychocounsel.training.runtime import on_this_machine, quiet_libraries, trainable_config
from psychocounsel.types import Policy

GB = 10**9
Sharding = Literal["ddp", "zero2", "zero3", "fsdp2"]
SHARDINGS: tuple[Sharding, ...] = ("ddp", "zero2", "fsdp2", "zero3")
NF4_BYTES = 0.5 + (8 + 32 / 256) / 8 / 64
"""Per 4-bit weight: blocks of 64 share an 8-bit constant, 256 constants a 32-bit one (Dettmers et al. 2023, sec. 3)."""
CONTEXT_BYTES = 0.8 * GB
"""CUDA context, kernels and cuBLAS workspaces: an allowance."""
LOGITS_COPIES = 4
"""Fp32 copies of a chunk of logits that are in memory together, counted in `training/packing.py`."""
MFU = 0.4
"""Share of the chip's bfloat16 rate that useful operations reach: an assumption, not a measurement."""
MOMENT_BYTES = {"adamw": 8, "adamw_bf16_sr": 5, "adamw_8bit": 2, "paged": 8}
"""Of each trained weight: both moments, and of `adamw_bf16_sr` the remainder; `paged` ones are not on the device."""
CHECKPOINTS = 3
"""Two are kept while a third is written."""


class Machine(NamedTuple):
    """Equal devices with this much memory each, and their dense bfloat16 rate (None where it is not known)."""

    name: str
    devices: int
    memory: float
    flops: float | None


_DENSE_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12, "RTX 4090": 165e12}
"""Operations per second without sparsity, from NVIDIA's data sheets."""
CLUSTERS = tuple(
    Machine(f"{count} x {chip}-{memory}", count, memory * GB, _DENSE_BF16[chip])
    for chip, memory in (("H100", 80), ("H200", 141))
    for count in (1, 8)
)


def machine_at_hand() -> Machine:
    """Return the GPUs of this machine, or else its main memory."""
    if not torch.cuda.is_available():
        return Machine("this machine (CPU)", 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None)
    device: Any = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    rate = next((rate for chip, rate in _DENSE_BF16.items() if chip in device.name), None)
    return Machine(f"this machine, {count} x {device.name}", count, device.total_memory, rate)


class ModelSize(NamedTuple):
    """Dimensions of a decoder and its numbers of weights; `linear` are those of its linear layers without the head."""

    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int
    weights: int
    linear: int
    sides: int

    @classmethod
    def of(cls, policy: Policy, *, local_only: bool = False) -> "ModelSize":
        """Read a model's `config.json` and count its weights without loading them.

        With `local_only`, a model on the Hub is known only if its config was downloaded before.

        Raises:
            ConfigError: the folder or Hub id holds no model.
        """
        if local_only:
            local = on_this_machine(policy, "config.json")
            if local is None:
                remedy = f"psychocounsel fetch RECIPE, or hf download {policy.location} config.json"
                raise ConfigError("its config is not on this machine", where=policy.location, remedy=remedy)
            policy = local
        return cls.of_config(trainable_config(policy))

    @classmethod
    def of_config(cls, config: Any) -> "ModelSize":
        """Count the weights of the model that a config of transformers describes, without making them."""
        with quiet_libraries(), torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        head = model.get_output_embeddings()
        linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
        text: Any = config.get_text_config()
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        key_value = head_size * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,  # GPT-2 and its kin
            key_value=key_value,
            vocabulary=text.vocab_size,
            weights=sum(each.numel() for each in model.parameters()),
            linear=sum(each.weight.numel() for each in linear),
            sides=sum(each.in_features + each.out_features for each in linear),
        )

    def adapters(self, lora: LoraConfig) -> int:
        """Return the weights of adapters on every linear layer: rank * (inputs + outputs) each (Hu et al. 2021)."""
        return lora.rank * self.sides


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float
    context: float = CONTEXT_BYTES

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self)


def memory_per_device(
    size: ModelSize,
    optimisation: OptimisationConfig,
    tokens: int,
    devices: int = 1,
    sharding: Sharding = "ddp",
    *,
    has_head: bool = True,
) -> Memory:
    """Return what one of `devices` holds when its micro-batch has `tokens` tokens.

    Per trained weight: gradients as wide as the weight, and twice that under ddp (its buckets); AdamW's moments 8 bytes
    in fp32, 2 in 8 bits, 4 and the remainder's byte for `adamw_bf16_sr`, none where they are `paged`. ZeRO (Rajbhandari
    et al. 2020, fig. 1) divides the optimizer and the gradients, at stage 3 (or FSDP2) also the weights, of which the
    largest layer or embedding is then whole, twice, in bfloat16 if that is the precision. DeepSpeed holds frozen
    weights in fp32. The workspace is the larger of a layer that is computed again and of the vocabulary's head
    (`has_head`), which are not in memory together.
    """
    lora, autocast = optimisation.lora, optimisation.precision == "bf16"
    gathers = sharding in ("zero3", "fsdp2")
    wide = 4 if optimisation.weights == "fp32" else 2
    computed_wide = 2 if gathers and autocast else wide
    trained = size.adapters(lora) if lora else size.weights
    frozen = size.weights if lora else 0
    quantized = size.linear if optimisation.weights == "nf4" else 0
    trained_wide = 4 if lora else wide
    frozen_wide = 4 if sharding == "zero3" else wide
    weights = (frozen - quantized) * frozen_wide + quantized * NF4_BYTES + trained * trained_wide
    if autocast and computed_wide == 4:
        # Autocast copies weights to bfloat16 until backward has used them; with checkpointing, frozen ones by layer.
        weights += 2 * size.weights / (size.layers if lora and optimisation.gradient_checkpointing else 1)
    gradients = trained * trained_wide * (2 if devices > 1 and sharding == "ddp" else 1)
    moments = 0 if optimisation.optimizer == "paged" else MOMENT_BYTES[optimisation.optimizer] * trained
    if sharding != "ddp":
        moments, gradients = moments / devices, gradients / devices
    if gathers:
        largest = max(size.vocabulary * size.hidden, size.linear / size.layers)
        weights = weights / devices + 2 * computed_wide * largest
    kept, layer = activation_bytes(size, optimisation, tokens, computed_wide)
    workspace = max(layer, head_bytes(size, optimisation, computed_wide) if has_head else 0)
    return Memory(weights, gradients, moments, kept, workspace)


def unshardable(optimisation: OptimisationConfig, sharding: Sharding) -> str:
    """Return the setting with which a training cannot be sharded in this way; empty if it can be.

    Remainders and 4-bit weights belong to whole parameters. The optimizers of bitsandbytes know no parameters that FSDP
    divides.
    """
    if sharding == "ddp":
        return ""
    if optimisation.weights == "nf4":
        return "weights: nf4"
    whole = ("adamw_bf16_sr", "adamw_8bit", "paged") if sharding == "fsdp2" else ("adamw_bf16_sr",)
    return f"optimizer: {optimisation.optimizer}" if optimisation.optimizer in whole else ""


def activation_bytes(size: ModelSize, optimisation: OptimisationConfig, tokens: int, wide: int) -> tuple[float, float]:
    """Return what the layers keep for the backward pass, and what a layer takes that is computed again there.

    As Korthikanti et al. 2022, eq. 2, without the score matrix (which SDPA does not keep) and dropout, and for a Llama
    layer (`transformers/models/llama/modeling_llama.py`). Per token in 2-byte values, with hidden size h, key-value
    width k and intermediate size f: two norms keep an fp32 copy, their product and their output (4h each), attention
    q, k, v and its output twice (3h + 2k), the MLP both projections, the activation and their product (4f).
    Adapters keep another copy of each linear layer's input (6h + f). With checkpointing (Chen et al. 2016) each layer
    keeps its input, and one layer at a time everything; the stream between layers is as `wide` as the weights.
    """
    h, k, f = size.hidden, size.key_value, size.intermediate
    values = 11 * h + 2 * k + 4 * f + (6 * h + f if optimisation.lora else 0)
    layer = values * (2 if optimisation.precision == "bf16" else 4) * tokens
    stream = h * wide * tokens
    return (size.layers * stream, layer) if optimisation.gradient_checkpointing else (size.layers * layer, 0)


def head_bytes(size: ModelSize, optimisation: OptimisationConfig, wide: int) -> float:
    """Return what the head takes: copies of a chunk of logits, and the gradient of a trained head.

    That is summed in fp32 before it joins the others; the part of each chunk is as `wide` as the weights.
    """
    gradient = 0 if optimisation.lora else (4 + wide) * size.vocabulary * size.hidden
    return LOGITS_COPIES * LOGITS_BYTES[True] + gradient


def training_flops(size: ModelSize, optimisation: OptimisationConfig, *, with_reference: bool) -> float:
    """Return operations per token: 6 per weight (Kaplan et al. 2020, sec. 2.1), 4 where weights are frozen.

    A frozen weight takes part in the forward pass (2) and in the gradient of its input (2). Two more are the
    reference's forward pass. The embedding is looked up, and recomputation is no useful work.
    """
    computed = size.linear + size.vocabulary * size.hidden
    per_weight = (4 if optimisation.lora else 6) + (2 if with_reference else 0)
    adapters = 6 * size.adapters(optimisation.lora) if optimisation.lora else 0
    return per_weight * computed + adapters


def hours(flops: float, machine: Machine) -> float | None:
    """Return the hours that a machine computes, at an assumed `MFU`; None where its rate is not known."""
    return None if machine.flops is None else flops / (machine.devices * machine.flops * MFU) / 3600


def disk_bytes(
    size: ModelSize, optimisation: OptimisationConfig, policies: int = 1, *, continues_optimizer: bool = False
) -> float:
    """Return what checkpoints and `policies` final models take on the disk; a final model is fp32.

    With `continues_optimizer`, the state of another optimizer is there, from which the training goes on.
    """
    lora = optimisation.lora
    trained = size.adapters(lora) if lora else size.weights
    wide = 2 if optimisation.weights == "bf16" and lora is None else 4
    moments = MOMENT_BYTES[optimisation.optimizer]
    return trained * (CHECKPOINTS * (wide + moments) + moments * continues_optimizer) + policies * model_bytes(size)


def model_bytes(size: ModelSize) -> float:
    """Return what a model takes in fp32: on the disk, and in main memory while it is loaded or its adapters merged."""
    return 4 * size.weights


def cheaper(optimisation: OptimisationConfig, *, quantizes: bool) -> Iterator[OptimisationConfig]:
    """Yield settings that need less and less memory, each with one change more; with 4-bit weights if `quantizes`."""
    lora = optimisation.lora or LoraConfig()
    bf16 = {"weights": "bf16", "optimizer": optimisation.optimizer if optimisation.lora else "adamw_bf16_sr"}
    steps: list[dict[str, Any]] = [
        {"per_device_batch_size": 1},
        {"gradient_checkpointing": True},
        *([] if optimisation.weights == "nf4" else [{**bf16, "precision": "bf16"}]),
        *([] if optimisation.lora else [{"lora": lora, "optimizer": "adamw"}]),
        *([{"weights": "nf4"}] if quantizes else []),
        {"optimizer": "paged"},
    ]
    for step in steps:
        optimisation = optimisation.model_copy(update=step)
        yield optimisation


def remedy(
    optimisation: OptimisationConfig,
    fits: Callable[[OptimisationConfig], bool],
    sharding: Sharding,
    *,
    quantizes: bool,
) -> str:
    """Return the fewest of those changes with which a training `fits` into the memory of each device."""
    for changed in cheaper(optimisation, quantizes=quantizes):
        if fits(changed) and not unshardable(changed, sharding):
            before = optimisation.model_dump()
            different = {key: value for key, value in changed.model_dump().items() if value != before[key]}
            return "under optimisation, set " + ", ".join(f"{key}: {_yaml(value)}" for key, value in different.items())
    if sharding in ("zero3", "fsdp2"):
        return "lower length.max_length_tokens, shard over more GPUs, or take a smaller model"
    return (
        "lower length.max_length_tokens, shard fp32 or bf16 weights over several GPUs (--accelerate fsdp2), or take a "
        "smaller model"
    )


def _yaml(value: Any) -> str:
    return json.dumps(value).replace('"', "")
