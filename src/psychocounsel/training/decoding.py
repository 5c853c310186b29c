"""Decoding of many prompts at once, several answers each, with a causal language model of transformers.

A prompt is computed once for all its answers. Every answer in progress has a row of a key/value cache that is
allocated once, and a row whose answer has ended goes to the next one in the queue, so that no row waits for the
longest answer. All rows end at one column of the cache: a new prompt is copied to the columns before it, and what a row
holds of earlier answers is masked.

A token is sampled by inverting the cumulative distribution at a number that depends on the prompt (a hash of seed,
prompt and repeat) and not on its neighbours. So neither the number of rows nor the order of the prompts changes an
answer, beyond the rounding of floating-point sums, and torch's global random state is never touched.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from psychocounsel.config.components import SamplingConfig
from psychocounsel.errors import ConfigError

PREFILL_TOKENS = 4096
"""Prompts that are computed together have about this many tokens, padding included."""
SLACK_COLUMNS = 128
"""Columns of the cache beyond the longest possible row: after so many steps at the earliest, its rows are moved."""
BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed before they are searched one by one."""


class DecodingTask(NamedTuple):
    """One answer to decode: the number that identifies it, its prompt's ids, and which repeat of that prompt it is."""

    place: int
    prompt: tuple[int, ...]
    repeat: int


class _Window:
    """Which part of the buffers is in use: `rows` rows, the columns from `first` to `end`, the latter exclusive."""

    def __init__(self, rows: int, columns: int, end: int) -> None:
        self.max_rows, self.columns = rows, columns
        self.rows, self.first, self.end = 0, end, end


class _RowsLayer(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, dimension], written in place."""

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            each.new_zeros(self.window.max_rows, each.shape[1], self.window.columns, each.shape[3])
            for each in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's keys and values, [rows, heads, 1, dimension], and return those of the whole window."""
        w = self.window
        self.keys[: w.rows, :, w.end : w.end + 1] = key_states
        self.values[: w.rows, :, w.end : w.end + 1] = value_states
        return self.keys[: w.rows, :, w.first : w.end + 1], self.values[: w.rows, :, w.first : w.end + 1]

    def get_seq_length(self) -> int:
        return self.window.end - self.window.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


@dataclass
class _Row:
    """An answer in progress: its row holds the prompt from column `start` on."""

    task: DecodingTask
    start: int
    ids: list[int] = field(default_factory=list[int])


class _PrefilledPrompt:
    """The keys and values of a prompt without its last id, per layer [1, heads, tokens, dimension]."""

    def __init__(self, cache: DynamicCache, row: int, length: int) -> None:
        self.length = length
        self.layers = [
            (layer.keys[row : row + 1, :, :length], layer.values[row : row + 1, :, :length])
            for layer in cast("list[Any]", cache.layers)
        ]


class _Decoding:
    """The queue of one call of `decode`, and the rows with what each of them needs at the next step."""

    def __init__(
        self,
        model: PreTrainedModel,
        tasks: Sequence[DecodingTask],
        sampling: SamplingConfig,
        end_ids: Collection[int],
        seed: int,
        ended: Callable[[list[tuple[int, list[int]]]], None],
    ) -> None:
        self.model, self.sampling, self.end_ids, self.seed, self.ended = model, sampling, end_ids, seed, ended
        planned = DynamicCache(config=model.config)
        if any(not isinstance(layer, DynamicLayer) for layer in planned.layers):
            raise ConfigError(
                "the model has layers without keys and values, which the local sampler cannot decode",
                where=type(model).__name__,
                remedy="set sampler.backend to vllm or endpoint",
            )
        # A mask of four dimensions is taken as it is, which is fastest; sliding windows need the model's own.
        self.has_windows = any(planned.is_sliding)
        self.queue = deque(tasks)
        self.prefilled: dict[tuple[int, ...], _PrefilledPrompt] = {}
        most, limit, device = min(sampling.batch_size, len(tasks)), sampling.max_new_tokens, model.device
        self.longest = max((len(task.prompt) for task in tasks), default=0)
        self.window = _Window(most, self.longest + limit + SLACK_COLUMNS, self.longest)
        self.layers: list[Any] = [_RowsLayer(self.window) for _ in planned.layers]
        self.cache = Cache(layers=self.layers)
        self.rows: list[_Row] = []
        self.tokens = torch.zeros(most, dtype=torch.long, device=device)  # what each row is fed next
        self.starts = torch.zeros(most, dtype=torch.long, device=device)  # the column of its prompt's first id
        self.origins = torch.zeros(most, dtype=torch.long, device=device)  # the column of its prompt's last id
        self.uniforms = torch.zeros(most, limit, dtype=torch.float64, device=device)
        self.mask = torch.zeros(most, self.window.columns, dtype=model.dtype, device=device)  # -inf before the prompt

    def run(self) -> None:
        while self.queue or self.rows:
            while self.queue and len(self.rows) < self.window.max_rows:
                self._fill()
            if self.window.end == self.window.columns:
                self._shift()
            self._step()

    def _step(self) -> None:
        """Feed every row its token, sample the next one, and let go of the rows whose answers have ended."""
        w, n = self.window, len(self.rows)
        w.rows = n
        mask = self.mask[:n, w.first : w.end + 1].clone()  # in place, it begins where kernels of a GPU may not read
        output = cast(Any, self.model)(
            input_ids=self.tokens[:n, None],
            attention_mask=mask == 0 if self.has_windows else mask[:, None, None],
            position_ids=(w.end - self.starts[:n])[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        uniforms = self.uniforms[:n].gather(1, (w.end - self.origins[:n])[:, None])[:, 0]
        tokens = sample_tokens(output.logits[:, -1], uniforms, self.sampling)
        self.tokens[:n] = tokens
        w.end += 1
        ended: list[int] = []
        for at, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            row.ids.append(token)
            if token in self.end_ids or len(row.ids) == self.sampling.max_new_tokens:
                ended.append(at)
        if ended:
            answers = [(self.rows[at].task.place, self.rows[at].ids) for at in ended]
            self._remove(ended)
            self.ended(answers)

    def _remove(self, ended: Sequence[int]) -> None:
        """Move the last rows to the places of those that have ended."""
        left = len(self.rows) - len(ended)
        gaps = [at for at in ended if at < left]
        movers = sorted(set(range(left, len(self.rows))).difference(ended))
        if gaps:
            for buffer in (*self._buffers(), self.tokens, self.starts, self.origins, self.uniforms, self.mask):
                buffer[gaps] = buffer[movers]
            for gap, mover in zip(gaps, movers, strict=True):
                self.rows[gap] = self.rows[mover]
        del self.rows[left:]
        self._narrow()

    def _narrow(self) -> None:
        self.window.first = min((row.start for row in self.rows), default=self.window.end)

    def _buffers(self) -> list[torch.Tensor]:
        return [each for layer in self.layers for each in (layer.keys, layer.values)]

    def _fill(self) -> None:
        """Give free rows to the next tasks of one prompt."""
        prompt, free = self.queue[0].prompt, self.window.max_rows - len(self.rows)
        tasks: list[DecodingTask] = []
        while self.queue and len(tasks) < free and self.queue[0].prompt == prompt:
            tasks.append(self.queue.popleft())
        if prompt not in self.prefilled:
            self._prefill(prompt)
        first, last = len(self.rows), len(self.rows) + len(tasks)
        found, end = self.prefilled[prompt], self.window.end
        start = end - found.length
        for layer, (keys, values) in zip(self.layers, found.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
            layer.keys[first:last, :, start:end] = keys
            layer.values[first:last, :, start:end] = values
        self.tokens[first:last], self.starts[first:last], self.origins[first:last] = prompt[-1], start, end
        self.mask[first:last, :start], self.mask[first:last, start:] = float("-inf"), 0.0
        sources = [uniforms_of(prompt, task.repeat, self.seed, self.uniforms.shape[1]) for task in tasks]
        self.uniforms[first:last] = torch.stack(sources).to(self.uniforms.device)
        self.rows += [_Row(task, start) for task in tasks]
        self._narrow()

    def _prefill(self, first: tuple[int, ...]) -> None:
        """Compute the keys and values of a prompt and of the next ones in the queue that may soon have a row.

        They are padded at their end, which a causal model's earlier positions do not see.
        """
        prompts = [first]
        upcoming = dict.fromkeys(task.prompt for task in list(self.queue)[: self.window.max_rows])
        for prompt in upcoming:
            if prompt != first and (len(prompts) + 1) * max(map(len, [*prompts, prompt])) <= PREFILL_TOKENS:
                prompts.append(prompt)
        width = max(map(len, prompts)) - 1
        padded = [[*prompt[:-1], *[0] * (width + 1 - len(prompt))] for prompt in prompts]
        cache = DynamicCache()
        ids = torch.tensor(padded, device=self.tokens.device)
        cast(Any, self.model)(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.prefilled = {prompt: _PrefilledPrompt(cache, row, len(prompt) - 1) for row, prompt in enumerate(prompts)}

    def _shift(self) -> None:
        """Move what the rows hold to the beginning of the buffers, to make room for more columns."""
        w = self.window
        by = min(w.first, w.end - self.longest)
        for buffer in (*self._buffers(), self.mask[:, None, :, None]):
            buffer[: len(self.rows), :, : w.end - by] = buffer[: len(self.rows), :, by : w.end].clone()
        self.mask[:, w.end - by :] = 0.0
        self.starts -= by
        self.origins -= by
        w.first, w.end = w.first - by, w.end - by
        for row in self.rows:
            row.start -= by


def decode(
    model: PreTrainedModel,
    tasks: Sequence[DecodingTask],
    sampling: SamplingConfig,
    end_ids: Collection[int],
    seed: int,
    ended: Callable[[list[tuple[int, list[int]]]], None],
) -> None:
    """Decode all tasks, `sampling.batch_size` of them at once.

    The tasks of one prompt stand next to each other. `ended` gets the places and ids of answers as they end: at most
    `max_new_tokens` ids, the one of `end_ids` included. What it raises ends the decoding.

    Raises:
        ConfigError: the model has layers that are not attention over keys and values.
    """
    with torch.inference_mode():
        _Decoding(model, tasks, sampling, end_ids, seed, ended).run()


def uniforms_of(prompt: Sequence[int], repeat: int, seed: int, count: int) -> torch.Tensor:
    """Return `count` numbers in [0, 1) that depend on seed, prompt and repeat alone."""
    digest = hashlib.sha256(repr((seed, repeat, tuple(prompt))).encode("ascii")).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=stream, dtype=torch.float64)


def sample_tokens(logits: torch.Tensor, uniforms: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Return one id per row: the most likely at temperature 0, else one sampled from the top_p nucleus.

    The nucleus is the smallest set of most likely tokens whose softmax(logits / temperature) sums to top_p, together
    with tokens as likely as the least of them. The sampled token is where the sum of its probabilities over the
    vocabulary first exceeds the row's uniform number times the nucleus' mass. `logits` is [batch, vocabulary],
    `uniforms` is [batch], each in [0, 1). Probabilities have single precision, sums of many of them double.
    """
    if not sampling.local_temperature:
        return logits.argmax(dim=-1)
    batch, vocabulary = logits.shape
    blocks = -(-vocabulary // BLOCK)
    logits = logits.float()
    weights = logits.new_zeros(batch, blocks * BLOCK)  # softmax times a constant
    scaled = torch.sub(logits, logits.amax(dim=-1, keepdim=True), out=weights[:, :vocabulary])
    scaled.div_(sampling.local_temperature).exp_()
    if sampling.local_top_p < 1:
        weights = _nucleus(weights, sampling.local_top_p)
    by_block = weights.view(batch, blocks, BLOCK)
    cumulated = by_block.sum(dim=-1).double().cumsum(dim=-1)  # [batch, blocks]
    goal = uniforms[:, None] * cumulated[:, -1:]
    block = torch.searchsorted(cumulated, goal, right=True).clamp_(max=blocks - 1)  # [batch, 1]
    before = torch.nn.functional.pad(cumulated, (1, 0)).gather(1, block)
    inside = by_block.gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(dim=-1)  # [batch, BLOCK]
    # Rounding may put the goal just beyond a block's last token that has a probability.
    last_kept = (inside < inside[:, -1:]).sum(dim=-1, keepdim=True)
    place = torch.minimum(torch.searchsorted(inside, goal - before, right=True), last_kept)
    return (block * BLOCK + place)[:, 0]


def _nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the weights with those outside the nucleus set to zero; [batch, vocabulary]."""
    if weights.is_cuda:
        falling = weights.sort(dim=-1, descending=True).values
    else:  # torch sorts the indices as well, which takes five times as long on a CPU
        falling = torch.from_numpy(np.sort(weights.numpy(), axis=-1)).flip(-1)
    cumulated = falling.cumsum(dim=-1, dtype=torch.float64)
    is_before = cumulated - falling < top_p * cumulated[:, -1:]
    least = torch.where(is_before, falling, torch.inf).amin(dim=-1, keepdim=True)  # [batch, 1]
    return torch.where(weights >= least, weights, 0.0)
