"""What a training needs, before it starts: tables for a dry run, and errors where memory or disk are not enough."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from psychocounsel.config.schema import AlignConfig, LoraConfig, OptimisationConfig, TinyLlamaShape, TrainRewardConfig
from psychocounsel.errors import ConfigError, DataQualityError, IncompleteError, PsychoCounselError
from psychocounsel.reporting.tables import NONE, Table
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.references import POLICY_KINDS, ModelReference, resolve, resolve_model
from psychocounsel.store.schemas import pairs_file
from psychocounsel.store.store import Store
from psychocounsel.types import Policy

if TYPE_CHECKING:
    from psychocounsel.training.memory import Machine, Memory, ModelSize, Sharding

Config = TrainRewardConfig | AlignConfig
TOKENS_PER_PAIR = 783
"""Both answers with their prompts, on average over the paper's data."""
SMALL_WEIGHTS = 100_000_000
"""With fewer, every machine will do, and a dry run says so in a line."""
ALTERNATIVES: dict[str, dict[str, object]] = {
    "full, fp32": {"weights": "fp32", "optimizer": "adamw", "lora": None},
    "full, bf16 + stochastic rounding": {"weights": "bf16", "optimizer": "adamw_bf16_sr", "lora": None},
    "LoRA, bf16": {"weights": "bf16", "optimizer": "adamw", "lora": LoraConfig()},
    "QLoRA, nf4": {"weights": "nf4", "optimizer": "adamw", "lora": LoraConfig()},
}


def require_launchable(config: Config, policy: Policy) -> None:
    """Raise ConfigError if the launch cannot shard the training of `policy`, or it does not fit into a device.

    The remedy names what to change.
    """
    from psychocounsel.training.launch import launch_of  # imports torch
    from psychocounsel.training.memory import GB, ModelSize, machine_at_hand, remedy, unshardable

    size, machine, launch = ModelSize.of(policy), machine_at_hand(), launch_of(config.launch)
    kinds: dict[str, Sharding] = {"FSDP": "fsdp2", "DEEPSPEED": "zero3" if launch.zero_stage == "3" else "zero2"}
    sharding = kinds.get(launch.distributed_type, "ddp")
    if setting := unshardable(config.optimisation, sharding):
        raise ConfigError(
            f"{setting} cannot be sharded by {launch.distributed_type}",
            where="launch.accelerate",
            remedy="launch with ddp; or set weights: fp32, or bf16 with lora, and optimizer: adamw",
        )

    def needed(optimisation: OptimisationConfig) -> "Memory":
        return _memory(config, size, optimisation, launch.processes, sharding)

    memory = needed(config.optimisation)
    if memory.total > machine.memory:
        parts = ", ".join(f"{name} {value / GB:.1f}" for name, value in memory._asdict().items())
        raise ConfigError(
            f"training needs about {memory.total / GB:.1f} GB per device ({parts}), and {machine.name} has "
            f"{machine.memory / GB:.1f} GB",
            where="optimisation",
            remedy=remedy(
                config.optimisation,
                lambda changed: needed(changed).total <= machine.memory,
                sharding,
                quantizes=_quantizes(config),
            ),
        )


def require_suitable(config: Config, store: Store) -> None:
    """Raise what training would say of the type and the tokenizer of a model from elsewhere.

    And of a preference dataset without training pairs, as a benchmark is.
    """
    if config.preferences is not None:
        found = resolve(store, config.preferences, "preferences")
        if isinstance(found, Artifact) and pairs_file("train") not in found.manifest["files"]:
            raise DataQualityError(
                "has no training pairs",
                where=f"preferences {found.ref}",
                remedy="name another dataset; eval-reward measures a reward model on this one",
            )
    model = resolve_model(store, _initial(config), POLICY_KINDS)
    if model.outside is not None:
        from psychocounsel.training.runtime import on_this_machine, trainable_config  # imports torch
        from psychocounsel.training.tokenize import require_trainable

        if local := on_this_machine(model.outside, "config.json"):
            trainable_config(local, with_head=isinstance(config, TrainRewardConfig))
        require_trainable(model.outside, config.chat)


def require_equipped(config: Config, store: Store) -> None:
    """Raise ConfigError if this machine lacks what a training needs: a package, or the devices of its launch."""
    from psychocounsel.training.launch import launch_of  # imports torch
    from psychocounsel.training.samplers import require_sampler
    from psychocounsel.training.tracking import prepare_tracker
    from psychocounsel.training.weights import require_libraries

    launch_of(config.launch)
    prepare_tracker(config.optimisation.tracker, store)
    require_libraries(config.optimisation)
    if isinstance(config, AlignConfig) and config.online is not None:
        require_sampler(config.online.sampler)


def _initial(config: Config) -> str:
    return config.base_model if isinstance(config, TrainRewardConfig) else config.policy


def _quantizes(config: Config) -> bool:
    """Return whether the weights may be 4-bit: a round of an online run would quantize what the one before learned."""
    return isinstance(config, TrainRewardConfig) or config.online is None


def require_disk(config: Config, policy: Policy, work: Path) -> None:
    """Raise IncompleteError if checkpoints in `work` and the final model need more disk than is free there."""
    from psychocounsel.training.memory import GB, ModelSize, disk_bytes  # imports torch

    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    missing = disk_bytes(ModelSize.of(policy), config.optimisation) - there - shutil.disk_usage(work).free
    if missing > 0:
        raise IncompleteError(
            f"checkpoints and the final model need {missing / GB:.1f} GB more than is free",
            where=str(work),
            remedy="free some space, or choose another disk with --store; then run the same command again",
        )


def preflight(config: Config, store: Store) -> list[Table] | str:
    """Return memory per device, time and disk of a training; a line for a small model, or why they are not known."""
    from psychocounsel.training.memory import GB, disk_bytes, model_bytes  # imports torch

    try:
        size = _size_of(resolve_model(store, _initial(config), POLICY_KINDS), store)
    except PsychoCounselError as fault:
        return f"memory, time and disk are not known: {fault}"
    online = config.online if isinstance(config, AlignConfig) else None
    # Of an online run stay the best and the last round's weights, beside those that are being written.
    policies = 1 if online is None else online.rounds if online.keep == "all" else min(online.rounds, 3)
    continues = online is not None and online.rounds > 1 and online.optimizer_state == "continue"
    disk = disk_bytes(size, config.optimisation, policies, continues_optimizer=continues)
    if size.weights < SMALL_WEIGHTS:
        memory = _memory(config, size, config.optimisation, 1, "ddp").total
        needs = f"about {memory / GB:.1f} GB of memory, {disk / GB:.1f} GB of disk"
        return f"training {size.weights / 1e6:.1f} million weights: {needs}"
    room = f"{disk / GB:.0f} GB of disk, {model_bytes(size) / GB:.0f} GB of main memory to load and save the model"
    return [_memory_table(config, size), _time_table(config, size, store, room)]


def _size_of(model: ModelReference, store: Store) -> "ModelSize":
    """Return the size of a model: one that the present run is going to make has that of the one that it starts from."""
    from psychocounsel.training.memory import ModelSize  # imports torch
    from psychocounsel.training.tiny_llama import llama_config

    planned = None if model.parent is None else store.planned.get(model.parent.id)
    if planned is None:
        return ModelSize.of(model.policy(store), local_only=True)  # a dry run opens no connection
    if planned.kind == "base-models":
        shape = TinyLlamaShape.model_validate(planned.settings["shape"])
        return ModelSize.of_config(llama_config(shape, shape.vocab_size))
    origin = planned.settings["initial_policy"]
    outside = Policy(origin["hub"], origin["revision"]) if "hub" in origin else None
    parent = next((each for each in planned.parents if each.role == "initial policy"), None)
    return _size_of(ModelReference(parent, origin, outside), store)


def _tokens_per_row(config: Config) -> int:
    return 2 * config.length.max_length_tokens


def _memory(
    config: Config, size: "ModelSize", optimisation: OptimisationConfig, devices: int, sharding: "Sharding"
) -> "Memory":
    from psychocounsel.training.memory import memory_per_device

    tokens = optimisation.per_device_batch_size * _tokens_per_row(config)
    has_head = isinstance(config, AlignConfig)
    return memory_per_device(size, optimisation, tokens, devices, sharding, has_head=has_head)


def _memory_table(config: Config, size: "ModelSize") -> Table:
    from psychocounsel.training.memory import GB, SHARDINGS, unshardable

    base = config.optimisation
    changed = {
        name: base.model_copy(update=change)
        for name, change in ALTERNATIVES.items()
        if change["weights"] != "nf4" or _quantizes(config)
    }
    rows: list[tuple[str, ...]] = []
    for name, optimisation in {"this config": base, **changed}.items():
        alone = _memory(config, size, optimisation, 1, "ddp")
        others = [
            NONE if unshardable(optimisation, way) else f"{_memory(config, size, optimisation, 8, way).total / GB:.1f}"
            for way in SHARDINGS
        ]
        parts = [f"{value / GB:.1f}" for value in alone[:-1]]
        rows.append((name, *parts, f"{alone.total / GB:.1f}", *others))
    tokens = base.per_device_batch_size * _tokens_per_row(config)
    checkpointing = "with" if base.gradient_checkpointing else "without"
    title = (
        f"Memory per device, GB: {size.weights / GB:.2f} billion weights, micro-batches of at most {tokens} tokens, "
        f"{checkpointing} gradient checkpointing. Predicted, not measured."
    )
    parts = ("weights", "gradients", "optimizer", "activations", "workspace", "total")
    header = ("", *parts, f"of 8: {SHARDINGS[0]}", *SHARDINGS[1:])
    return Table("memory", title, header, "l" + "r" * (len(header) - 1), tuple(rows))


def _time_table(config: Config, size: "ModelSize", store: Store, room: str) -> Table:
    from psychocounsel.training.memory import (
        CLUSTERS,
        GB,
        MFU,
        SHARDINGS,
        hours,
        machine_at_hand,
        training_flops,
        unshardable,
    )

    steps = _steps(config, store)
    is_dpo = isinstance(config, AlignConfig)
    per_token = training_flops(size, config.optimisation, with_reference=is_dpo)
    tokens = None if steps is None else steps * config.optimisation.global_batch_size * TOKENS_PER_PAIR

    def row(machine: "Machine") -> tuple[str, ...]:
        one = machine._replace(devices=1)
        fitting = [
            (each, way)
            for each in (machine, one)
            for way in SHARDINGS[: 1 if each.devices == 1 else None]
            if not unshardable(config.optimisation, way)
            and _memory(config, size, config.optimisation, each.devices, way).total <= machine.memory
        ]
        if not fitting:
            return (machine.name, f"{machine.memory / GB:.0f}", "no", NONE)
        used, way = fitting[0]
        fits = way if used.devices > 1 else "yes" if machine.devices == 1 else "on one device"
        time = None if tokens is None else hours(tokens * per_token, used)
        return (machine.name, f"{machine.memory / GB:.0f}", fits, NONE if time is None else f"{time:.1f}")

    work = "steps are known once the pairs exist"
    if tokens is not None:
        work = f"{steps} steps, {tokens / 1e6:.0f} million tokens ({TOKENS_PER_PAIR} per pair)"
    title = (
        f"Training: {work}; {room}. Hours at {MFU:.0%} of the chip's bfloat16 rate, an "
        f"assumption; without sampling and scoring{_answers(config)}."
    )
    rows = tuple(row(machine) for machine in (machine_at_hand(), *CLUSTERS))
    return Table("time", title, ("", "GB per device", "fits", "hours"), "lrrr", rows)


def _answers(config: Config) -> str:
    """Return how many answers the rounds of an online run have at most, as words; empty without any."""
    if not isinstance(config, AlignConfig) or config.online is None:
        return ""
    online = config.online
    return f" of up to {online.rounds * online.speeches_per_round * online.candidates_per_speech:,} answers"


def _steps(config: Config, store: Store) -> int | None:
    """Return the optimizer steps, None where they depend on pairs that do not exist yet."""
    if isinstance(config, AlignConfig):
        if config.online is not None:
            return config.online.rounds * config.planned_steps_per_round
        if config.max_steps is not None:
            return config.max_steps
    found = resolve(store, config.preferences or "", "preferences")
    if not isinstance(found, Artifact):
        return None
    pairs = int(found.manifest["rows"][pairs_file("train")])
    return config.epochs * math.ceil(pairs / config.optimisation.global_batch_size)
