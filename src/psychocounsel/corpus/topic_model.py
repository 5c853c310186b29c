"""Topics of speeches, assigned by a chat model that is shown the taxonomy and one speech at a time.

A reply that names no topic of the taxonomy leaves the speech unassigned, with the reason, and is requested again
on the next run. Valid replies are kept in the journal.
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
"""Raised whenever a reply may be read differently than before."""

TEMPERATURE = 0.0
TOP_P = 1.0
MAX_TOKENS = 300

_PROMPT = files("psychocounsel.corpus") / "prompts" / "topic.txt"
_ITEM_LINE = "=== ITEM ===\n"
_FIELDS = ("item_id", "reason", "topic")


class TopicRequest(NamedTuple):
    """A request and the id that its reply has to echo."""

    item_id: str
    request: ChatRequest


class TopicPrompt:
    """Creates the requests for one taxonomy."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        fixed, self._variable = _prompt().split(_ITEM_LINE)
        lines: list[str] = []
        for coarse in taxonomy.topics:
            lines.append(coarse.name)
            lines += [f'"{fine.id}" - {fine.name}. {fine.description}' for fine in coarse.fine]
            lines.append("")
        topics = "".join(f"{line}\n" for line in lines)
        self._instructions = Message("system", Template(fixed).substitute(topics=topics))
        text: JSON = {"type": "string"}
        topic: JSON = {"type": "string", "enum": [fine.id for fine in taxonomy.fine_topics]}
        # The reason comes before the topic, so that a model thinks before it decides.
        self._schema: dict[str, JSON] = {
            "type": "object",
            "properties": {"item_id": text, "reason": text, "topic": topic},
            "required": list(_FIELDS),
            "additionalProperties": False,
        }

    def request(self, speech: Speech) -> TopicRequest:
        """Return the request for the topic of one speech."""
        item_id = content_id("topic", speech.text)
        data = one_line({"item_id": item_id, "client": speech.text}).replace("\x7f", "\\u007f")
        marker = f"<<{content_id('marker', data)}>>"
        item = Template(self._variable).substitute(marker=marker, data=data)
        request = ChatRequest(
            messages=(self._instructions, Message("user", item)),
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=MAX_TOKENS,
            response_schema=self._schema,
            schema_name="topic",
        )
        return TopicRequest(item_id, request)


@cache
def _prompt() -> str:
    return _PROMPT.read_text(encoding="utf-8")


def prompt_digest() -> str:
    """Return the SHA-256 of the prompt's text."""
    return hashlib.sha256(_prompt().encode()).hexdigest()


def parse_topic(reply_text: str, taxonomy: Taxonomy, item_id: str) -> str:
    """Return the id of the fine topic that a reply names: one JSON object, bare, in a fence, or among other text.

    Raises:
        UnreadableReplyError: it names none, is about another item, or does not fit the schema.
    """
    start = reply_text.find("{")
    if start < 0:
        raise UnreadableReplyError("there is no JSON object in the reply")
    value, end = read_json_at(reply_text, start)
    if "{" in reply_text[end:]:
        raise UnreadableReplyError("there is more than one JSON object in the reply")
    reply = cast("dict[str, object]", value)
    if set(reply) != set(_FIELDS):
        raise UnreadableReplyError(f"the reply has other keys than {', '.join(_FIELDS)}")
    topic = reply["topic"]
    if reply["item_id"] != item_id:
        raise UnreadableReplyError("the reply is about another item")
    if not isinstance(reply["reason"], str):
        raise UnreadableReplyError("'reason' is not text")
    if not isinstance(topic, str) or topic not in taxonomy.coarse_of:
        raise UnreadableReplyError("'topic' is no fine topic of the taxonomy")
    return topic


@dataclass(frozen=True)
class ChatTopicSettings:
    """How requests are sent; nothing here affects the topics.

    Args:
        max_attempts: requests per speech in one run.
        concurrency: requests in flight.
        cancel: once cancelled, nothing new is sent.
        budget: counts the cost of the replies, and limits it.
    """

    max_attempts: int = 3
    concurrency: int = 8
    cancel: CancelToken = field(default_factory=CancelToken)
    budget: Budget | None = None


class ChatTopicAssigner:
    """Sends one request per speech."""

    def __init__(
        self, model: ChatModel, taxonomy: Taxonomy, journal: Journal, settings: ChatTopicSettings | None = None
    ) -> None:
        self._model = model
        self._taxonomy = taxonomy
        self._journal = journal
        self._settings = settings or ChatTopicSettings()
        self._prompt = TopicPrompt(taxonomy)

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """Model, address, taxonomy, prompt, sampling, parser."""
        return {
            "backend": "endpoint",
            **self._model.fingerprint,
            "taxonomy": self._taxonomy.digest_of_words,
            "prompt": prompt_digest(),
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MAX_TOKENS,
            "parser": PARSER_VERSION,
        }

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or how its request ended.

        Raises:
            EndpointError: the endpoint refuses for a reason that no retry mends.
            Preempted: `settings.cancel` is cancelled; replies are kept.
        """
        requests = [self._prompt.request(speech) for speech in speeches]
        settings = self._settings
        policy = RunPolicy(
            self._acceptance(requests),
            settings.max_attempts,
            settings.concurrency,
            settings.cancel,
            progress,
            budget=settings.budget,
        )
        replies = run_requests(self._model, [item.request for item in requests], self._journal, policy)
        return [self._assigned(item, reply) for item, reply in zip(requests, replies, strict=True)]

    def pending(self, speeches: Sequence[Speech]) -> list[ChatRequest]:
        """Return the requests that `assign` would send at least once; nothing is sent."""
        items = [self._prompt.request(speech) for speech in speeches]
        requests = [item.request for item in items]
        places = pending_indices(requests, self._model.fingerprint, self._journal, self._acceptance(items))
        return [requests[place] for place in places]

    def _acceptance(self, requests: Sequence[TopicRequest]) -> Callable[[int, ChatReply], bool]:
        """Return what completes an item: a valid reply that names a topic."""
        return lambda index, reply: isinstance(self._assigned(requests[index], reply), Topic)

    def _assigned(self, item: TopicRequest, reply: ChatReply) -> Assigned:
        if reply.status is not ReplyStatus.VALID:
            return Unassigned(reply.status.value, reply.reason)
        try:
            fine = parse_topic(reply.text, self._taxonomy, item.item_id)
        except UnreadableReplyError as fault:
            return Unassigned(ReplyStatus.INVALID.value, str(fault))
        return Topic(self._taxonomy.coarse_of[fine], fine)


def plan_topics(config: TopicsConfig, store: Store) -> dict[str, Any]:
    """Return what decides the topics of speeches, without connecting to anybody.

    Raises:
        ConfigError: the taxonomy is faulty; or offline, and the endpoint is not on this machine.
    """
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        return {**config.fingerprint(), "taxonomy": dict(OfflineTopicAssigner(taxonomy).fingerprint)}
    endpoint = endpoint_settings(config.endpoint, store)
    with plan_to_name_topics(config, config.endpoint, store) as assigner:
        return {**config.fingerprint(), "endpoint": endpoint, "taxonomy": dict(assigner.fingerprint)}


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
