"""An answer that is none -> whether it may pass, and how it is told: alike on every road to a provider.

What a road alone asks for (a model, a batch) it words itself.
"""

from typing import Any, NamedTuple, Protocol, cast

import aiohttp

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_LONGEST_QUOTE_CHARS = 200


class StatusError(Protocol):
    """An answer whose HTTP status is an error, as the official client raises it."""

    status_code: int
    message: str
    body: object | None
    code: str | None
    type: str | None


class Worded(NamedTuple):
    """What is refused, and what to do about it."""

    what: str
    remedy: str


class Broken(NamedTuple):
    """A line that broke; `nobody_listens` says that no connection came about, so that nothing was sent."""

    reason: str
    nobody_listens: bool


def codes_of(error: StatusError) -> set[str]:
    """Return the names that the server gives to the error."""
    return {str(error.code), str(error.type)}


def has_no_quota(error: StatusError) -> bool:
    """Whether the key has used up what it may spend; no wait mends that."""
    return error.status_code == 402 or bool(codes_of(error) & _NO_QUOTA)


def may_pass(error: StatusError) -> bool:
    """Whether the same request may be answered later."""
    return error.status_code in _PASSING and not has_no_quota(error)


def quoted(error: StatusError, key: str) -> str:
    """Return the server's own words on one line, without the key and not too long."""
    return " ".join(_said(error).split()).replace(key, "[key]")[:_LONGEST_QUOTE_CHARS]


def refusal_of_key(error: StatusError, key_variable: str) -> Worded | None:
    """Return what is wrong with the key itself; None where it is not the key.

    Args:
        error: the refusal.
        key_variable: name of the environment variable that holds the key.
    """
    if has_no_quota(error):
        return Worded("the quota of this key is used up", "add credit or raise the limit, then run again")
    if error.status_code == 401:
        return Worded(
            "the key is not accepted", f"put a valid key into the environment variable {key_variable}"
        )
    return None


def broken_by(error: Exception) -> Broken:
    """Return what became of a line, by the error that the client raised."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        if isinstance(cause, aiohttp.ClientConnectorError):
            return Broken(f"no connection ({cause.os_error})", nobody_listens=True)
    return Broken(f"no connection, or it broke ({type(cause).__name__})", nobody_listens=False)


def _said(error: StatusError) -> str:
    """Return the server's own words: OpenAI has an error's message, others a bare error or a detail."""
    said = error.body
    if isinstance(said, dict):
        named = cast("dict[str, Any]", said)
        said = named.get("message") or named.get("detail")
    return said if isinstance(said, str) and said.strip() else error.message
