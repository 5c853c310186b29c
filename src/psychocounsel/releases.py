"""Released rows -> the client speeches in them, their clusters of near-duplicates and their splits.

Texts are kept as they were released: a cleaned one would no longer be what was rated.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from psychocounsel.config.stages import ImportPreferencesConfig
from psychocounsel.domain import Speech
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.pairing import assign_dev
from psychocounsel.speeches.crisis import mentions_crisis
from psychocounsel.speeches.funnel import Dropped, Funnel
from psychocounsel.speeches.near_duplicates import cluster_ids
from psychocounsel.speeches.normalising import refusal
from psychocounsel.store.tables.nouns import SplitSpeech
from psychocounsel.store.tables.released import ReleasedRow, read_released
from psychocounsel.store.tables.sources import source_name

_TRAIN, _TEST, _LEFT_OUT = "train", "test", "left out"
_UNREADABLE = Dropped("readable", "unreadable")
_EMPTY = Dropped("none_empty", "empty")
_REPEATED = Dropped("repetition", "repeated_speech")
LEAK = Dropped("leakage", "leaks_into_test")


class Question(NamedTuple):
    """A client speech of a release, and what its near-duplicates decide about it.

    Args:
        speech: as it was released.
        cluster: of near-duplicates.
        is_test: whether it was released in test, there alone or in train too.
        is_dev: whether rows of its cluster that were released in train are held out as dev.
        leaks: whether it was released in train and it, or a near-duplicate of it, in test.
        is_left_out: whether it is kept out of train for that, and was released nowhere else.
    """

    speech: Speech
    cluster: str
    is_test: bool
    is_dev: bool
    leaks: bool
    is_left_out: bool

    @property
    def split(self) -> str:
        """The one in which the speech stands here."""
        return self.split_of_row(_TEST if self.is_test else _TRAIN)

    def split_of_row(self, released_in: str) -> str:
        """Return the one in which a row with it stands here."""
        return "dev" if self.is_dev and released_in == _TRAIN else released_in


class _Asked(NamedTuple):
    """A client speech, its cluster and the splits in which it was released."""

    speech: Speech
    cluster: str
    splits: set[str]


@dataclass(frozen=True)
class Release:
    """A released data set in memory: its rows, train before test, and how they are to be imported."""

    config: ImportPreferencesConfig
    rows: Sequence[ReleasedRow]

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the columns."""
        return tuple(self.rows[0].chosen.ratings)

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """The distinct readable questions by their text, in the order of the rows."""
        splits: dict[str, set[str]] = {}
        for row in self.rows:
            if unfit_to_read(row.question) is None:
                splits.setdefault(row.question, set()).add(row.split)
        name = source_name(self.config.source)
        speeches = [Speech(text, crisis=mentions_crisis(text), source=name) for text in splits]
        clusters = _clusters(speeches, self.config.near_duplicate_similarity)
        asked = [_Asked(*each) for each in zip(speeches, clusters, splits.values(), strict=True)]
        return {each.speech.text: each for each in _questions(asked, self.config)}

    @property
    def speeches(self) -> list[SplitSpeech]:
        """The questions that are kept, in the order of the rows."""
        return [
            SplitSpeech(each.speech, each.split, each.cluster)
            for each in self.questions.values()
            if not each.is_left_out
        ]

    @property
    def crossing_clusters(self) -> int:
        """How many clusters have rows in train or dev and in test."""
        is_kept = self.config.leakage == "keep"
        return len({each.cluster for each in self.questions.values() if each.leaks and is_kept})

    def funnel(self) -> Funnel:
        """Return what became of every row's question."""
        steps = (each.step for each in (_UNREADABLE, _EMPTY, _REPEATED, LEAK))
        funnel = Funnel(tuple(steps))
        seen: set[str] = set()
        for row in self.rows:
            question = self.questions.get(row.question)
            if question is None:
                funnel.drop(unfit_to_read(row.question) or _EMPTY)
            elif row.question in seen:
                funnel.drop(_REPEATED, question.speech.id)
            elif question.is_left_out:
                funnel.drop(LEAK, question.speech.id)
            else:
                funnel.keep(question.speech.id)
            seen.add(row.question)
        return funnel


def read_release(config: ImportPreferencesConfig) -> Release:
    """Read the released data set of a config.

    Raises:
        InputError: it has no rows, or one that cannot be read.
        ConfigError: no principle has the name that the config gives to the one of safety.
    """
    rows = list(read_released(config.source, config.config))
    if not rows:
        raise InputError("has no rows", where=config.source, remedy="name a data set with rows")
    _require_principle(config.safety, list(rows[0].chosen.ratings))
    return Release(config, rows)


def _require_principle(safety: str | None, principles: Sequence[str]) -> None:
    if safety is not None and safety not in principles:
        close = difflib.get_close_matches(safety, principles, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(principles)}, or null"
        raise ConfigError(f"there are no ratings of {safety!r}", where="safety", remedy=hint)


def unfit_to_read(text: str) -> Dropped | None:
    """Return why a text of a release can be neither kept nor shown to a model; None where it can."""
    if refusal(text) is not None:
        return _UNREADABLE
    return None if text.strip() else _EMPTY


def _clusters(speeches: Sequence[Speech], similarity: float) -> list[str]:
    ids = np.array([int(each.id, 16) for each in speeches], dtype=np.uint64)
    found = cluster_ids(ids, [each.text for each in speeches], similarity)
    return [f"{number:016x}" for number in found.tolist()]


def _questions(asked: Sequence[_Asked], config: ImportPreferencesConfig) -> list[Question]:
    in_test = {each.cluster for each in asked if _TEST in each.splits}
    leaks = [_TRAIN in each.splits and each.cluster in in_test for each in asked]
    places = [_place(each, leak, config) for each, leak in zip(asked, leaks, strict=True)]
    clusters = [each.cluster for each in asked]
    divided = assign_dev(places, clusters, config.dev_share, config.seed)
    dev = {cluster for cluster, place in zip(clusters, divided, strict=True) if place == "dev"}
    return [
        Question(each.speech, each.cluster, place == _TEST, each.cluster in dev, leak, place == _LEFT_OUT)
        for each, leak, place in zip(asked, leaks, places, strict=True)
    ]


def _place(asked: _Asked, leaks: bool, config: ImportPreferencesConfig) -> str:
    if _TEST in asked.splits:
        return _TEST
    return _LEFT_OUT if leaks and config.leakage == "drop_from_train" else _TRAIN
