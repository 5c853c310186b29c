"""Rows -> speeches: what enters, what is changed on the way, what is dropped and why.

Rows are read one by one and texts kept on the disk, so that a million speeches need little memory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import NamedTuple, Protocol

from psychocounsel.config.corpus import CleaningConfig, SpeechColumns
from psychocounsel.domain import Speech, content_id
from psychocounsel.errors import InputError
from psychocounsel.speeches.cells import Row, flag_cell, key_cell, text_cell
from psychocounsel.speeches.cleaning import DEIDENTIFICATION, Prepared, Step, clean, prepare
from psychocounsel.speeches.crisis import mentions_crisis
from psychocounsel.speeches.funnel import Dropped, Funnel
from psychocounsel.speeches.kept import KeptSpeeches
from psychocounsel.store.tables.readings import RowFate
from psychocounsel.store.tables.spool import TextSpool

NONE_EMPTY = "none_empty"
LANGUAGE = "language"
EXCLUSION = "exclusion"
LENGTH = "length"
REPETITION = "repetition"
LIMIT = "limit"

SpeechSource = tuple[str, SpeechColumns, Iterable[Row]]
"""Name, columns and rows of one source."""


class Screen(Protocol):
    """Looks at a clean text and says what speaks against it: a language, a benchmark; None for nothing."""

    def __call__(self, text: str) -> str | None:
        """Return what was met."""
        ...


class SpeechScreens(NamedTuple):
    """How a speech is cleaned and what it must pass.

    Args:
        cleaning: named steps from raw to clean text.
        other_language: the language of a text, where it is none of those that were asked for.
        benchmark: the name of a benchmark that the text shares a span with.
        deidentify: text -> text with surrogates.
        prepare_all: does the first two and the last of these for many texts, in order; None: one by one.
    """

    cleaning: Sequence[Step]
    other_language: Screen | None = None
    benchmark: Screen | None = None
    deidentify: Callable[[str], str] | None = None
    prepare_all: Callable[[Iterable[str]], Iterator[Prepared]] | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of all steps, in the order in which a row passes them."""
        return (
            NONE_EMPTY,
            *(step.name for step in self.cleaning),
            DEIDENTIFICATION,
            REPETITION,
            LANGUAGE,
            EXCLUSION,
            LENGTH,
            LIMIT,
        )

    def prepared(self, raws: Iterable[str]) -> Iterator[Prepared]:
        """Yield each text cleaned and looked at."""
        if self.prepare_all is not None:
            return self.prepare_all(raws)
        return (prepare(raw, self.cleaning, self.deidentify, self.other_language) for raw in raws)

    def text_of(self, raw: str) -> str:
        """Return the text under which a speech is known, whether or not it is kept."""
        text = clean(raw, self.cleaning).text
        return text if self.deidentify is None else self.deidentify(text)


class SpeechReading:
    """Distinct speeches in the order of their sources, what became of every row, and the funnel.

    `kept` holds the speeches that passed every row's checks; the limit may still leave some of them out.
    """

    def __init__(self, folder: Path, steps: Sequence[str]) -> None:
        """Begin an empty reading whose scratch files lie in `folder`."""
        self.kept = KeptSpeeches(folder / "speeches.texts")
        self.funnel = Funnel(steps)
        self._fates = TextSpool(folder / "speeches.rows")

    def keep(self, speech: Speech, fate: RowFate) -> None:
        """Take a speech in."""
        self.kept.append(speech)
        self.funnel.keep(fate.text_id, fate.changed_by)
        self._fates.append(json.dumps(fate))

    def drop(self, dropped: Dropped, fate: RowFate) -> None:
        """Leave a row out, for its one reason."""
        self.funnel.drop(dropped, fate.text_id, fate.changed_by)
        whole = fate._replace(dropped_by=dropped.step, reason=dropped.reason, detail=dropped.detail)
        self._fates.append(json.dumps(whole))

    def fates(self) -> Iterator[RowFate]:
        """Yield what became of each row."""
        for line in self._fates:
            values = json.loads(line)
            values[RowFate._fields.index("changed_by")] = tuple(values[RowFate._fields.index("changed_by")])
            yield RowFate(*values)

    def close(self) -> None:
        """Remove the scratch files."""
        self.kept.close()
        self._fates.close()


def read_speeches(
    sources: Iterable[SpeechSource], cleaning: CleaningConfig, screens: SpeechScreens, folder: Path
) -> SpeechReading:
    """Read the speeches of all sources.

    Args:
        sources: name, columns and rows of each.
        cleaning: lengths and limits.
        screens: how texts are cleaned and what they must pass.
        folder: for scratch files.

    Raises:
        InputError: a column is missing, a cell holds what no table can, or one key names two speeches.
    """
    reading = SpeechReading(folder, screens.steps)
    try:
        _read_into(reading, sources, cleaning, screens)
    except BaseException:
        reading.close()
        raise
    return reading


def _read_into(
    reading: SpeechReading, sources: Iterable[SpeechSource], cleaning: CleaningConfig, screens: SpeechScreens
) -> None:
    seen: set[int] = set()
    keys: dict[str, str] = {}
    for name, columns, rows in sources:
        ahead, rows_in_order = tee(rows)
        texts = screens.prepared(text_cell(row, columns.text) for row in ahead)
        for row, clean_text in zip(rows_in_order, texts, strict=True):
            raw = text_cell(row, columns.text)
            speech = _speech(clean_text.text, row, columns, name) if clean_text.text else None
            fate = _fate(name, row, columns, raw, speech)._replace(changed_by=clean_text.changed_by)
            _require_one_speech(keys, fate)
            if speech is None:
                _require_empty_may_go(row, cleaning)
                reading.drop(Dropped(NONE_EMPTY, "empty"), fate)
                continue
            dropped = _reason_to_drop(speech, clean_text, seen, cleaning, screens)
            seen.add(int(speech.id, 16))
            if dropped is None:
                reading.keep(speech, fate)
            else:
                reading.drop(dropped, fate)


def _reason_to_drop(
    speech: Speech, text: Prepared, seen: set[int], cleaning: CleaningConfig, screens: SpeechScreens
) -> Dropped | None:
    """Return the first reason; languages and benchmarks are recognised by the words that stood there."""
    if int(speech.id, 16) in seen:
        return Dropped(REPETITION, "repeated_speech")
    if text.foreign is not None:
        return Dropped(LANGUAGE, "other_language", text.foreign)
    shared = None if screens.benchmark is None else screens.benchmark(text.plain)
    if shared is not None:
        return Dropped(EXCLUSION, "shares_span_with_benchmark", shared)
    return _wrong_length(speech.text, cleaning)


def beyond_limit(reading: SpeechReading, limit: int | None) -> frozenset[int]:
    """Return the places of the kept speeches that the limit leaves out, and count them as dropped.

    Hashes of the speeches decide, so that neither the order of the rows nor that of the files does.
    """
    if limit is None or len(reading.kept) <= limit:
        return frozenset()
    ids = [f"{number:016x}" for number in reading.kept.ids.tolist()]
    order = sorted(range(len(ids)), key=lambda at: content_id("limit", ids[at]))
    left_out = frozenset(order[limit:])
    for at in left_out:
        reading.funnel.drop_kept(Dropped(LIMIT, "beyond_max_speeches"), ids[at])
    return left_out


def _require_empty_may_go(row: Row, cleaning: CleaningConfig) -> None:
    if not cleaning.drop_empty:
        raise InputError(
            "the speech is empty", where=row.where, remedy="drop the row or set corpus.cleaning.drop_empty"
        )


def _wrong_length(text: str, cleaning: CleaningConfig) -> Dropped | None:
    if len(text) < cleaning.min_chars:
        return Dropped(LENGTH, "too_short")
    return Dropped(LENGTH, "too_long") if len(text) > cleaning.max_chars else None


def _speech(text: str, row: Row, columns: SpeechColumns, source: str) -> Speech:
    topic = " ".join(text_cell(row, columns.topic).split()) if columns.topic else ""
    crisis = flag_cell(row, columns.crisis) if columns.crisis else mentions_crisis(text)
    return Speech(text, topic, crisis, source)


def _fate(source: str, row: Row, columns: SpeechColumns, raw: str, speech: Speech | None) -> RowFate:
    key = "" if columns.key is None else key_cell(row, columns.key)
    return RowFate(source, row.where, key, raw_digest(raw), "" if speech is None else speech.id)


def raw_digest(raw: str) -> str:
    """Return what a text is known by before it is cleaned; its words cannot be read back from it."""
    return content_id("raw", raw)


def _require_one_speech(keys: dict[str, str], fate: RowFate) -> None:
    if fate.key and keys.setdefault(fate.key, fate.text_id) != fate.text_id:
        raise InputError(
            f"the key {fate.key!r} already names another speech",
            where=fate.where,
            remedy="make keys distinct over all sources, or join responses by speech_text",
        )
