"""Packed execution: a batch of chats runs as one list of tokens in which every shared beginning occurs once.

The rows of a batch often begin alike: both sides of a pair, and all candidates for a speech, share their prompt. `pack`
merges rows into a tree of segments, so that the model sees each distinct token in its context once and no padding.
Linear layers run over one list of tokens; attention runs per segment, over the segment itself and those before it on
its path. Log-probabilities are computed for completion tokens only, in chunks, so full logits never exist.

`use_packed_forward` puts this under trl's trainers: they pass padded batches and read results of the same shape.
"""

import logging
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from psychocounsel.training.sharded import whole_tensor

log = logging.getLogger(__name__)

IMPLEMENTATION = "psychocounsel_packed"
MODEL_TYPES = frozenset({"llama", "ministral3", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
"""Architectures whose attention is causal softmax attention, with rotary positions if any, and nothing else."""
SHORTEST_SHARED = 16
"""A beginning that is shared over fewer tokens is not worth a segment of its own."""
SMALLEST_HEAD = 16
"""FlexAttention has no kernel for heads that are smaller."""
RECOMPILE_LIMIT = 64
IGNORED = -100
LOGITS_BYTES = {False: 1 << 25, True: 1 << 28}
"""Size of a chunk of logits on a CPU, where it should stay in the cache, and on a GPU."""
KEPT_BYTES = {False: 1 << 29, True: 0}
"""Size of the chunks of a trained head that are kept for the backward pass; the others are computed again. On a GPU,
memory is scarce, and the head is a small part of a large model's work."""


class Segment(NamedTuple):
    """Tokens `start` to `end` of the list; they attend to themselves and to `ancestors`, in the order of the path."""

    start: int
    end: int
    ancestors: tuple[int, ...]


class PackedRows(NamedTuple):
    """Rows as one list of tokens.

    Attributes:
        token_ids: the list.
        positions: the position of each token in its row.
        segments: what attends to what; ancestors come first.
        places: for each row, the place in the list of each of its tokens.
    """

    token_ids: list[int]
    positions: list[int]
    segments: list[Segment]
    places: list[list[int]]


def pack(rows: Sequence[Sequence[int]]) -> PackedRows:
    """Return `rows` of token ids as one list. Equal rows and equal beginnings share their tokens."""
    packed = PackedRows([], [], [], [[] for _ in rows])
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    _add(packed, rows, order, 0, 0, (), [])
    return packed


def _add(
    packed: PackedRows,
    rows: Sequence[Sequence[int]],
    group: Sequence[int],
    begin: int,
    known: int,
    ancestors: tuple[int, ...],
    path: list[int],
) -> None:
    """Add the tokens from `begin` on of a sorted group of rows that are equal up to `known`, which is not below it."""
    first, last = rows[group[0]], rows[group[-1]]  # of sorted rows, all share what these two share
    shared = known
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    is_leaf = shared == len(first) == len(last)
    if is_leaf or shared - begin >= SHORTEST_SHARED:
        start = len(packed.token_ids)
        packed.token_ids.extend(first[begin:shared])
        packed.positions.extend(range(begin, shared))
        packed.segments.append(Segment(start, len(packed.token_ids), ancestors))
        ancestors, path = (*ancestors, len(packed.segments) - 1), [*path, *range(start, len(packed.token_ids))]
        begin = shared
    if is_leaf:
        for row in group:
            packed.places[row].extend(path)
        return
    for _, branch in groupby(group, key=lambda row: rows[row][shared : shared + 1]):
        _add(packed, rows, list(branch), begin, shared, ancestors, path)


class PackedAttention:
    """Attention over a packed list: per segment by SDPA, or by one FlexAttention kernel on a GPU."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.device = device
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._block_mask: BlockMask | None = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Return the attention's output: [1, heads, tokens, head size], as `query`; keys may have fewer heads."""
        if query.is_cuda and query.shape[-1] >= SMALLEST_HEAD:
            return compiled(flex_attention)(
                query, key, value, block_mask=self.block_mask(), scale=scaling, enable_gqa=True
            )
        groups = query.shape[1] // key.shape[1]
        lengths = [segment.end - segment.start for segment in self.segments]
        queries, keys, values = (
            states.split(lengths, dim=2) for states in (query, repeat_kv(key, groups), repeat_kv(value, groups))
        )
        outputs: list[torch.Tensor] = []
        for number, segment in enumerate(self.segments):
            path = (*segment.ancestors, number)
            seen = sum(lengths[each] for each in path)
            outputs.append(
                scaled_dot_product_attention(
                    queries[number],
                    torch.cat([keys[each] for each in path], dim=2),
                    torch.cat([values[each] for each in path], dim=2),
                    attn_mask=self._mask(lengths[number], seen, query.dtype) if segment.ancestors else None,
                    is_causal=not segment.ancestors,
                    scale=scaling,
                )
            )
        return torch.cat(outputs, dim=2)

    def _mask(self, length: int, seen: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask of `length` tokens that end a path of `seen`: [length, seen]."""
        if (length, seen) not in self._masks:
            hidden = torch.full((length, seen), -torch.inf, dtype=dtype, device=self.device)
            self._masks[length, seen] = hidden.triu(seen - length + 1)
        return self._masks[length, seen]

    def block_mask(self) -> BlockMask:
        """Return the mask of the whole list for FlexAttention; it is made once for all layers."""
        if self._block_mask is None:
            count, total = len(self.segments), self.segments[-1].end
            lengths = torch.tensor([segment.end - segment.start for segment in self.segments])
            segment_of = torch.arange(count).repeat_interleave(lengths).to(self.device)  # [tokens]
            sees = torch.eye(count, dtype=torch.bool)  # [segments, segments]
            for number, segment in enumerate(self.segments):
                sees[number, list(segment.ancestors)] = True
            sees = sees.to(self.device)

            def allowed(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
                del batch, head
                return sees[segment_of[query], segment_of[key]] & (key <= query)

            create = compiled(create_block_mask) if self.device.type == "cuda" else create_block_mask
            self._block_mask = create(allowed, None, None, total, total, device=self.device)
        return self._block_mask


@cache
def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Return a function of FlexAttention compiled for batches of every shape.

    It is compiled again where a size is 1 or exceeds a block, with and without gradients: more often than torch allows,
    which would go on without its kernel then, with a score for every pair of tokens.
    """
    often = torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)  # torch.compile knows no limit before 2.13
    return often(torch.compile(function, dynamic=True, backend=backend))


def _attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packed_attention: PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute a layer's attention: [1, tokens, heads, head size]. A call without a packed list is ordinary SDPA."""
    if packed_attention is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return packed_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def run_packed(model: PreTrainedModel, packed: PackedRows) -> torch.Tensor:
    """Return the backbone's last hidden states of a packed list: [tokens, hidden]."""
    device = model.device
    output = model.base_model(
        input_ids=torch.tensor([packed.token_ids], device=device),
        position_ids=torch.tensor([packed.positions], device=device),
        attention_mask=torch.empty(1, 1, 1, 1, device=device),  # four dimensions: the library builds no mask
        use_cache=False,
        packed_attention=PackedAttention(packed.segments, device),
    )
    return output.last_hidden_state[0]


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether the packed forward knows the model's attention and its head."""
    config, head = model.config, _head(model)
    if config.model_type not in MODEL_TYPES:
        return False
    window = getattr(config, "sliding_window", None)
    has_window = window is not None and window < config.max_position_embeddings
    is_plain = not (has_window or config.attention_dropout)
    return is_plain and type(head) is torch.nn.Linear and head.bias is None


def _head(model: PreTrainedModel) -> Any:
    head: Any = model.score if hasattr(model, "score") else model.get_output_embeddings()
    return head.original_module if isinstance(head, ModulesToSaveWrapper) else head


def use_packed_forward(model: Any) -> bool:
    """Have a causal model's `fused_lm_head` calls, or a sequence classifier's calls, run packed, if `can_pack`.

    Results have the shapes of the library's own forward; other calls are unchanged. A model whose attention the packer
    does not know stays as it is, with a warning. Returns whether it is packed.
    """
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if not can_pack(model):
        kind = model.config.model_type
        why = "knows no sliding window, no attention dropout and no bias of the head"
        if kind not in MODEL_TYPES:
            why = f"knows {', '.join(sorted(MODEL_TYPES))}"
        log.warning("%s runs without packing, which %s", kind, why)
        return False
    model.set_attn_implementation(IMPLEMENTATION)
    original = model.forward

    def causal_forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        return _completion_logprobs(self, kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])

    def classifier_forward(
        self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any
    ) -> SequenceClassifierOutputWithPast:
        del kwargs
        packed = pack(_real_rows(input_ids, attention_mask))
        last = torch.tensor([places[-1] for places in packed.places], device=input_ids.device)
        pooled = run_packed(self, packed)[last]
        return SequenceClassifierOutputWithPast(logits=self.score(pooled.to(self.score.weight.dtype)))

    is_classifier = hasattr(model, "score")
    model.forward = types.MethodType(classifier_forward if is_classifier else causal_forward, model)
    return True


def _real_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[list[int]]:
    """Return the tokens of each row that the mask keeps."""
    lengths = attention_mask.sum(dim=1).tolist()
    tokens = iter(input_ids[attention_mask.bool()].tolist())
    return [[next(tokens) for _ in range(length)] for length in lengths]


class TokenLogprobs(NamedTuple):
    """For each token: its log-probability, the entropy and mean logit of its distribution, and whether it leads."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    aux_loss: None = None


def _completion_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> TokenLogprobs:
    """Return what trl's DPO trainer reads of a forward pass: [batch, tokens - 1] each, zero where a label is -100.

    Ids, mask and labels are [batch, tokens].
    """
    packed = pack(_real_rows(input_ids, attention_mask))
    kept, device = attention_mask.bool(), input_ids.device
    places = torch.zeros_like(input_ids)
    places[kept] = torch.tensor([place for row in packed.places for place in row], device=device)
    counts = labels[:, 1:] != IGNORED  # [batch, tokens - 1]
    hidden = run_packed(model, packed)[places[:, :-1][counts]]  # [completion tokens, hidden]
    # Below adapters, FSDP leaves the head sharded: it is used here, not called.
    weight = whole_tensor(model.get_output_embeddings().weight)
    # trl reads the statistics of the model that it trains, not of a reference.
    values = token_logprobs(hidden, labels[:, 1:][counts], weight, with_statistics=torch.is_grad_enabled())

    def scatter(each: torch.Tensor) -> torch.Tensor:
        return each.new_zeros(counts.shape).masked_scatter(counts, each)

    log_probs, entropy, mean_logits, is_top1, _ = values
    return TokenLogprobs(scatter(log_probs), scatter(entropy), scatter(mean_logits), scatter(is_top1))


def token_logprobs(
    hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, with_statistics: bool = True
) -> TokenLogprobs:
    """Return what the head with `weight` [vocabulary, hidden] gives for `targets` [tokens], in fp32.

    `hidden` is [tokens, hidden], each position about to predict its target. Only log_probs has a gradient; without
    statistics the others are zeros.
    """
    device = hidden.device.type
    if not torch.is_grad_enabled():  # or a trainable head would keep its chunks for a way back that never comes
        hidden, weight = hidden.detach(), weight.detach()
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        log_probs, entropy, is_top1 = _HeadLogprobs.apply(hidden, weight, targets, with_statistics)
        mean_logits = torch.zeros_like(entropy)
        if with_statistics:
            mean_logits = hidden.detach().float() @ weight.detach().mean(dim=0, dtype=torch.float32)
    return TokenLogprobs(log_probs, entropy, mean_logits, is_top1)


class _HeadLogprobs(torch.autograd.Function):
    """Log-softmax of a linear head at the targets, chunk by chunk.

    A frozen head's gradient is linear in one number per token, d logp / d hidden = W[target] - softmax @ W, and is
    computed in the forward pass. A trained head keeps the first chunks and computes the others twice.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, with_statistics: bool
    ) -> Any:
        log_probs, entropy = (hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(2))
        is_top1 = torch.zeros_like(targets, dtype=torch.bool)
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        slopes = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        ctx.kept = list[torch.Tensor]()
        room = KEPT_BYTES[weight.is_cuda] if needs_weight else 0
        for part in _chunks(len(hidden), weight):
            all_log_probs = torch.mm(hidden[part], weight.T).float().log_softmax(dim=-1)  # [chunk, vocabulary]
            log_probs[part] = all_log_probs.gather(1, targets[part, None])[:, 0]
            if with_statistics:
                is_top1[part] = log_probs[part] == all_log_probs.amax(dim=-1)
            if not with_statistics and slopes is None:
                continue
            shares = all_log_probs.exp()
            entropy[part] = -torch.linalg.vecdot(shares, all_log_probs)
            room -= shares.nbytes
            if room >= 0:
                ctx.kept.append(shares)
            if slopes is not None:
                slopes[part] = weight[targets[part]] - torch.mm(shares.to(weight.dtype), weight)
        ctx.is_frozen = slopes is not None
        ctx.save_for_backward(*((slopes,) if slopes is not None else (hidden, weight, targets)))
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> Any:  # pyrefly: ignore[bad-override]
        if ctx.is_frozen:
            (slopes,) = ctx.saved_tensors
            return slopes * gradient[:, None].to(slopes.dtype), None, None, None
        hidden, weight, targets = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for part, kept in zip_longest(_chunks(len(hidden), weight), ctx.kept):
            errors = torch.mm(hidden[part], weight.T).float().softmax(dim=-1) if kept is None else kept
            errors.mul_(-gradient[part, None])
            errors.scatter_add_(1, targets[part, None], gradient[part, None])
            errors = errors.to(weight.dtype)  # [chunk, vocabulary]
            hidden_gradient[part] = torch.mm(errors, weight)
            if weight.dtype == torch.float32:
                weight_gradient.addmm_(errors.T, hidden[part])
            else:
                weight_gradient += errors.T @ hidden[part]
        return hidden_gradient, weight_gradient.to(weight.dtype), None, None


def _chunks(tokens: int, weight: torch.Tensor) -> Iterator[slice]:
    """Divide `tokens` so that the fp32 logits of a chunk take at most LOGITS_BYTES."""
    size = max(16, LOGITS_BYTES[weight.is_cuda] // (4 * len(weight)))
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


class ResponseLogprobs(NamedTuple):
    """Log-probability of each token of a response, and the entropy of its distribution, in nats: [tokens] each."""

    log_probs: torch.Tensor
    entropy: torch.Tensor


@torch.inference_mode()
def response_logprobs(
    model: Any,
    exchanges: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    with_entropy: bool = True,
) -> list[ResponseLogprobs]:
    """Return how likely a causal model finds each response to its prompt, both as ids, in fp32 on the CPU.

    Responses to one prompt share its computation when they fall into one batch of `batch_size`, in which the order of
    `exchanges` does not matter. The entropy may be left out, as zeros. `progress` is called with the number of
    responses done so far, and of all.
    """
    if not can_pack(model):
        return [_unpacked_logprobs(model, *each) for each in exchanges]
    model.set_attn_implementation(IMPLEMENTATION)
    weight = model.get_output_embeddings().weight
    order = sorted(range(len(exchanges)), key=lambda place: tuple(exchanges[place][0]))
    results: dict[int, ResponseLogprobs] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        packed = pack([[*exchanges[place][0], *exchanges[place][1]] for place in batch])
        predictors: list[int] = []
        targets: list[int] = []
        for place, places in zip(batch, packed.places, strict=True):
            prompt, response = exchanges[place]
            predictors.extend(places[len(prompt) - 1 : -1])
            targets.extend(response)
        hidden = run_packed(model, packed)[torch.tensor(predictors, dtype=torch.long, device=model.device)]
        target_ids = torch.tensor(targets, dtype=torch.long, device=model.device)
        values = token_logprobs(hidden, target_ids, weight, with_statistics=with_entropy)
        lengths = [len(exchanges[place][1]) for place in batch]
        parts = zip(values.log_probs.cpu().split(lengths), values.entropy.cpu().split(lengths), strict=True)
        results.update(zip(batch, (ResponseLogprobs(*part) for part in parts), strict=True))
        progress(len(results), len(order))
    return [results[place] for place in range(len(order))]


def _unpacked_logprobs(model: Any, prompt: Sequence[int], response: Sequence[int]) -> ResponseLogprobs:
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)  # [tokens, vocabulary]
    entropy = -torch.linalg.vecdot(logps.exp(), logps)
    return ResponseLogprobs(logps.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu(), entropy.cpu())
