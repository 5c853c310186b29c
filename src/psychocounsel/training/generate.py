"""Local policies that answer chats: sampling from weights on this machine."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from psychocounsel.config.components import ChatFormat, SamplingConfig
from psychocounsel.llm.types import ChatReply, ChatRequest, RequestContext
from psychocounsel.training.decoding import DecodingTask, decode
from psychocounsel.training.runtime import default_device, inference_dtype, load_pretrained
from psychocounsel.training.tokenize import TemplateError, answer_text, encode_prompt, load_tokenizer, terminator_id
from psychocounsel.types import Policy, ReplyStatus, content_id


class Answer(NamedTuple):
    """An answer: its stripped text, whether it ended before its token limit, and its token ids, its end included.

    Thoughts of the model are among the ids, and not in the text.
    """

    text: str
    finished: bool
    token_ids: tuple[int, ...]


def load_causal_model(policy: Policy, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Return the weights of `policy` as a causal language model in `dtype`, on the CPU unless `options` say otherwise.

    Raises:
        ConfigError: the folder or Hub id holds no such model.
    """
    return load_pretrained(AutoModelForCausalLM, policy, dtype=dtype, use_safetensors=True, **options)


def load_for_inference(policy: Policy) -> PreTrainedModel:
    """Return the weights of `policy` where they compute, in `inference_dtype`.

    Raises:
        ConfigError: the folder or Hub id holds no causal language model.
    """
    return cast(Any, load_causal_model(policy, inference_dtype())).to(default_device()).eval()


def load_generation_config(policy: Policy) -> GenerationConfig:
    """Return how the author of some weights wants them decoded, which names the ids that end an answer.

    Raises:
        ConfigError: the folder or Hub id holds no model.
    """
    try:
        return GenerationConfig.from_pretrained(policy.location, revision=policy.revision or "main")
    except OSError:  # a model without the file
        return GenerationConfig.from_model_config(load_pretrained(AutoConfig, policy))


def end_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end an answer: the model's own, and the terminator of the chat template, if it writes one."""
    own = cast(Any, config).eos_token_id
    ends = frozenset([own] if isinstance(own, int) else own or ())
    try:
        # Not every model names it: the first Llama-3-8B-Instruct named only the end of a text.
        return ends | {terminator_id(tokenizer)}
    except TemplateError:
        if not ends:
            raise
        return ends


class AnswerGenerator:
    """A causal language model that answers prompts given as ids."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.eos_ids = end_ids(cast(Any, model.generation_config), tokenizer)
        # The decoding that the model's author prefers must not change ours.
        self.model.generation_config = GenerationConfig()

    @classmethod
    def load(cls, policy: Policy) -> "AnswerGenerator":
        """Return the generator of `policy`.

        Raises:
            ConfigError: tokenizer or weights cannot be loaded.
        """
        tokenizer = load_tokenizer(policy)
        return cls(load_for_inference(policy), tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Answer]:
        """Answer `prompts`, in their order; a prompt that is given k times gets k independent answers.

        Equal seeds sample equal answers, and temperature 0 takes the most likely token. `progress` is called with the
        number of prompts answered so far, and of all.
        """
        seen: Counter[tuple[int, ...]] = Counter()
        tasks: list[DecodingTask] = []
        for place, prompt in enumerate(map(tuple, prompts)):
            tasks.append(DecodingTask(place, prompt, repeat=seen[prompt]))
            seen[prompt] += 1
        answers: dict[int, Answer] = {}

        def keep(ended: list[tuple[int, list[int]]]) -> None:
            for place, ids in ended:
                text = answer_text(self.tokenizer, prompts[place], ids)
                answers[place] = Answer(text, ids[-1] in self.eos_ids, tuple(ids))
            progress(len(answers), len(prompts))

        tasks.sort(key=lambda task: (-len(task.prompt), task.prompt))  # equal prompts next to each other
        decode(self.model, tasks, sampling, self.eos_ids, seed, keep)
        return [answers[place] for place in range(len(prompts))]


class _Waiting(NamedTuple):
    """A request with its reply to come; requests of equal sampling and seed are answered in one batch."""

    request: ChatRequest
    sampling: SamplingConfig
    seed: int
    reply: asyncio.Future[ChatReply]


class LocalChatModel:
    """A causal language model behind the interface of an endpoint, free of charge.

    Args:
        generator: the loaded weights.
        fingerprint: identifies the weights.
        batch_size: prompts answered at once; it affects the speed only.
        kept: returns for a request, by its digest, how many replies the journal holds. Each of them changes the sample:
            a lost reply is sampled again as it was, a kept one never is.
    """

    def __init__(
        self, generator: AnswerGenerator, fingerprint: Mapping[str, str], batch_size: int, kept: Callable[[str], int]
    ) -> None:
        self._generator = generator
        self._fingerprint = dict(fingerprint)
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._answering: asyncio.Task[None] | None = None
        self._kept = kept

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What identifies the weights."""
        return self._fingerprint

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Answer together with the requests that arrive meanwhile."""
        del context
        attempt = self._kept(request.digest(self._fingerprint))
        seed = int(content_id("draw", str(request.sample_index), str(attempt)), 16) >> 1
        sampling = SamplingConfig(
            temperature=request.temperature,
            top_p=request.top_p,
            max_new_tokens=request.max_tokens,
            batch_size=self._batch_size,
        )
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, sampling, seed, reply))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())
        return await reply

    async def _answer_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # requests that are about to arrive join this batch
            first = self._waiting[0]
            alike = [each for each in self._waiting if (each.sampling, each.seed) == (first.sampling, first.seed)]
            batch = alike[: self._batch_size]
            taken = set(map(id, batch))
            self._waiting = [each for each in self._waiting if id(each) not in taken]
            await self._answer(batch)
        self._answering = None

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            prompts: list[list[int]] = []
            for *before, last in (each.request.messages for each in batch):
                system = "\n\n".join(each.content for each in before if each.role == "system")
                chat = ChatFormat.model_construct(system_prompt=system)
                history = [(each.role, each.content) for each in before if each.role != "system"]
                prompts.append(encode_prompt(self._generator.tokenizer, last.content, chat, history))
            answers = await asyncio.to_thread(self._generator.generate, prompts, batch[0].sampling, batch[0].seed)
        except Exception as fault:  # noqa: BLE001 (every request of the batch raises it)
            for each in batch:
                each.reply.set_exception(fault)
            return
        for each, prompt, answer in zip(batch, prompts, answers, strict=True):
            if not each.reply.done():
                each.reply.set_result(self._reply(answer, len(prompt)))

    def _reply(self, answer: Answer, prompt_tokens: int) -> ChatReply:
        status, reason = ReplyStatus.VALID, ""
        if not answer.finished:
            status, reason = ReplyStatus.CUT, "the reply was cut at its token limit"
        elif not answer.text:
            status, reason = ReplyStatus.EMPTY, "the reply has no text"
        model = self._fingerprint["model"]
        return ChatReply(status, answer.text, model, prompt_tokens, len(answer.token_ids), reason)
