"""Rows -> Candidate: ready responses, joined to the speeches that were kept, cleaned and counted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from typing import NamedTuple

from psychocounsel.config.corpus import CandidateColumns
from psychocounsel.domain import Candidate, Speech
from psychocounsel.speeches.cells import Row, key_cell, name_cell, text_cell
from psychocounsel.speeches.cleaning import DEIDENTIFICATION, Prepared, Step, prepare
from psychocounsel.speeches.funnel import Dropped, Funnel
from psychocounsel.speeches.reading import NONE_EMPTY, REPETITION, raw_digest
from psychocounsel.store.tables.readings import RowFate

JOIN = "join"
REMAINDER = "remainder"

CandidateSource = tuple[str, CandidateColumns, Iterable[Row]]
"""Name, columns and rows of one source."""


class SpeechIndex:
    """Which speech a key or a text names, and whether it was kept: from the rows of a corpus's speeches."""

    def __init__(self, fates: Iterable[RowFate]) -> None:
        self._by_key: dict[str, str] = {}
        self._by_raw: dict[str, str] = {}
        self._is_kept: dict[str, bool] = {}
        for fate in fates:
            if fate.key:
                self._by_key[fate.key] = fate.text_id
            self._by_raw[fate.raw_digest] = fate.text_id
            self._is_kept[fate.text_id] = self._is_kept.get(fate.text_id, False) or not fate.reason

    def by_key(self, key: str) -> str | None:
        """Return the id of the speech that a key names."""
        return self._by_key.get(key)

    def by_raw(self, raw: str) -> str | None:
        """Return the id of the speech that was read with just this text."""
        return self._by_raw.get(raw_digest(raw))

    def fault(self, speech_id: str) -> Dropped | None:
        """Return why a response to this speech has to go, None where the speech is there."""
        kept = self._is_kept.get(speech_id)
        if kept:
            return None
        return Dropped(JOIN, "no_such_speech" if kept is None else "its_speech_was_dropped")


class CandidateScreens(NamedTuple):
    """How a response is cleaned.

    Args:
        cleaning: named steps from raw to clean text.
        speech_text: raw text of a speech -> the text under which it is known.
        author: name in the source -> name that may be published.
        deidentify: text -> text with surrogates.
        prepare_all: does the first and the last of these for many texts, in order; None: one by one, here.
    """

    cleaning: Sequence[Step]
    speech_text: Callable[[str], str]
    author: Callable[[str], str] = str
    deidentify: Callable[[str], str] | None = None
    prepare_all: Callable[[Iterable[str]], Iterator[Prepared]] | None = None

    def prepared(self, raws: Iterable[str]) -> Iterator[Prepared]:
        """Yield each text cleaned and looked at."""
        if self.prepare_all is not None:
            return self.prepare_all(raws)
        return (prepare(raw, self.cleaning, self.deidentify) for raw in raws)

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of all steps, in the order in which a row passes them."""
        return (
            NONE_EMPTY,
            *(step.name for step in self.cleaning),
            DEIDENTIFICATION,
            REMAINDER,
            REPETITION,
            JOIN,
        )


class CandidateReading(NamedTuple):
    """Distinct candidates in order, what became of every row, and the funnel."""

    candidates: list[Candidate]
    fates: list[RowFate]
    funnel: Funnel

    def keep(self, candidate: Candidate, fate: RowFate) -> None:
        """Take a response in."""
        self.candidates.append(candidate)
        self.funnel.keep(fate.text_id, fate.changed_by)
        self.fates.append(fate)

    def drop(self, dropped: Dropped, fate: RowFate) -> None:
        """Leave a row out, for its one reason."""
        self.funnel.drop(dropped, fate.text_id, fate.changed_by)
        self.fates.append(
            fate._replace(dropped_by=dropped.step, reason=dropped.reason, detail=dropped.detail)
        )


def read_candidates(
    sources: Iterable[CandidateSource], index: SpeechIndex, screens: CandidateScreens
) -> CandidateReading:
    """Read ready responses to the speeches that were kept.

    Raises:
        InputError: a column is missing, or a cell holds what no table can.
    """
    reading = CandidateReading([], [], Funnel(screens.steps))
    seen: set[tuple[str, str]] = set()
    for name, columns, rows in sources:
        ahead, rows_in_order = tee(rows)
        texts = screens.prepared(text_cell(row, columns.text) for row in ahead)
        for row, text in zip(rows_in_order, texts, strict=True):
            fate, read = _read((name, columns, row), text, index, screens)
            dropped = read if isinstance(read, Dropped) else _reason_to_drop_candidate(read, seen, index)
            if isinstance(read, Candidate):
                seen.add((read.speech_id, read.text))
            if isinstance(read, Candidate) and dropped is None:
                reading.keep(read, fate)
            elif dropped is not None:
                reading.drop(dropped, fate)
    return reading


def _reason_to_drop_candidate(
    candidate: Candidate, seen: set[tuple[str, str]], index: SpeechIndex
) -> Dropped | None:
    if (candidate.speech_id, candidate.text) in seen:
        return Dropped(REPETITION, "repeated_text")
    return index.fault(candidate.speech_id)


def _read(
    found: tuple[str, CandidateColumns, Row], text: Prepared, index: SpeechIndex, screens: CandidateScreens
) -> tuple[RowFate, Candidate | Dropped]:
    source, columns, row = found
    key, speech_id = _speech_id(row, columns, index, screens)
    raw = text_cell(row, columns.text)
    fate = RowFate(source, row.where, key, raw_digest(raw), "")
    if not raw:
        return fate, Dropped(NONE_EMPTY, "empty")
    fate = fate._replace(changed_by=text.changed_by)
    if not text.text:
        return fate, Dropped(REMAINDER, "nothing_left_after_cleaning")
    candidate = Candidate(speech_id, screens.author(name_cell(row, columns.author)), text.text)
    return fate._replace(text_id=candidate.id), candidate


def _speech_id(
    row: Row, columns: CandidateColumns, index: SpeechIndex, screens: CandidateScreens
) -> tuple[str, str]:
    """Return the key that a row gives, and the id of the speech that it answers."""
    if columns.speech_key is not None:
        key = key_cell(row, columns.speech_key)
        known = index.by_key(key)
        return key, f"unknown {key}" if known is None else known
    raw = text_cell(row, columns.speech_text or "")
    known = index.by_raw(raw)
    if known is not None:
        return "", known
    text = screens.speech_text(raw) if raw else ""
    return "", Speech(text).id if text else ""
