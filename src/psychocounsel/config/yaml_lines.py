"""YAML text -> plain data with the line of every value: strict where PyYAML guesses.

PyYAML alone reads `no` as False, `9e-6` as a string and keeps the last of two equal keys. Here a number is a
number by YAML 1.2's core schema, only `true` and `false` are booleans, and a duplicate key is an error.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from psychocounsel.errors import ConfigError

Place = tuple[str | int, ...]

MAX_DEPTH = 30
MAX_VALUES = 50_000

_MAX_NUMBER_CHARS = 40
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "map", "seq")
}


@dataclass(frozen=True)
class Document:
    """Plain data and, by place in it, the `file line N` where it stands."""

    data: Any
    lines: dict[Place, str] = field(default_factory=dict[Place, str])

    @property
    def is_mapping(self) -> bool:
        """Whether the document holds keys at its top."""
        return isinstance(self.data, dict)


def read_yaml(text: str, origin: str) -> Document:
    """Parse one YAML document.

    Raises:
        ConfigError: broken syntax, a duplicate key, a tag that asks for code, or nesting without end (an
            alias may name its own block), with file and line.
    """
    try:
        composed: Any = yaml.compose(text, Loader=yaml.SafeLoader)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    except yaml.MarkedYAMLError as fault:
        raise ConfigError(
            f"not valid YAML: {fault.problem}",
            where=_line(origin, fault.problem_mark),
            remedy="check indentation, colons and quotes around that line",
        ) from None
    except yaml.YAMLError as fault:
        problem = str(fault).splitlines()[0]
        raise ConfigError(
            f"not valid YAML: {problem}", where=origin, remedy="save it as plain UTF-8"
        ) from None
    except RecursionError:
        raise _nested_too_deep(origin) from None
    lines: dict[Place, str] = {}
    data = None if composed is None else _value(composed, origin, (), lines)
    return Document(data, lines)


def _nested_too_deep(where: str) -> ConfigError:
    return ConfigError(
        "nested too deeply, or far too many values",
        where=where,
        remedy="a config holds blocks of settings, not data",
    )


def _line(origin: str, mark: Any) -> str:
    return origin if mark is None else f"{origin} line {mark.line + 1}"


def _value(node: Any, origin: str, place: Place, lines: dict[Place, str]) -> Any:
    lines.setdefault(place, _line(origin, node.start_mark))
    if len(place) > MAX_DEPTH or len(lines) > MAX_VALUES:
        raise _nested_too_deep(lines[place])
    if node.tag not in _PLAIN_TAGS:
        raise ConfigError(
            f"the tag {node.tag!r} is not allowed",
            where=_line(origin, node.start_mark),
            remedy="write plain text, numbers, true or false",
        )
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, origin, place, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, origin, (*place, at), lines) for at, item in enumerate(node.value)]
    return _scalar(node, lines[place])


def _mapping(node: yaml.MappingNode, origin: str, place: Place, lines: dict[Place, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(
                "a key is a list or a block",
                where=_line(origin, key_node.start_mark),
                remedy="write a name before the colon",
            )
        key = str(key_node.value)
        if key in result:
            raise ConfigError(
                f"the key {key!r} stands twice",
                where=_line(origin, key_node.start_mark),
                remedy="keep one of the two",
            )
        lines[(*place, key)] = _line(origin, key_node.start_mark)
        result[key] = _value(value_node, origin, (*place, key), lines)
    return result


def _scalar(node: Any, where: str) -> Any:
    text: str = node.value
    if node.style in ("'", '"', "|", ">"):
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if len(text) > _MAX_NUMBER_CHARS and _FLOAT.fullmatch(text):
        raise ConfigError("a number of that length", where=where, remedy="write it with an exponent, as 1e9")
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
