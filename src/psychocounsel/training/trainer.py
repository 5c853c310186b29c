"""Trainer -> TrainingSummary: training that stops, resumes and fails as promised, for reward and DPO alike.

The libraries' trainer is kept. What it does not promise is added here: no step on a number that is not
finite, weights that demonstrably moved, accumulation that equals one large batch, and a checkpoint when
the run is asked to stop.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig as PeftLoraConfig
from torch.utils.data import Sampler
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from psychocounsel.config.schema import LoraConfig, OptimisationConfig
from psychocounsel.errors import ConfigError, IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.training.checkpoints import SealingCallback, newest_verified, set_aside
from psychocounsel.training.runtime import prepare_processor, saving
from psychocounsel.training.tokenize import LengthTable


class StepsByLength(Sampler[int]):
    """Row numbers of an epoch, in the order in which micro-batches take them.

    Args:
        lengths: tokens of each row.
        rows_per_step: rows of one optimiser step, over all micro-batches and processes.
        seed: decides, with the epoch, which rows make a step.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self.lengths = lengths
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the steps of this epoch from now on; trainers call it, also when they resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=draw).tolist()
        for start in range(0, len(order), self.rows_per_step):
            step = order[start : start + self.rows_per_step]
            # The longest first: what does not fit into memory shows at once.
            yield from sorted(step, key=self.lengths.__getitem__, reverse=True)


WATCHED_VALUES_PER_TENSOR = 1024


@dataclass(frozen=True)
class TrainingOutput:
    """Where training writes, and how the caller watches and stops it.

    `folder` receives the final model; `work` holds checkpoints and outlives a crash. `cancel` is looked at
    after every step; `progress` is told the steps done and the steps in total. `run_id` is the artifact's id: the
    models that it starts from are part of it, wherever their folders lie.
    """

    folder: Path
    work: Path
    cancel: CancelToken
    progress: Callable[[int, int], None]
    run_id: str


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished training did; `seconds` counts this process only, `history` the whole run."""

    steps: int
    seconds: float
    lengths: LengthTable
    history: tuple[Mapping[str, float], ...]

    @property
    def first_loss(self) -> float:
        """Loss of the first step, before any weight moved."""
        return self.history[0]["loss"]

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in which `metrics.json` holds a training."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "lengths": self.lengths._asdict(),
            "history": [dict(row) for row in self.history],
        }


class ModelConfigs(NamedTuple):
    """A model's two configs; a classifier has no second one."""

    model: PreTrainedConfig
    generation: GenerationConfig | None

    @classmethod
    def of(cls, model: Any) -> "ModelConfigs":
        """Return copies that training cannot change."""
        return cls(copy.deepcopy(model.config), copy.deepcopy(getattr(model, "generation_config", None)))


class CarefulTrainer(Trainer):
    """Mixed in before a trl trainer: stops at numbers that are not finite, weights micro-batches by rows.

    `row_lengths` are the tokens of each row of the training set, by which a step's rows are gathered.
    """

    row_lengths: Sequence[int] = ()
    rows_in_step = 0
    batches_in_step = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> StepsByLength:
        del train_dataset
        arguments = self.args
        together = arguments.train_batch_size * max(1, arguments.world_size)
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        return StepsByLength(self.row_lengths, together * arguments.gradient_accumulation_steps, seed)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of one step and remember how many rows they hold together."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.rows_in_step = sum(len(batch["input_ids"]) for batch in batches)
        self.batches_in_step = len(batches)
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward on one micro-batch.

        Raises:
            IncompleteError: the loss is not finite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._not_finite("loss", float(loss))
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of a micro-batch times its share of the step's rows.

        The trainer divides by the number of micro-batches, which is right for equal ones only; the last of an
        epoch is smaller, and its rows would count for more than those of one large batch do.
        """
        rows = len(inputs["input_ids"])
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = rows * self.batches_in_step / self.rows_in_step
        return loss if share == 1 else loss * share

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # The last place before the optimiser's step, so the weights of the last good step stay.
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise self._not_finite("gradient norm", float(norm))
        return norm

    def _not_finite(self, what: str, value: float) -> IncompleteError:
        return IncompleteError(
            f"the {what} became {value} at step {self.state.global_step + 1}, so training ended there",
            where=str(self.args.output_dir),
            remedy="run again to go on from the last good checkpoint; if it recurs, lower "
            "optimisation.learning_rate or set optimisation.precision to fp32",
        )

    def load_finished(self, checkpoint: Path) -> None:
        """Take over weights and history of a checkpoint that lies at the last step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: an artifact has its own card."""

    def _send_telemetry(self) -> None:
        # trl reports each use to the Hub; a run on client texts opens no connection that nobody asked for.
        pass


class WatchCallback(TrainerCallback):
    """Tells progress after every step, and has the trainer save and stop when it is asked to."""

    def __init__(self, output: TrainingOutput) -> None:
        self.output = output
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop if cancelled, unless that was the last step: then the run simply finishes."""
        self.output.progress(state.global_step, state.max_steps)
        if state.global_step < state.max_steps and self.output.cancel.is_cancelled():
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True


class WeightWatch:
    """Remembers some values of every trainable tensor, to tell whether training moved anything.

    Raises:
        ConfigError: the model has no trainable parameter.
    """

    def __init__(self, model: Any) -> None:
        self.before = {
            name: _some_values(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        if not self.before:
            raise ConfigError("the model has no trainable parameters", remedy="unfreeze it, or set optimisation.lora")

    def require_movement(self, model: Any) -> None:
        """Raise IncompleteError when not one watched value changed."""
        parameters = dict(model.named_parameters())
        if all(torch.equal(values, _some_values(parameters[name])) for name, values in self.before.items()):
            raise IncompleteError(
                "training moved no weight", remedy="raise optimisation.learning_rate or the number of steps"
            )


def run_trainer(trainer: CarefulTrainer, output: TrainingOutput, fingerprint: str) -> float:
    """Train to the end, from the newest checkpoint that verifies; return the seconds it took.

    Raises:
        Preempted: `output.cancel` is cancelled; a sealed checkpoint of the last step lies in `output.work`.
        IncompleteError: a loss or gradient was not finite, or no weight moved.
    """
    prepare_processor()
    started = time.monotonic()
    watch = WatchCallback(output)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    trainer.add_callback(SealingCallback(output.work, fingerprint))
    weights = WeightWatch(trainer.model)
    with saving(output.work):
        _train_from_newest(trainer, output, fingerprint)
    if watch.stopped:
        raise Preempted(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}",
            where=str(output.work),
            remedy="run the same command again to go on from there",
        )
    weights.require_movement(trainer.model)
    return time.monotonic() - started


def save_plain(model: Any, configs: ModelConfigs, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `from_pretrained` folder: adapters merged into the weights, configs as before training.

    The trainers set end and padding tokens and caching for their own use; the folder's reader finds ours.
    """
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    plain.config, plain.generation_config = configs
    with saving(folder):
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def history(trainer: Trainer, columns: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
    """Return the logged steps with our names for the trainer's: `columns` maps theirs to ours."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return tuple({ours: float(row[theirs]) for theirs, ours in columns.items() if theirs in row} for row in rows)


def _train_from_newest(trainer: CarefulTrainer, output: TrainingOutput, fingerprint: str) -> None:
    point = newest_verified(output.work, fingerprint)
    set_aside(point.skipped)
    if point.path is not None and point.step >= _last_step(trainer):
        trainer.load_finished(point.path)
    else:
        trainer.train(resume_from_checkpoint=str(point.path) if point.path else None)


def _last_step(trainer: CarefulTrainer) -> int:
    return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def _some_values(parameter: torch.Tensor) -> torch.Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // WATCHED_VALUES_PER_TENSOR)].cpu().clone()


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
        "lr_scheduler_type": optimisation.scheduler + ("_with_warmup" if _warms_up_flat(optimisation) else ""),
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
