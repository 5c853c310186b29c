"""Rows -> Speech, Candidate: what enters, what is dropped and why."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from psychocounsel.config.corpus import CandidateColumns, CleaningConfig, SpeechColumns
from psychocounsel.domain import Candidate, Speech
from psychocounsel.errors import InputError
from psychocounsel.speeches.funnel import Funnel
from psychocounsel.speeches.normalising import clean_text

_CRISIS = re.compile(
    r"\bsuicid|\bself[- ]?harm|\bkill(ed|ing)? (my|him|her|them)sel(f|ves)"
    r"|\b(end(ed|ing)?|tak(e|ing)|took) (my|his|her|their) (own )?life\b|\bend(ed|ing)? it all\b"
    r"|\b(hurt|harm|cut)(ting|ing)? myself\b|\b(want|wish)(ed|ing|s)? (to die|(i|he|she) (was|were) dead)\b"
    r"|\bbetter off (dead|without me)\b"
    r"|\b(do not|don['\u2019]?t|not) want to (be alive|be here any ?more|live|wake up)\b",
    re.IGNORECASE,
)


UNKNOWN_ID = "unknown"


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
    """Distinct speeches in order, the ids of every row read by key and by text, and the funnel.

    Rows that were dropped have ids too: a response to one of them is told from one to nothing.
    """

    speeches: list[Speech]
    ids_by_key: dict[str, str]
    ids_read: set[str]
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
        InputError: a column is missing, a cell holds what no table can, or one key names two speeches.
    """
    reading = SpeechReading([], {}, set(), Funnel())
    kept: set[str] = set()
    for name, columns, rows in sources:
        for row in rows:
            text = _text(row, columns.text)
            speech = _speech(text, row, columns, name) if text else None
            _remember(reading, row, columns, speech)
            reason = _reason_to_drop(text, row, cleaning) or _reason_in_context(speech, kept, cleaning)
            if speech is None or reason is not None:
                reading.funnel.drop(reason or "empty")
                continue
            kept.add(speech.id)
            reading.speeches.append(speech)
            reading.funnel.keep()
    return reading


def _remember(reading: SpeechReading, row: Row, columns: SpeechColumns, speech: Speech | None) -> None:
    speech_id = "" if speech is None else speech.id
    reading.ids_read.add(speech_id)
    if columns.key is None:
        return
    key = _key(row, columns.key)
    if reading.ids_by_key.setdefault(key, speech_id) != speech_id:
        raise InputError(
            f"the key {key!r} already names another speech",
            where=row.where,
            remedy="make keys distinct over all sources, or join responses by speech_text",
        )


def _reason_in_context(speech: Speech | None, kept: set[str], cleaning: CleaningConfig) -> str | None:
    if speech is not None and speech.id in kept:
        return "repeated_speech"
    is_full = cleaning.max_speeches is not None and len(kept) >= cleaning.max_speeches
    return "beyond_max_speeches" if is_full else None


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
    topic = _text(row, columns.topic) if columns.topic else ""
    marked = _flag(row, columns.crisis) if columns.crisis else None
    return Speech(text, topic, mentions_crisis(text) if marked is None else marked, source)


def _flag(row: Row, column: str) -> bool:
    value = _value(row, column)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise InputError(f"{column!r} is {value!r}", where=row.where, remedy="write true or false")


def _text(row: Row, column: str) -> str:
    return clean_text(_value(row, column), column, row.where)


def _name(row: Row, column: str) -> str:
    name = _text(row, column)
    if not name:
        raise InputError(f"{column!r} is empty", where=row.where, remedy="fill it, or drop the row")
    return name


def _key(row: Row, column: str) -> str:
    value = _value(row, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _name(row, column)


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
            text = _text(row, columns.text)
            reason = _reason_to_drop_candidate(speech_id, known, speeches.ids_read)
            reason = reason or _reason_to_drop_text(speech_id, text, seen)
            if reason is not None:
                reading.funnel.drop(reason)
                continue
            seen.add((speech_id, text))
            reading.candidates.append(Candidate(speech_id, _name(row, columns.author), text))
            reading.funnel.keep()
    return reading


def _speech_id(row: Row, columns: CandidateColumns, speeches: SpeechReading) -> str:
    if columns.speech_key is not None:
        return speeches.ids_by_key.get(_key(row, columns.speech_key), UNKNOWN_ID)
    text = _text(row, columns.speech_text or "")
    return Speech(text).id if text else ""


def _reason_to_drop_candidate(speech_id: str, known: set[str], ids_read: set[str]) -> str | None:
    if speech_id in known:
        return None
    return "its_speech_was_dropped" if speech_id in ids_read else "no_such_speech"


def _reason_to_drop_text(speech_id: str, text: str, seen: set[tuple[str, str]]) -> str | None:
    if not text:
        return "empty"
    return "repeated_text" if (speech_id, text) in seen else None
