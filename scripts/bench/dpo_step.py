"""Measure the seconds per DPO step on a CPU with our vocabulary projection and with trl's.

    python scripts/bench/dpo_step.py --rounds 3

A random Llama of the quickstart's shape trains on random pairs of the quickstart's lengths. Both variants run in turn
in one process, and the table gives the ratio of the medians; the losses must agree.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from psychocounsel.training.dpo import project_completions_only
from psychocounsel.training.runtime import prepare_cpu

VOCABULARY, PROMPT_TOKENS, ANSWER_TOKENS = 4096, 170, 85
SEQUENCES = 16  # 8 pairs in a micro-batch
BETA = 0.1


def random_model() -> LlamaForCausalLM:
    """Return a Llama of the quickstart's shape with random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def random_batch() -> dict[str, torch.Tensor]:
    """Return ids, mask and labels of 16 sequences, prompts unlabelled: [16, 255]."""
    ids = torch.randint(10, VOCABULARY, (SEQUENCES, PROMPT_TOKENS + ANSWER_TOKENS))
    labels = ids.clone()
    labels[:, :PROMPT_TOKENS] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(policy: Any, reference: Any, batch: dict[str, torch.Tensor]) -> float:
    """Take one step's forward and backward passes and return its loss (Rafailov et al. 2023, eq. 7)."""
    logps = policy(**batch, fused_lm_head=True, use_cache=False).log_probs.sum(dim=1)  # [16]
    with torch.no_grad():
        held = reference(**batch, fused_lm_head=True, use_cache=False).log_probs.sum(dim=1)
    chosen, rejected = (logps - held).chunk(2)
    loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
    policy.zero_grad(set_to_none=True)
    loss.backward()
    return loss.item()


def main() -> None:
    """Time both variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    policy, reference, batch = random_model(), random_model().eval(), random_batch()
    variants: dict[str, tuple[Any, Any]] = {}
    for name in ("trl", "ours"):
        pair = (copy.deepcopy(policy), copy.deepcopy(reference))
        for model in pair:
            add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
            if name == "ours":
                project_completions_only(model)
        variants[name] = pair
    seconds: dict[str, list[float]] = {"trl": [], "ours": []}
    losses = {name: step(*pair, batch) for name, pair in variants.items()}
    prepare_cpu()
    for _ in range(rounds):
        for name, pair in variants.items():
            started = time.perf_counter()
            step(*pair, batch)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print("| projection | seconds per micro-batch of 8 pairs, median | loss |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {losses[name]:.6f} |")
    ratio = medians["trl"] / medians["ours"]
    print(f"\nratio trl / ours: {ratio:.2f} ({rounds} rounds, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
