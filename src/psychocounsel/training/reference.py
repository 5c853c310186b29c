"""Log-probabilities that the reference of DPO gives to answers, computed once per pair and before training."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from psychocounsel.config.schema import OptimisationConfig
from psychocounsel.store.schemas import ReferenceLogprobs
from psychocounsel.training.dpo import load_trainable
from psychocounsel.training.packing import response_logprobs
from psychocounsel.training.runtime import default_device, quiet_libraries
from psychocounsel.training.shards import Progress, in_shards
from psychocounsel.training.tokenize import TokenizedPair
from psychocounsel.training.weights import uses_autocast
from psychocounsel.types import Policy

SHARD_PAIRS = 1024


def reference_logprobs(
    reference: Policy,
    rows: list[TokenizedPair],
    optimisation: OptimisationConfig,
    work: Path,
    progress: Progress = lambda done, total: None,
) -> list[ReferenceLogprobs]:
    """Return what `reference`, loaded as the policy will be for training, gives to both answers of each row.

    What is computed is kept in `work`, which belongs to one reference; a killed run loses one shard of the rows.
    `progress` is called with the number of rows done, and of all. This is a job: it may run in another process.
    """
    model = cache(lambda: _load(reference, optimisation))
    return in_shards(
        rows,
        SHARD_PAIRS,
        lambda shard, report: _logprobs(model(), shard, optimisation, report),
        plain=TypeAdapter(list[ReferenceLogprobs]),
        work=work,
        progress=progress,
    )


def _load(reference: Policy, optimisation: OptimisationConfig) -> Any:
    with quiet_libraries():
        model: Any = load_trainable(reference, optimisation).eval()
    if optimisation.weights == "nf4":
        # bitsandbytes would repack the weights on a CPU, and so compute other numbers than in training
        return model.train()
    return model.to(default_device())


def _logprobs(
    model: Any, rows: Sequence[TokenizedPair], optimisation: OptimisationConfig, progress: Progress
) -> list[ReferenceLogprobs]:
    answers = [(row.prompt_ids, ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=uses_autocast(optimisation)):
        found = response_logprobs(
            model,
            answers,
            2 * optimisation.per_device_batch_size,
            lambda done, total: progress(done // 2, total // 2),
            with_entropy=False,
        )
    sums = [float(each.log_probs.sum()) for each in found]  # in fp32
    return [
        ReferenceLogprobs(row.pair_id, chosen, rejected, len(row.chosen_ids), len(row.rejected_ids))
        for row, chosen, rejected in zip(rows, sums[::2], sums[1::2], strict=True)
    ]
