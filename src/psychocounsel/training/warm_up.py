"""Speech + response -> a tiny model that speaks: next-token training on the answers of a corpus.

Answers to one speech share its prompt: a pack is the prompt once and then its answers, each of which sees the
prompt and itself only and counts its positions from the prompt's end. That is the same mathematics as one row
per answer, in half of the time where a speech has four.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM

from psychocounsel.config.stages import WarmUpConfig
from psychocounsel.errors import DataQualityError
from psychocounsel.llm.local_model import EncodedExchange
from psychocounsel.llm.processor import prepare_processor

ANSWERS_PER_PACK = 4
PROMPT_WEIGHT = 0.25
"""Weight of a prompt token's loss beside that of an answer's: clients write English to learn from, too."""
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class WarmUpSummary:
    """What the warm-up did: mean loss in nats per learned token over the first and the last epoch."""

    first_loss: float
    last_loss: float
    steps: int
    seconds: float
    parameters: int


class Pack(NamedTuple):
    """A prompt and some answers to it."""

    prompt_ids: list[int]
    responses: list[list[int]]
    speech: range | None = None

    @property
    def learned(self) -> range:
        """Places of the prompt that are learned: the client's words, or all if they are not known."""
        return range(1, len(self.prompt_ids)) if self.speech is None else self.speech

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.prompt_ids) + sum(map(len, self.responses))


class Batch(NamedTuple):
    """Packs padded on the right, and what is learned from them: token `targets[i]` out of place `sources[i]`.

    Padding is known by its position: no target lies there and no token looks there.
    """

    input_ids: torch.Tensor  # [batch, length]
    position_ids: torch.Tensor  # [batch, length]
    visible: torch.Tensor  # [batch, 1, length, length], True where the row's token sees the column's
    sources: torch.Tensor  # [learned], index into the flattened batch
    targets: torch.Tensor  # [learned]
    weights: torch.Tensor  # [learned]


def warm_up(
    model: LlamaForCausalLM,
    exchanges: Sequence[EncodedExchange],
    config: WarmUpConfig,
    pad_id: int,
    progress: Callable[[int, int], None],
) -> WarmUpSummary:
    """Train all weights of `model` in place; the order of the batches comes from torch's global state.

    Raises:
        DataQualityError: no exchange fits into `config.max_length_tokens`.
    """
    fitting = [pair for pair in exchanges if _length(pair) <= config.max_length_tokens]
    if not fitting:
        raise DataQualityError("no response fits", remedy="raise warm_up.max_length_tokens")
    prepare_processor()
    started = time.monotonic()
    batches = [
        collate(packs, pad_id) for packs in _by_length(without_template(pack(fitting)), config.batch_size)
    ]
    total = config.epochs * len(batches)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, total))
    losses: list[float] = []
    model.train()
    for batch in _shuffled(batches, config.epochs):
        losses.append(_step(model, batch, optimizer))
        scheduler.step()
        progress(len(losses), total)
    model.eval()
    return WarmUpSummary(
        first_loss=_mean(losses[: len(batches)]),
        last_loss=_mean(losses[-len(batches) :]),
        steps=total,
        seconds=time.monotonic() - started,
        parameters=sum(weight.numel() for weight in model.parameters()),
    )


def learning_rate_share(step: int, total: int) -> float:
    """Return the share of the top learning rate at `step`: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(WARMUP_SHARE * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def pack(exchanges: Sequence[EncodedExchange]) -> list[Pack]:
    """Return the exchanges gathered by prompt, at most ANSWERS_PER_PACK in one pack."""
    answers: dict[tuple[int, ...], list[list[int]]] = {}
    for exchange in exchanges:
        answers.setdefault(tuple(exchange.prompt_ids), []).append(exchange.response_ids)
    return [
        Pack(list(prompt), responses[start : start + ANSWERS_PER_PACK])
        for prompt, responses in answers.items()
        for start in range(0, len(responses), ANSWERS_PER_PACK)
    ]


def without_template(packs: Sequence[Pack]) -> list[Pack]:
    """Return the packs with what all prompts begin and end with, the template's own words, left unlearned.

    A model that learns the template's headers writes them into its answers.
    """
    prompts = [one.prompt_ids for one in packs]
    begin = _shared(prompts)
    end = _shared([prompt[::-1] for prompt in prompts])
    return [one._replace(speech=range(begin, max(begin, len(one.prompt_ids) - end))) for one in packs]


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first elements all rows share."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def collate(packs: Sequence[Pack], pad_id: int) -> Batch:
    """Lay `packs` out as tensors."""
    width = max(one.length for one in packs)
    rows = [_lay_out(one, width, pad_id, offset=place * width) for place, one in enumerate(packs)]
    segments = torch.tensor([row.segments for row in rows])  # [batch, width]; 0 is the prompt, -1 is padding
    own = segments[:, :, None] == segments[:, None, :]
    visible = (own | (segments[:, None, :] == 0)) & torch.ones(width, width, dtype=torch.bool).tril()
    return Batch(
        torch.tensor([row.ids for row in rows]),
        torch.tensor([row.positions for row in rows]),
        visible[:, None],
        torch.tensor([source for row in rows for source in row.sources]),
        torch.tensor([target for row in rows for target in row.targets]),
        torch.tensor([weight for row in rows for weight in row.weights]),
    )


@dataclass
class _Row:
    ids: list[int]
    positions: list[int]
    segments: list[int]
    sources: list[int]
    targets: list[int]
    weights: list[float]


def _lay_out(one: Pack, width: int, pad_id: int, offset: int) -> _Row:
    count = len(one.prompt_ids)
    row = _Row(
        ids=list(one.prompt_ids),
        positions=list(range(count)),
        segments=[0] * count,
        sources=[offset + place - 1 for place in one.learned],
        targets=[one.prompt_ids[place] for place in one.learned],
        weights=[PROMPT_WEIGHT] * len(one.learned),
    )
    for segment, response in enumerate(one.responses, start=1):
        begin = offset + len(row.ids)
        row.sources += [offset + count - 1, *range(begin, begin + len(response) - 1)]
        row.targets += response
        row.weights += [1.0] * len(response)
        row.ids += response
        row.positions += range(count, count + len(response))
        row.segments += [segment] * len(response)
    gap = width - len(row.ids)
    row.ids += [pad_id] * gap
    row.positions += [0] * gap
    row.segments += [-1] * gap
    return row


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the weighted mean of the cross entropy over what `batch` teaches, in nats per token."""
    hidden = model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.visible,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.sources])  # [learned, vocabulary]
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def _step(model: LlamaForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    loss = batch_loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.item()


def _by_length(packs: Sequence[Pack], batch_size: int) -> Iterator[list[Pack]]:
    """Return batches of packs of like length that hold about `batch_size` answers."""
    ordered = sorted(packs, key=lambda one: one.length)
    size = max(1, batch_size // max(len(one.responses) for one in packs))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _shuffled(batches: Sequence[Batch], epochs: int) -> Iterator[Batch]:
    for _ in range(epochs):
        for place in torch.randperm(len(batches)).tolist():
            yield batches[place]


def _length(row: EncodedExchange) -> int:
    return len(row.prompt_ids) + len(row.response_ids)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
