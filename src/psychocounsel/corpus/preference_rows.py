"""Rows of any preference dataset: texts, authors and ratings of two responses, and the split of the release.

Known without a word in the config are the columns of PsychoCounsel-Preference (arXiv 2502.19731) and of our own
datasets, trl's `prompt`, `chosen` and `rejected` as texts or messages, the transcripts of HH-RLHF, the scores of
UltraFeedback as binarized, and HelpSteer2's preferences.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from psychocounsel.config.schema import ImportPreferencesConfig
from psychocounsel.config.sources import Column, PreferenceColumns, RowSource
from psychocounsel.corpus.preferences import exchange_of, ordered_by_strength
from psychocounsel.corpus.sources import (
    SPLIT_NAMES,
    BadRow,
    SourceRow,
    cell,
    files_of,
    flag_cell,
    history_cell,
    rating_of,
    read_cells,
    read_source,
    source_fingerprint,
    split_cell,
    text_cell,
)
from psychocounsel.errors import InputError
from psychocounsel.store.references import HUB
from psychocounsel.types import SPLITS, Rating, Turn

_RATING = "_rating"


class PreferenceSide(NamedTuple):
    """One response of a row: its text, its author, its ratings by principle (None for a missing one), its score.

    The score is the one by which our own datasets ranked it; None in others.
    """

    text: str
    author: str
    ratings: Mapping[str, Rating | None]
    score: float | None = None


class PreferenceRow(NamedTuple):
    """One preference as it was released; `split` is the one it was released in.

    `fault` says why it holds no preference between two answers to one speech, such as `not_an_exchange`; None if it
    does.
    `crisis` is None where the row does not say.
    """

    where: str
    split: str
    question: str
    chosen: PreferenceSide
    rejected: PreferenceSide
    topic: str = ""
    fine_topic: str = ""
    crisis: bool | None = None
    fault: str | None = None
    history: tuple[Turn, ...] = ()

    @property
    def session(self) -> tuple[Turn, ...]:
        """The history, then the question."""
        return (*self.history, Turn("user", self.question))


def preference_fingerprint(config: ImportPreferencesConfig) -> dict[str, Any]:
    """Return what identifies the rows: the content of the files by split, and how they are read."""
    found: dict[str, Any] = {}
    for split, source in _parts(config):
        found.setdefault(split, []).append(source_fingerprint(source.path, source.split, source.config))
    read_by = config.fingerprint()
    return found | {name: read_by[name] for name in ("columns", "split_column", "where", "on_bad_row", "scale")}


def read_preference_rows(config: ImportPreferencesConfig) -> list[PreferenceRow]:
    """Read the rows of a preference dataset, train before dev and test; all have the same principles.

    Raises:
        InputError: a file or column is missing, a cell is not what its column holds, or a rating is off the scale.
    """
    rows: list[PreferenceRow] = []
    columns = config.columns

    def read(split: str, row: SourceRow) -> PreferenceRow:
        nonlocal columns
        columns = columns or _layout(row.values)
        return _read(row, split, columns, config)

    for split, source in _parts(config):
        for row in read_cells(read_source(source), partial(read, split), config.on_bad_row):
            rows.append(_without_pair(row.where, split, "bad_row") if isinstance(row, BadRow) else row)
    return sorted(rows, key=lambda row: SPLITS.index(row.split))


def _without_pair(where: str, split: str, fault: str) -> PreferenceRow:
    nothing = PreferenceSide("", "", {})
    return PreferenceRow(where, split, "", nothing, nothing, fault=fault)


def _parts(config: ImportPreferencesConfig) -> Iterator[tuple[str, RowSource]]:
    """Yield splits and what is read for them: files by the beginning of their names; if none has one, all are train."""

    def source(path: str, split: str = "train") -> RowSource:
        return RowSource(path=path, split=split, config=config.config, where=config.where, on_bad_row=config.on_bad_row)

    if config.source.startswith(HUB):
        own = config.splits or ({"train": "train"} if config.split_column else {"train": "train", "test": "test"})
        yield from ((split, source(config.source, name)) for split, name in own.items())
        return
    beginnings = {**SPLIT_NAMES, **{split: split for split in SPLITS}}
    if config.splits:
        beginnings = {begin: split for split, begin in config.splits.items()}
    files = files_of(config.source)
    # As in `test-00000-of-00001.parquet`.
    named = [
        (next((split for begin, split in beginnings.items() if file.name.startswith(begin)), ""), file)
        for file in files
    ]
    found = {split for split, _ in named}
    if config.splits and (missing := config.splits.keys() - found):
        remedy = f"the files are {', '.join(file.name for file in files)}"
        what = f"no file begins with {config.splits[min(missing)]!r}"
        raise InputError(what, where=config.source, remedy=remedy)
    if config.split_column or found == {""}:
        yield from (("train", source(str(file))) for file in files)
    else:
        yield from ((own, source(str(file))) for own in SPLITS for split, file in named if split == own)


def _layout(values: Mapping[str, object]) -> PreferenceColumns:
    """Return which columns of a row hold what, by their names."""
    speech = next((name for name in ("question", "prompt", "instruction") if name in values), None)
    principles = [
        name.removeprefix("chosen_").removesuffix(_RATING)
        for name in values
        if name.startswith("chosen_") and name.endswith(_RATING)
    ]
    ratings: dict[str, tuple[Column, Column]]
    ratings = {name: (f"chosen_{name}{_RATING}", f"rejected_{name}{_RATING}") for name in principles}
    if not ratings and {"score_chosen", "score_rejected"} <= values.keys():
        ratings = {"score": ("score_chosen", "score_rejected")}
    return PreferenceColumns(
        speech=speech,
        chosen_author="chosen_model" if "chosen_model" in values else None,
        rejected_author="rejected_model" if "rejected_model" in values else None,
        topic=next((name for name in ("topic", "subset") if name in values), None),
        history="history" if {"pair_id", "history"} <= values.keys() else None,
        ratings=ratings,
    )


def _read(row: SourceRow, split: str, columns: PreferenceColumns, config: ImportPreferencesConfig) -> PreferenceRow:
    if config.split_column is not None:
        split = split_cell(row, config.split_column)
    names = ordered_by_strength(row) if config.columns is None else (columns.chosen, columns.rejected)
    if names is None:
        return _without_pair(row.where, split, "no_preference")
    given = [cell(row, name) for name in names]
    asked = None if columns.speech is None else cell(row, columns.speech) or ""
    texts = exchange_of(asked, ["" if value is None else value for value in given], row.where)
    if isinstance(texts, str):
        return _without_pair(row.where, split, texts)
    answers = (texts.chosen, texts.rejected)
    authors = [
        "" if name is None else text_cell(row, name) for name in (columns.chosen_author, columns.rejected_author)
    ]
    sides = [
        PreferenceSide(
            answers[at],
            authors[at],
            {name: _rating(row, both[at], config.scale) for name, both in columns.ratings.items()},
            _score(row, f"{side}_score"),
        )
        for at, side in enumerate(("chosen", "rejected"))
    ]
    is_own = "pair_id" in row.values
    return PreferenceRow(
        row.where,
        split,
        texts.prompt,
        *sides,
        topic="" if columns.topic is None else text_cell(row, columns.topic),
        fine_topic=text_cell(row, "fine_topic") if is_own else "",
        crisis=flag_cell(row, "crisis") if is_own else None,
        history=texts.history or (history_cell(row, columns.history) if columns.history else ()),
    )


def _rating(row: SourceRow, column: Column, scale: Sequence[int]) -> Rating | None:
    value = cell(row, column)
    if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
        return None
    return rating_of(value, row.where, *scale)


def _score(row: SourceRow, column: str) -> float | None:
    value = row.values.get(column) if "pair_id" in row.values else None
    return float(value) if isinstance(value, int | float) else None
