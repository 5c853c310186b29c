"""OptimisationConfig -> TrainingArguments, the same for reward and DPO training."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from psychocounsel.config.stages import LoraConfig, OptimisationConfig
from psychocounsel.errors import ConfigError

HISTORY_ROWS = 200


@dataclass(frozen=True)
class Schedule:
    """How long to train: whole epochs over `rows` pairs, or a set number of steps."""

    rows: int
    epochs: int
    seed: int
    max_steps: int | None = None

    def steps(self, optimisation: OptimisationConfig) -> int:
        """Return the number of optimiser steps; the last step of an epoch may be smaller."""
        return self.max_steps or self.epochs * math.ceil(self.rows / optimisation.global_batch_size)


def shared_arguments(optimisation: OptimisationConfig, schedule: Schedule, work: Path) -> dict[str, Any]:
    """Return the `TrainingArguments` that reward and DPO training have in common.

    Weights are fp32 at all times; `precision: bf16` means autocast, on an accelerator that has it.
    """
    steps = schedule.steps(optimisation)
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": optimisation.per_device_batch_size,
        "gradient_accumulation_steps": _accumulation_steps(optimisation),
        "num_train_epochs": schedule.epochs,
        "max_steps": schedule.max_steps or -1,
        "optim": "adamw_torch",
        "learning_rate": optimisation.learning_rate,
        "lr_scheduler_type": optimisation.scheduler
        + ("_with_warmup" if _warms_up_flat(optimisation) else ""),
        # Rounded down, because the first warm-up step has learning rate 0: a run of one step must move.
        "warmup_steps": int(steps * optimisation.warmup_share),
        "weight_decay": optimisation.weight_decay,
        "max_grad_norm": optimisation.max_grad_norm,
        "bf16": optimisation.precision == "bf16" and autocast_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "activation_checkpointing": optimisation.gradient_checkpointing,
        "seed": schedule.seed,
        "data_seed": schedule.seed,
        "save_strategy": "steps",
        "save_steps": optimisation.save_every_steps,
        "logging_steps": math.ceil(steps / (HISTORY_ROWS - 1)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def autocast_available() -> bool:
    """Return whether this machine computes in bfloat16 without slowing down."""
    return is_torch_bf16_gpu_available()


def peft_config(lora: LoraConfig | None, task: str, saved_modules: list[str] | None = None) -> Any:
    """Return the adapters on every linear layer for a peft `task`, or None when all weights are trained."""
    if lora is None:
        return None
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type=task,
        modules_to_save=saved_modules,
    )


def _warms_up_flat(optimisation: OptimisationConfig) -> bool:
    # The libraries' plain "constant" ignores a warm-up without a word.
    return optimisation.scheduler == "constant" and optimisation.warmup_share > 0


def _accumulation_steps(optimisation: OptimisationConfig) -> int:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    together = optimisation.per_device_batch_size * processes
    if optimisation.global_batch_size % together:
        raise ConfigError(
            f"{processes} processes of {optimisation.per_device_batch_size} rows do not divide "
            f"a global batch of {optimisation.global_batch_size}",
            where="optimisation.per_device_batch_size",
            remedy="choose one that does; it changes the speed only",
        )
    return optimisation.global_batch_size // together
