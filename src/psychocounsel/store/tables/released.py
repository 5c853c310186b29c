"""Released preference data set -> ReleasedRow: the columns of arXiv 2502.19731, from the Hub or a folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.errors import InputError
from psychocounsel.store.references import HUB
from psychocounsel.store.tables.sources import read_rows, source_identity

SPLITS = ("train", "test")
_TEXTS = ("question", "chosen", "rejected", "chosen_model", "rejected_model")
_RATING = "_rating"
_SCHEMA = "name a data set in the released columns"


class ReleasedSide(NamedTuple):
    """One response of a row: its text, its author, its ratings by principle, None for a missing one."""

    text: str
    author: str
    ratings: Mapping[str, int | None]


class ReleasedRow(NamedTuple):
    """One preference as it was released; `split` is the one it was released in."""

    where: str
    split: str
    question: str
    chosen: ReleasedSide
    rejected: ReleasedSide


def released_identity(source: str, config: str | None) -> dict[str, Any]:
    """Return what identifies a released data set: the content of its files, or its Hub name with revision.

    Raises:
        InputError: a split has no file.
    """
    return {
        split: [source_identity(path, split, config) for path in _paths(source, split)] for split in SPLITS
    }


def read_released(source: str, config: str | None = None) -> Iterator[ReleasedRow]:
    """Yield the rows of a released preference data set, train before test; all have the same principles.

    Args:
        source: `hub:owner/name@revision`, or a folder that holds `train*.parquet` and `test*.parquet`, as a
            copy of the Hub's has them in `data/`.
        config: the configuration to read of a Hub data set that has several.

    Raises:
        InputError: a file or column is missing, or a cell is not what its column holds.
    """
    principles: tuple[str, ...] = ()
    for split in SPLITS:
        for path in _paths(source, split):
            for where, values in read_rows(path, split, config):
                principles = principles or _principles(where, values)
                yield _row(where, split, values, principles)


def _paths(source: str, split: str) -> list[str]:
    if source.startswith(HUB):
        return [source]
    found = sorted(path for path in Path(source).rglob(f"{split}*.parquet") if path.is_file())
    if not found:
        raise InputError(
            f"there is no {split}*.parquet",
            where=source,
            remedy="name the folder of a copy of the data set, or hub:owner/name",
        )
    return [str(path) for path in found]


def _principles(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    rated = [name for name in values if name.startswith("chosen_") and name.endswith(_RATING)]
    if not rated:
        raise InputError(f"there is no column chosen_PRINCIPLE{_RATING}", where=where, remedy=_SCHEMA)
    return tuple(name.removeprefix("chosen_").removesuffix(_RATING) for name in rated)


def _row(where: str, split: str, values: Mapping[str, Any], principles: tuple[str, ...]) -> ReleasedRow:
    ratings = {
        side: {name: f"{side}_{name}{_RATING}" for name in principles} for side in ("chosen", "rejected")
    }
    wanted = [*_TEXTS, *(column for by_name in ratings.values() for column in by_name.values())]
    missing = [column for column in wanted if column not in values]
    if missing:
        raise InputError(f"there is no column {', '.join(missing)}", where=where, remedy=_SCHEMA)
    chosen, rejected = (
        ReleasedSide(
            _text(where, values, side),
            _text(where, values, f"{side}_model"),
            {name: _rating(where, values, column) for name, column in by_name.items()},
        )
        for side, by_name in ratings.items()
    )
    return ReleasedRow(where, split, _text(where, values, "question"), chosen, rejected)


def _text(where: str, values: Mapping[str, Any], column: str) -> str:
    value = values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{column!r} is {type(value).__name__}, not text", where=where, remedy="mend or drop the row"
        )
    return value


def _rating(where: str, values: Mapping[str, Any], column: str) -> int | None:
    value = values[column]
    if value is not None and type(value) is not int:
        raise InputError(
            f"{column!r} is {value!r}, not a whole number", where=where, remedy="mend or drop the row"
        )
    return value
