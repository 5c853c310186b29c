"""A tiny Llama 3 made on this machine, so that the pipeline needs no download.

It has the real architecture at a small size (grouped-query attention, rotary positions scaled as in Llama 3.1, SwiGLU,
RMSNorm), its folder opens with the same `from_pretrained` as Llama-3.1-8B-Instruct, and its `generation_config` names
three end-of-text tokens and a temperature, as the real one's does.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from psychocounsel.config.schema import BaseModelConfig, SftConfig, TinyLlamaShape
from psychocounsel.errors import DataQualityError
from psychocounsel.store.shapes import SftSummary
from psychocounsel.training.checkpoints import run_fingerprint
from psychocounsel.training.runtime import quiet_libraries, saving
from psychocounsel.training.tokenize import EncodedExchange, encode_exchange, pad_token_id
from psychocounsel.training.tracking import tracker_arguments
from psychocounsel.training.trainer import CheckedTrainer, TrainingOutput, run_trainer
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
CHAT_WORDS = "system\n\nCutting Knowledge Date: December 2023\nToday Date: user\n\n assistant\n\n"

SPLIT = (
    r"(?i:'(?:s|t|m|d|re|ve|ll))"  # English endings
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # words with their leading space
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pieces within which merges are learned."""

ROPE_THETA = 500_000.0
ROPE_FACTOR = 4.0

ANSWERS_PER_PACK = 4
PROMPT_WEIGHT = 0.25
"""Weight of a prompt token's loss; an answer token has 1. Clients write English to learn from, too."""
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05
SAVE_EVERY_STEPS = 200


def make_tiny_llama(
    speeches: Sequence[Speech], candidates: Sequence[Candidate], config: BaseModelConfig, output: TrainingOutput
) -> SftSummary:
    """Train a tokenizer and a model on the given texts alone, and save both as a `from_pretrained` folder.

    `candidates` that answer other speeches are left out. Equal configs give equal weights on one machine.

    Raises:
        DataQualityError: no candidate answers one of the speeches, or none fits into the maximal length.
        Preempted: `output.cancel` is cancelled.
    """
    by_id = {speech.id: speech for speech in speeches}
    answers = [answer for answer in candidates if answer.speech_id in by_id and answer.text]
    if not answers:
        raise DataQualityError(
            "no response answers a training speech", remedy="give the corpus candidates for its speeches"
        )
    texts = [turn.content for speech in speeches for turn in speech.turns] + [answer.text for answer in answers]
    # Every prompt contains these words: merged, they cost a dozen tokens and not one per letter.
    texts += [CHAT_WORDS] * len(answers)
    tokenizer = train_tokenizer(texts, config.shape.vocab_size, config.shape.max_positions)
    with quiet_libraries():  # what is longer than the model's positions is left out below
        exchanges = [
            encode_exchange(tokenizer, speech.text, answer.text, config.chat, speech.history)
            for answer in answers
            for speech in [by_id[answer.speech_id]]
        ]
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config.shape, tokenizer)
        summary = train_sft(model, exchanges, config.sft, pad_token_id(tokenizer), output)
    with quiet_libraries(), saving(output.folder):
        tokenizer.save_pretrained(output.folder)
        model.save_pretrained(output.folder)
    return summary


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length_tokens: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer learned from `texts` that encodes every Unicode text, by its bytes where needed.

    Special tokens and the 256 bytes count into `vocab_size`; nothing is truncated at `model_max_length_tokens`.
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
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
        special_tokens=[(BEGIN_OF_TEXT, backend.token_to_id(BEGIN_OF_TEXT))],
    )
    template = files("psychocounsel.training") / "templates" / "llama3_chat.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TURN,
        model_max_length=model_max_length_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=template.read_text(encoding="utf-8"),
    )


def llama_config(shape: TinyLlamaShape, vocabulary: int, **special_tokens: Any) -> LlamaConfig:
    """Return the config of a tiny Llama with so many tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.max_positions,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": ROPE_THETA,
            "factor": ROPE_FACTOR,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": int(shape.max_positions / ROPE_FACTOR),
        },
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **special_tokens,
    )


def build_model(shape: TinyLlamaShape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama in float32, its weights sampled from torch's global state."""
    vocabulary = tokenizer.get_vocab()
    begin = vocabulary[BEGIN_OF_TEXT]
    ends = [vocabulary[token] for token in (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)]
    tokens = {"bos_token_id": begin, "eos_token_id": ends, "pad_token_id": None}
    model = LlamaForCausalLM(llama_config(shape, len(tokenizer), **tokens))
    model.generation_config = GenerationConfig(
        bos_token_id=begin, eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9
    )
    return model


class Pack(NamedTuple):
    """A prompt and some answers to it; `speech` are the places of the client's words, None if unknown."""

    prompt_ids: list[int]
    responses: list[list[int]]
    speech: range | None = None

    @property
    def learned(self) -> range:
        """Places of the prompt that are learned: the client's words, or all."""
        return range(1, len(self.prompt_ids)) if self.speech is None else self.speech

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.prompt_ids) + sum(map(len, self.responses))


class Batch(NamedTuple):
    """Packs padded on the right, and what is learned from them: token `targets[i]` at place `sources[i]`.

    Padding is known by its position: no target is there and no token attends to it.
    """

    input_ids: torch.Tensor  # [batch, length]
    position_ids: torch.Tensor  # [batch, length]
    visible: torch.Tensor  # [batch, 1, length, length], True where the row's token attends to the column's
    sources: torch.Tensor  # [learned], index into the flattened batch
    targets: torch.Tensor  # [learned]
    weights: torch.Tensor  # [learned]


def train_sft(
    model: LlamaForCausalLM,
    exchanges: Sequence[EncodedExchange],
    config: SftConfig,
    pad_id: int,
    output: TrainingOutput,
) -> SftSummary:
    """Train all weights of `model` in place, from the newest checkpoint that verifies.

    The order of the batches comes from torch's global state, which a resumed run must have seeded alike.

    Raises:
        DataQualityError: no exchange fits into `config.max_length_tokens`.
        IncompleteError: a loss or gradient is not finite.
        Preempted: `output.cancel` is cancelled; a checkpoint of the last step is in `output.work`.
    """
    fitting = [each for each in exchanges if len(each.prompt_ids) + len(each.response_ids) <= config.max_length_tokens]
    if not fitting:
        raise DataQualityError("no response fits", remedy="raise sft.max_length_tokens")
    packs = sorted(without_template(pack(fitting)), key=lambda one: one.length)
    size = max(1, config.batch_size // max(len(one.responses) for one in packs))
    batches = [collate(packs[start : start + size], pad_id) for start in range(0, len(packs), size)]
    order = [place for _ in range(config.epochs) for place in torch.randperm(len(batches)).tolist()]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, len(order)))
    arguments = TrainingArguments(
        output_dir=str(output.work),
        use_cpu=True,
        use_cache=True,
        per_device_train_batch_size=1,
        num_train_epochs=1,
        max_grad_norm=MAX_GRAD_NORM,
        save_steps=SAVE_EVERY_STEPS,
        logging_steps=1,
        logging_nan_inf_filter=False,
        **tracker_arguments(config.tracker),
        disable_tqdm=True,
    )
    trainer = BatchTrainer(
        model=model,
        args=arguments,
        train_dataset=cast(Any, [batches[place]._asdict() for place in order]),
        optimizers=(optimizer, scheduler),
    )
    # Of the bare id are checkpoints that no trainer wrote, of earlier versions: they are set aside.
    seconds = run_trainer(trainer, output, run_fingerprint((), output.run_id))
    model.eval()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return SftSummary(
        first_loss=sum(losses[: len(batches)]) / len(batches),
        last_loss=sum(losses[-len(batches) :]) / len(batches),
        steps=len(order),
        seconds=seconds,
        parameters=sum(weight.numel() for weight in model.parameters()),
    )


class BatchTrainer(CheckedTrainer):
    """Takes a step on each batch of its data set, in their order."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches."""
        return DataLoader(cast(Any, self.train_dataset), collate_fn=lambda batches: batches[0])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss of a batch."""
        return batch_loss(model, Batch(**inputs))


def learning_rate_share(step: int, total: int) -> float:
    """Return the share of the top learning rate at `step`: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(WARMUP_SHARE * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def pack(exchanges: Sequence[EncodedExchange]) -> list[Pack]:
    """Return the exchanges grouped by prompt, at most ANSWERS_PER_PACK in one pack."""
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
    begin, end = _shared_prefix(prompts), _shared_prefix([prompt[::-1] for prompt in prompts])
    return [one._replace(speech=range(begin, max(begin, len(one.prompt_ids) - end))) for one in packs]


def _shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first elements all rows share."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def collate(packs: Sequence[Pack], pad_id: int) -> Batch:
    """Return `packs` as tensors. Each answer attends to its prompt and itself, at the positions it has alone."""
    width = max(one.length for one in packs)
    ids, positions, segments = ([[fill] * width for _ in packs] for fill in (pad_id, 0, -1))
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, one in enumerate(packs):
        offset, end = row * width, len(one.prompt_ids)
        ids[row][:end], positions[row][:end], segments[row][:end] = one.prompt_ids, range(end), [0] * end
        sources += [offset + place - 1 for place in one.learned]
        targets += [one.prompt_ids[place] for place in one.learned]
        weights += [PROMPT_WEIGHT] * len(one.learned)
        last_of_prompt = offset + end - 1
        for segment, response in enumerate(one.responses, start=1):
            begin, end = end, end + len(response)
            ids[row][begin:end], segments[row][begin:end] = response, [segment] * len(response)
            positions[row][begin:end] = range(len(one.prompt_ids), len(one.prompt_ids) + len(response))
            sources += [last_of_prompt, *range(offset + begin, offset + end - 1)]
            targets += response
            weights += [1.0] * len(response)
    segment_ids = torch.tensor(segments)  # [batch, width]; 0 is the prompt, -1 is padding
    columns = segment_ids[:, None, :]
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    visible = ((segment_ids[:, :, None] == columns) | (columns == 0)) & earlier
    learned = map(torch.tensor, (sources, targets, weights))
    return Batch(torch.tensor(ids), torch.tensor(positions), visible[:, None], *learned)


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the weighted mean cross-entropy over the learned tokens of `batch`, in nats per token."""
    hidden = model.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.visible, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.sources])  # [learned, vocabulary]
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()
