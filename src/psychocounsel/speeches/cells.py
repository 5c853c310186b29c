"""Row -> cell: the value in a column that a config names, or the fault that the row's owner can mend."""

from collections.abc import Mapping
from typing import Protocol

from psychocounsel.errors import InputError
from psychocounsel.speeches.normalising import refusal


class Row(Protocol):
    """A row of a source: its values by column, and where it stands."""

    @property
    def where(self) -> str:
        """File and line."""
        ...

    @property
    def values(self) -> Mapping[str, object]:
        """Cells by column."""
        ...


def cell(row: Row, column: str) -> object:
    """Return the value in a column.

    Raises:
        InputError: there is no such column; names those that there are.
    """
    if column not in row.values:
        known = ", ".join(str(name) for name in row.values)
        raise InputError(
            f"there is no column {column!r}", where=row.where, remedy=f"set columns to one of: {known}"
        )
    return row.values[column]


def text_cell(row: Row, column: str) -> str:
    """Return a cell's text as it stands, its outer space removed; a null is an empty one.

    Raises:
        InputError: there is no such column, it holds no text, or text that no table can hold.
    """
    value = cell(row, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{column!r} is {type(value).__name__}, not text",
            where=row.where,
            remedy="quote it, or drop the row",
        )
    fault = refusal(value)
    if fault is not None:
        raise InputError(f"{column!r} holds {fault}", where=row.where, remedy="remove it, or drop the row")
    return value.strip()


def name_cell(row: Row, column: str) -> str:
    """Return a cell that must not be empty.

    Raises:
        InputError: it is, or it holds no text.
    """
    name = " ".join(text_cell(row, column).split())
    if not name:
        raise InputError(f"{column!r} is empty", where=row.where, remedy="fill it, or drop the row")
    return name


def key_cell(row: Row, column: str) -> str:
    """Return a key, which may be a whole number.

    Raises:
        InputError: it is empty, or neither a text nor a whole number.
    """
    value = cell(row, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return name_cell(row, column)


def flag_cell(row: Row, column: str) -> bool:
    """Return a cell that says true or false.

    Raises:
        InputError: it says something else.
    """
    value = cell(row, column)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise InputError(f"{column!r} is {value!r}", where=row.where, remedy="write true or false")
