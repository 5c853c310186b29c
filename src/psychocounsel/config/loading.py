"""Config files and `--set` become validated configs, or one error that lists every fault with file and line."""

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from psychocounsel.config.base import NAME_PATTERN
from psychocounsel.config.components import Settings
from psychocounsel.errors import ConfigError, closest

Place = tuple[str | int, ...]
S = TypeVar("S", bound=Settings)

MAX_CONFIG_BYTES = 1_000_000
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
    """Plain data, and the `file line N` of every value by its place in the data."""

    data: Any
    lines: dict[Place, str] = field(default_factory=dict[Place, str])


def read_yaml(text: str, origin: str) -> Document:
    """Parse one YAML document, with the booleans and numbers of JSON: `no` is a text, `9e-6` is a number.

    Broken syntax, duplicate keys, tags and nesting without end (an alias may name its own block) are a ConfigError.
    """
    try:
        composed: Any = yaml.compose(text, Loader=yaml.SafeLoader)
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
        raise _nested_too_deeply(origin) from None
    lines: dict[Place, str] = {}
    return Document(None if composed is None else _value(composed, origin, (), lines), lines)


def _nested_too_deeply(where: str) -> ConfigError:
    return ConfigError(
        "nested too deeply, or far too many values", where=where, remedy="a config holds blocks of settings, not data"
    )


def _line(origin: str, mark: Any) -> str:
    return origin if mark is None else f"{origin} line {mark.line + 1}"


def _value(node: Any, origin: str, place: Place, lines: dict[Place, str]) -> Any:
    where = _line(origin, node.start_mark)
    lines.setdefault(place, where)
    if len(place) > MAX_DEPTH or len(lines) > MAX_VALUES:
        raise _nested_too_deeply(lines[place])
    if node.tag not in _PLAIN_TAGS:
        raise ConfigError(
            f"the tag {node.tag!r} is not allowed", where=where, remedy="write plain text, numbers, true or false"
        )
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, origin, (*place, at), lines) for at, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, lines[place])
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = _line(origin, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key is a list or a block", where=where, remedy="write a name before the colon")
        key = str(key_node.value)
        if key in result:
            raise ConfigError(f"duplicate key {key!r}", where=where, remedy="keep one of the two")
        lines[(*place, key)] = where
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
        raise ConfigError("the number is too long", where=where, remedy="write it with an exponent, as 1e9")
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def load_config(model: type[S], path: Path, overrides: Sequence[str] = (), step: str = "") -> S:
    """Read the config of a stage, or raise one ConfigError that lists every fault with file, line and remedy.

    Where the model has a block, the YAML file may name another one, relative to itself. `overrides` are the
    `key.sub=value` texts of `--set`, with values in YAML; their keys may begin with `step`, the stage's name in a
    recipe.
    """
    return _validated(model, _read_included(model, path), path.parent, overrides, step)


def load_configs(model: type[S], path: Path, overrides: Sequence[str] = (), step: str = "") -> list[S]:
    """Read the config of a stage, or several: one for each of the `policies` that it lists in place of a `policy`.

    Each is named NAME-AUTHOR. Overrides of `name` and `policies` change the list, all others each config.
    """
    document = _read_included(model, path)
    if "policies" not in document.data or _block_of(model, "policy") is None:
        return [_validated(model, document, path.parent, overrides, step)]
    prefix = f"{step}." if step else ""
    is_shared = [each.removeprefix(prefix).startswith(("name=", "policies.", "policies=")) for each in overrides]
    for override in (each for each, shared in zip(overrides, is_shared, strict=True) if shared):
        _apply(document, override, step)
    own = [each for each, shared in zip(overrides, is_shared, strict=True) if not shared]
    return [_validated(model, each, path.parent, own, step) for each in _by_policy(document)]


def _by_policy(document: Document) -> Iterator[Document]:
    """Yield the document with each of its policies as the only one."""
    whole, lines = document.data, document.lines
    policies: Any = whole["policies"]
    authors = [each.get("author") for each in policies if isinstance(each, dict)] if isinstance(policies, list) else []
    if "policy" in whole or not authors or len(authors) < len(policies) or len(set(authors)) < len(authors):
        raise ConfigError(
            "policies is not a list of blocks with different authors in place of a policy",
            where=lines[("policies",)],
            remedy="write one line `- {author: NAME, model: REF}` for each",
        )
    for at, policy in enumerate(policies):
        data = {key: deepcopy(value) for key, value in whole.items() if key != "policies"}
        data |= {"policy": deepcopy(policy), "name": f"{whole.get('name')}-{authors[at]}"}
        own = {("policy", *place[2:]): line for place, line in lines.items() if place[:2] == ("policies", at)}
        yield Document(data, {**lines, **own})


def _read_included(model: type[Settings], path: Path) -> Document:
    document = read_config_file(path)
    if not isinstance(document.data, dict):
        raise ConfigError("the file has no keys", where=str(path), remedy="write key: value lines")
    _include_files(document, document.data, model, path.parent)
    return document


def config_of(
    model: type[S], values: Mapping[str, Any], overrides: Sequence[str] = (), origin: str = "command line"
) -> S:
    """Return a config that is given without a file; `origin` is what gives it, for messages."""
    return _validated(model, Document(dict(values), {(): origin}), Path(), overrides)


def _validated(model: type[S], document: Document, folder: Path, overrides: Sequence[str], step: str = "") -> S:
    for override in overrides:
        _apply(document, override, step)
    try:
        return model.model_validate(document.data, context=folder)
    except ValidationError as invalid:
        # A list whose items are wrong counts as empty: that alone is no fault.
        errors = invalid.errors()
        around = {error["loc"][:length] for error in errors for length in range(len(error["loc"]))}
        told = (each for each in errors if each["type"] != "too_short" or each["loc"] not in around)
        faults = [_explain(error, model, document, step) for error in told]
        raise ConfigError("\n".join(faults)) from None


def read_config_file(path: Path) -> Document:
    """Read one YAML file of at most 1 MB as UTF-8."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError("larger than 1 MB", where=str(path), remedy="give a config file, not data")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        close = closest(path.name, (each.name for each in path.parent.glob("*.yaml")))
        remedy = f"did you mean {path.parent / close}?" if close else "check the path"
        raise ConfigError("no such file", where=str(path), remedy=remedy) from None
    except IsADirectoryError:
        raise ConfigError("is a folder", where=str(path), remedy="name a YAML file in it") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", where=str(path), remedy="save it as UTF-8") from None
    except OSError as fault:
        raise ConfigError(
            f"cannot be read: {fault.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from None
    return read_yaml(text.removeprefix("\ufeff"), str(path))


def _include_files(
    document: Document, data: dict[str, Any], model: type[Settings], folder: Path, place: Place = ()
) -> None:
    """Replace `block: file.yaml` by the content of that file wherever the model has a block, in blocks too."""
    for key, value in data.items():
        block = _block_of(model, key)
        if block is not None and isinstance(value, dict):
            _include_files(document, value, block, folder, (*place, key))
        elif block is not None and isinstance(value, str) and value.endswith(".yaml"):
            part = read_config_file(folder / value)
            data[key] = part.data
            for inner, line in part.lines.items():
                document.lines[(*place, key, *inner)] = line


def _block_of(model: type[Settings], key: str) -> type[Settings] | None:
    info = model.model_fields.get(key)
    return None if info is None else next(_blocks(info.annotation), None)


def _blocks(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Settings):
            yield annotation
    else:
        for argument in typing.get_args(annotation):
            yield from _blocks(argument)


def keys_of(model: type[Settings], ending: str, prefix: str = "") -> list[str]:
    """Return the dotted keys of a config, at any depth, that are `ending` or end with it after a dot."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        if f".{path}".endswith(f".{ending}"):
            found.append(path)
        is_list = typing.get_origin(info.annotation) is tuple
        for block in _blocks(info.annotation):
            found += keys_of(block, ending, f"{path}.0." if is_list else f"{path}.")
    return found


def _apply(document: Document, override: str, step: str) -> None:
    """Change one value of a document as `--set` says."""
    key, separator, text = override.partition("=")
    own_key = key.removeprefix(f"{step}.") if step else key
    if not separator or not own_key:
        raise ConfigError(f"{override!r} is not key=value", where="--set", remedy="write --set key.sub=value")
    place: Place = tuple(int(part) if part.isdecimal() else part for part in own_key.split("."))
    target: Any = document.data
    try:
        for part in place[:-1]:
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}
            target = target[part]
        target[place[-1]] = read_yaml(text, f"--set {key}").data
    except (IndexError, TypeError):
        raise ConfigError("there is no such key", where=f"--set {key}", remedy="check the key") from None
    for replaced in [inner for inner in document.lines if inner[: len(place)] == place]:
        del document.lines[replaced]
    document.lines[place] = f"--set {key}"


def _explain(error: ErrorDetails, model: type[Settings], document: Document, step: str) -> str:
    """Return one line for one fault: where, which key, what is wrong, what to do."""
    place: Place = tuple(error["loc"])
    known_places = (place[:length] for length in range(len(place), -1, -1))
    where = next((document.lines[known] for known in known_places if known in document.lines), "config")
    key = ".".join(str(part) for part in place) or "the file"
    given = error.get("input")
    match error["type"]:
        case "extra_forbidden" if given is None and str(place[-1]).isdigit():  # of `{test_share: 0,3}`
            message = "unknown key; a number has a point and no comma, such as 0.5"
        case "extra_forbidden":
            message = _unknown_key(model, place, where, step)
        case "missing":
            message = f"is missing; add --set {key}=VALUE" if where == "command line" else "is missing; add it"
        case "string_pattern_mismatch" if error.get("ctx", {}).get("pattern") == NAME_PATTERN:
            message = f"must be of lower-case letters, digits, dots, dashes and underscores (got {given!r})"
        case "model_type":
            message = f"must be a block of keys (got {given!r})"
        case "tuple_type":
            message = f"must be a list, in brackets or a line with a dash for each item (got {given!r})"
        case kind:
            message = error["msg"].removeprefix("Value error, ")
            if not isinstance(given, (dict, list)):
                message += f" (got {given!r})"
            if isinstance(given, str) and kind in ("int_type", "float_type", "bool_type"):
                number = "write it without quotes" if _FLOAT.fullmatch(given) else "write a number, such as 3 or 0.5"
                message += (
                    f"; {'write it without quotes, a boolean as true or false' if kind == 'bool_type' else number}"
                )
            elif isinstance(given, int | float) and kind == "string_type":
                message += "; write it in quotes"
    return f"{where}: {key}: {message}"


def _unknown_key(model: type[Settings], place: Place, where: str, step: str) -> str:
    """Suggest the full path of a key that some block has, or else a similar key of the same block."""
    block = model
    for part in place[:-1]:
        if isinstance(part, str):
            block = _block_of(block, part) or block  # a part that names no block is a key in a mapping of blocks
    known = list(block.model_fields)
    paths = keys_of(model, ending=str(place[-1]))[:4]
    if not paths and (close := closest(str(place[-1]), known)):
        paths = [".".join(map(str, (*place[:-1], close)))] if where.startswith("--set") else [close]
    if not paths:
        return f"unknown key; known keys: {', '.join(known)}"
    prefix = f"{step}." if where.startswith(f"--set {step}.") else ""
    return f"unknown key; did you mean {' or '.join(repr(prefix + path) for path in paths)}?"
