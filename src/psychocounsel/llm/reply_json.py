"""Reply text -> JSON value, strictly: no key twice, no NaN, nothing guessed."""

import json
from typing import NamedTuple, NoReturn, cast


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
