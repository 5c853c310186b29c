"""Speech -> token ids -> Generation: the one road by which weights on this machine are loaded and asked.

Stages, trainers and samplers all encode a chat here: the template is turned into ids once, never into a
string that is tokenized again, so there is one beginning-of-text token and one terminator per answer.

A token is drawn by inverting the cumulative distribution at a number that belongs to the prompt (a hash of
seed, prompt and repeat) and not to the batch. So neither the batch size nor the order of the prompts decides
what is answered, and torch's global random state is never touched.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from psychocounsel.config.components import ChatFormat, SamplingConfig
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.llm.types import ChatReply, ChatRequest, RequestContext
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.types import Candidate, Policy, ReplyStatus, Speech, content_id


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
    return _checked_prompt(tokenizer, _encode(tokenizer, _messages(speech_text, chat), chat, opens_answer=True))


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
        raise TemplateError(f"{ids.count(begin)} beginning-of-text tokens in one prompt", remedy="mend the template")
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


class _Drawing(NamedTuple):
    """Requests that agree in all of it are answered in one batch."""

    sampling: SamplingConfig
    seed: int


class _Waiting(NamedTuple):
    request: ChatRequest
    drawing: _Drawing
    reply: asyncio.Future[ChatReply]


class LocalChatModel:
    """A causal language model that is asked like an endpoint, and costs nothing.

    Args:
        generator: the loaded weights.
        fingerprint: what tells them from other weights.
        batch_size: prompts answered at once; it decides the speed only.
        kept: tells of a request, by its digest, how many replies the journal holds: each decides another
            draw. So a draw that was lost is made again as it was, and one that was kept never is.
    """

    def __init__(
        self,
        generator: AnswerGenerator,
        fingerprint: Mapping[str, str],
        batch_size: int,
        kept: Callable[[str], int],
    ) -> None:
        self._generator = generator
        self._fingerprint = dict(fingerprint)
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._answering: asyncio.Task[None] | None = None
        self._kept = kept

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What tells the weights from others."""
        return self._fingerprint

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Answer together with what else is asked meanwhile; where a reply is kept, draw another."""
        del context
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, self._drawing(request), reply))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())
        return await reply

    def _drawing(self, request: ChatRequest) -> _Drawing:
        attempt = self._kept(request.digest(self._fingerprint))
        sampling = SamplingConfig(
            temperature=request.temperature,
            top_p=request.top_p,
            max_new_tokens=request.max_tokens,
            batch_size=self._batch_size,
        )
        return _Drawing(sampling, int(content_id("draw", str(request.sample_index), str(attempt)), 16) >> 1)

    async def _answer_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # whoever is about to ask joins this batch
            drawing = self._waiting[0].drawing
            batch = [each for each in self._waiting if each.drawing == drawing][: self._batch_size]
            self._waiting = [each for each in self._waiting if not any(each is taken for taken in batch)]
            await self._answer(batch, drawing)
        self._answering = None

    async def _answer(self, batch: Sequence[_Waiting], drawing: _Drawing) -> None:
        try:
            prompts = [self._prompt(each.request) for each in batch]
            answers = await asyncio.to_thread(self._generator.generate, prompts, *drawing)
        except Exception as fault:  # noqa: BLE001 (told to everybody who waits for this batch)
            for each in batch:
                each.reply.set_exception(fault)
            return
        for each, prompt, answer in zip(batch, prompts, answers, strict=True):
            if not each.reply.done():
                each.reply.set_result(self._reply(answer, len(prompt)))

    def _prompt(self, request: ChatRequest) -> list[int]:
        *before, last = request.messages
        chat = ChatFormat.model_construct(system_prompt="\n\n".join(turn.content for turn in before))
        return encode_prompt(self._generator.tokenizer, last.content, chat)

    def _reply(self, answer: Generation, prompt_tokens: int) -> ChatReply:
        status, reason = ReplyStatus.VALID, ""
        if not answer.finished:
            status, reason = ReplyStatus.CUT, "the reply was cut at its token limit"
        elif not answer.text:
            status, reason = ReplyStatus.EMPTY, "the reply has no text"
        model = self._fingerprint["model"]
        return ChatReply(status, answer.text, model, prompt_tokens, len(answer.token_ids), reason)


class SampleRequest(NamedTuple):
    """Who answers, how many times each speech is answered, and how the answers are drawn."""

    author: str
    per_speech: int
    sampling: SamplingConfig
    chat: ChatFormat
    seed: int


def sample_candidates(
    generator: AnswerGenerator,
    tokenizer: PreTrainedTokenizerBase,
    speeches: Sequence[Speech],
    request: SampleRequest,
    progress: Callable[[int, int], None],
) -> list[Candidate]:
    """Return `per_speech` candidates for each speech, those of one speech side by side.

    A text may be empty, and an answer that met its token limit is marked as unfinished: the caller decides.

    Args:
        generator: the policy.
        tokenizer: the policy's own.
        speeches: whom to answer.
        request: see `SampleRequest`.
        progress: told the number of answers so far, and of all.
    """
    prompts = [encode_prompt(tokenizer, speech.text, request.chat) for speech in speeches]
    asked = [place for place in range(len(speeches)) for _ in range(request.per_speech)]
    answers = generator.generate([prompts[i] for i in asked], request.sampling, request.seed, progress)
    return [
        Candidate(speeches[i].id, request.author, answer.text, answer.finished)
        for i, answer in zip(asked, answers, strict=True)
    ]
