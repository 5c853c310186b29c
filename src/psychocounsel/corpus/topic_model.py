"""Topics of speeches, assigned by a chat model that is shown the taxonomy and one speech at a time.

A reply that names no topic of the taxonomy leaves the speech unassigned, with the reason, and is requested again
on the next run. Valid replies are kept in the journal.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import NamedTuple, cast

from psychocounsel.config.schema import TopicsConfig
from psychocounsel.corpus.topics import (
    NO_CUE,
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
from psychocounsel.llm.replies import UnreadableReplyError, read_json_at
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.session import PLACEHOLDER, ModelClient, Session
from psychocounsel.llm.types import JSON, ChatReply, ChatRequest, Message
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


class ChatTopicAssigner:
    """Sends one request per speech."""

    def __init__(self, client: ModelClient, taxonomy: Taxonomy) -> None:
        self._client, self._taxonomy, self._prompt = client, taxonomy, TopicPrompt(taxonomy)

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """Model, address, taxonomy, prompt, sampling, parser."""
        return {
            "backend": "endpoint",
            **self._client.fingerprint,
            "taxonomy": self._taxonomy.digest_of_words,
            "prompt": prompt_digest(),
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MAX_TOKENS,
            "parser": PARSER_VERSION,
        }

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or how its request ended; a dry run finds none.

        Raises:
            EndpointError: the endpoint refuses for a reason that no retry mends.
            Preempted: the run was cancelled; completed requests are in the journal.
        """
        items = [self._prompt.request(speech) for speech in speeches]

        def names_topic(index: int, reply: ChatReply) -> bool:
            return isinstance(self._assigned(items[index], reply), Topic)

        replies = self._client.run([item.request for item in items], RunPolicy(accept=names_topic, progress=progress))
        return [self._assigned(item, reply) for item, reply in zip(items, replies, strict=True)]

    def _assigned(self, item: TopicRequest, reply: ChatReply) -> Assigned:
        if reply is PLACEHOLDER:
            return Unassigned(NO_CUE)
        if reply.status is not ReplyStatus.VALID:
            return Unassigned(reply.status.value, reply.reason)
        try:
            fine = parse_topic(reply.text, self._taxonomy, item.item_id)
        except UnreadableReplyError as fault:
            return Unassigned(ReplyStatus.INVALID.value, str(fault))
        return Topic(self._taxonomy.coarse_of[fine], fine)


def open_topics(config: TopicsConfig | None, session: Session) -> TopicAssigner | None:
    """Return the topic assigner of a config; None where speeches keep the topics of their sources.

    Raises:
        ConfigError: the taxonomy is faulty; or offline, and the endpoint is not on this machine.
    """
    if config is None:
        return None
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        return OfflineTopicAssigner(taxonomy)
    return ChatTopicAssigner(session.client(config.endpoint, "naming topics"), taxonomy)
