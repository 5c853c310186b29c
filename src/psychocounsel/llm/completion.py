"""Body of a chat completion -> ChatReply: what an OpenAI-compatible server really answered.

Read by hand, for compatible servers leave fields out, send null, or send more than one knows. Nothing is
guessed: a body without a choice to read is a fault of transport, everything else gets its status.
"""

import json
from collections.abc import Mapping, Sequence
from sys import intern
from typing import Any, cast

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply
from psychocounsel.llm.token_choices import kept_choices

_UNFINISHED = {
    "length": (ReplyStatus.CUT, "the reply was cut at its token limit"),
    "max_tokens": (ReplyStatus.CUT, "the reply was cut at its token limit"),
    "content_filter": (ReplyStatus.CONTENT_FILTER, "the provider's content filter stopped the reply"),
}

_MOST_TOKENS = 10**12
"""What a reply may count; a larger number is none, and would fit into no column of the journal."""


class UnreadableBodyError(ValueError):
    """A body with status 200 that is no chat completion."""


def read_completion(body: bytes) -> ChatReply:
    """Return the reply that a body of `POST /chat/completions` holds.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of choices.
    """
    try:
        payload = mapping_of(json.loads(body))
    except (ValueError, RecursionError):
        raise UnreadableBodyError("the body is no JSON") from None
    choices = payload.get("choices")
    if not isinstance(choices, list):
        raise UnreadableBodyError("the body holds an error" if "error" in payload else "no choices")
    choice = mapping_of(cast("list[Any]", choices)[0] if choices else None)
    finish = text_of(choice.get("finish_reason"))
    if finish == "error":
        raise UnreadableBodyError("the server broke the reply off")
    message = mapping_of(choice.get("message"))
    status, text, reason = _judge(message, finish)
    usage = mapping_of(payload.get("usage"))
    return ChatReply(
        status=status,
        text=text,
        model=intern(text_of(payload.get("model"))),  # one text for all replies, not one for each
        prompt_tokens=count_of(usage.get("prompt_tokens")),
        completion_tokens=count_of(usage.get("completion_tokens")),
        reason=reason,
        cached_tokens=count_of(mapping_of(usage.get("prompt_tokens_details")).get("cached_tokens")),
        choices=kept_choices(mapping_of(choice.get("logprobs")).get("content"), text),
    )


def read_listing(body: bytes) -> list[Mapping[str, Any]] | None:
    """Return the entries that a body of `GET /models` lists; None where it is no such list."""
    try:
        listed = mapping_of(json.loads(body)).get("data")
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    return [each for each in map(mapping_of, cast("list[Any]", listed)) if isinstance(each.get("id"), str)]


def _judge(message: Mapping[str, Any], finish: str) -> tuple[ReplyStatus, str, str]:
    refusal = text_of(message.get("refusal"))
    if refusal:
        return ReplyStatus.REFUSAL, refusal, "the model refused"
    text = _content(message.get("content"))
    if finish in _UNFINISHED:
        status, reason = _UNFINISHED[finish]
        return status, text, reason
    if not text.strip():
        return ReplyStatus.EMPTY, text, "the reply has no text"
    return ReplyStatus.VALID, text, ""


def _content(content: object) -> str:
    if isinstance(content, list):  # some servers send a list of parts
        return "".join(text_of(mapping_of(part).get("text")) for part in cast("Sequence[Any]", content))
    return text_of(content)


def mapping_of(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one where something else stands."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    """Return a text that can be written, or none where something else stands."""
    if not isinstance(value, str):
        return ""
    # A lone surrogate can be written to no file and sent to no server; it becomes U+FFFD here.
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def count_of(value: object) -> int:
    """Return a number of tokens, or 0 where something else stands."""
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 0 <= value <= _MOST_TOKENS else 0
