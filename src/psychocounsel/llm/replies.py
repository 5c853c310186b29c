"""Body of a chat completion -> ChatReply: what an OpenAI-compatible server really answered.

Read by hand, for compatible servers leave fields out, send null, or send more than one knows. Nothing is
guessed: a body without a choice to read is a fault of transport, everything else gets its status.
"""

import json
from collections.abc import Mapping, Sequence
from sys import intern
from typing import Any, NamedTuple, NoReturn, cast

from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import ReplyStatus

MOST_ALTERNATIVES = 20
"""As many as the protocol lets one ask for."""

_LEAST_LOGPROB = -50.0
_DECIMALS = 6


class TokenChoice(NamedTuple):
    """A token, the character of the reply's text at which it begins, and its alternatives, itself included.

    Log-probabilities are natural logarithms.
    """

    start: int
    token: str
    alternatives: tuple[tuple[str, float], ...]


def kept_choices(tokens: object, text: str) -> str:
    """Return the choices at the numbers of a reply, as JSON to keep; empty where the server told no tokens.

    Args:
        tokens: `choices[0].logprobs.content` of a completion, whatever it is.
        text: of the reply; where the tokens do not add up to it, no choice is kept.
    """
    if not isinstance(tokens, list) or not tokens:
        return ""
    entries = [_mapping(each) for each in cast("list[Any]", tokens)]
    choices = [
        [start, str(entry.get("token")), _alternatives(entry)]
        for start, entry in _placed(entries, text.encode("utf-8", "replace"))
        if _writes_number(str(entry.get("token")), text[:start])
    ]
    return json.dumps(choices, separators=(",", ":"))


def read_choices(kept: str) -> list[TokenChoice]:
    """Return the choices that `kept_choices` wrote."""
    if not kept:
        return []
    return [
        TokenChoice(start, token, tuple((other, logprob) for other, logprob in alternatives))
        for start, token, alternatives in json.loads(kept)
    ]


def _placed(entries: Sequence[Mapping[str, Any]], text: bytes) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the tokens that hold a digit, with the character of the text at which each begins."""
    pieces = [_bytes(entry) for entry in entries]
    # Thoughts may stand before the text and an end mark after it.
    offset = b"".join(pieces).rfind(text)
    placed: list[tuple[int, Mapping[str, Any]]] = []
    at = -offset
    for piece, entry in zip(pieces, entries, strict=True):
        if offset >= 0 and 0 <= at < len(text) and any(48 <= byte <= 57 for byte in piece):
            placed.append((len(text[:at].decode("utf-8", "ignore")), entry))
        at += len(piece)
    return placed


def _bytes(entry: Mapping[str, Any]) -> bytes:
    told = entry.get("bytes")
    if isinstance(told, list):
        try:
            return bytes(cast("list[int]", told))
        except (TypeError, ValueError):
            pass
    token = entry.get("token")
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""


def _writes_number(token: str, before: str) -> bool:
    head = token[: next(at for at, sign in enumerate(token) if sign.isdigit())] if _has_digit(token) else ""
    return _has_digit(token) and (before + head).rstrip(" \t\r\n-").endswith(":")


def _has_digit(token: object) -> bool:
    return isinstance(token, str) and any(sign in "0123456789" for sign in token)


def _alternatives(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    told = entry.get("top_logprobs")
    others = [_mapping(each) for each in cast("list[Any]", told)] if isinstance(told, list) else []
    found: dict[str, float] = {}
    for each in (*others, entry):
        token, logprob = each.get("token"), each.get("logprob")
        if _has_digit(token) and isinstance(logprob, int | float) and logprob > _LEAST_LOGPROB:
            found.setdefault(str(token), round(float(min(logprob, 0.0)), _DECIMALS))
    return list(found.items())


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


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


DECISIONS_PATH = "/decisions"


def decision_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return what is sent; temperature, top_p and a limit of tokens have no place there."""
    turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
    return {"model": model, "input": turns, "questions": list(request.questions)}


def read_decision(body: bytes) -> ChatReply:
    """Return the reply that a body of `POST /decisions` holds; its text is the list of answers, as JSON.

    It is a refusal where every question was declined; one declined among others is the reader's business.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of answers.
    """
    try:
        payload = mapping_of(json.loads(body))
    except (ValueError, RecursionError):
        raise UnreadableBodyError("the body is no JSON") from None
    answers = payload.get("answers")
    if not isinstance(answers, list):
        raise UnreadableBodyError("the body holds an error" if "error" in payload else "no answers")
    usage = mapping_of(payload.get("usage"))
    status, reason = _status(cast("list[Any]", answers))
    return ChatReply(
        status=status,
        text=json.dumps(answers, separators=(",", ":")),
        model=text_of(payload.get("model")),
        prompt_tokens=count_of(usage.get("input_tokens")),
        completion_tokens=count_of(usage.get("output_tokens")),
        reason=reason,
        cached_tokens=count_of(mapping_of(usage.get("input_tokens_details")).get("cached_tokens")),
    )


def _status(answers: list[Any]) -> tuple[ReplyStatus, str]:
    if not answers:
        return ReplyStatus.EMPTY, "the reply has no answers"
    if all(mapping_of(answer).get("type") == "refusal" for answer in answers):
        return ReplyStatus.REFUSAL, "the model declined every question"
    return ReplyStatus.VALID, ""


class UnreadableReplyError(ValueError):
    """A reply that is not what was asked for; its text says why."""


class Decoded(NamedTuple):
    """A value, and the place behind its last character."""

    value: object
    end: int


def read_json(text: str) -> object:
    """Return the value that a text is, white space around it aside.

    Raises:
        UnreadableReplyError: it is no JSON, is nested too deep, or an object in it has a key twice.
    """
    try:
        return _STRICT.decode(text)
    except UnreadableReplyError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError("the JSON is malformed") from error


def read_json_at(text: str, start: int) -> Decoded:
    """Return the value that begins at a character, whatever follows it; errors as for `read_json`."""
    try:
        value, end = _STRICT.raw_decode(text, start)
    except UnreadableReplyError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError("the JSON is malformed") from error
    return Decoded(cast("object", value), end)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    block = dict(pairs)
    if len(block) < len(pairs):
        raise UnreadableReplyError("a key stands twice")
    return block


def _no_constant(constant: str) -> NoReturn:
    raise UnreadableReplyError(f"{constant} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)
