"""Jobs for the tests of training in several processes: DPO as it is, or stopped; sharded on a CPU by torch and gloo.

accelerate shards on other devices only: in a process that is launched to shard, the import of this module has it, and
DeepSpeed, take the CPU for one of them.
"""

import functools
import os

import torch
from accelerate.state import DistributedType, PartialState
from preference_runs import stopping_after

from psychocounsel.training import dpo, reward

IS_FSDP, IS_DEEPSPEED = (os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
if IS_FSDP or IS_DEEPSPEED:
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_XPU)
if IS_FSDP:
    torch.distributed.init_process_group("gloo")
    compute_micro_batch = dpo.TokenizedDPOTrainer.training_step

    def training_step(self, *arguments, **named):
        """Fail where a process holds whole gradients after a micro-batch, and not its shard of them."""
        loss = compute_micro_batch(self, *arguments, **named)
        assert all(each.grad is not None for each in self.model.parameters() if each.requires_grad)
        return loss

    dpo.TokenizedDPOTrainer.training_step = training_step
if IS_DEEPSPEED:
    torch.accelerator.is_available = lambda: True
    torch.Tensor.pin_memory = lambda self, *_: self


@functools.wraps(dpo.train_dpo)
def train_dpo(**arguments):
    return dpo.train_dpo(**arguments)


@functools.wraps(dpo.train_dpo)
def stopped_dpo(output, **arguments):
    """Stop in the first process after three steps."""
    stopped = stopping_after(3, output) if os.environ["RANK"] == "0" else output
    return dpo.train_dpo(output=stopped, **arguments)


@functools.wraps(reward.train_reward_model)
def train_reward_model(**arguments):
    return reward.train_reward_model(**arguments)


for job in (train_dpo, stopped_dpo, train_reward_model):
    job.__module__ = __name__
stopped_dpo.__name__ = stopped_dpo.__qualname__ = "stopped_dpo"
