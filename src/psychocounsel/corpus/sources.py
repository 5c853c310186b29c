"""Rows of files and of Hub data sets, each with its location, and what their columns and paths hold."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from glob import has_magic
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from psychocounsel.config.components import PREFIX, locate
from psychocounsel.config.expressions import evaluate, nested
from psychocounsel.config.sources import Column, Constant, Conversation, RowSource
from psychocounsel.corpus.formats import (
    ENDINGS,
    BadRow,
    Row,
    SourceRow,
    bad_row,
    is_table,
    parts_of_name,
    rows_of_file,
    shown,
)
from psychocounsel.corpus.text import require_text
from psychocounsel.errors import InputError, closest, first_of
from psychocounsel.store.files import digest_of_file
from psychocounsel.store.references import HUB
from psychocounsel.types import Rating, Turn

T = TypeVar("T")
OnBadRow = Literal["error", "drop"]


def source_fingerprint(path: str, split: str, config: str | None = None) -> dict[str, Any]:
    """Return what identifies a source: the digests of its files, by name if it has several, or the Hub's revision."""
    if path.startswith(HUB):
        return {"hub": path.removeprefix(HUB), "split": split, "config": config}
    digests = {name: digest_of_file(file) for name, file in _named_files(path)}
    return {"files": digests} if len(digests) > 1 else {"sha256": next(iter(digests.values()))}


def source_name(path: str) -> str:
    """Return the name of a source in the provenance of its rows: without its folder."""
    return path if path.startswith((HUB, PREFIX)) else Path(path).name


def files_of(path: str, *, may_be_empty: bool = False) -> list[Path]:
    """Return the files of a path, by name: one file, all readable ones in a folder, or those that `*` stands for.

    Raises:
        InputError: there is none, or one is empty and may not be.
    """
    place = locate(path)
    if has_magic(path) and not place.exists():
        found = Path(place.anchor).glob(str(place.relative_to(place.anchor)))
    elif place.exists():
        found = [place] if place.is_file() else [each for each in place.rglob("*") if is_table(each)]
    else:
        remedy = "check the path; it is relative to the working directory, or to the config if that names it"
        raise InputError("no such file", where=path, remedy=remedy)
    files = sorted(each for each in found if each.is_file() and not each.name.startswith("."))
    if not files:
        raise InputError("holds no file with rows", where=path, remedy=f"give files in one of {ENDINGS}")
    empty = None if may_be_empty else next((str(each) for each in files if each.stat().st_size == 0), None)
    if empty is not None:
        raise InputError("is empty", where=empty, remedy="give a file with rows")
    return files


def _named_files(path: str) -> list[tuple[str, Path]]:
    """Return the files of a path with their names, which begin where their folders differ."""
    files = files_of(path)
    shared = os.path.commonpath([file.parent for file in files])
    return [(file.relative_to(shared).as_posix(), file) for file in files]


def read_rows(path: str, split: str = "train", config: str | None = None) -> Iterator[SourceRow]:
    """Yield the rows of a file, of a folder or several files (`*`), of `bundled:FILE`, or `hub:owner/name@revision`.

    Raises InputError, which names the line, if the content cannot be read.
    """
    rows = read_cells(_rows(RowSource(path=path, split=split, config=config)), lambda row: row, "error")
    return (row for row in rows if isinstance(row, SourceRow))


def read_cells(rows: Iterable[Row], read: Callable[[SourceRow], T], on_bad_row: OnBadRow) -> Iterator[T | BadRow]:
    """Yield what `read` returns of each row. One that cannot be read is a BadRow where these are dropped.

    Raises:
        InputError: a row cannot be read, and that is an error.
    """
    for row in rows:
        try:
            if isinstance(row, BadRow):
                raise row.error
            yield read(row)
        except InputError as error:
            if on_bad_row == "error":
                raise
            yield BadRow(row.where, error)


def _rows(source: RowSource) -> Iterator[Row]:
    path = source.path
    if path.startswith(HUB):
        from psychocounsel.store.hub import hub_rows  # imports pyarrow, 35 MB that no worker needs

        rows = hub_rows(path.removeprefix(HUB), source.split, source.config)
        yield from (SourceRow(f"{path} row {number}", values) for number, values in enumerate(rows, start=1))
        return
    for name, file in _named_files(path):
        yield from rows_of_file(file, name, quotes=source.quotes)


def read_source(source: RowSource) -> Iterator[Row]:
    """Yield the rows of a source of a config: those in which `where` holds, one for each column where it is `wide`.

    Lists to `explode` give one for each item; a `conversation`, one for each thing that the client says and that is
    answered. Raises InputError if the content cannot be read; where rows may be bad, only if that concerns more than a
    row.
    """
    columns = source.conversation
    if columns is None:
        return _wanted_rows(source)
    named = () if source.path.startswith(HUB) else _named_files(source.path)
    files = [parts_of_name(name)[0] for name, _ in named]
    if columns.id is not None and (twice := [each for each, count in Counter(files).items() if count > 1]):
        remedy = "rename or move one: the names of files without their endings tell conversations apart"
        raise InputError(f"two files are called {twice[0]}", where=source.path, remedy=remedy)
    said = read_cells(_wanted_rows(source), partial(_said, columns, len(files) > 1), source.on_bad_row)
    return read_cells(_turn_rows(said, columns), lambda row: row, source.on_bad_row)


def _wanted_rows(source: RowSource) -> Iterator[Row]:
    def wanted(row: SourceRow) -> SourceRow | None:
        return row if source.where is None or holds(row, source.where) else None

    rows = _rows(source)
    if source.replace:
        rows = (row if isinstance(row, BadRow) else _replaced(row, source.replace) for row in rows)
    for name, column in source.explode.items():
        rows = _exploded(rows, name, column, source.on_bad_row)
    for row in read_cells(rows, wanted, source.on_bad_row):
        if source.wide is None or isinstance(row, BadRow):
            if row is not None:
                yield row
        elif row is not None:
            columns = source.wide.columns
            labels = columns if isinstance(columns, dict) else {name: name.strip() for name in columns}
            for name, label in labels.items():
                wide = {"column": label, "value": cell(row, name)}
                yield row._replace(where=f"{row.where} column {name}", values={**row.values, "wide": wide})


def _replaced(row: SourceRow, others: Mapping[str, str]) -> SourceRow:
    """Return a row with other words in all its texts, however deep they are."""

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            for word, other in others.items():
                value = value.replace(word, other)
        elif isinstance(value, list):
            value = [replaced(each) for each in cast("list[Any]", value)]
        elif isinstance(value, dict):
            value = {key: replaced(each) for key, each in cast("dict[Any, Any]", value).items()}
        return value

    return row._replace(values={name: replaced(value) for name, value in row.values.items()})


def _exploded(rows: Iterable[Row], name: str, column: Column, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Yield a row for each item of a list, with the item as the column `name`, and the bad rows."""

    def items(row: SourceRow) -> list[SourceRow]:
        value = nested(cell(row, column))
        if value not in (None, "") and not isinstance(value, list):
            remedy = "explode a column or path that is a list in every row, or null"
            raise InputError(f"{column_name(column)!r} holds no list", where=row.where, remedy=remedy)
        return [
            row._replace(where=f"{row.where} {name} {number}", values={**row.values, name: item})
            for number, item in enumerate(cast("list[object]", value or []), start=1)
        ]

    for each in read_cells(rows, items, on_bad_row):
        yield from [each] if isinstance(each, BadRow) else each


class _Said(NamedTuple):
    """What is said in one row, and the conversation that it belongs to."""

    conversation: str
    row: SourceRow
    turns: list[Turn]


def _said(columns: Conversation, in_files: bool, row: SourceRow) -> _Said:
    if columns.messages is not None:
        key, value, column = row.where, cell(row, columns.messages), columns.messages
    else:
        key = f"{row.file if in_files else ''} {name_cell(row, columns.id or '')}".strip()
        column = columns.role or ""
        is_client = cell(row, column)  # if the role is a condition
        role = ("assistant", "user")[is_client] if isinstance(is_client, bool) else label_cell(row, column)
        value = [{"role": role, "content": text_cell(row, columns.text or "")}]
    return _Said(key, row, turns_of(value, column_name(column), row.where, columns.client))


def _turn_rows(said: Iterable[_Said | BadRow], columns: Conversation) -> Iterator[Row]:
    """Yield a row for each thing that the client says and that is answered, and the bad rows.

    A conversation in which the client says nothing is a bad row: mostly, the client goes by another name there.
    """
    current, ended = "", set[str]()

    def conversation(each: _Said | BadRow) -> str:
        nonlocal current  # a bad row interrupts none
        current = current if isinstance(each, BadRow) else each.conversation
        return current

    for key, group in groupby(said, conversation):
        both = list(group)
        yield from (each for each in both if isinstance(each, BadRow))
        rows = [each for each in both if isinstance(each, _Said)]
        if columns.id is not None and key in ended:
            remedy = "sort the file so that the messages of one conversation follow each other"
            raise InputError(f"the conversation {key!r} goes on after another", where=rows[0].row.where, remedy=remedy)
        ended.add(key)
        turns = merged_turns(turn for each in rows for turn in each.turns)
        if turns and not any(turn.role == "user" for turn in turns):
            remedy = "say with `client`, or a condition as `role`, who the client is, or set on_bad_row: drop"
            yield bad_row("the client says nothing in this conversation", rows[0].row.where, remedy)
        asked = (at for at, turn in enumerate(turns[:-1]) if turn.role == "user")
        for number, at in enumerate(asked, start=1):
            turn = {
                **{"text": turns[at].content, "answer": turns[at + 1].content},
                **{"number": number, "key": f"{key} turn {number}"},
                "history": tuple(turns[max(0, at - (columns.last or at)) : at]),
            }
            first = rows[0].row
            where, values = f"{first.where} turn {number}", {**first.values, "turn": turn}
            yield first._replace(where=where, values=values, conversation=key)


# --- Cells --------------------


Role = Literal["user", "assistant"]
_ROLES = {
    **dict.fromkeys(("user", "human", "client", "patient", "seeker"), "user"),
    **dict.fromkeys(("assistant", "gpt", "counsellor", "counselor", "therapist", "supporter"), "assistant"),
    "system": "system",
}


def column_name(column: Column) -> str:
    """Return how messages call a column."""
    if isinstance(column, str):
        return column
    return "a constant" if isinstance(column, Constant) else " + ".join(map(column_name, column))


def cell(row: SourceRow, column: Column, remedy: str = "set columns to one of") -> object:
    """Return the value in a column, at a path, or of several joined by blank lines.

    Raises:
        InputError: there is no such column; lists the known ones after the remedy.
    """
    if isinstance(column, str):
        return row.values[column] if column in row.values else _evaluated(row, column, remedy)
    if isinstance(column, Constant):
        return column.constant
    parts: list[str] = []
    for part in column:
        value = cell(row, part)
        if type(value) in (list, tuple, dict):
            fault, remedy = f"{column_name(part)!r} holds no text to be joined", "name a path into it, such as NAME[0]"
            raise InputError(fault, where=row.where, remedy=remedy)
        parts.append("" if value is None else str(value).strip())
    return "\n\n".join(filter(None, parts))


_NAMES_SHOWN = 30


def holds(row: SourceRow, condition: str) -> bool:
    """Return whether a condition is true in a row; raises InputError if it names no column or cannot be evaluated."""
    return bool(_evaluated(row, condition, "use one of"))


def _evaluated(row: SourceRow, expression: str, remedy: str) -> object:
    try:
        return evaluate(expression, {"file": row.file, **row.values})
    except KeyError as missing:
        fault, name = None, str(missing.args[0])
    except ValueError as wrong:
        fault, name = str(wrong), ""
    names = list(map(str, row.values))
    remedy = f"{remedy}: {first_of([shown(each) for each in names], _NAMES_SHOWN)}"
    if fault is not None:
        raise InputError(fault, where=row.where, remedy=remedy)
    if close := closest(name, names):
        remedy = f"did you mean {shown(close)}?"
    elif row.header:
        remedy += " (the first row is read as the header)"
    else:
        remedy += f", or row.{name} where only some rows have it"
    raise InputError(f"there is no column {name!r}", where=row.header or row.where, remedy=remedy)


def text_cell(row: SourceRow, column: Column, role: Role = "user") -> str:
    """Return a cell's text without outer space, empty for a null; raises InputError if Parquet cannot hold it.

    Of a list of messages it is what the client says first, or the first answer to that.
    """
    value, name = messages_in(cell(row, column)), column_name(column)
    if isinstance(value, list):
        opening = {"user": "", "assistant": ""}
        for said, text in messages_of(value, name, row.where):
            if said == "user" and opening["assistant"]:
                break  # what follows may be no text, such as the call of a tool
            if said == "user" or (said == "assistant" and opening["user"]):
                opening[said] = "\n\n".join(filter(None, (opening[said], text)))
        value = opening[role]
    return require_text(value, name, row.where).strip()


def asked_cell(row: SourceRow, text: Column, history: Column | None) -> tuple[str, tuple[Turn, ...]]:
    """Return what a client says, and the turns before it.

    Where both are one column with messages, it is the last thing that the client says there. Raises InputError if
    somebody else speaks last, or as `text_cell` and `history_cell` do.
    """
    if history is None:
        return text_cell(row, text), ()
    if history != text or isinstance(value := messages_in(cell(row, text)), str):
        return text_cell(row, text), history_cell(row, history) if history != text else ()
    turns = turns_of(value, column_name(text), row.where)
    if turns and turns[-1].role != "user":
        remedy = "name messages that end with what is answered, or let a corpus read them with `conversation`"
        raise InputError(f"{column_name(text)!r} does not end with the client", where=row.where, remedy=remedy)
    return (turns[-1].content if turns else ""), tuple(turns[:-1])


def history_cell(row: SourceRow, column: Column) -> tuple[Turn, ...]:
    """Return the turns of client and counsellor before a speech.

    Raises:
        InputError: it is no list of messages, another role speaks, or the client says the last of them.
    """
    value = cell(row, column)
    # That of a `conversation` has been read.
    history = tuple(value if isinstance(value, tuple) else turns_of(value, column_name(column), row.where))
    if history and history[-1].role == "user":
        fault = f"{column_name(column)!r} ends with the client, whose next words are the speech"
        remedy = "leave the speech out of it, name it as text too, or let a corpus read it with `conversation`"
        raise InputError(fault, where=row.where, remedy=remedy)
    return history


def turns_of(value: object, column: str, where: str, client: str | None = None) -> list[Turn]:
    """Return the turns of client and counsellor in a list of messages; a null has none, and system messages are none.

    `client` is what the role says of the client, where all others answer.

    Raises:
        InputError: it is no list of messages, or another role speaks.
    """
    value = nested(messages_in(value))
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        remedy = "give a list of messages with role and content"
        raise InputError(f"{column!r} holds no list of messages", where=where, remedy=remedy)
    user = "user" if client is None else _usual_role(client)
    turns: list[Turn] = []
    for role, text in messages_of(value, column, where):
        content = require_text(text, column, where).strip()
        if role == user:
            turns.append(Turn("user", content))
        elif role == "assistant" or (client is not None and role != "system"):
            turns.append(Turn("assistant", content))
        elif role != "system":
            remedy = f"use one of {', '.join(_ROLES)}, or say with `client` which role is the client"
            raise InputError(f"{column!r} holds a message of {role!r}", where=where, remedy=remedy)
    return merged_turns(turns)


def merged_turns(turns: Iterable[Turn]) -> list[Turn]:
    """Return turns in which the roles alternate: texts in a row by one of them are joined by blank lines."""
    by_role = groupby((turn for turn in turns if turn.content), key=lambda turn: turn.role)
    return [Turn(role, "\n\n".join(turn.content for turn in same)) for role, same in by_role]


_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_MARKED_TURNS = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def messages_in(value: object) -> object:
    """Return the messages that a text holds: in JSON, as Python prints them, or as in HH-RLHF or HelpSteer2.

    Anything else, so a text in JSON in which not all have a usual role, is returned as it is.
    """
    if isinstance(value, str) and (value.startswith("\n\nHuman:") or "<extra_id_1>" in value):
        first, *parts = (_TRANSCRIPT if value.startswith("\n\nHuman:") else _MARKED_TURNS).split(value)
        turns = [*([("User", first)] if first else []), *zip(parts[::2], parts[1::2], strict=True)]
        return [{"role": speaker, "content": text.strip()} for speaker, text in turns]
    held = nested(value)
    said = [_said_in(each) for each in cast("list[object]", held)] if isinstance(held, list) else []
    return held if said and all(each is not None and each[0] in _ROLES.values() for each in said) else value


_ROLE_KEYS = ("role", "from", "speaker", "sender")
_TEXT_KEYS = ("content", "value", "text", "utterance", "message")


def messages_of(value: object, column: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield role and text of one message or a list of them, with `role` and `content`, `from` and `value`, or the like.

    A message that is a list of two texts is what the client says and the answer.

    Raises:
        InputError: one is laid out otherwise.
    """
    for message in cast("list[object]", value if isinstance(value, list) else [value]):
        said = _said_in(message)
        if isinstance(message, list) and [type(text) for text in cast("list[object]", message)] == [str, str]:
            yield from zip(("user", "assistant"), cast("list[str]", message), strict=True)
        elif said is None:
            remedy = "give texts, or lists of messages with role and content; explode makes a row of every item"
            raise InputError(f"{column!r} holds a message that is no text", where=where, remedy=remedy)
        else:
            yield said


def _said_in(message: object) -> tuple[str, str] | None:
    """Return role and text of a message, empty for a null; None if it has none."""
    known = cast("Mapping[str, object]", message) if isinstance(message, Mapping) else {}
    role, text = (
        next((known[key] for key in keys if known.get(key) is not None), None) for keys in (_ROLE_KEYS, _TEXT_KEYS)
    )
    text = "" if text is None and any(key in known for key in _TEXT_KEYS) else text
    return (_usual_role(str(role)), text) if isinstance(role, str | int) and isinstance(text, str) else None


def _usual_role(role: str) -> str:
    return _ROLES.get(role.strip().lower(), role)


def label_cell(row: SourceRow, column: Column) -> str:
    """Return a cell's text with single spaces, or a whole number as text; empty for a null."""
    value = cell(row, column)
    if isinstance(value, float) and value.is_integer():  # where some rows have none, other programs write 17.0
        value = int(value)
    return str(value) if type(value) is int else " ".join(text_cell(row, column).split())


def name_cell(row: SourceRow, column: Column) -> str:
    """Return what a label says, as `label_cell` does; raises InputError if it is empty or anything else."""
    name = label_cell(row, column)
    if not name:
        raise InputError(f"{column_name(column)!r} is empty", where=row.where, remedy="fill it, or drop the row")
    return name


def flag_cell(row: SourceRow, column: Column) -> bool:
    """Return a cell that is true or false, or one of these words; raises InputError otherwise."""
    value = cell(row, column)
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        remedy = "write true or false, or give a condition as the column, such as NAME == 1"
        raise InputError(f"{column_name(column)!r} is {value!r}", where=row.where, remedy=remedy)
    return value


def rating_of(value: object, where: str, low: float, high: float) -> Rating:
    """Return a rating: a number on the scale, or a text that holds one, as cells of CSV files do.

    Raises:
        InputError: it is no number, or off the scale.
    """
    try:
        rating = float(value.replace(",", ".")) if isinstance(value, str) else value
    except ValueError:
        rating = None
    if isinstance(rating, bool) or not isinstance(rating, int | float) or not math.isfinite(rating):
        remedy = "correct it or leave it empty; a table of ratings may say in points which number a word is"
        raise InputError(f"the rating {value!r} is no number", where=where, remedy=remedy)
    if not low <= rating <= high:
        remedy = f"correct it, or give the scale of these ratings; it is {low:g} to {high:g}"
        raise InputError(f"the rating {value!r} is off the scale", where=where, remedy=remedy)
    return int(rating) if float(rating).is_integer() else float(rating)


SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "development", "dev", "eval"), "dev"
)
"""The splits by what they are called elsewhere."""


def split_cell(row: SourceRow, column: Column) -> str:
    """Return `train`, `dev` or `test`, whatever dev is called; raises InputError for anything else."""
    value = name_cell(row, column).lower()
    split = SPLIT_NAMES.get(value)
    if split is None:
        fault = f"{column_name(column)!r} is {value!r}, which is no split"
        raise InputError(fault, where=row.where, remedy="write train, dev (or validation) or test")
    return split
