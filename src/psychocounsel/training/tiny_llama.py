"""Speech + Candidate -> Policy: make a tiny Llama 3 on this machine, so that the pipeline needs no download.

It is the real architecture in small (grouped-query attention, rotary positions scaled as in Llama 3.1,
SwiGLU, RMSNorm), its folder opens with the same `from_pretrained` as Llama-3.1-8B-Instruct, and its
`generation_config` names three ends of text and a temperature, as the real one's does.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import BaseModelConfig, SftConfig, TinyLlamaShape
from psychocounsel.errors import DataQualityError
from psychocounsel.training.runtime import prepare_processor, quiet_libraries, saving
from psychocounsel.training.tokenize import EncodedExchange, encode_exchange, pad_token_id
from psychocounsel.types import Candidate, Speech

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
RESERVED_TOKENS = 8
SPECIAL_TOKENS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_MESSAGE,
    END_OF_TURN,
    "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(RESERVED_TOKENS)),
)

ENGLISH_ENDINGS = r"(?i:'(?:s|t|m|d|re|ve|ll))"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
NUMBER = r"\p{N}{1,3}"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LINE_BREAKS = r"\s*[\r\n]+"
SPACES = r"\s+(?!\S)|\s+"
SPLIT = "|".join((ENGLISH_ENDINGS, WORD, NUMBER, PUNCTUATION, LINE_BREAKS, SPACES))
"""Where a text may be cut before merges are learned: words with their leading space, up to three digits, …"""


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length_tokens: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer learned from `texts` that can spell every Unicode text byte by byte.

    Args:
        texts: what the merges are learned from.
        vocab_size: upper bound of the vocabulary, special tokens and the 256 bytes included.
        model_max_length_tokens: written into the tokenizer's config; nothing is cut at it.
    """
    backend = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), by_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    begin = backend.token_to_id(BEGIN_OF_TEXT)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
        special_tokens=[(BEGIN_OF_TEXT, begin)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TURN,
        model_max_length=model_max_length_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=_chat_template(),
    )


def _chat_template() -> str:
    folder = files("psychocounsel.training") / "templates"
    return (folder / "llama3_chat.jinja").read_text(encoding="utf-8")


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


def train_sft(
    model: LlamaForCausalLM,
    exchanges: Sequence[EncodedExchange],
    config: SftConfig,
    pad_id: int,
    progress: Callable[[int, int], None],
) -> WarmUpSummary:
    """Train all weights of `model` in place; the order of the batches comes from torch's global state.

    Raises:
        DataQualityError: no exchange fits into `config.max_length_tokens`.
    """
    fitting = [pair for pair in exchanges if _length(pair) <= config.max_length_tokens]
    if not fitting:
        raise DataQualityError("no response fits", remedy="raise sft.max_length_tokens")
    prepare_processor()
    started = time.monotonic()
    batches = [collate(packs, pad_id) for packs in _by_length(without_template(pack(fitting)), config.batch_size)]
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


CHAT_WORDS = "system\n\nCutting Knowledge Date: December 2023\nToday Date: user\n\n assistant\n\n"
ROPE_THETA = 500_000.0
ROPE_FACTOR = 4.0


def make_tiny_llama(
    speeches: Sequence[Speech],
    candidates: Sequence[Candidate],
    config: BaseModelConfig,
    folder: Path,
    progress: Callable[[int, int], None],
) -> WarmUpSummary:
    """Learn a tokenizer and a model from the given texts alone, and save both into `folder`.

    Args:
        speeches: those of the training split.
        candidates: answers to them, good and bad alike; those to other speeches are left out.
        config: shape, warm-up and seed; equal configs give equal weights on one machine.
        folder: receives a `from_pretrained` folder in safetensors.
        progress: told the training step, and their number.

    Raises:
        DataQualityError: no candidate answers one of the speeches, or none fits into the warm-up's length.
    """
    by_id = {speech.id: speech for speech in speeches}
    answers = [answer for answer in candidates if answer.speech_id in by_id and answer.text]
    if not answers:
        raise DataQualityError(
            "no response answers a training speech", remedy="give the corpus candidates for its speeches"
        )
    texts = [speech.text for speech in speeches] + [answer.text for answer in answers]
    # Every prompt spends these words: merged, they cost a dozen tokens and not one per letter.
    texts += [CHAT_WORDS] * len(answers)
    tokenizer = train_tokenizer(texts, config.shape.vocab_size, config.shape.max_positions)
    with quiet_libraries():  # what is longer than the model's positions is left out below
        exchanges = [_encode(tokenizer, by_id[answer.speech_id], answer, config.chat) for answer in answers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config.shape, tokenizer)
        summary = train_sft(model, exchanges, config.sft, pad_token_id(tokenizer), progress)
    with quiet_libraries(), saving(folder):
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return summary


def build_model(shape: TinyLlamaShape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama in float32, its weights drawn from torch's global state."""
    vocabulary = tokenizer.get_vocab()
    begin = vocabulary[BEGIN_OF_TEXT]
    ends = [vocabulary[token] for token in (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.max_positions,
        rope_parameters=_rope(shape.max_positions),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=ends,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=begin, eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9
    )
    return model


def _rope(max_positions: int) -> dict[str, float | str | int]:
    return {
        "rope_type": "llama3",
        "rope_theta": ROPE_THETA,
        "factor": ROPE_FACTOR,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": int(max_positions / ROPE_FACTOR),
    }


def _encode(tokenizer: PreTrainedTokenizerFast, speech: Speech, answer: Candidate, chat: ChatFormat) -> EncodedExchange:
    return encode_exchange(tokenizer, speech.text, answer.text, chat)
