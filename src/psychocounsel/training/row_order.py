"""Lengths -> the order of rows in an epoch: steps drawn at random, each step's rows gathered by length.

A micro-batch is padded to its longest row. Which rows make a step together is decided by the seed alone;
within a step the rows are sorted, so that rows of like length share a micro-batch. The step's gradient is
that of the same rows in any order.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


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
