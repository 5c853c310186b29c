"""File + `--set` -> a validated config, or every error at once with file and line."""

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from psychocounsel.config.components import Settings
from psychocounsel.errors import ConfigError

Place = tuple[str | int, ...]

MAX_DEPTH = 30
MAX_VALUES = 50_000

_MAX_NUMBER_CHARS = 40
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "map", "seq")
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
        raise ConfigError(f"not valid YAML: {problem}", where=origin, remedy="save it as plain UTF-8") from None
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


S = TypeVar("S", bound=Settings)

MAX_CONFIG_BYTES = 1_000_000


def load_config(model: type[S], path: Path, overrides: Sequence[str] = (), step: str = "") -> S:
    """Read the config of a stage.

    Args:
        model: the stage's config class.
        path: a YAML file; a block may name another YAML file, relative to this one, in its place.
        overrides: `key.sub=value` texts of `--set`; values are read as YAML.
        step: the name in a recipe; a key that begins with it and a dot is meant without it, and told with it.

    Raises:
        ConfigError: listing every fault with file, line and remedy.
    """
    document = _included(read_config_file(path), model, path.parent)
    if not document.is_mapping:
        raise ConfigError("the file holds no keys", where=str(path), remedy="write key: value lines")
    for override in overrides:
        _apply(document, override, step)
    return _validated(model, document, path.parent)


def config_of(model: type[S], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> S:
    """Return the config of a stage that a command line gives without a file.

    Raises:
        ConfigError: listing every fault.
    """
    document = Document(dict(values), {(): "command line"})
    for override in overrides:
        _apply(document, override, "")
    return _validated(model, document, Path())


def _validated(model: type[S], document: Document, folder: Path) -> S:
    try:
        return model.model_validate(document.data, context=folder)
    except ValidationError as invalid:
        faults = [_explain(error, model, document) for error in invalid.errors()]
        raise ConfigError("\n".join(faults)) from None


def read_config_file(path: Path) -> Document:
    """Read one YAML file of at most 1 MB as UTF-8."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError("larger than 1 MB", where=str(path), remedy="give a config file, not data")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), remedy=_similar_file(path)) from None
    except IsADirectoryError:
        raise ConfigError("is a folder", where=str(path), remedy="name a YAML file in it") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", where=str(path), remedy="save it as UTF-8") from None
    except OSError as fault:
        raise ConfigError(
            f"cannot be read: {fault.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from None
    return read_yaml(text.removeprefix("\ufeff"), str(path))


def _similar_file(path: Path) -> str:
    names = [sibling.name for sibling in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the path"


def _included(document: Document, model: type[Settings], folder: Path) -> Document:
    """Replace `block: file.yaml` by that file's content wherever the model expects a block."""
    if not document.is_mapping:
        return document
    data: dict[str, Any] = dict(document.data)
    lines = dict(document.lines)
    for key, value in data.items():
        if isinstance(value, str) and value.endswith(".yaml") and _block_of(model, key) is not None:
            part = read_config_file(folder / value)
            data[key] = part.data
            lines |= {(key, *place): line for place, line in part.lines.items()}
    return Document(data, lines)


def _block_of(model: type[Settings], key: str) -> type[Settings] | None:
    info = model.model_fields.get(key)
    return None if info is None else next(iter(_blocks(info.annotation)), None)


def _blocks(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Settings) else []
    return [block for argument in typing.get_args(annotation) for block in _blocks(argument)]


def _apply(document: Document, override: str, step: str) -> None:
    key, separator, text = override.partition("=")
    own_key = key.removeprefix(f"{step}.") if step else key
    if not separator or not own_key:
        raise ConfigError(f"{override!r} is not key=value", where="--set", remedy="write --set key.sub=value")
    place: Place = tuple(int(part) if part.isdecimal() else part for part in own_key.split("."))
    target: Any = document.data
    for part in place[:-1]:
        target = _step(target, part, key)
    try:
        target[place[-1]] = read_yaml(text, f"--set {key}").data
    except (IndexError, TypeError):
        raise ConfigError("there is no such place", where=f"--set {key}", remedy="check the key") from None
    for replaced in [inner for inner in document.lines if inner[: len(place)] == place]:
        del document.lines[replaced]
    document.lines[place] = f"--set {key}"


def _step(target: Any, part: str | int, key: str) -> Any:
    if isinstance(target, dict):
        block: dict[str | int, Any] = target  # pyright: ignore[reportUnknownVariableType]
        if block.get(part) is None:
            block[part] = {}
        return block[part]
    try:
        return target[part]
    except (IndexError, TypeError):
        raise ConfigError("there is no such place", where=f"--set {key}", remedy="check the key") from None


def _explain(error: ErrorDetails, model: type[Settings], document: Document) -> str:
    place: Place = tuple(error["loc"])
    key = ".".join(str(part) for part in place) or "the file"
    return f"{_where(place, document)}: {key}: {_message(error, model, place)}"


def _where(place: Place, document: Document) -> str:
    for length in range(len(place), -1, -1):
        if place[:length] in document.lines:
            return document.lines[place[:length]]
    return "config"


def _message(error: ErrorDetails, model: type[Settings], place: Place) -> str:
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, place[:-1])
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key; {hint}"
    if error["type"] == "missing":
        return "is missing; add it"
    if error["type"] == "model_type":
        return f"must be a block of keys (got {error.get('input')!r})"
    given = error.get("input")
    shown = "" if isinstance(given, dict | list) else f" (got {given!r})"
    return error["msg"].removeprefix("Value error, ") + shown + _quotes_hint(error["type"], given)


def _quotes_hint(kind: str, given: Any) -> str:
    if isinstance(given, str) and kind in ("int_type", "float_type", "bool_type"):
        return "; write it without quotes, a boolean as true or false"
    return "; write it in quotes" if kind == "string_type" and isinstance(given, int | float) else ""


def _known_keys(model: type[Settings], place: Place) -> list[str]:
    at = model
    for part in place:
        if isinstance(part, int):
            continue
        at = _block_of(at, part) or at  # a part that names no block is a key in a mapping of blocks
    return list(at.model_fields)
