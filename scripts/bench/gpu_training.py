r"""Compare packed DPO steps of a large model with stock trl on one GPU: tokens per second, MFU and peak memory.

    python scripts/bench/gpu_training.py --ways "LoRA, bf16"    # minutes for each way
    python scripts/bench/gpu_training.py --ways "full, bf16"    # 80 GB or more
    python scripts/bench/gpu_training.py --device cpu --layers 1 --hidden 64 --pairs 1 --steps 1   # a rehearsal

A random model of Llama-3.1-8B's shape takes optimizer steps over random pairs of the paper's mean lengths (prompt 164,
prompt and chosen 420, prompt and rejected 363 tokens, log-normal with a deviation of 0.5), against a reference that
finds all tokens equally likely. Both ways get the same micro-batches; "trl" is its own forward on padded rows. Tokens
are those that are distinct: each prompt once, no padding. MFU is useful operations (6 for a trained weight and 4 for a
frozen one, none for what is computed again) over the matrix rate that the device reaches itself in bfloat16. Each cell
runs in a process of its own; one that fails leaves its row empty. It has been rehearsed on a CPU and has not been run
on a GPU yet.

Where torch (2.11 or newer, with Triton and a C compiler) is installed and the package is not, these wheels, 19 MiB in
all, are enough beside accelerate, pandas, pyarrow and what they need; pip names those of another machine's Python with
--python-version 3.12 --only-binary=:all: --platform manylinux2014_x86_64:

    pip download --no-deps -d wheels -c requirements.txt trl transformers huggingface_hub peft datasets dill \
        multiprocess pydantic pydantic_core annotated-types typing-inspection httpx2 httpcore2 sniffio truststore
    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:src python scripts/bench/gpu_training.py --ways "LoRA, bf16"
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from peft import get_peft_model
from torch.nn.functional import logsigmoid
from training_memory import BETA, CHOSEN, LEARNING_RATE, PROMPT, REJECTED, SHAPES, WAYS
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from psychocounsel.config.schema import OptimisationConfig
from psychocounsel.training.memory import GB, ModelSize, memory_per_device, training_flops
from psychocounsel.training.optimizers import Bf16AdamW
from psychocounsel.training.packing import pack, use_packed_forward
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.trainer import peft_config
from psychocounsel.training.weights import prepare_weights
from training import Exchange, padded, random_tokens

STATISTICS = ("log_probs", "entropy", "mean_logits", "is_top1")


def micro_batches(count: int, pairs: int) -> list[list[Exchange]]:
    """Return prompts with responses, the chosen sides before the rejected."""
    source = random.Random(0)  # noqa: S311 (lengths of a benchmark)
    made: list[list[Exchange]] = []
    for _ in range(count):
        each = [[random_tokens(source, mean) for mean in (PROMPT, CHOSEN, REJECTED)] for _ in range(pairs)]
        chosen, rejected = ([(triple[0], triple[side]) for triple in each] for side in (1, 2))
        made.append([*chosen, *rejected])
    return made


def matrix_rate(device: str) -> float:
    """Return the operations per second of products of square bfloat16 matrices."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds: list[float] = []
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])


def synchronize(device: str) -> None:
    """Wait until the device has computed what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(arguments: argparse.Namespace, shape: Any) -> dict[str, float]:
    """Return tokens per second, MFU, loss, and the counted and predicted peak of a way of training, in bytes."""
    device = arguments.device
    optimisation = OptimisationConfig(
        learning_rate=LEARNING_RATE,
        global_batch_size=2 * arguments.pairs,
        gradient_checkpointing=not arguments.no_checkpointing,
        per_device_batch_size=arguments.pairs,
        **WAYS[arguments.way],
    )
    torch.manual_seed(0)
    rate = matrix_rate(device)
    with quiet_libraries():
        is_frozen = optimisation.weights == "bf16" and optimisation.lora is not None
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16 if is_frozen else torch.float32)
        prepare_weights(model, optimisation)
        inner = model
        if optimisation.lora is not None:
            model = get_peft_model(model, peft_config(optimisation.lora, "CAUSAL_LM"))
            model.enable_input_require_grads()
        add_fused_lm_head(inner, outputs=STATISTICS)
        if arguments.forward == "packed":
            use_packed_forward(model)
        if optimisation.gradient_checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        trained = [each for each in model.parameters() if each.requires_grad]
        is_own = optimisation.optimizer == "adamw_bf16_sr"
        options = {} if is_own else {"fused": True}
        optimizer = (Bf16AdamW if is_own else torch.optim.AdamW)(trained, LEARNING_RATE, **options)
        work = micro_batches(2 * arguments.steps, arguments.pairs)
        distinct = [len(pack([[*prompt, *response] for prompt, response in rows]).token_ids) for rows in work]
        seconds: list[float] = []
        losses: list[float] = []
        for number, rows in enumerate([*work, *work]):  # the first time, kernels are compiled for them
            if number == len(work):
                seconds.clear()
                losses.clear()
            synchronize(device)
            started = time.perf_counter()
            with torch.device(device):
                inputs = padded(rows, labels=True)
                uniform = torch.tensor([len(response) for _, response in rows]) * -math.log(shape.vocab_size)
            with torch.autocast(device, torch.bfloat16, enabled=optimisation.precision == "bf16"):
                outputs = model(**inputs)
                chosen, rejected = (outputs.log_probs.sum(dim=1) - uniform).chunk(2)
                loss = -logsigmoid(BETA * (chosen - rejected)).mean()
            loss.backward()
            losses.append(loss.item())
            del outputs, chosen, rejected, loss
            if number % 2:
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            synchronize(device)
            seconds.append(time.perf_counter() - started)
    size = ModelSize.of_config(shape)
    per_second = sum(distinct) / sum(seconds)
    predicted = memory_per_device(size, optimisation, max(distinct))
    return {
        "tokens": per_second,
        "mfu": per_second * training_flops(size, optimisation, with_reference=False) / rate,
        "loss": statistics.fmean(losses),
        "counted": torch.cuda.max_memory_allocated() if device == "cuda" else math.nan,
        "predicted": predicted.total - predicted.context,
        "rate": rate,
    }


def main() -> None:
    """Measure every way with both forwards and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["LoRA, bf16", "full, bf16"])
    parser.add_argument("--pairs", type=int, default=6, help="pairs in a micro-batch; a step has two")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=int, help="another number of layers than the shape has")
    parser.add_argument("--hidden", type=int, help="another hidden size than the shape has")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--forward", choices=("trl", "packed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    shape.num_hidden_layers = arguments.layers or shape.num_hidden_layers
    if arguments.hidden:
        shape.intermediate_size = round(shape.intermediate_size * arguments.hidden / shape.hidden_size)
        shape.hidden_size, shape.head_dim = arguments.hidden, arguments.hidden // shape.num_attention_heads
    if arguments.way:
        print(json.dumps(measure(arguments, shape)))
        return
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; micro-batches of {arguments.pairs} pairs, {arguments.steps} steps\n")
    print("| way | forward | tokens/s | times trl | MFU | peak GB | predicted GB | loss |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for way in arguments.ways:
        stock: dict[str, float] = {}
        for forward in ("trl", "packed"):
            command = [sys.executable, *sys.argv, "--way", way, "--forward", forward]
            run = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
            if run.returncode:  # out of memory, say, which it printed
                print(f"| {way} | {forward} | | | | | | |", flush=True)
                continue
            found = json.loads(run.stdout.splitlines()[-1])
            stock = found if forward == "trl" else stock
            times = f"{found['tokens'] / stock['tokens']:.2f}" if stock else ""
            speed = f"{found['tokens']:.0f} | {times} | {found['mfu']:.0%}"
            memory = f"{found['counted'] / GB:.1f} | {found['predicted'] / GB:.1f}"
            print(f"| {way} | {forward} | {speed} | {memory} | {found['loss']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
