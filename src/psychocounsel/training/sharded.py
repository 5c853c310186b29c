"""What processes that train together must do together: agree on stopping, and bring sharded weights together."""

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state


def in_any_process(condition: bool) -> bool:
    """Return in every process of the training whether the condition holds in one; all must call it."""
    state = PartialState()
    if state.num_processes == 1:
        return condition
    flag = torch.tensor(int(condition), device=state.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, [rows of all, ...]; a scalar is a row. All must call it.

    accelerate's own `gather` needs equally many in each, or the collective operation aborts or never ends.
    """
    return tensor.new_tensor(gather_object(torch.atleast_1d(tensor).tolist()))


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of which each process may hold a shard; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def undivided(parameter: torch.nn.Parameter) -> Generator[torch.nn.Parameter]:
    """Bring a parameter that ZeRO-3 divides together within the block; all processes must enter it.

    What the first process writes into it there reaches all of them. It has run with DeepSpeed 0.19 on CPUs only.
    """
    if not cast(Any, is_deepspeed_zero3_enabled)():
        yield parameter
        return
    with importlib.import_module("deepspeed").zero.GatheredParameters(parameter, modifier_rank=0):
        yield parameter


def gathered(trainer: Trainer, config: PreTrainedConfig) -> Any:
    """Return the trained model in the first process, None in the others; all must call it.

    It is the trainer's own unless the weights are sharded: then a copy on the CPU, complete enough to be saved. Its
    shape is that of `config`: the trainers may change the model's own.
    """
    trained: Any = trainer.model
    is_first = PartialState().is_main_process
    if trainer.is_deepspeed_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    elif any(isinstance(each, DTensor) for each in trained.parameters()):
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in trained.state_dict().items():
            whole = whole_tensor(tensor)
            if is_first:
                weights[name] = whole.cpu()
    else:
        return trained if is_first else None
    if not is_first:
        return None
    base = trained.get_base_model() if isinstance(trained, PeftModel) else trained
    plain_class: Any = next(each for each in type(base).__mro__ if not issubclass(each, FSDPModule))
    # Said to be divided already, or DeepSpeed would divide the copy, for which all processes would have to be here.
    with torch.device("meta"), set_zero3_state():
        plain = plain_class(config)
        copied = get_peft_model(plain, trained.peft_config["default"]) if isinstance(trained, PeftModel) else plain
    # In fp32 already, as they are saved: a model with buffers on no device cannot be converted.
    copied.load_state_dict({name: each.float() for name, each in weights.items()}, assign=True)
    plain.tie_weights()
    return copied
