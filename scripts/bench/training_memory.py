"""Compare the preflight's memory with what training steps of a large model take, without the memory to run them.

    python scripts/bench/training_memory.py
    python scripts/bench/training_memory.py --shapes llama-3.1-8b --ways "full, fp32" "LoRA, bf16" --devices 8

Two steps of DPO, of two micro-batches each, run on fake tensors, which have shapes and types and no values: every
operation of the packed forward, the backward pass, the clipping and the optimizer is dispatched, and the bytes of all
tensors that are alive are counted. The peak stands beside the preflight's sum without the CUDA context. The pairs have
the paper's mean lengths (prompt 164, prompt and chosen 420, prompt and rejected 363 tokens). With `--devices`, it is
the peak of one process of FSDP2, among fake others. What fake tensors cannot show: an allocator's fragments, the
kernels' own workspaces, and 4-bit weights. Attention runs per segment, as on a CPU; chunks of the head are as large as
on a GPU, and torch's AdamW is counted as the fused one that runs there, which works in place.
"""

import argparse
import random
import types
import weakref
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # fake tensors know collective operations by it
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import logsigmoid
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from psychocounsel.config.schema import LoraConfig, OptimisationConfig
from psychocounsel.training import packing
from psychocounsel.training.memory import GB, ModelSize, memory_per_device
from psychocounsel.training.optimizers import Bf16AdamW
from psychocounsel.training.packing import pack, run_packed, token_logprobs, use_packed_forward
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.sharded import whole_tensor
from psychocounsel.training.trainer import peft_config
from psychocounsel.training.weights import prepare_weights

PROMPT, CHOSEN, REJECTED = 164, 256, 199
BETA, LEARNING_RATE = 0.1, 5e-7
SHAPES: dict[str, Any] = {
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "llama-3.2-3b": LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
}
"""Dimensions from the models' config.json."""
LORA = LoraConfig(rank=64)
WAYS: dict[str, dict[str, Any]] = {
    "full, fp32": {},
    "full, bf16": {"weights": "bf16", "optimizer": "adamw_bf16_sr"},
    "LoRA, fp32": {"lora": LORA},
    "LoRA, bf16": {"weights": "bf16", "lora": LORA},
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made; that of a sharded tensor by what it does with the shard."""
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self.count(each.untyped_storage())
        return result

    def count(self, storage: Any) -> None:
        """Count a storage by its present size: FSDP empties those of gathered weights and fills them again."""
        name = id(storage)
        if name not in self._alive:
            self._alive[name] = weakref.ref(storage, lambda _: self._gone(name))
        self.now += storage.nbytes() - self._sizes.get(name, 0)
        self._sizes[name] = storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _gone(self, name: int) -> None:
        self.now -= self._sizes.pop(name)
        del self._alive[name]


def random_pairs(tokens: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Return prompts with two responses that have at most so many distinct tokens together."""
    source = random.Random(0)  # noqa: S311 (ids of a benchmark)
    lengths = (PROMPT, CHOSEN, REJECTED)
    each = [[[source.randrange(10, 100_000) for _ in range(length)] for length in lengths] for _ in range(999)]
    return [(prompt, chosen, rejected) for prompt, chosen, rejected in each[: tokens // sum(lengths)]]


def fake_model(shape: Any, optimisation: OptimisationConfig) -> Any:
    """Return a model of that shape as it is trained; its weights are fake."""
    with torch.device("meta"):
        frozen = optimisation.weights == "bf16" and optimisation.lora is not None
        model: Any = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16 if frozen else torch.float32)
        if optimisation.lora is not None:
            model = get_peft_model(model, peft_config(optimisation.lora, "CAUSAL_LM"))
            model.enable_input_require_grads()
    made: dict[int, Any] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                if value is not None and id(value) not in made:
                    empty: Any = torch.empty(value.shape, dtype=value.dtype)
                    is_weight = isinstance(value, torch.nn.Parameter)
                    made[id(value)] = torch.nn.Parameter(empty, value.requires_grad) if is_weight else empty
                if value is not None:
                    own[name] = made[id(value)]
    prepare_weights(model, optimisation)
    return model


def shard(model: Any, backbone: Any, optimisation: OptimisationConfig, mesh: DeviceMesh) -> None:
    """Divide a model between the processes of a mesh by FSDP2, in the units that accelerate makes."""
    is_bf16 = optimisation.precision == "bf16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_bf16 else MixedPrecisionPolicy()
    for unit in (*backbone.layers, backbone.embed_tokens):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    tail = [backbone.norm, model.get_output_embeddings()]
    fully_shard(tail, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)


class Batch:
    """A micro-batch of pairs as one list of tokens, in place of a causal model's forward pass."""

    def __init__(self, tokens: int) -> None:
        pairs = random_pairs(tokens)
        rows = [*((prompt, chosen) for prompt, chosen, _ in pairs), *((prompt, other) for prompt, _, other in pairs)]
        self.packed = pack([[*prompt, *response] for prompt, response in rows])
        paths = zip(rows, self.packed.places, strict=True)
        self._predictors = [place for (prompt, _), path in paths for place in path[len(prompt) - 1 : -1]]
        self._targets = [token for _, response in rows for token in response]
        self._lengths = [len(response) for _, response in rows]

    def forward(self, model: Any, *_: Any, **__: Any) -> torch.Tensor:
        """Return the loss of the pairs; the reference counts for nothing here."""
        hidden = run_packed(model, self.packed)[torch.tensor(self._predictors)]
        head = whole_tensor(model.get_output_embeddings().weight)
        values = token_logprobs(hidden, torch.tensor(self._targets), head, with_statistics=True)
        chosen, rejected = torch.stack([each.sum() for each in values.log_probs.split(self._lengths)]).chunk(2)
        return -logsigmoid(BETA * (chosen - rejected)).mean()


def peak_bytes(shape: Any, optimisation: OptimisationConfig, batch: Batch, mesh: DeviceMesh | None) -> int:
    """Return the most bytes that tensors of one process take in two steps."""
    live = LiveBytes()
    resize = torch.UntypedStorage.resize_

    def counted_resize(storage: Any, size: int) -> Any:
        resize(storage, size)
        live.count(storage)
        return storage

    emptied = patch.object(torch.UntypedStorage, "resize_", counted_resize)
    with quiet_libraries(), emptied, FakeTensorMode(), live:
        model = fake_model(shape, optimisation)
        use_packed_forward(model)
        inner = model if optimisation.lora is None else model.get_base_model()
        inner.forward = types.MethodType(batch.forward, inner)
        if optimisation.gradient_checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if mesh is not None:
            shard(model, inner.base_model, optimisation, mesh)
        model.train()
        live.peak = live.now
        trained = [each for each in model.parameters() if each.requires_grad]
        is_own = optimisation.optimizer == "adamw_bf16_sr"
        optimizer = (
            Bf16AdamW(trained, LEARNING_RATE) if is_own else torch.optim.AdamW(trained, LEARNING_RATE, foreach=False)
        )
        for _ in range(2):
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=optimisation.precision == "bf16"):
                    loss = model()
                loss.backward()
                del loss
            torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=False)
            before = live.peak
            optimizer.step()
            live.peak = live.peak if is_own else max(before, live.now)
            optimizer.zero_grad()
    return live.peak


def main() -> None:
    """Count every way of every shape and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tokens", type=int, default=4096, help="most distinct tokens in a micro-batch")
    parser.add_argument("--devices", type=int, default=1, help="processes of FSDP2")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    arguments = parser.parse_args()
    mesh: DeviceMesh | None = None
    if arguments.devices > 1:
        dist.init_process_group("fake", rank=0, world_size=arguments.devices, store=FakeStore())
        mesh = init_device_mesh("cpu", (arguments.devices,))
    # On a GPU, chunks of the head are larger and none is kept.
    packing.LOGITS_BYTES[False], packing.KEPT_BYTES[False] = packing.LOGITS_BYTES[True], packing.KEPT_BYTES[True]
    batch = Batch(arguments.tokens)
    tokens = len(batch.packed.token_ids)
    print(
        f"{tokens} tokens in a micro-batch; {arguments.devices} devices; torch {torch.__version__}; GB of 1e9 bytes\n"
    )
    print("| shape | way | counted | predicted | predicted / counted |")
    print("|---|---|---|---|---|", flush=True)
    for shape in arguments.shapes:
        size = ModelSize.of_config(SHAPES[shape])
        for way in arguments.ways:
            optimisation = OptimisationConfig(
                learning_rate=LEARNING_RATE,
                global_batch_size=16,
                gradient_checkpointing=not arguments.no_checkpointing,
                **WAYS[way],
            )
            counted = peak_bytes(SHAPES[shape], optimisation, batch, mesh)
            sharding = "fsdp2" if arguments.devices > 1 else "ddp"
            predicted = memory_per_device(size, optimisation, tokens, arguments.devices, sharding)
            without = predicted.total - predicted.context
            row = (shape, way, f"{counted / GB:.1f}", f"{without / GB:.1f}", f"{without / counted:.2f}")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
