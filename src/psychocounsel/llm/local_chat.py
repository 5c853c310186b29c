"""ChatRequest -> ChatReply: a model on this machine as a chat model; requests that meet share a batch.

It holds to no schema: its replies are read like anybody's, and what is not the JSON asked for is missing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from psychocounsel.config.models import ChatFormat, SamplingConfig
from psychocounsel.domain import ReplyStatus, content_id
from psychocounsel.llm.chat import ChatReply, ChatRequest
from psychocounsel.llm.local_model import AnswerGenerator, Generation, encode_prompt


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
        identity: what tells them from other weights.
        batch_size: prompts answered at once; it decides the speed only.
        kept: tells of a request, by its digest, how many replies the journal holds: each decides another
            draw. So a draw that was lost is made again as it was, and one that was kept never is.
    """

    def __init__(
        self,
        generator: AnswerGenerator,
        identity: Mapping[str, str],
        batch_size: int,
        kept: Callable[[str], int],
    ) -> None:
        self._generator = generator
        self._identity = dict(identity)
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._answering: asyncio.Task[None] | None = None
        self._kept = kept

    @property
    def identity(self) -> Mapping[str, str]:
        """What tells the weights from others."""
        return self._identity

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Answer together with what else is asked meanwhile; where a reply is kept, draw another."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, self._drawing(request), reply))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())
        return await reply

    def _drawing(self, request: ChatRequest) -> _Drawing:
        attempt = self._kept(request.digest(self._identity))
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
        model = self._identity["model"]
        return ChatReply(status, answer.text, model, prompt_tokens, len(answer.token_ids), reason)
