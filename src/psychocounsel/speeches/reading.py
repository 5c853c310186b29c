"""Rows -> Speech, Candidate: what enters, what is dropped and why."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from psychocounsel.config.corpus import CandidateColumns, CleaningConfig, SpeechColumns
from psychocounsel.domain import Candidate, Speech
from psychocounsel.errors import InputError
from psychocounsel.speeches.funnel import Funnel
from psychocounsel.speeches.normalising import normalise, refusal

_CRISIS = re.compile(
    r"suicid|self[- ]?harm|kill(ing)? (myself|himself|herself)|end(ing)? (my|it all|his|her) (life|own)?"
    r"|hurt(ing)? myself|cut(ting)? myself|(want|wish)(ed|ing)? (to die|i was dead|i were dead)"
    r"|better off (dead|without me)|not (want|be) (to be )?alive",
    re.IGNORECASE,
)


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


class SpeechReading(NamedTuple):
    """Distinct speeches in order, how their sources' keys map to their ids, and the funnel."""

    speeches: list[Speech]
    ids_by_key: dict[str, str]
    funnel: Funnel


class CandidateReading(NamedTuple):
    """Distinct candidates in order and the funnel."""

    candidates: list[Candidate]
    funnel: Funnel


def mentions_crisis(text: str) -> bool:
    """Whether a text speaks of suicide or self-harm by plain words; a hint, not an assessment."""
    return _CRISIS.search(text) is not None


def read_speeches(
    sources: Iterable[tuple[str, SpeechColumns, Iterable[Row]]], cleaning: CleaningConfig
) -> SpeechReading:
    """Read the speeches of all sources.

    Args:
        sources: name, columns and rows of each source.
        cleaning: lengths and limits.

    Raises:
        InputError: a column is missing, or a cell holds what no table can.
    """
    reading = SpeechReading([], {}, Funnel())
    seen: set[str] = set()
    for name, columns, rows in sources:
        for row in rows:
            text = normalise(_cell(row, columns.text))
            reason = _reason_to_drop(text, row, cleaning)
            if reason is None and cleaning.max_speeches and len(seen) >= cleaning.max_speeches:
                reason = "beyond_max_speeches" if Speech(text).id not in seen else None
            if reason is not None:
                reading.funnel.drop(reason)
                continue
            speech = _speech(text, row, columns, name)
            if columns.key is not None:
                reading.ids_by_key[_cell(row, columns.key)] = speech.id
            if speech.id in seen:
                reading.funnel.drop("repeated_speech")
                continue
            seen.add(speech.id)
            reading.speeches.append(speech)
            reading.funnel.keep()
    return reading


def _reason_to_drop(text: str, row: Row, cleaning: CleaningConfig) -> str | None:
    if not text:
        if cleaning.drop_empty:
            return "empty"
        raise InputError(
            "the speech is empty", where=row.where, remedy="drop the row or set corpus.cleaning.drop_empty"
        )
    if len(text) < cleaning.min_chars:
        return "too_short"
    return "too_long" if len(text) > cleaning.max_chars else None


def _speech(text: str, row: Row, columns: SpeechColumns, source: str) -> Speech:
    topic = _cell(row, columns.topic) if columns.topic else ""
    marked = _flag(row, columns.crisis) if columns.crisis else None
    return Speech(text, topic, mentions_crisis(text) if marked is None else marked, source)


def _flag(row: Row, column: str) -> bool:
    value = _value(row, column)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise InputError(f"{column!r} is {value!r}", where=row.where, remedy="write true or false")


def _cell(row: Row, column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str):
        raise InputError(
            f"{column!r} is {type(value).__name__}, not text",
            where=row.where,
            remedy="quote it, or drop the row",
        )
    fault = refusal(value)
    if fault is not None:
        raise InputError(f"{column!r} holds {fault}", where=row.where, remedy="remove it, or drop the row")
    return value


def _value(row: Row, column: str) -> object:
    if column not in row.values:
        known = ", ".join(str(name) for name in row.values)
        raise InputError(
            f"there is no column {column!r}", where=row.where, remedy=f"set columns to one of: {known}"
        )
    return row.values[column]


def read_candidates(
    sources: Iterable[tuple[CandidateColumns, Iterable[Row]]], speeches: SpeechReading
) -> CandidateReading:
    """Read ready responses to the speeches that were kept.

    Raises:
        InputError: a column is missing, or a cell holds what no table can.
    """
    reading = CandidateReading([], Funnel())
    known = {speech.id for speech in speeches.speeches}
    seen: set[tuple[str, str]] = set()
    for columns, rows in sources:
        for row in rows:
            speech_id = _speech_id(row, columns, speeches)
            text = normalise(_cell(row, columns.text))
            reason = _reason_to_drop_candidate(speech_id, text, known, seen)
            if reason is not None:
                reading.funnel.drop(reason)
                continue
            seen.add((speech_id, text))
            reading.candidates.append(Candidate(speech_id, _cell(row, columns.author), text))
            reading.funnel.keep()
    return reading


def _speech_id(row: Row, columns: CandidateColumns, speeches: SpeechReading) -> str:
    if columns.speech_key is not None:
        return speeches.ids_by_key.get(_cell(row, columns.speech_key), "")
    text = normalise(_cell(row, columns.speech_text or ""))
    return Speech(text).id if text else ""


def _reason_to_drop_candidate(
    speech_id: str, text: str, known: set[str], seen: set[tuple[str, str]]
) -> str | None:
    if speech_id not in known:
        return "its_speech_was_dropped"
    if not text:
        return "empty"
    return "repeated_text" if (speech_id, text) in seen else None
