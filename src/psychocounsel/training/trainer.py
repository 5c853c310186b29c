"""What all trainings share: a trainer that stops, resumes and fails predictably, and the arguments of trl's trainers.

The trainer of the libraries is kept. Added are: an error at the first number that is not finite, a check that weights
moved, gradient accumulation that equals one large batch, and a checkpoint when the run is cancelled.
"""

import copy
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
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
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from psychocounsel.config.schema import LoraConfig, OptimisationConfig
from psychocounsel.errors import ConfigError, IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.store.artifacts import ADAPTER, OPTIMIZER
from psychocounsel.store.files import link_or_copy
from psychocounsel.training.checkpoints import checkpoint_at, complete, newest_verified, step_of
from psychocounsel.training.optimizers import Bf16AdamW, exact_values, has_remainders
from psychocounsel.training.packing import use_packed_forward
from psychocounsel.training.runtime import prepare_cpu, saving
from psychocounsel.training.sharded import gather_rows, gathered, in_any_process, whole_tensor
from psychocounsel.training.tokenize import LengthTable
from psychocounsel.training.tracking import tracked_training, tracker_arguments
from psychocounsel.training.weights import (
    LIBRARY_OPTIMIZERS,
    keep_adapters_exact,
    load_adapter,
    plain_model,
    save_adapter,
    uses_autocast,
)

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


@dataclass(frozen=True)
class RunPosition:
    """Where a training stands in a longer run: a round of online DPO, whose rounds share one schedule.

    An adapter goes on as the training before left it in its folder, and is left for the next one.

    Attributes:
        first_step: optimizer steps of the run before this training.
        total_steps: optimizer steps of the whole run, over which warm-up and decay of the learning rate stretch.
        before: the folder of the training before; None for the first one.
        continues_optimizer: whether the state of the optimizer goes on in the same way.
    """

    first_step: int
    total_steps: int
    before: Path | None = None
    continues_optimizer: bool = True


class LengthGroupedSampler(Sampler[list[int]]):
    """Row numbers of the micro-batches that one process takes in an epoch, rows of similar length together.

    Seed and epoch alone decide the `rows_per_step` rows of a step, so they do not depend on the number of processes.
    Within a step the longest rows come first: what does not fit into memory shows at the first micro-batch. The rows
    are divided into micro-batches of nearly equal size, which the processes take in turn.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        rows_per_step: int,
        rows_per_batch: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        """Sample for one `process`: its number, and how many there are."""
        self.lengths = lengths
        self.rows_per_step = rows_per_step
        self.rows_per_batch = rows_per_batch
        self.seed = seed
        self.process, self.processes = process
        self.epoch = 0

    @property
    def batch_sampler(self) -> "LengthGroupedSampler":
        """Itself: the trainer calls `set_epoch` of the data loader's `batch_sampler.batch_sampler`.

        That is the sampler below the wrapper by which a resumed trainer skips micro-batches, and without one itself.
        """
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sample the steps of this epoch from now on; trainers call it, also when they resume."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return math.ceil(len(self.lengths) / self.rows_per_step)

    def rows_of_step(self, step: int) -> int:
        """Return how many rows a step of an epoch has in all processes; the last one has the rest."""
        return min(self.rows_per_step, len(self.lengths) - step * self.rows_per_step)

    def batch_sizes(self, step: int) -> list[int]:
        """Return the rows of the micro-batches of a step, for all processes in turn: as many for each of them.

        Where a last step has fewer rows than processes, some have none.
        """
        rows = self.rows_of_step(step)
        count = self.processes * math.ceil(rows / (self.rows_per_batch * self.processes))
        return [rows // count + (number < rows % count) for number in range(count)]

    def __len__(self) -> int:
        return sum(len(self.batch_sizes(step)) for step in range(self.steps)) // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        for step in range(self.steps):
            start = step * self.rows_per_step
            rows = sorted(order[start : start + self.rows_per_step], key=self.lengths.__getitem__, reverse=True)
            sizes = self.batch_sizes(step)
            ends = list(itertools.accumulate(sizes))
            for number in range(self.process, len(sizes), self.processes):
                # Processes compute together, so one without a row repeats the shortest; its loss weighs nothing.
                yield rows[ends[number] - sizes[number] : ends[number]] or rows[-1:]


class CheckedTrainer(Trainer):
    """A trainer that ends at numbers that are not finite, and that `run_trainer` stops and resumes.

    `position` is that of the training in a longer run, whose learning-rate schedule it follows.
    """

    position: RunPosition | None = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward on one micro-batch.

        Raises:
            IncompleteError: the loss is not finite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._not_finite("loss", float(loss))
        return loss

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

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule of the training, or of the whole run at the step where this training begins."""
        if self.position is None:
            return super().create_scheduler(num_training_steps, optimizer)
        whole: Any = super().create_scheduler(self.position.total_steps, optimizer)
        self.lr_scheduler = LambdaLR(whole.optimizer, whole.lr_lambdas, self.position.first_step - 1)
        return self.lr_scheduler

    def continue_optimizer(self, folder: Path) -> None:
        """Load the optimizer state that an earlier training of the run left, but keep the place in the schedule."""
        schedule: Any = self.lr_scheduler
        place = schedule.state_dict()
        self._load_optimizer_and_scheduler(str(folder))
        schedule.load_state_dict(place)
        optimizer: Any = self.optimizer
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer: our own for weights that are bfloat16 and a remainder, else the libraries'."""
        if has_remainders(self.model):
            self.optimizer_cls_and_kwargs = (Bf16AdamW, {"lr": self.args.learning_rate, "seed": self.args.seed})
        return super().create_optimizer(model)

    def load_finished(self, checkpoint: Path) -> None:
        """Load weights and history of a checkpoint of the last step."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # shards are loaded into a sharded model
            self._prepare_for_training(step_of(checkpoint), self.get_train_dataloader(), str(checkpoint))
        else:
            self._load_from_checkpoint(str(checkpoint))
        if has_remainders(self.model):  # a part of the weights is in the optimizer's state
            self.create_optimizer().load_state_dict(torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu"))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: an artifact has its own card."""

    def _send_telemetry(self) -> None:
        # trl reports each use to the Hub; a run on client texts opens no connection that was not requested.
        pass


class LengthGroupedTrainer(CheckedTrainer):
    """Mixin before a trl trainer: takes the micro-batches of `LengthGroupedSampler`, and weights them by their rows.

    `row_lengths` are the tokens of each row of the training set, by which the rows of a step are ordered.
    """

    row_lengths: Sequence[int] = ()

    def create_accelerator_and_postprocess(self) -> None:
        """Set how processes compute together.

        trl's figures are gathered from micro-batches that need not have equally many rows in all processes. FSDP sums
        gradients in fp32 and leaves results as they are: accelerate has both in bfloat16 where weights are gathered in
        it, and the log-probability of an answer, a sum of hundreds of nats, would be rounded to whole ones.
        """
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.args.bf16:
            plugin: Any = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        if self.accelerator.num_processes > 1:
            cast(Any, self.accelerator).gather = gather_rows

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the micro-batches of this process. accelerate would pad an epoch's end with rows of its beginning."""
        settings = self.args
        processes = settings.world_size
        self.sampler = LengthGroupedSampler(
            self.row_lengths,
            settings.train_batch_size * processes * settings.gradient_accumulation_steps,
            settings.train_batch_size,
            settings.seed if settings.data_seed is None else settings.data_seed,
            (settings.process_index, processes),
        )
        return DataLoader(
            cast(Any, self.train_dataset),
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            pin_memory=settings.dataloader_pin_memory and not settings.use_cpu,
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Return the micro-batches of one step, and remember how much each of them weighs."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step % self.sampler.steps
        sizes = self.sampler.batch_sizes(step)
        mean = self.sampler.rows_of_step(step) / len(sizes)
        self.shares = iter([size / mean for size in sizes[self.sampler.process :: self.sampler.processes]])
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of a micro-batch, times its rows over the mean of all micro-batches of the step.

        The trainer averages over micro-batches and processes, which is right for equal ones only: those of the last
        step of an epoch may differ, and the rows of a small one would count for more than in one large batch.
        """
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss * next(self.shares)


class RunCallback(TrainerCallback):
    """Reports progress, completes checkpoints, and has a cancelled trainer save and stop.

    Checkpoints are hashed in a `thread` of their own while training goes on: they are read while the system still holds
    in memory what was written.
    """

    def __init__(
        self, trainer: CheckedTrainer, output: TrainingOutput, fingerprint: str, thread: ThreadPoolExecutor
    ) -> None:
        self.trainer = trainer
        self.output = output
        self.fingerprint = fingerprint
        self.thread = thread
        self.completion: Future[None] | None = None

    def await_checkpoint(self) -> None:
        """Return once the last checkpoint is complete; raise what hinders it."""
        if self.completion is not None:
            self.completion.result()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue the optimizer of the run, unless a checkpoint has brought a later state of it."""
        position = self.trainer.position
        if state.global_step == 0 and position and position.before and position.continues_optimizer:
            self.trainer.continue_optimizer(position.before / OPTIMIZER)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop if any process is cancelled, unless that was the last step."""
        self.output.progress(state.global_step, state.max_steps)
        if state.global_step < state.max_steps and in_any_process(self.output.cancel.is_cancelled()):
            control.should_log = control.should_save = control.should_training_stop = True
        if control.should_save or (self.completion is not None and self.completion.done()):
            self.await_checkpoint()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to complete the checkpoint of the current step, once all processes have written their part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = checkpoint_at(self.output.work, state.global_step)
            self.completion = self.thread.submit(complete, checkpoint, self.fingerprint)


ModelConfigs = tuple[PreTrainedConfig, GenerationConfig | None]


def train_and_save(
    trainer: CheckedTrainer,
    configs: ModelConfigs,
    tokenizer: PreTrainedTokenizerBase,
    output: TrainingOutput,
    fingerprint: str,
    *,
    packing: bool,
) -> float:
    """Train to the end, write a `from_pretrained` folder with these configs, and return the seconds of the training.

    A trainer with a `position` goes on from what the training before it left, and leaves its own. Errors are those of
    `run_trainer`.

    Raises:
        ConfigError: the next training of the run could not go on from this one.
    """
    position = trainer.position
    if position is not None:
        require_continuable(trainer, position)
        if position.before is not None and isinstance(trainer.model, PeftModel):
            load_adapter(trainer.model, position.before / ADAPTER)
    if packing:
        use_packed_forward(trainer.model)
    seconds = run_trainer(trainer, output, fingerprint)
    if position is not None and position.continues_optimizer:
        keep_optimizer(trainer, output)
    save_plain(trainer, configs, tokenizer, output.folder, keeps_adapter=position is not None)
    return seconds


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
    keep_adapters_exact(trainer.model)
    if isinstance(trainer.model, PeftModel):
        # Else every checkpoint asks the Hub whether the newest revision of the base has another vocabulary.
        cast(Any, trainer.model).save_pretrained = partial(trainer.model.save_pretrained, save_embedding_layers=False)
    before = trainable_values(trainer.model)
    # However training ends, the thread completes the checkpoint that it has begun.
    with saving(output.work), ThreadPoolExecutor(1) as thread:
        callback = RunCallback(trainer, output, fingerprint, thread)
        trainer.add_callback(callback)
        found = [newest_verified(output.work, fingerprint) if trainer.is_world_process_zero() else None]
        [checkpoint] = broadcast_object_list(found)
        last_step = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
        if checkpoint is not None and step_of(checkpoint) >= last_step:
            trainer.load_finished(checkpoint)
        else:
            with tracked_training(trainer, output.folder.name):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            callback.await_checkpoint()
    if trainer.state.global_step < trainer.state.max_steps:
        raise Preempted(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}",
            where=str(output.work),
            remedy="run the same command again to resume",
        )
    after = trainable_values(trainer.model, trainer.optimizer)
    # DeepSpeed may hold a parameter's values elsewhere than in the parameter.
    if not trainer.is_deepspeed_enabled and all(torch.equal(values, after[name]) for name, values in before.items()):
        remedy = "raise optimisation.learning_rate or the number of steps"
        raise IncompleteError("training moved no weight", remedy=remedy)
    return time.monotonic() - started


def trainable_values(model: Any, optimizer: torch.optim.Optimizer | None = None) -> dict[str, torch.Tensor]:
    """Return a copy of some values of every trainable tensor, to see later whether training moved them.

    Raises:
        ConfigError: the model has no trainable parameter.
    """
    values: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = whole_tensor(exact_values(parameter, optimizer)).flatten()
            values[name] = flat[:: max(1, len(flat) // WATCHED_VALUES_PER_TENSOR)].cpu().clone()
    if not values:
        raise ConfigError("the model has no trainable parameters", remedy="unfreeze it, or set optimisation.lora")
    return values


def copy_configs(model: Any) -> ModelConfigs:
    """Return copies of a model's configs, for `save_plain`; a classifier has no generation config."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)  # 4-bit weights are saved in fp32
    return config, copy.deepcopy(getattr(model, "generation_config", None))


def save_plain(
    trainer: Trainer,
    configs: ModelConfigs,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    keeps_adapter: bool = False,
) -> None:
    """Write a `from_pretrained` folder: fp32, adapters merged into the weights, configs as they were before training.

    The trainers set end and padding tokens and caching for their own use. If wanted, an adapter is also
    written by itself. Of several processes the first one writes.
    """
    model = gathered(trainer, configs[0])
    if model is None:
        return
    if keeps_adapter and isinstance(model, PeftModel):
        with saving(folder):
            save_adapter(model, folder / ADAPTER)
    plain = plain_model(model, trainer.optimizer)
    plain.config, plain.generation_config = configs
    with saving(folder):
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def require_continuable(trainer: Trainer, position: RunPosition) -> None:
    """Raise ConfigError if the next training of a run could not go on from this one: DeepSpeed has its own layouts."""
    if trainer.is_deepspeed_enabled and position.continues_optimizer:
        raise ConfigError(
            "DeepSpeed's optimizer state cannot be continued in another training",
            where="online.optimizer_state",
            remedy="set it to reset, or launch with ddp or fsdp2",
        )
    if cast(Any, is_deepspeed_zero3_enabled)() and isinstance(trainer.model, PeftModel):
        raise ConfigError(
            "an adapter that ZeRO-3 divides between processes cannot be continued in another training",
            where="launch.accelerate",
            remedy="launch with zero2, ddp or fsdp2",
        )


def keep_optimizer(trainer: CheckedTrainer, output: TrainingOutput) -> None:
    """Link the optimizer state of the last checkpoint into the folder of the model, which outlives the checkpoint.

    Of several processes the first one does.
    """
    if not PartialState().is_main_process:
        return
    last, folder = checkpoint_at(output.work, trainer.state.global_step), output.folder / OPTIMIZER
    shutil.rmtree(folder, ignore_errors=True)
    # FSDP writes a folder, the other backends a file.
    for path in sorted(last.rglob("*")):
        name = path.relative_to(last)
        if path.is_file() and name.parts[0].startswith(("optimizer", "scheduler")):
            link_or_copy(path, folder / name)


def history(trainer: Trainer, columns: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
    """Return the logged steps under our names; `columns` maps the trainer's own names to ours, besides the usual."""
    names = {**HISTORY_COLUMNS, **columns}
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return tuple({ours: float(row[theirs]) for theirs, ours in names.items() if theirs in row} for row in rows)


def training_arguments(
    optimisation: OptimisationConfig,
    work: Path,
    *,
    rows: int,
    epochs: int,
    seed: int,
    max_steps: int | None = None,
    position: RunPosition | None = None,
) -> dict[str, Any]:
    """Return the `TrainingArguments` that reward and DPO training have in common.

    Training runs for whole epochs over `rows` pairs, or for `max_steps`; warm-up is a share of its steps, or of the
    steps of the run in which it has a `position`. Micro-batches have `per_device_batch_size` rows, or fewer where the
    processes would exceed the global batch.

    Raises:
        ConfigError: the number of processes does not divide the global batch.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows_per_process, rest = divmod(optimisation.global_batch_size, processes)
    if rest:
        raise ConfigError(
            f"{processes} processes do not divide a global batch of {optimisation.global_batch_size}",
            where="optimisation.global_batch_size",
            remedy="start another number of processes, or change the batch, which changes the result",
        )
    rows_per_batch = math.gcd(optimisation.per_device_batch_size, rows_per_process)
    steps = max_steps or epochs * math.ceil(rows / optimisation.global_batch_size)
    # The libraries' plain "constant" schedule ignores warm-up steps silently.
    has_flat_warmup = optimisation.scheduler == "constant" and optimisation.warmup_share > 0
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    # Newer transformers warn of the old name; vLLM 0.32 asks for one below 5.20, which has no other.
    is_renamed = hasattr(TrainingArguments, "activation_checkpointing")
    checkpointing = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": rows_per_batch,
        "gradient_accumulation_steps": rows_per_process // rows_per_batch,
        "num_train_epochs": epochs,
        "max_steps": max_steps or -1,
        "optim": LIBRARY_OPTIMIZERS.get(optimisation.optimizer, "adamw_torch"),
        "learning_rate": optimisation.learning_rate,
        "lr_scheduler_type": optimisation.scheduler + ("_with_warmup" if has_flat_warmup else ""),
        # Rounded down, because the first warm-up step has learning rate 0: a run of one step must move.
        "warmup_steps": int((position.total_steps if position else steps) * optimisation.warmup_share),
        "weight_decay": optimisation.weight_decay,
        "max_grad_norm": optimisation.max_grad_norm,
        # DeepSpeed's own mixed precision would round the weights that training begins with: see `autocast_deepspeed`.
        "bf16": uses_autocast(optimisation) and os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true",
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
        # Until its last micro-batch, a step of FSDP would keep the whole model's gradients in every process.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": is_fsdp}},
        checkpointing: optimisation.gradient_checkpointing,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": optimisation.save_every_steps,
        "logging_steps": math.ceil(steps / (HISTORY_ROWS - 1)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        **tracker_arguments(optimisation.tracker),
        "disable_tqdm": True,
    }


def autocast_deepspeed(arguments: TrainingArguments, optimisation: OptimisationConfig) -> None:
    """Have DeepSpeed, where it trains, compute in bfloat16 from weights in fp32, as other launches do."""
    plugin = cast(Any, arguments).deepspeed_plugin
    if plugin is not None and uses_autocast(optimisation):
        plugin.hf_ds_config.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}


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
