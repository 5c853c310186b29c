"""Speech, Taxonomy -> ChatRequest, reply text -> fine topic: how a model is asked, what counts as an answer.

The list of topics comes first and alone, the same for every speech, so that servers can cache it. A speech
may address its reader: it stands as JSON between markers made from a hash of it, and the reply has to echo
its id. A reply is read strictly or not at all.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import NamedTuple, cast

from psychocounsel.domain import Speech, content_id
from psychocounsel.llm.chat import JSON, ChatRequest, Message
from psychocounsel.llm.item_line import one_line
from psychocounsel.llm.reply_json import UnreadableReplyError, read_json_at
from psychocounsel.speeches.taxonomy import Taxonomy

PARSER_VERSION = 1
"""Raised by hand whenever a reply may be read differently than before."""

_PROMPT = files("psychocounsel.speeches") / "prompts" / "topic.txt"
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
