"""An item that a model is asked about: shown as data between markers, answered in one JSON object.

What models put around that object is ignored: a Markdown fence, words before and after it, thoughts that end in
`</think>` before it, a comma before a closing bracket.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from string import Template
from typing import NoReturn, cast

from psychocounsel.llm.types import JSON, THOUGHTS_BEGIN, THOUGHTS_END, one_line
from psychocounsel.types import content_id

# A whole string is matched, so that a comma in it stays; any other comma right before a bracket goes.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)

_MARK = re.compile(rf'[{{}}"]|{THOUGHTS_END}')
_REST_OF_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def between_markers(template: Template, item: Mapping[str, JSON]) -> str:
    """Return a template with an item as data, between markers that its texts cannot contain."""
    data = one_line(item)
    return template.substitute(marker=f"<<{content_id('marker', data)}>>", data=data)


def strict_object(properties: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the JSON schema of an object with all of the properties and no other."""
    shape: dict[str, JSON] = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {**shape, "additionalProperties": False}


class UnreadableReplyError(ValueError):
    """A reply's text that is not the JSON it should be; the message says why."""


def read_json(text: str) -> object:
    """Return the value of a JSON text.

    Raises:
        UnreadableReplyError: it is no JSON, is nested too deep, or an object in it has a key twice.
    """
    try:
        return cast("object", _STRICT.decode(text))
    except UnreadableReplyError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError("the JSON is malformed") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    block = dict(pairs)
    if len(block) < len(pairs):
        raise UnreadableReplyError("a key stands twice")
    return block


def _no_constant(constant: str) -> NoReturn:
    raise UnreadableReplyError(f"{constant} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)


def exactly(value: object, names: Sequence[str], place: str) -> dict[str, object]:
    """Return an object that has these keys and no other; raises UnreadableReplyError, which names the place."""
    if not isinstance(value, dict):
        raise UnreadableReplyError(f"{place} is not an object")
    block = cast("dict[str, object]", value)
    if missing := [name for name in names if name not in block]:
        raise UnreadableReplyError(f"{place} lacks {', '.join(missing)}")
    if len(block) > len(names):
        raise UnreadableReplyError(f"{place} has unknown keys")
    return block


def checked_reasons(reply: Mapping[str, object], item_id: str, key: str = "reasons") -> str:
    """Check the item's id, where the reply has one, and return the reasons, where it has any."""
    if reply.get("item_id", item_id) != item_id:
        raise UnreadableReplyError("the reply is about another item")
    reasons = reply.get(key, "")
    if not isinstance(reasons, str):
        raise UnreadableReplyError(f"'{key}' is not text")
    return reasons


def read_object(text: str) -> object:
    """Return the one JSON object of a reply, whatever stands around it; errors as for `only_object` and `read_json`."""
    bare = text.strip()
    if bare.startswith("{"):
        # Almost every reply is its object and nothing else; looking for one takes ten times as long.
        with suppress(UnreadableReplyError):
            return read_json(bare)
    found = only_object(text)
    try:
        return read_json(found)
    except UnreadableReplyError:
        return read_json(_TRAILING_COMMA.sub(lambda match: match[1] or "", found))


def only_object(reply_text: str) -> str:
    """Return the one stretch of a reply from an outermost `{` to its `}`; braces in strings do not count.

    Raises:
        UnreadableReplyError: there is none, there are several, or the last one stays open.
    """
    text = reply_text
    if text.lstrip().startswith(THOUGHTS_BEGIN):
        # An object among the thoughts is no answer, least of all where the reply was cut before the answer came.
        _, end, text = text.partition(THOUGHTS_END)
        if not end:
            raise UnreadableReplyError("the reply ends among its thoughts")
    spans: list[str] = []
    start = depth = 0
    for mark, depth in _marks(text):
        if mark[0] == THOUGHTS_END:
            spans.clear()
        elif mark[0] == "{" and depth == 1:
            start = mark.start()
        elif depth == 0:
            spans.append(text[start : mark.end()])
    if depth or len(spans) != 1:
        raise UnreadableReplyError(f"expected one JSON object, found {len(spans)}{' and an open one' if depth else ''}")
    return spans[0]


def _marks(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yield braces and ends of thoughts outside of strings, each with how many objects are open behind it.

    A template may have opened the thoughts in the prompt, so their end need not have a beginning; an object that is
    open there was part of the thoughts.
    """
    at = depth = 0
    while mark := _MARK.search(text, at):
        at = mark.end()
        if mark[0] == '"':
            rest = _REST_OF_STRING.match(text, at) if depth else None
            at = rest.end() if rest else len(text) if depth else at
        elif depth or mark[0] != "}":
            depth = {"{": depth + 1, "}": depth - 1}.get(mark[0], 0)
            yield mark, depth
