"""Response bodies -> ChatReply: what an OpenAI-compatible server really answered.

Read leniently, for compatible servers leave fields out, send null, or send more than is documented. Nothing is
guessed: a body without a choice to read is a failed transfer, everything else has a status.
"""

import json
from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, NamedTuple, NoReturn, cast

from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import ReplyStatus

MOST_ALTERNATIVES = 20
"""`top_logprobs` at most, by the protocol."""

DECISIONS_PATH = "/decisions"

_UNFINISHED = {
    "length": (ReplyStatus.CUT, "the reply was cut at its token limit"),
    "max_tokens": (ReplyStatus.CUT, "the reply was cut at its token limit"),
    "content_filter": (ReplyStatus.CONTENT_FILTER, "the provider's content filter stopped the reply"),
}
_MOST_TOKENS = 10**12
"""Larger counts are misreported, and would not fit into the journal's columns."""

_LEAST_LOGPROB = -50.0
_DECIMALS = 6


class UnreadableBodyError(ValueError):
    """A body with status 200 that holds no reply."""


def read_completion(body: bytes) -> ChatReply:
    """Return the reply in a body of `POST /chat/completions`.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of choices.
    """
    payload = _object(body)
    choices = payload.get("choices")
    if not isinstance(choices, list):
        raise UnreadableBodyError("the body holds an error" if "error" in payload else "no choices")
    choice = mapping_of(cast("list[Any]", choices)[0] if choices else None)
    finish = text_of(choice.get("finish_reason"))
    if finish == "error":
        raise UnreadableBodyError("the server broke the reply off")
    status, text, reason = _read_message(mapping_of(choice.get("message")), finish)
    usage = mapping_of(payload.get("usage"))
    return ChatReply(
        status=status,
        text=text,
        model=intern(text_of(payload.get("model"))),  # one string for all replies, not one for each
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        reason=reason,
        cached_tokens=_count(mapping_of(usage.get("prompt_tokens_details")).get("cached_tokens")),
        choices=kept_choices(mapping_of(choice.get("logprobs")).get("content"), text),
    )


def _read_message(message: Mapping[str, Any], finish: str) -> tuple[ReplyStatus, str, str]:
    if refusal := text_of(message.get("refusal")):
        return ReplyStatus.REFUSAL, refusal, "the model refused"
    content = message.get("content")
    if isinstance(content, list):  # some servers send a list of parts
        text = "".join(text_of(mapping_of(part).get("text")) for part in cast("list[Any]", content))
    else:
        text = text_of(cast("object", content))
    if finish in _UNFINISHED:
        status, reason = _UNFINISHED[finish]
        return status, text, reason
    if not text.strip():
        return ReplyStatus.EMPTY, text, "the reply has no text"
    return ReplyStatus.VALID, text, ""


def decision_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return the body for `POST /decisions`, which takes neither a temperature nor a token limit."""
    turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
    return {"model": model, "input": turns, "questions": list(request.questions)}


def read_decision(body: bytes) -> ChatReply:
    """Return the reply in a body of `POST /decisions`; its text is the list of answers, as JSON.

    It is a refusal if the model declined every question; single declined answers are the parser's business.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of answers.
    """
    payload = _object(body)
    answers = payload.get("answers")
    if not isinstance(answers, list):
        raise UnreadableBodyError("the body holds an error" if "error" in payload else "no answers")
    status, reason = ReplyStatus.VALID, ""
    if not answers:
        status, reason = ReplyStatus.EMPTY, "the reply has no answers"
    elif all(mapping_of(answer).get("type") == "refusal" for answer in cast("list[Any]", answers)):
        status, reason = ReplyStatus.REFUSAL, "the model declined every question"
    usage = mapping_of(payload.get("usage"))
    return ChatReply(
        status=status,
        text=json.dumps(answers, separators=(",", ":")),
        model=text_of(payload.get("model")),
        prompt_tokens=_count(usage.get("input_tokens")),
        completion_tokens=_count(usage.get("output_tokens")),
        reason=reason,
        cached_tokens=_count(mapping_of(usage.get("input_tokens_details")).get("cached_tokens")),
    )


def read_listing(body: bytes) -> list[Mapping[str, Any]] | None:
    """Return the entries that a body of `GET /models` lists; None if it holds no such list."""
    try:
        listed = _object(body).get("data")
    except UnreadableBodyError:
        return None
    if not isinstance(listed, list):
        return None
    return [each for each in map(mapping_of, cast("list[Any]", listed)) if isinstance(each.get("id"), str)]


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        return mapping_of(json.loads(body))
    except (ValueError, RecursionError):
        raise UnreadableBodyError("the body is no JSON") from None


def mapping_of(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one in the place of anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    """Return a string that can be written to files, or an empty one in the place of anything else."""
    if not isinstance(value, str):
        return ""
    # No file and no server takes a lone surrogate; it becomes U+FFFD here.
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _count(value: object) -> int:
    """Return a number of tokens, or 0 in the place of anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else 0


# Log-probabilities of the numbers in a reply.


class TokenChoice(NamedTuple):
    """A token, the character of the reply's text at which it begins, and its alternatives, itself included.

    Log-probabilities are natural logarithms.
    """

    start: int
    token: str
    alternatives: tuple[tuple[str, float], ...]


def kept_choices(tokens: object, text: str) -> str:
    """Return the token choices at the numbers of a reply, as JSON to keep; empty if the server sent no tokens.

    Args:
        tokens: `choices[0].logprobs.content` of a completion, whatever it is.
        text: of the reply; if the tokens do not add up to it, no choice is kept.
    """
    if not isinstance(tokens, list) or not tokens:
        return ""
    entries = [mapping_of(each) for each in cast("list[Any]", tokens)]
    choices = [
        [start, str(entry.get("token")), _alternatives(entry)]
        for start, entry in _digit_tokens(entries, text.encode("utf-8", "replace"))
        if _begins_number(str(entry.get("token")), text[:start])
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


def _digit_tokens(entries: list[Mapping[str, Any]], text: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the tokens that hold a digit, with the character of the text at which each begins."""
    pieces = [_token_bytes(entry) for entry in entries]
    # Thoughts may stand before the text and an end mark after it.
    offset = b"".join(pieces).rfind(text)
    at = -offset
    for piece, entry in zip(pieces, entries, strict=True):
        if offset >= 0 and 0 <= at < len(text) and any(48 <= byte <= 57 for byte in piece):
            yield len(text[:at].decode("utf-8", "ignore")), entry
        at += len(piece)


def _token_bytes(entry: Mapping[str, Any]) -> bytes:
    sent = entry.get("bytes")
    if isinstance(sent, list):
        try:
            return bytes(cast("list[int]", sent))
        except (TypeError, ValueError):
            pass
    token = entry.get("token")
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""


def _begins_number(token: str, before: str) -> bool:
    """Whether a token writes the first digit of a JSON value."""
    if not _has_digit(token):
        return False
    head = token[: next(at for at, sign in enumerate(token) if sign.isdigit())]
    return (before + head).rstrip(" \t\r\n-").endswith(":")


def _has_digit(token: object) -> bool:
    return isinstance(token, str) and any(sign in "0123456789" for sign in token)


def _alternatives(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    others = entry.get("top_logprobs")
    found: dict[str, float] = {}
    for each in (*map(mapping_of, cast("list[Any]", others) if isinstance(others, list) else []), entry):
        token, logprob = each.get("token"), each.get("logprob")
        if _has_digit(token) and isinstance(logprob, int | float) and logprob > _LEAST_LOGPROB:
            found.setdefault(str(token), round(float(min(logprob, 0.0)), _DECIMALS))
    return list(found.items())


# Strict JSON in the text of a reply.


class UnreadableReplyError(ValueError):
    """A reply's text that is not the JSON it should be; the message says why."""


class Decoded(NamedTuple):
    """A JSON value and the index behind its last character."""

    value: object
    end: int


def read_json(text: str) -> object:
    """Return the value of a JSON text.

    Raises:
        UnreadableReplyError: it is no JSON, is nested too deep, or an object in it has a key twice.
    """
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = read_json_at(text, start)
    if text[end:].strip(" \t\r\n"):
        raise UnreadableReplyError("the JSON is malformed")
    return value


def read_json_at(text: str, start: int) -> Decoded:
    """Return the JSON value that begins at a character, whatever follows it; errors as for `read_json`."""
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
