"""Speech -> token ids -> Generation: the one road by which weights on this machine are loaded and asked.

Stages, trainers and samplers all encode a chat here: the template is turned into ids once, never into a
string that is tokenized again, so there is one beginning-of-text token and one terminator per answer.

A token is drawn by inverting the cumulative distribution at a number that belongs to the prompt (a hash of
seed, prompt and repeat) and not to the batch. So neither the batch size nor the order of the prompts decides
what is answered, and torch's global random state is never touched.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from psychocounsel.config.models import ChatFormat, SamplingConfig
from psychocounsel.domain import Policy
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.llm.decoding import decode
from psychocounsel.llm.quiet import quiet_libraries

PAD_TOKEN = "<|finetune_right_pad_id|>"  # noqa: S105 (a token of the vocabulary, not a secret)
RESERVED_PREFIX = "<|reserved_special_token_"
STOPPED_CLOCK = '{% macro strftime_now(format) %}{{ date_string }}{% endmacro %}{{ "" }}'
"""Put before a chat template, it answers with the configured date where the template asks for today's."""


class EncodedExchange(NamedTuple):
    """A prompt and its answer as ids; `response_ids` end in the one terminator of the answer."""

    prompt_ids: list[int]
    response_ids: list[int]


class Generation(NamedTuple):
    """An answer: its stripped text, its ids (the ending one included), and whether it came to its end."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool


class TemplateError(InputError):
    """A chat template (or a text in it) whose ids cannot be split into a prompt and a terminated answer."""


def load_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """Return the tokenizer that lies beside the weights of `policy`.

    Raises:
        ConfigError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(policy.location, revision=policy.revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError(
            "no tokenizer can be loaded",
            where=policy.location,
            remedy=f"check the folder or Hub id ({error})",
        ) from error
    if not tokenizer.chat_template:
        raise ConfigError(
            "the tokenizer has no chat template",
            where=policy.location,
            remedy="use an instruction-tuned model",
        )
    return tokenizer


def load_causal_model(policy: Policy, dtype: torch.dtype) -> PreTrainedModel:
    """Return the weights of `policy` as a causal language model in `dtype`, on the CPU.

    Raises:
        ConfigError: the folder or Hub id holds no such model.
    """
    try:
        with quiet_libraries():
            return AutoModelForCausalLM.from_pretrained(
                policy.location, revision=policy.revision or "main", dtype=dtype, use_safetensors=True
            )
    except (OSError, ValueError) as error:
        raise ConfigError(
            "no model can be loaded", where=policy.location, remedy=f"check the folder or Hub id ({error})"
        ) from error


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that stand for no text: begin, end, headers, padding, reserved."""
    return frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills up short rows; it never ends an answer, so an end is never taken for padding.

    Llama 3 has a token of its own for it; else the tokenizer's, if it is not the end; else a reserved one.

    Raises:
        ConfigError: the vocabulary has none of these.
    """
    vocabulary = tokenizer.get_vocab()
    if PAD_TOKEN in vocabulary:
        return vocabulary[PAD_TOKEN]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return cast(int, tokenizer.pad_token_id)
    reserved = [index for token, index in vocabulary.items() if token.startswith(RESERVED_PREFIX)]
    if not reserved:
        raise ConfigError(
            "the tokenizer has no padding token distinct from its end-of-text token",
            where=tokenizer.name_or_path,
            remedy="add one to the tokenizer (add_special_tokens) and save it beside the model",
        )
    return min(reserved)


def terminator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that the chat template writes to end an answer (`<|eot_id|>` in Llama 3).

    Raises:
        TemplateError: the template writes none.
    """
    return encode_exchange(tokenizer, "Hello", "Hello", ChatFormat()).response_ids[-1]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, speech_text: str, chat: ChatFormat) -> list[int]:
    """Return the ids of the chat up to where the assistant begins to speak.

    Raises:
        TemplateError: there is not exactly one beginning-of-text token, where the tokenizer has one.
    """
    return _checked_prompt(
        tokenizer, _encode(tokenizer, _messages(speech_text, chat), chat, opens_answer=True)
    )


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase, speech_text: str, response: str, chat: ChatFormat
) -> EncodedExchange:
    """Return the ids of prompt and answer, cut out of one rendering of the whole chat.

    Raises:
        TemplateError: the prompt is no prefix of the chat, or the answer has not exactly one terminator.
    """
    prompt = encode_prompt(tokenizer, speech_text, chat)
    messages = [*_messages(speech_text, chat), {"role": "assistant", "content": response}]
    whole = _encode(tokenizer, messages, chat, opens_answer=False)
    if whole[: len(prompt)] != prompt:
        raise TemplateError(
            "the prompt's token ids are not a prefix of the chat's",
            remedy="use a chat template that only appends",
        )
    return EncodedExchange(prompt, _cut_after_terminator(tokenizer, whole[len(prompt) :]))


def _messages(speech_text: str, chat: ChatFormat) -> list[dict[str, str]]:
    system = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
    return [*system, {"role": "user", "content": speech_text}]


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    chat: ChatFormat,
    *,
    opens_answer: bool,
) -> list[int]:
    ids = tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=opens_answer,
        date_string=chat.date_string,
        chat_template=STOPPED_CLOCK + tokenizer.get_chat_template(),
        sanitize_control_tokens=True,  # a client who types "<|eot_id|>" must not end a turn
    )
    return cast(list[int], ids)


def _checked_prompt(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    begin = cast(int | None, tokenizer.bos_token_id)
    if begin is not None and (ids.count(begin) != 1 or ids[0] != begin):
        raise TemplateError(
            f"{ids.count(begin)} beginning-of-text tokens in one prompt", remedy="mend the template"
        )
    return ids


def _cut_after_terminator(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    special = special_ids(tokenizer)
    places = [place for place, index in enumerate(ids) if index in special]
    if len(places) != 1:
        raise TemplateError(
            f"the template ends an answer with {len(places)} special tokens instead of one",
            remedy="use a chat template that closes the assistant's turn with its end-of-turn token",
        )
    return ids[: places[0] + 1]


class AnswerGenerator:
    """A causal language model that answers prompts given as ids."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pad_id = pad_token_id(tokenizer)
        self.eos_ids = _eos_ids(model, tokenizer)
        # Whatever decoding the model's author prefers must not leak into ours.
        self.model.generation_config = GenerationConfig()

    @classmethod
    def load(cls, policy: Policy, device: str = "auto") -> "AnswerGenerator":
        """Return the generator of `policy`: bfloat16 on a CUDA device, float32 elsewhere.

        Raises:
            ConfigError: tokenizer or weights cannot be loaded.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        tokenizer = load_tokenizer(policy)
        return cls(cast(Any, load_causal_model(policy, dtype)).to(device), tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Generation]:
        """Answer `prompts`, in their order; a prompt that is given k times gets k independent answers.

        Args:
            prompts: token ids, as `encode_prompt` gives them.
            sampling: temperature 0 takes the likeliest token; `batch_size` decides the speed only.
            seed: the same seed draws the same answers.
            progress: told the number of prompts answered so far, and of all.
        """
        repeats = _repeats(prompts)
        by_length = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        answers: dict[int, Generation] = {}
        for start in range(0, len(by_length), sampling.batch_size):
            places = by_length[start : start + sampling.batch_size]
            streams = [_uniforms(prompts[i], repeats[i], seed, sampling.max_new_tokens) for i in places]
            batch = [prompts[i] for i in places]
            ids = decode(self.model, batch, self.pad_id, sorted(self.eos_ids), torch.stack(streams), sampling)
            answers.update(zip(places, map(self._read, ids), strict=True))
            progress(len(answers), len(prompts))
        return [answers[place] for place in range(len(prompts))]

    def _read(self, ids: list[int]) -> Generation:
        text = cast(str, self.tokenizer.decode(ids, skip_special_tokens=True))
        return Generation(text.strip(), tuple(ids), ids[-1] in self.eos_ids)


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = cast(Any, model.generation_config).eos_token_id
    if configured is None:
        configured = terminator_id(tokenizer)
    return frozenset([configured] if isinstance(configured, int) else configured)


def _repeats(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return for each prompt how many equal ones stand before it."""
    seen: Counter[tuple[int, ...]] = Counter()
    repeats: list[int] = []
    for prompt in map(tuple, prompts):
        repeats.append(seen[prompt])
        seen[prompt] += 1
    return repeats


def _uniforms(prompt: Sequence[int], repeat: int, seed: int, count: int) -> torch.Tensor:
    """Return `count` numbers in [0, 1) that depend on seed, prompt and repeat alone."""
    digest = hashlib.sha256(repr((seed, repeat, tuple(prompt))).encode("ascii")).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=stream, dtype=torch.float64)
