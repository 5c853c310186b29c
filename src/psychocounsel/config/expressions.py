"""Paths into a row, and conditions on it: the part of Python's expressions that reads values and compares them.

`choices[0].turns[-1]`, `interlocutor == "client" and turn < 3`, `row["a column with spaces"] in ["a", "b"]`
"""

import ast
import json
import operator
import re
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast
from warnings import catch_warnings, simplefilter

_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, many: _is_in(one, many),
    ast.NotIn: lambda one, many: not _is_in(one, many),
}
_WORDS = {"null": None, "true": True, "false": False}
_PARTS = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.List, ast.Tuple, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.cmpop, ast.Load),
)


_OTHER_NAMES = '; a name with spaces or signs, or such as class, is written row["NAME"]'


@lru_cache(maxsize=256)
def parse(text: str) -> ast.expr:
    """Return the tree of an expression.

    Raises:
        ValueError: it is no expression, or does more than read values and compare them.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is no column, path or condition{_OTHER_NAMES}") from None
    if not all(isinstance(node, _PARTS) for node in ast.walk(tree)):
        raise ValueError(f"{text!r} holds more than columns, texts, numbers and comparisons{_OTHER_NAMES}")
    return tree


def condition(text: str) -> str:
    """Return a condition as it is, if it can be read; raises ValueError otherwise."""
    parse(text)
    return text


def evaluate(text: str, row: Mapping[str, Any]) -> object:
    """Return the value of an expression in a row; what is missing below a column is None.

    A number and a text that holds one are compared as numbers, for cells of CSV files are texts.

    Raises:
        ValueError: it cannot be read, or its values cannot be compared.
        KeyError: the row has no such column.
    """
    try:
        return _value(parse(text), row)
    except TypeError as fault:
        raise ValueError(f"{text!r} cannot be evaluated: {fault}") from None


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if name in row or name not in (*_WORDS, "row"):
                return row[name]
            return _WORDS.get(name, row)
        case ast.Attribute(value=inner, attr=name):
            return _item(_value(inner, row), name)
        case ast.Subscript(value=inner, slice=key):
            return _item(_value(inner, row), _value(key, row))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, row) for item in items]
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, row)
        case ast.UnaryOp(operand=inner):
            return -_value(inner, row)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, row) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, row) for part in parts)
        case _:
            compared = cast("ast.Compare", node)
            values = [_value(each, row) for each in (compared.left, *compared.comparators)]
            return all(
                _COMPARED[type(op)](*_alike(left, right))
                for op, left, right in zip(compared.ops, values, values[1:], strict=False)
            )


_NO_COMMA = re.compile(r"\}\s+\{")  # between the objects of an array of numpy


def nested(value: object) -> object:
    """Return the list or object that a text holds in JSON, or as Python or numpy print it; anything else as it is.

    CSV files have such cells.
    """
    if isinstance(value, str) and (text := value.strip())[:1] in ("[", "{"):
        for read, written in ((json.loads, text), (literal_eval, text), (literal_eval, _NO_COMMA.sub("},{", text))):
            with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError), catch_warnings():
                simplefilter("ignore")  # a backslash in somebody's text
                return read(written)
    return value


def _item(value: Any, key: Any) -> Any:
    value = nested(value)
    if isinstance(value, Mapping):
        return cast("Mapping[object, object]", value).get(key)
    if isinstance(value, Sequence) and not isinstance(value, str) and isinstance(key, int):
        items = cast("Sequence[object]", value)
        return items[key] if -len(items) <= key < len(items) else None
    return None


def _is_in(one: Any, many: Any) -> bool:
    if isinstance(many, list):
        return any(operator.eq(*_alike(one, each)) for each in cast("list[Any]", many))
    return one in many


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    for text, number in ((left, right), (right, left)):
        if isinstance(text, str) and isinstance(number, int | float) and not isinstance(number, bool):
            try:
                return (float(text), number) if text is left else (number, float(text))
            except ValueError:
                break
    return left, right
