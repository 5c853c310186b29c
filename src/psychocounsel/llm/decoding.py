"""Prompt ids -> answer ids: tokens drawn one by one, rows that have ended left out of every further step.

A batch decoder of the libraries computes each row until the longest answer ends, and sorts the vocabulary at
every step; together that is more than half of the time where answers differ in length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from psychocounsel.config.models import SamplingConfig


@dataclass
class _Rows:
    """The answers that are still being written: their places in the batch, and what the model reads next."""

    places: torch.Tensor  # [rows]
    input_ids: torch.Tensor  # [rows, width] at first, then [rows, 1]
    mask: torch.Tensor  # [rows, width + tokens written]
    cache: DynamicCache

    def next_logits(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the logits of each row's next token, [rows, vocabulary]."""
        positions = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)
        output = cast(Any, model)(
            input_ids=self.input_ids,
            attention_mask=self.mask,
            position_ids=positions[:, -self.input_ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def append(self, tokens: torch.Tensor, going: torch.Tensor) -> None:
        """Go on with the rows that are `going` ([rows], bool), each longer by its token."""
        if not going.all():
            self.places, self.mask, tokens = self.places[going], self.mask[going], tokens[going]
            self.cache.batch_select_indices(going.nonzero()[:, 0])
        self.input_ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=-1)


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    eos_ids: Sequence[int],
    uniforms: torch.Tensor,
    sampling: SamplingConfig,
) -> list[list[int]]:
    """Return the answer to each prompt: at most `max_new_tokens` ids, the ending one included.

    Args:
        model: causal language model, which is asked for one token at a time.
        prompts: token ids; they are padded on the left.
        pad_id: fills up short prompts.
        eos_ids: an answer ends with the first of these.
        uniforms: [prompts, max_new_tokens], the numbers in [0, 1) that decide what is drawn.
        sampling: temperature 0 takes the likeliest token.
    """
    rows = _begin(prompts, pad_id, model)
    ends = torch.tensor(list(eos_ids), device=model.device)
    numbers = uniforms.to(model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    for step in range(sampling.max_new_tokens):
        logits = rows.next_logits(model)
        tokens = choose_tokens(logits, numbers[rows.places, step], sampling)
        for place, token in zip(rows.places.tolist(), tokens.tolist(), strict=True):
            answers[place].append(token)
        going = ~torch.isin(tokens, ends)
        if not going.any():
            break
        rows.append(tokens, going)
    return answers


def _begin(prompts: Sequence[Sequence[int]], pad_id: int, model: PreTrainedModel) -> _Rows:
    width, device = max(map(len, prompts)), model.device
    padded = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return _Rows(
        places=torch.arange(len(prompts), device=device),
        input_ids=torch.tensor(padded, device=device),
        mask=torch.tensor(mask, device=device),
        cache=DynamicCache(config=model.config),
    )


def choose_tokens(logits: torch.Tensor, uniforms: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Return one id per row: the likeliest at temperature 0, else a drawn one (see `draw_tokens`)."""
    return draw_tokens(logits, uniforms, sampling) if sampling.local_temperature else logits.argmax(dim=-1)


def draw_tokens(logits: torch.Tensor, uniforms: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Return one id per row, drawn from softmax(logits / temperature) cut to its top_p nucleus.

    The kept probabilities are cumulated over the vocabulary; the drawn token is where that sum first passes
    its number's share of the whole.

    Args:
        logits: [batch, vocabulary].
        uniforms: [batch], each in [0, 1).
        sampling: temperature above 0, and top_p: the smallest set of likeliest tokens with that mass is kept,
            and tokens as likely as the least of them.
    """
    probabilities = torch.softmax(logits.double() / sampling.local_temperature, dim=-1)
    if sampling.local_top_p < 1:
        floor = _nucleus_floor(probabilities, sampling.local_top_p)
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
    cumulated = probabilities.cumsum(dim=-1)  # [batch, vocabulary]
    mass = cumulated[:, -1:]
    place = torch.searchsorted(cumulated, uniforms[:, None] * mass, right=True)
    last_kept = (cumulated < mass).sum(dim=-1, keepdim=True)
    return torch.minimum(place, last_kept)[:, 0]


def _nucleus_floor(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probability of the least likely token in each row's nucleus ([batch, 1])."""
    falling = _falling(probabilities)
    before = falling.cumsum(dim=-1) - falling
    return torch.where(before < top_p, falling, 1.0).amin(dim=-1, keepdim=True)


def _falling(probabilities: torch.Tensor) -> torch.Tensor:
    if probabilities.is_cuda:
        return probabilities.sort(dim=-1, descending=True).values
    # On a processor torch sorts the places along, which takes five times as long.
    return torch.from_numpy(np.sort(probabilities.numpy(), axis=-1)).flip(-1)
