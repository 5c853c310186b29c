"""What reward and DPO training share: a trl trainer that stops, resumes and fails predictably, and its arguments.

The trainer of the libraries is kept. Added are: an error at the first number that is not finite, a check that weights
moved, gradient accumulation that equals one large batch, and a checkpoint when the run is cancelled.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from psychocounsel.training.checkpoints import checkpoint_at, complete, newest_verified, step_of
from psychocounsel.training.runtime import prepare_cpu, saving
from psychocounsel.training.tokenize import LengthTable

HISTORY_ROWS = 200
HISTORY_COLUMNS = {name: name for name in ("step", "epoch", "loss", "grad_norm", "learning_rate")}
WATCHED_VALUES_PER_TENSOR = 1024


@dataclass(frozen=True)
class TrainingOutput:
    """Where training writes, and how the caller watches and stops it.

    Attributes:
        folder: receives the final model.
        work: receives checkpoints, and outlives a crash.
        cancel: checked after every step.
        progress: called after every step with the steps done and the steps in total.
        run_id: the artifact's id, which covers the models that training starts from, wherever their folders are.
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

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as `metrics.json` holds them."""
        return {**vars(self), "lengths": self.lengths._asdict(), "history": list(self.history)}


def preempted(step: int, total: int, work: Path) -> Preempted:
    """Return the error of a training that was cancelled after `step` steps, with a checkpoint in `work`."""
    return Preempted(
        f"stopped after step {step} of {total}", where=str(work), remedy="run the same command again to resume"
    )


class LengthGroupedSampler(Sampler[int]):
    """Row numbers of an epoch in the order in which micro-batches take them: within a step, the longest first.

    Micro-batches thus hold rows of similar length, and what does not fit into memory shows at the first one. A step has
    `rows_per_step` rows, over all micro-batches and processes; seed and epoch decide which.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self.lengths = lengths
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sample the steps of this epoch from now on; trainers call it, also when they resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.rows_per_step):
            step = order[start : start + self.rows_per_step]
            yield from sorted(step, key=self.lengths.__getitem__, reverse=True)


class CheckedTrainer(Trainer):
    """Mixin before a trl trainer: raises at numbers that are not finite, weights micro-batches by their rows.

    `row_lengths` are the tokens of each row of the training set, by which the rows of a step are ordered.
    """

    row_lengths: Sequence[int] = ()
    rows_in_step = 0
    batches_in_step = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        del train_dataset
        settings = self.args
        rows = settings.train_batch_size * max(1, settings.world_size) * settings.gradient_accumulation_steps
        seed = settings.seed if settings.data_seed is None else settings.data_seed
        return LengthGroupedSampler(self.row_lengths, rows, seed)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Return the micro-batches of one step, and remember how many rows they hold together."""
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

        The trainer divides by the number of micro-batches, which is right for equal ones only: the last one of an epoch
        is smaller, and its rows would count for more than in one large batch.
        """
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = len(inputs["input_ids"]) * self.batches_in_step / self.rows_in_step
        return loss if share == 1 else loss * share

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # The last call before the optimiser's step: an error here leaves the weights of the last good step.
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise self._not_finite("gradient norm", float(norm))
        return norm

    def _not_finite(self, what: str, value: float) -> IncompleteError:
        return IncompleteError(
            f"the {what} became {value} at step {self.state.global_step + 1}, so training ended there",
            where=str(self.args.output_dir),
            remedy="run again to resume from the last good checkpoint; if it recurs, lower "
            "optimisation.learning_rate or set optimisation.precision to fp32",
        )

    def load_finished(self, checkpoint: Path) -> None:
        """Load weights and history of a checkpoint of the last step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: an artifact has its own card."""

    def _send_telemetry(self) -> None:
        # trl reports each use to the Hub; a run on client texts opens no connection that was not requested.
        pass


class RunCallback(TrainerCallback):
    """Reports progress, completes checkpoints, and has a cancelled trainer save and stop."""

    def __init__(self, output: TrainingOutput, fingerprint: str) -> None:
        self.output = output
        self.fingerprint = fingerprint

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop if cancelled, unless that was the last step."""
        self.output.progress(state.global_step, state.max_steps)
        if state.global_step < state.max_steps and self.output.cancel.is_cancelled():
            control.should_log = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint of the current step."""
        if state.is_world_process_zero:
            complete(checkpoint_at(self.output.work, state.global_step), self.fingerprint)


def run_trainer(trainer: CheckedTrainer, output: TrainingOutput, fingerprint: str) -> float:
    """Train to the end, from the newest checkpoint that verifies; return the seconds it took.

    Raises:
        ConfigError: the model has no trainable parameter.
        Preempted: `output.cancel` is cancelled; a checkpoint of the last step is in `output.work`.
        IncompleteError: a loss or gradient is not finite, or no weight moved.
    """
    prepare_cpu()
    started = time.monotonic()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunCallback(output, fingerprint))
    before = trainable_values(trainer.model)
    with saving(output.work):
        checkpoint = newest_verified(output.work, fingerprint)
        last_step = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
        if checkpoint is not None and step_of(checkpoint) >= last_step:
            trainer.load_finished(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        raise preempted(trainer.state.global_step, trainer.state.max_steps, output.work)
    after = trainable_values(trainer.model)
    if all(torch.equal(values, after[name]) for name, values in before.items()):
        remedy = "raise optimisation.learning_rate or the number of steps"
        raise IncompleteError("training moved no weight", remedy=remedy)
    return time.monotonic() - started


def trainable_values(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of some values of every trainable tensor, to see later whether training moved them.

    Raises:
        ConfigError: the model has no trainable parameter.
    """
    values: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = parameter.detach().flatten()
            values[name] = flat[:: max(1, len(flat) // WATCHED_VALUES_PER_TENSOR)].cpu().clone()
    if not values:
        raise ConfigError("the model has no trainable parameters", remedy="unfreeze it, or set optimisation.lora")
    return values


ModelConfigs = tuple[PreTrainedConfig, GenerationConfig | None]


def copy_configs(model: Any) -> ModelConfigs:
    """Return copies of a model's configs, for `save_plain`; a classifier has no generation config."""
    return copy.deepcopy(model.config), copy.deepcopy(getattr(model, "generation_config", None))


def save_plain(model: Any, configs: ModelConfigs, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `from_pretrained` folder: adapters merged into the weights, configs as they were before training.

    The trainers set end and padding tokens and caching for their own use.
    """
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    plain.config, plain.generation_config = configs
    with saving(folder):
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def history(trainer: Trainer, columns: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
    """Return the logged steps under our names; `columns` maps the trainer's own names to ours, besides the usual."""
    names = {**HISTORY_COLUMNS, **columns}
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return tuple({ours: float(row[theirs]) for theirs, ours in names.items() if theirs in row} for row in rows)


def training_arguments(
    optimisation: OptimisationConfig, work: Path, *, rows: int, epochs: int, seed: int, max_steps: int | None = None
) -> dict[str, Any]:
    """Return the `TrainingArguments` that reward and DPO training have in common.

    Training runs for whole epochs over `rows` pairs, or for `max_steps`. Weights are fp32 at all times;
    `precision: bf16` means autocast, on an accelerator that has it.

    Raises:
        ConfigError: the processes' batches do not divide the global batch.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows_together = optimisation.per_device_batch_size * processes
    if optimisation.global_batch_size % rows_together:
        raise ConfigError(
            f"{processes} processes of {optimisation.per_device_batch_size} rows do not divide "
            f"a global batch of {optimisation.global_batch_size}",
            where="optimisation.per_device_batch_size",
            remedy="choose one that does; it affects the speed only",
        )
    steps = max_steps or epochs * math.ceil(rows / optimisation.global_batch_size)
    # The libraries' plain "constant" schedule ignores warm-up steps silently.
    has_flat_warmup = optimisation.scheduler == "constant" and optimisation.warmup_share > 0
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": optimisation.per_device_batch_size,
        "gradient_accumulation_steps": optimisation.global_batch_size // rows_together,
        "num_train_epochs": epochs,
        "max_steps": max_steps or -1,
        "optim": "adamw_torch",
        "learning_rate": optimisation.learning_rate,
        "lr_scheduler_type": optimisation.scheduler + ("_with_warmup" if has_flat_warmup else ""),
        # Rounded down, because the first warm-up step has learning rate 0: a run of one step must move.
        "warmup_steps": int(steps * optimisation.warmup_share),
        "weight_decay": optimisation.weight_decay,
        "max_grad_norm": optimisation.max_grad_norm,
        "bf16": optimisation.precision == "bf16" and is_torch_bf16_gpu_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "activation_checkpointing": optimisation.gradient_checkpointing,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": optimisation.save_every_steps,
        "logging_steps": math.ceil(steps / (HISTORY_ROWS - 1)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


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
