"""chat: several models answer the same words, and a reward model scores the answers; nothing is written.

Every line is a session of its own, as in training and evaluation (arXiv 2502.19731): no model sees an earlier one.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psychocounsel.config.components import ChatFormat, EndpointConfig, ResponderConfig, SamplingConfig
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.crisis import mentions_crisis
from psychocounsel.errors import ConfigError
from psychocounsel.llm.endpoints import open_endpoint
from psychocounsel.llm.types import ChatModel, ChatReply, Closable, RefusedRequestError, RequestContext, spoken
from psychocounsel.stages.respond import chat_request
from psychocounsel.store.references import POLICY_KINDS, resolve_model, trained_chat
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus, Speech

if TYPE_CHECKING:
    from psychocounsel.training.reward import RewardScorer

ENDPOINT = "endpoint:"
RESOURCES = """\
If you or someone else may be in danger now, call the emergency number: 911 in the USA and Canada, 112 in Europe, 999
in the United Kingdom, 000 in Australia. Someone to talk to, day and night: call or text 988 in the USA and Canada;
Samaritans, call 116 123, in the United Kingdom and Ireland; Lifeline, call 13 11 14, in Australia; elsewhere
https://findahelpline.com. What answers here are experimental models. Nobody else reads this."""
"""What stands first, and again before the answers to words that speak of suicide or self-harm."""


class ChatOptions(NamedTuple):
    """How models are prompted and sampled that no config file describes."""

    sampling: SamplingConfig
    chat: ChatFormat
    seed: int


class ChatAnswer(NamedTuple):
    """A model's answer, whether it ended before its token limit, and its normalised reward.

    Without an answer, `text` is empty and `reason` says why.
    """

    model: str
    text: str
    finished: bool
    reward: float | None
    reason: str


class _Speaker(NamedTuple):
    name: str
    responder: ResponderConfig
    model: ChatModel


class Chat:
    """Models that answer side by side; weights and connections stay open from line to line.

    `refs` are artifacts, folders, `hub:owner/name@revision`, `endpoint:MODEL` or `endpoint:MODEL@BASE_URL`, and YAML
    files with the keys of a responder (`author`, `model` or `endpoint`, `sampling`, `chat`).

    Raises:
        ConfigError: a reference matches nothing, weights cannot be loaded, or an endpoint's key is missing.
        StoreError: there is no reward model.
    """

    def __init__(self, refs: Sequence[str], reward: str | None, options: ChatOptions, store: Store) -> None:
        configs = [responder_of(ref, f"model-{at}", options) for at, ref in enumerate(refs, start=1)]
        self._speakers = [
            _Speaker(_name(ref, config), config, _open(config, store))
            for ref, config in zip(refs, configs, strict=True)
        ]
        self._seed, self._turn = options.seed, 0
        self._scorer = None if reward is None else open_scorer(reward, store)
        self._loop = asyncio.Runner()

    def answer(self, text: str) -> list[ChatAnswer]:
        """Return each model's answer; the same words again get other samples.

        Raises:
            EndpointError: an endpoint cannot be used.
            IncompleteError: no server answers.
            KeyboardInterrupt: Ctrl-C; the answers are dropped.
        """
        speech, turn = Speech(text, crisis=mentions_crisis(text)), self._turn
        self._turn += 1
        replies = self._loop.run(self._ask_all(speech, turn))
        rewards = self._rewards(text, replies)
        return [
            ChatAnswer(speaker.name, reply.text.strip(), reply.status is not ReplyStatus.CUT, reward, reply.reason)
            for speaker, reply, reward in zip(self._speakers, replies, rewards, strict=True)
        ]

    async def _ask_all(self, speech: Speech, turn: int) -> list[ChatReply]:
        return await asyncio.gather(*(self._ask(each, speech, turn) for each in self._speakers))

    async def _ask(self, speaker: _Speaker, speech: Speech, turn: int) -> ChatReply:
        request = chat_request(speech, speaker.responder, self._seed, turn)
        try:
            return spoken(await speaker.model.generate(request, RequestContext()))
        except RefusedRequestError as refusal:
            return ChatReply(ReplyStatus.INVALID, "", speaker.name, 0, 0, refusal.what)

    def _rewards(self, text: str, replies: Sequence[ChatReply]) -> list[float | None]:
        if self._scorer is None:
            return [None] * len(replies)
        from psychocounsel.training.reward import Exchange  # imports torch

        answered = [reply.text.strip() for reply in replies if reply.text.strip()]
        scored = iter(self._scorer.rewards([Exchange(text, each) for each in answered], max(1, len(answered))))
        return [next(scored).reward if reply.text.strip() else None for reply in replies]

    def close(self) -> None:
        """Close the connections."""
        for speaker in self._speakers:
            if isinstance(speaker.model, Closable):
                self._loop.run(speaker.model.aclose())
        self._loop.close()


def responder_of(ref: str, author: str, options: ChatOptions) -> ResponderConfig:
    """Return the responder that a reference names, as `Chat` reads it; a YAML file has settings of its own.

    Raises:
        ConfigError: the file names ready responses, or cannot be read.
    """
    if ref.endswith(".yaml"):
        config = load_config(ResponderConfig, Path(ref))
        if config.file is not None:
            raise ConfigError("a file of responses answers no new words", where=ref, remedy="name a model or endpoint")
        return config
    if not ref.startswith(ENDPOINT):
        return ResponderConfig(author=author, model=ref, sampling=options.sampling, chat=options.chat)
    model, _, base_url = ref.removeprefix(ENDPOINT).partition("@")
    endpoint = EndpointConfig(model=model, base_url=base_url or None)
    return ResponderConfig(author=author, endpoint=endpoint, sampling=options.sampling, chat=options.chat)


def _name(ref: str, config: ResponderConfig) -> str:
    if ref.endswith(".yaml"):
        return config.author
    return config.endpoint.model if config.endpoint else ref


def _open(config: ResponderConfig, store: Store) -> ChatModel:
    if config.endpoint is not None:
        return open_endpoint(config.endpoint, store)
    from psychocounsel.training.generate import AnswerGenerator, LocalChatModel  # imports torch

    ref = config.model or ""
    generator = AnswerGenerator.load(resolve_model(store, ref, POLICY_KINDS).policy(store))
    # A line is asked once, so no earlier sample has to be avoided.
    return LocalChatModel(generator, {"model": ref, "base_url": "local"}, 1, lambda digest: 0)


def open_scorer(ref: str, store: Store) -> "RewardScorer":
    """Return a reward model by its reference; errors are those of `RewardScorer.load`."""
    from psychocounsel.training.reward import RewardScorer  # imports torch

    model = resolve_model(store, ref, ("reward-models",))
    return RewardScorer.load(model.policy(store), trained_chat(store, model))


def saved_line(text: str, answers: Sequence[ChatAnswer]) -> str:
    """Return one line of JSON with the client's words and the answers."""
    rows = [each._asdict() for each in answers]
    return json.dumps({"speech": text, "answers": rows}, ensure_ascii=False) + "\n"
