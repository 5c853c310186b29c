"""Speech -> Topic by a chat model that is shown the taxonomy and one speech at a time.

Every reply that was paid for is in the journal before it is used. A reply that names no topic of the
taxonomy leaves the speech unassigned, with the reason; on the next run it is asked again, while a valid one
never is.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple, cast

from psychocounsel.config.components import EndpointConfig
from psychocounsel.config.schema import TopicsConfig
from psychocounsel.corpus.topics import (
    Assigned,
    OfflineTopicAssigner,
    Progress,
    Taxonomy,
    Topic,
    TopicAssigner,
    Unassigned,
    load_taxonomy,
)
from psychocounsel.judging.injection import one_line
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.cost import Budget, budget_of
from psychocounsel.llm.endpoints import (
    endpoint_settings,
    open_endpoint,
    open_journal,
    planned_journal,
    planned_model,
)
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.replies import UnreadableReplyError, read_json_at
from psychocounsel.llm.runner import RunPolicy, pending_indices, run_requests
from psychocounsel.llm.types import JSON, ChatModel, ChatReply, ChatRequest, Message
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus, Speech, content_id

PARSER_VERSION = 1
"""Raised by hand whenever a reply may be read differently than before."""

_PROMPT = files("psychocounsel.corpus") / "prompts" / "topic.txt"
_ITEM_LINE = "=== ITEM ===\n"
_FIELDS = ("item_id", "reason", "topic")


@dataclass(frozen=True)
class TopicAsking:
    """How a model is sampled when it names topics; a temperature or top_p of None is not sent."""

    temperature: float | None = 0.0
    max_tokens: int = 300
    top_p: float | None = 1.0


class TopicRequest(NamedTuple):
    """A request and the id that its reply has to echo."""

    item_id: str
    request: ChatRequest


class Unreadable(NamedTuple):
    """Why a reply names no topic."""

    reason: str


class TopicPrompt:
    """Makes the requests for one taxonomy."""

    def __init__(self, taxonomy: Taxonomy, asking: TopicAsking) -> None:
        fixed, self._variable = _prompt().split(_ITEM_LINE)
        self._instructions = Message("system", Template(fixed).substitute(topics=_listed(taxonomy)))
        self._schema = _schema(taxonomy)
        self._asking = asking

    def request(self, speech: Speech) -> TopicRequest:
        """Ask for the topic of one speech."""
        item_id = content_id("topic", speech.text)
        data = one_line({"item_id": item_id, "client": speech.text}).replace("\x7f", "\\u007f")
        marker = f"<<{content_id('marker', data)}>>"
        item = Template(self._variable).substitute(marker=marker, data=data)
        request = ChatRequest(
            messages=(self._instructions, Message("user", item)),
            temperature=self._asking.temperature,
            top_p=self._asking.top_p,
            max_tokens=self._asking.max_tokens,
            response_schema=self._schema,
            schema_name="topic",
        )
        return TopicRequest(item_id, request)


def prompt_digest() -> str:
    """SHA-256 of the prompt's text."""
    return hashlib.sha256(_prompt().encode()).hexdigest()


def parse_topic(reply_text: str, taxonomy: Taxonomy, item_id: str) -> str | Unreadable:
    """Return the id of a fine topic, or why the reply names none.

    Args:
        reply_text: a JSON object, bare, in a Markdown fence, or alone among other text.
        taxonomy: declares the ids.
        item_id: what the reply must echo.
    """
    try:
        reply = _exactly(_only_object(reply_text))
    except UnreadableReplyError as fault:
        return Unreadable(str(fault))
    topic = reply["topic"]
    if reply["item_id"] != item_id:
        return Unreadable("the reply is about another item")
    if not isinstance(reply["reason"], str):
        return Unreadable("'reason' is not text")
    if not isinstance(topic, str) or topic not in taxonomy.coarse_of:
        return Unreadable("'topic' is no fine topic of the taxonomy")
    return topic


@cache
def _prompt() -> str:
    return _PROMPT.read_text(encoding="utf-8")


def _listed(taxonomy: Taxonomy) -> str:
    lines: list[str] = []
    for coarse in taxonomy.topics:
        lines.append(coarse.name)
        lines += [f'"{fine.id}" - {fine.name}. {fine.description}' for fine in coarse.fine]
        lines.append("")
    return "".join(f"{line}\n" for line in lines)


def _schema(taxonomy: Taxonomy) -> dict[str, JSON]:
    text: JSON = {"type": "string"}
    topic: JSON = {"type": "string", "enum": [fine.id for fine in taxonomy.fine_topics]}
    # The reason comes before the topic, so that a model thinks before it settles on one.
    return {
        "type": "object",
        "properties": {"item_id": text, "reason": text, "topic": topic},
        "required": list(_FIELDS),
        "additionalProperties": False,
    }


def _only_object(text: str) -> object:
    start = text.find("{")
    if start < 0:
        raise UnreadableReplyError("there is no JSON object in the reply")
    value, end = read_json_at(text, start)
    if "{" in text[end:]:
        raise UnreadableReplyError("there is more than one JSON object in the reply")
    return value


def _exactly(value: object) -> dict[str, object]:
    block = cast("dict[str, object]", value)
    if set(block) != set(_FIELDS):
        raise UnreadableReplyError(f"the reply has other keys than {', '.join(_FIELDS)}")
    return block


@dataclass(frozen=True)
class ChatTopicSettings:
    """How the model is asked; only `asking` shapes what it answers.

    Args:
        asking: temperature and token limit of a reply.
        max_attempts: requests per speech in one run.
        concurrency: requests in flight.
        cancel: once cancelled, nothing new is sent.
        budget: counts what the replies cost, and sets their limit.
    """

    asking: TopicAsking = field(default_factory=TopicAsking)
    max_attempts: int = 3
    concurrency: int = 8
    cancel: CancelToken = field(default_factory=CancelToken)
    budget: Budget | None = None


class ChatTopicAssigner:
    """Asks for each speech in a request of its own."""

    def __init__(
        self,
        model: ChatModel,
        taxonomy: Taxonomy,
        journal: Journal,
        settings: ChatTopicSettings | None = None,
    ) -> None:
        self._model = model
        self._taxonomy = taxonomy
        self._journal = journal
        self._settings = settings or ChatTopicSettings()
        self._prompt = TopicPrompt(taxonomy, self._settings.asking)

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the topics: model, address, taxonomy, prompt, sampling, parser."""
        asking = self._settings.asking
        return {
            "backend": "endpoint",
            **self._model.fingerprint,
            "taxonomy": self._taxonomy.digest_of_words,
            "prompt": prompt_digest(),
            "temperature": asking.temperature,
            "top_p": asking.top_p,
            "max_tokens": asking.max_tokens,
            "parser": PARSER_VERSION,
        }

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or how its request ended.

        Raises:
            EndpointError: the endpoint refuses for a reason that a retry does not mend.
            Preempted: `settings.cancel` is cancelled; what was answered is kept.
        """
        asked = self._asked(speeches)
        settings = self._settings
        policy = RunPolicy(
            self._acceptance(asked),
            settings.max_attempts,
            settings.concurrency,
            settings.cancel,
            progress,
            budget=settings.budget,
        )
        replies = run_requests(self._model, [item.request for item in asked], self._journal, policy)
        return [self._assigned(item, reply) for item, reply in zip(asked, replies, strict=True)]

    def owed(self, speeches: Sequence[Speech]) -> list[ChatRequest]:
        """Return what `assign` would have to ask at least once; nothing is asked."""
        asked = self._asked(speeches)
        requests = [item.request for item in asked]
        places = pending_indices(requests, self._model.fingerprint, self._journal, self._acceptance(asked))
        return [requests[place] for place in places]

    def _asked(self, speeches: Sequence[Speech]) -> list[TopicRequest]:
        return [self._prompt.request(speech) for speech in speeches]

    def _acceptance(self, asked: Sequence[TopicRequest]) -> Callable[[int, ChatReply], bool]:
        """Return what ends an item: a finished reply that names a topic."""
        return lambda index, reply: isinstance(self._assigned(asked[index], reply), Topic)

    def _assigned(self, asked: TopicRequest, reply: ChatReply) -> Assigned:
        if reply.status is not ReplyStatus.VALID:
            return Unassigned(reply.status.value, reply.reason)
        fine = parse_topic(reply.text, self._taxonomy, asked.item_id)
        if isinstance(fine, Unreadable):
            return Unassigned(ReplyStatus.INVALID.value, fine.reason)
        return Topic(self._taxonomy.coarse_of[fine], fine)


def plan_topics(config: TopicsConfig, store: Store) -> dict[str, Any]:
    """Return what decides the topics of speeches, without connecting to anybody.

    Raises:
        ConfigError: the taxonomy is faulty; or offline, and the endpoint is not on this machine.
    """
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        return {**config.fingerprint(), "taxonomy": dict(OfflineTopicAssigner(taxonomy).identity)}
    endpoint = endpoint_settings(config.endpoint, store)
    with plan_to_name_topics(config, config.endpoint, store) as assigner:
        return {**config.fingerprint(), "endpoint": endpoint, "taxonomy": dict(assigner.identity)}


@contextmanager
def plan_to_name_topics(config: TopicsConfig, endpoint: EndpointConfig, store: Store) -> Generator[ChatTopicAssigner]:
    """Yield who would name topics, unconnected: it tells what it would ask, and asks nothing."""
    with planned_journal(store) as journal:
        yield ChatTopicAssigner(planned_model(endpoint), load_taxonomy(config.taxonomy), journal)


@contextmanager
def open_topics(config: TopicsConfig, store: Store, cancel: CancelToken) -> Generator[TopicAssigner]:
    """Yield who gives speeches their topics; replies are journalled in the store."""
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        yield OfflineTopicAssigner(taxonomy)
        return
    endpoint = config.endpoint
    settings = ChatTopicSettings(
        max_attempts=endpoint.max_attempts,
        concurrency=endpoint.concurrency,
        cancel=cancel,
        budget=budget_of(endpoint),
    )
    with open_journal(store) as journal:
        yield ChatTopicAssigner(open_endpoint(endpoint, store), taxonomy, journal, settings)
