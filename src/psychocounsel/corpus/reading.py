"""Rows in -> rows out: what every step of a reading changed and dropped, counted to the last row."""

import json
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from psychocounsel.config.schema import CandidateColumns, CleaningConfig, SpeechColumns
from psychocounsel.corpus.cleaning import DEIDENTIFICATION, Prepared, Step, clean, prepare
from psychocounsel.corpus.contacts import mentions_crisis
from psychocounsel.corpus.parallel import KeptSpeeches, TextSpool
from psychocounsel.corpus.sources import Row, flag_cell, key_cell, name_cell, text_cell
from psychocounsel.errors import InputError
from psychocounsel.store.schemas import RowProvenance
from psychocounsel.types import Candidate, Speech, content_id

EXAMPLES = 3


class Dropped(NamedTuple):
    """The one reason for which a row was dropped, and the step that found it; `detail` names what it met."""

    step: str
    reason: str
    detail: str = ""


@dataclass
class FunnelStep:
    """Counts of one step, and the ids of a few texts it touched.

    The examples are those with the smallest ids, so that the order of the rows does not choose them.
    """

    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def show(self, what: str, text_id: str) -> None:
        """Remember the id as an example of what happened, where it is among the smallest."""
        shown = self.examples.setdefault(what, [])
        if not text_id or text_id in shown or (len(shown) == EXAMPLES and text_id > shown[-1]):
            return
        insort(shown, text_id)
        del shown[EXAMPLES:]


class Funnel:
    """A reading's steps in order; the rows that enter one are those that the steps before it let pass."""

    def __init__(self, steps: Sequence[str]) -> None:
        self._steps = {name: FunnelStep() for name in steps}
        self._rows_in = 0

    def keep(self, text_id: str, changed_by: Iterable[str] = ()) -> None:
        """Count one row that passed every step."""
        self._rows_in += 1
        self._change(text_id, changed_by)

    def drop(self, dropped: Dropped, text_id: str = "", changed_by: Iterable[str] = ()) -> None:
        """Count one row that a step dropped; it may have been changed on the way there."""
        self._rows_in += 1
        self._change(text_id, changed_by)
        step = self._steps[dropped.step]
        step.dropped[dropped.reason] += 1
        step.show(dropped.reason, text_id)

    def drop_kept(self, dropped: Dropped, text_id: str) -> None:
        """Take back a row that was counted as kept: only all rows together could tell."""
        step = self._steps[dropped.step]
        step.dropped[dropped.reason] += 1
        step.show(dropped.reason, text_id)

    def _change(self, text_id: str, changed_by: Iterable[str]) -> None:
        for name in changed_by:
            step = self._steps[name]
            step.changed += 1
            step.show("changed", text_id)

    @property
    def rows_in(self) -> int:
        """Every row that was read."""
        return self._rows_in

    @property
    def dropped(self) -> Counter[str]:
        """Rows by the reason for which they were dropped."""
        return sum((step.dropped for step in self._steps.values()), Counter[str]())

    @property
    def kept(self) -> int:
        """Rows that passed every step."""
        return self._rows_in - self.dropped.total()

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in which `metrics.json` holds a funnel: the whole, then step by step."""
        steps: list[dict[str, Any]] = []
        rows = self._rows_in
        for name, step in self._steps.items():
            left = rows - step.dropped.total()
            steps.append(
                {
                    "step": name,
                    "rows_in": rows,
                    "rows_out": left,
                    "changed": step.changed,
                    "dropped": dict(sorted(step.dropped.items())),
                    "examples": step.examples,
                }
            )
            rows = left
        dropped = dict(sorted(self.dropped.items()))
        return {"rows_in": self._rows_in, "kept": rows, "dropped": dropped, "steps": steps}


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
        deidentify: text -> text with placeholders.
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

    def keep(self, speech: Speech, fate: RowProvenance) -> None:
        """Take a speech in."""
        self.kept.append(speech)
        self.funnel.keep(fate.text_id, fate.changed_by)
        self._fates.append(json.dumps(fate))

    def drop(self, dropped: Dropped, fate: RowProvenance) -> None:
        """Leave a row out, for its one reason."""
        self.funnel.drop(dropped, fate.text_id, fate.changed_by)
        whole = fate._replace(dropped_by=dropped.step, reason=dropped.reason, detail=dropped.detail)
        self._fates.append(json.dumps(whole))

    def fates(self) -> Iterator[RowProvenance]:
        """Yield what became of each row."""
        for line in self._fates:
            values = json.loads(line)
            values[RowProvenance._fields.index("changed_by")] = tuple(values[RowProvenance._fields.index("changed_by")])
            yield RowProvenance(*values)

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


def _fate(source: str, row: Row, columns: SpeechColumns, raw: str, speech: Speech | None) -> RowProvenance:
    key = "" if columns.key is None else key_cell(row, columns.key)
    return RowProvenance(source, row.where, key, raw_digest(raw), "" if speech is None else speech.id)


def raw_digest(raw: str) -> str:
    """Return what a text is known by before it is cleaned; its words cannot be read back from it."""
    return content_id("raw", raw)


def _require_one_speech(keys: dict[str, str], fate: RowProvenance) -> None:
    if fate.key and keys.setdefault(fate.key, fate.text_id) != fate.text_id:
        raise InputError(
            f"the key {fate.key!r} already names another speech",
            where=fate.where,
            remedy="make keys distinct over all sources, or join responses by speech_text",
        )


JOIN = "join"
REMAINDER = "remainder"

CandidateSource = tuple[str, CandidateColumns, Iterable[Row]]
"""Name, columns and rows of one source."""


class SpeechIndex:
    """Which speech a key or a text names, and whether it was kept: from the rows of a corpus's speeches."""

    def __init__(self, fates: Iterable[RowProvenance]) -> None:
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
        deidentify: text -> text with placeholders.
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
    fates: list[RowProvenance]
    funnel: Funnel

    def keep(self, candidate: Candidate, fate: RowProvenance) -> None:
        """Take a response in."""
        self.candidates.append(candidate)
        self.funnel.keep(fate.text_id, fate.changed_by)
        self.fates.append(fate)

    def drop(self, dropped: Dropped, fate: RowProvenance) -> None:
        """Leave a row out, for its one reason."""
        self.funnel.drop(dropped, fate.text_id, fate.changed_by)
        self.fates.append(fate._replace(dropped_by=dropped.step, reason=dropped.reason, detail=dropped.detail))


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


def _reason_to_drop_candidate(candidate: Candidate, seen: set[tuple[str, str]], index: SpeechIndex) -> Dropped | None:
    if (candidate.speech_id, candidate.text) in seen:
        return Dropped(REPETITION, "repeated_text")
    return index.fault(candidate.speech_id)


def _read(
    found: tuple[str, CandidateColumns, Row], text: Prepared, index: SpeechIndex, screens: CandidateScreens
) -> tuple[RowProvenance, Candidate | Dropped]:
    source, columns, row = found
    key, speech_id = _speech_id(row, columns, index, screens)
    raw = text_cell(row, columns.text)
    fate = RowProvenance(source, row.where, key, raw_digest(raw), "")
    if not raw:
        return fate, Dropped(NONE_EMPTY, "empty")
    fate = fate._replace(changed_by=text.changed_by)
    if not text.text:
        return fate, Dropped(REMAINDER, "nothing_left_after_cleaning")
    candidate = Candidate(speech_id, screens.author(name_cell(row, columns.author)), text.text)
    return fate._replace(text_id=candidate.id), candidate


def _speech_id(row: Row, columns: CandidateColumns, index: SpeechIndex, screens: CandidateScreens) -> tuple[str, str]:
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
