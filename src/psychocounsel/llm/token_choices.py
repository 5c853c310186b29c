"""Tokens of a reply -> what else could have stood where it has numbers, and how likely: small enough to keep.

Of all tokens with their alternatives only those are kept that write a number as a JSON value, and of their
alternatives only those that write a number too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

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
