"""AdamW on bfloat16 weights that keeps updates far below a weight's own precision.

A bfloat16 weight of 0.02 has neighbours 1.2e-4 away, and a step at a learning rate of 5e-7 is swallowed. Rounding it up
or down at random keeps its mean, but the noise of 200 such steps is larger than their sum. So a weight here carries
one byte more: 24 bits, the last of which is rounded with noise. Both moments are bfloat16, rounded at random.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

CHUNK_VALUES = 1 << 24
"""Values that are updated together: fp32 copies of a whole embedding table would be gigabytes."""
REMAINDER = "low_bits"
GOLDEN_RATIO_256 = 159
"""Odd, and nearest to 256 times the golden ratio's fraction: its multiples modulo 256 are spread evenly."""


def split(values: torch.Tensor, noise: torch.Tensor | int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp32 `values` as bfloat16, rounded to nearest, and an int8 remainder in 256ths of their last bit.

    `noise` from 0 to 255 is added to the eight bits that are cut off: 128 rounds to nearest, random noise up or down
    with probabilities that keep the mean.
    """
    bits = (values.view(torch.int32) + noise) >> 8
    # Up where both neighbours are as near: to the even one, as torch rounds, 128 of 256ths would remain, and int8 ends
    # at 127, which no weight could pass in small steps.
    upper = (bits + 128) >> 8
    return (upper << 16).view(torch.float32).bfloat16(), (bits - (upper << 8)).to(torch.int8)


def join(nearest: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """Return the fp32 values that `split` took apart."""
    return (nearest.float().view(torch.int32) + (remainder.to(torch.int32) << 8)).view(torch.float32)


def round_at_random(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return fp32 `values` as bfloat16, rounded up or down so that the mean is kept; `noise` is from 0 to 65,535."""
    return ((values.view(torch.int32) + noise) & -65536).view(torch.float32).bfloat16()


def keep_remainder(parameter: torch.nn.Parameter) -> None:
    """Make an fp32 parameter bfloat16, with what it loses as an attribute."""
    parameter.data, remainder = split(parameter.data, 128)
    setattr(parameter, REMAINDER, remainder)


def has_remainders(model: Any) -> bool:
    """Return whether `keep_remainder` made the parameters of `model`, and no optimizer has taken them yet."""
    return any(hasattr(each, REMAINDER) for each in model.parameters())


def exact_values(parameter: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> torch.Tensor:
    """Return a parameter's values with its remainder, if it or its optimizer has one.

    A remainder that no optimizer has taken yet stays where the parameter was made, while a trainer moves the parameter.
    """
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    remainder = state.get(REMAINDER, getattr(parameter, REMAINDER, None))
    values = parameter.detach()
    return values if remainder is None else join(values, remainder.to(values.device))


class Bf16AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on bfloat16 parameters: 7 bytes each besides the gradient.

    The noise depends on `seed`, step and parameter alone. So replicas of a model stay equal, a resumed training equals
    one that was not interrupted, and torch's global random state is not touched. A parameter that `keep_remainder`
    made has its remainder as an attribute, which moves into the state.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {REMAINDER: parameter.__dict__.pop(REMAINDER).to(parameter.device)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch converts all of it to the parameters' type, which holds every int8 exactly."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state[REMAINDER] = state[REMAINDER].to(torch.int8)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "step" not in state:
                    state |= {"step": 0, **{name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}}
                state["step"] += 1
                keys = ((self.seed, number, state["step"]), (self.seed, number))
                generators = [torch.Generator(parameter.device).manual_seed(hash(key)) for key in keys]
                tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state[REMAINDER])
                for chunk in zip(*(_local(each).view(-1).split(CHUNK_VALUES) for each in tensors), strict=True):
                    _update(*chunk, group=group, step=state["step"], generators=generators)
        return loss


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _update(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    remainder: torch.Tensor,
    *,
    group: dict[str, Any],
    step: int,
    generators: Sequence[torch.Generator],
) -> None:
    """Take one step on flat chunks of equal length; all but the gradient are changed in place.

    Of the `generators`, the first is that of the step, for the noise of the moments. The second begins alike in every
    step: where each weight's turn begins to take all 256 numbers, step by step and far from each other, as its noise.
    Steps that are a part of the last bit then add up to their sum, within a bit or two; noise that is new in every step
    walks away from it, by 7 bits in 200 steps.
    """
    beta1, beta2 = group["betas"]
    gradient = gradient.float()
    first = exp_avg.float().lerp_(gradient, 1 - beta1)
    second = exp_avg_sq.float().lerp_(gradient.square_(), 1 - beta2)

    def noise(below: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(below, first.shape, dtype=torch.int32, device=first.device, generator=generator)

    of_step, of_turns = generators
    exp_avg.copy_(round_at_random(first, noise(65536, of_step)))
    exp_avg_sq.copy_(round_at_random(second, noise(65536, of_step)))
    values = join(weights, remainder).mul_(1 - group["lr"] * group["weight_decay"])
    denominator = second.div_(1 - beta2**step).sqrt_().add_(group["eps"])
    values.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**step))
    nearest, rest = split(values, noise(256, of_turns).add_(GOLDEN_RATIO_256 * step).bitwise_and_(255))
    weights.copy_(nearest)
    remainder.copy_(rest)
