"""Reads rows into clean speeches and responses, and counts what every step changed and dropped.

A million speeches need little memory: their texts and the provenance of their rows are spooled to disk.
"""

import json
import os
import sys
from array import array
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, tee
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from psychocounsel.config.corpus import CleaningConfig
from psychocounsel.config.sources import CandidateColumns, Column, SpeechColumns
from psychocounsel.corpus.cleaning import DEIDENTIFICATION, SPEECH_STEPS, Prepared
from psychocounsel.corpus.crisis import client_mentions_crisis
from psychocounsel.corpus.sources import (
    BadRow,
    SourceRow,
    flag_cell,
    history_cell,
    key_cell,
    name_cell,
    split_cell,
    text_cell,
)
from psychocounsel.errors import InputError
from psychocounsel.store.files import write_faults
from psychocounsel.store.schemas import RowProvenance
from psychocounsel.types import Candidate, Speech, Turn, content_id

# --- Spools --------------------

_BUFFER_BYTES = 1 << 20


class TextSpool:
    """Texts on disk, eight bytes each in memory; the file is never synced, because nothing reads it after a crash."""

    def __init__(self, path: Path) -> None:
        """Start an empty spool; an existing file is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._ends = array("Q", [0])
        self._flushed = 0
        self._file = path.open("w+b", buffering=_BUFFER_BYTES)

    def append(self, text: str) -> None:
        """Add one text; raises IncompleteError if the disk is full."""
        content = text.encode("utf-8")
        with write_faults(self._path):
            self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> str:
        self._flush()
        start, end = self._ends[at], self._ends[at + 1]
        return os.pread(self._file.fileno(), end - start, start).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        self._flush()
        with self._path.open("rb", buffering=_BUFFER_BYTES) as stream:
            for at in range(len(self)):
                yield stream.read(self._ends[at + 1] - self._ends[at]).decode("utf-8")

    def _flush(self) -> None:
        if self._flushed < len(self):
            with write_faults(self._path):
                self._file.flush()
            self._flushed = len(self)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class SpooledSpeeches:
    """Speeches in the order of their rows; everything but their texts, which are on disk, is held in memory."""

    def __init__(self, scratch: Path) -> None:
        self.texts = TextSpool(scratch)
        self.topics: list[str] = []
        self.fine_topics: list[str] = []
        self.crisis = bytearray()
        self.sources: list[str] = []
        self.splits: list[str] = []
        self.conversations: list[str] = []
        self._histories = TextSpool(scratch.with_suffix(".histories"))
        self._history_at: dict[int, int] = {}
        self._ids = array("Q")

    def append(self, speech: Speech, split: str = "", conversation: str = "") -> None:
        """Add a speech at the end; `split` and `conversation` are those that its source gives, if it gives them."""
        if speech.history:
            self._history_at[len(self)] = len(self._histories)
            self._histories.append(json.dumps(speech.history))
        self.texts.append(speech.text)
        self.topics.append(sys.intern(speech.topic))
        self.fine_topics.append(sys.intern(speech.fine_topic))
        self.crisis.append(speech.crisis)
        self.sources.append(speech.source)
        self.splits.append(sys.intern(split))
        self.conversations.append(sys.intern(conversation))
        self._ids.append(int(speech.id, 16))

    @property
    def ids(self) -> NDArray[np.uint64]:
        """[speeches]; the ids as numbers."""
        return np.array(self._ids, dtype=np.uint64)

    @property
    def in_sessions(self) -> bool:
        """Whether some of them are turns of a longer conversation."""
        return bool(self._history_at) or any(self.conversations)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Speech]:
        for at, text in enumerate(self.texts):
            about = (self.topics[at], bool(self.crisis[at]), self.sources[at], self.fine_topics[at])
            yield Speech(text, *about, self._history(at))

    def _history(self, at: int) -> tuple[Turn, ...]:
        if at not in self._history_at:
            return ()
        return tuple(Turn(*each) for each in json.loads(self._histories[self._history_at[at]]))

    def close(self) -> None:
        """Remove the scratch files."""
        self.texts.close()
        self._histories.close()


# --- The funnel --------------------

_EXAMPLES = 3


class Dropped(NamedTuple):
    """Why a row was dropped, and by which step; `detail` names what was found, such as a benchmark."""

    step: str
    reason: str
    detail: str = ""


@dataclass
class _FunnelStep:
    """Counts of one step, and example ids of texts that it changed or dropped, the smallest ids of all rows."""

    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add_example(self, what: str, text_id: str) -> None:
        shown = self.examples.setdefault(what, [])
        if text_id and text_id not in shown:
            insort(shown, text_id)
            del shown[_EXAMPLES:]


class Funnel:
    """The steps of a reading in order; a row enters a step if all steps before it let it pass."""

    def __init__(self, steps: Sequence[str]) -> None:
        self._steps = {name: _FunnelStep() for name in steps}
        self.rows_in = 0

    def keep(self, text_id: str, changed_by: Iterable[str] = ()) -> None:
        """Count a row that passed every step."""
        self.rows_in += 1
        for name in changed_by:
            step = self._steps[name]
            step.changed += 1
            step.add_example("changed", text_id)

    def drop(self, dropped: Dropped, text_id: str = "", changed_by: Iterable[str] = ()) -> None:
        """Count a row that a step dropped; earlier steps may have changed it."""
        self.keep(text_id, changed_by)
        self.drop_kept(dropped, text_id)

    def drop_kept(self, dropped: Dropped, text_id: str) -> None:
        """Drop a row that was counted as kept."""
        step = self._steps[dropped.step]
        step.dropped[dropped.reason] += 1
        step.add_example(dropped.reason, text_id)

    @property
    def dropped(self) -> Counter[str]:
        """Rows by the reason for which they were dropped."""
        return sum((step.dropped for step in self._steps.values()), Counter[str]())

    @property
    def kept(self) -> int:
        """Rows that passed every step."""
        return self.rows_in - self.dropped.total()

    def as_dict(self) -> dict[str, Any]:
        """Return the funnel as in `metrics.json`: the whole, then step by step."""
        steps: list[dict[str, Any]] = []
        rows = self.rows_in
        for name, step in self._steps.items():
            left = rows - step.dropped.total()
            counts = {"rows_in": rows, "rows_out": left, "changed": step.changed}
            dropped = dict(sorted(step.dropped.items()))
            steps.append({"step": name, **counts, "dropped": dropped, "examples": step.examples})
            rows = left
        return {"rows_in": self.rows_in, "kept": rows, "dropped": dict(sorted(self.dropped.items())), "steps": steps}


class RowLog:
    """Counts the rows of a reading and spools the provenance of each."""

    def __init__(self, scratch: Path, steps: Sequence[str]) -> None:
        self.funnel = Funnel(steps)
        self._spool = TextSpool(scratch)

    def keep(self, row: RowProvenance) -> None:
        """Record a row that was kept."""
        self.funnel.keep(row.text_id, row.changed_by)
        self._spool.append(json.dumps(row._asdict()))

    def drop(self, row: RowProvenance, dropped: Dropped) -> None:
        """Record a row that was dropped, with its reason."""
        self.funnel.drop(dropped, row.text_id, row.changed_by)
        self._spool.append(json.dumps(_with_reason(row, dropped)._asdict()))

    def __iter__(self) -> Iterator[RowProvenance]:
        for line in self._spool:
            row = RowProvenance(**json.loads(line))
            yield row._replace(changed_by=tuple(row.changed_by))

    def close(self) -> None:
        """Remove the scratch file."""
        self._spool.close()


def _with_reason(row: RowProvenance, dropped: Dropped) -> RowProvenance:
    return row._replace(dropped_by=dropped.step, reason=dropped.reason, detail=dropped.detail)


def raw_digest(raw: str, history: Iterable[Turn] = ()) -> str:
    """Return what identifies a text before cleaning, and the turns before it; words cannot be read back from it."""
    return content_id("raw", raw, *chain.from_iterable(history))


# --- Speeches --------------------

BAD_ROW = "readable"
NONE_EMPTY = "none_empty"
REPETITION = "repetition"
_BEYOND_LIMIT = Dropped("limit", "beyond_max_speeches")
SPEECH_FUNNEL = (
    *(BAD_ROW, NONE_EMPTY, *(step.name for step in SPEECH_STEPS), DEIDENTIFICATION, REPETITION),
    *("language", "exclusion", "length", _BEYOND_LIMIT.step),
)

PrepareAll = Callable[[Iterable[str]], Iterator[Prepared]]


class SpeechRows(NamedTuple):
    """Name, columns and rows of a source; a row with a cell that cannot be read is an error, unless it is dropped.

    `path` tells its conversations from those of a source with the same name.
    """

    name: str
    columns: SpeechColumns
    rows: Iterable[SourceRow | BadRow]
    split_column: Column | None = None
    drops_bad_rows: bool = False
    path: str = ""


class SpeechCells(NamedTuple):
    """What a row says of a speech: its text, topic, whether it speaks of a crisis (None: not said), key and split.

    `history` are the turns before it, and `conversation` names the one that all of them are of.
    """

    where: str
    text: str
    topic: str
    crisis: bool | None
    key: str
    split: str
    history: tuple[Turn, ...] = ()
    conversation: str = ""


T = TypeVar("T")


def _cells(
    rows: Iterable[SourceRow | BadRow], read: Callable[[SourceRow], T], drops_bad_rows: bool
) -> Iterator[T | BadRow]:
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            yield read(row)
        except InputError as fault:
            if not drops_bad_rows:
                raise
            yield BadRow(row.where, fault.what)


def raw_cells(rows: Iterable["SpeechCells | CandidateCells | BadRow"]) -> Iterator[str]:
    """Yield the text of each row before cleaning, empty for a bad one."""
    return ("" if isinstance(row, BadRow) else row.text for row in rows)


def speech_cells(source: SpeechRows) -> Iterator[SpeechCells | BadRow]:
    """Yield what the rows of a source say; raises InputError for a bad cell, unless such rows are dropped."""
    columns, split = source.columns, source.split_column

    def read(row: SourceRow) -> SpeechCells:
        return SpeechCells(
            row.where,
            text_cell(row, columns.text),
            " ".join(text_cell(row, columns.topic).split()) if columns.topic else "",
            flag_cell(row, columns.crisis) if columns.crisis else None,
            key_cell(row, columns.key) if columns.key else "",
            split_cell(row, split) if split else "",
            history_cell(row, columns.history) if columns.history else (),
            key_cell(row, columns.conversation) if columns.conversation else row.conversation,
        )

    return _cells(source.rows, read, source.drops_bad_rows)


def _bad(name: str, row: BadRow) -> tuple[RowProvenance, Dropped]:
    return RowProvenance(name, row.where, "", "", ""), Dropped(BAD_ROW, "bad_row", row.fault)


class SpeechFilters(NamedTuple):
    """What is done to the texts of speeches.

    `benchmark` returns the benchmark with which a raw turn before a speech, or its clean text, shares a span.

    `in_session` does it to the turns before a speech, and returns the speech with the placeholders of all of them.
    """

    prepare_all: PrepareAll
    benchmark: Callable[[Sequence[Turn], str], str | None] = lambda turns, text: None
    in_session: Callable[[Sequence[Turn], Prepared], tuple[tuple[Turn, ...], Prepared]] = lambda turns, text: (
        tuple(turns),
        text,
    )


class SpeechReading:
    """The distinct speeches that were kept, and the log of all rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.speeches = SpooledSpeeches(folder / "speeches.texts")
        self.log = RowLog(folder / "speeches.rows", SPEECH_FUNNEL)
        self._beyond_limit: frozenset[int] = frozenset()

    def limit_to(self, count: int) -> None:
        """Drop all speeches but `count`; hashes decide, so the order of rows and files does not matter."""
        ids = [f"{number:016x}" for number in self.speeches.ids.tolist()]
        order = sorted(range(len(ids)), key=lambda at: content_id("limit", ids[at]))
        self._beyond_limit = frozenset(order[count:])
        kept = SpooledSpeeches(self._folder / "limited.texts")
        for at, speech in enumerate(self.speeches):
            if at in self._beyond_limit:
                self.log.funnel.drop_kept(_BEYOND_LIMIT, ids[at])
            else:
                kept.append(speech, self.speeches.splits[at], self.speeches.conversations[at])
        self.speeches.close()
        self.speeches = kept

    def rows(self) -> Iterator[RowProvenance]:
        """Yield the provenance of each row."""
        place = 0
        for row in self.log:
            is_beyond = not row.reason and place in self._beyond_limit
            place += not row.reason
            yield _with_reason(row, _BEYOND_LIMIT) if is_beyond else row

    def close(self) -> None:
        """Remove the scratch files."""
        self.speeches.close()
        self.log.close()


def read_speeches(
    sources: Iterable[SpeechRows], cleaning: CleaningConfig, filters: SpeechFilters, folder: Path
) -> SpeechReading:
    """Read the speeches of all sources, with scratch files in `folder`; the caller closes the result.

    Raises InputError if a column is missing, a cell holds what Parquet cannot, or one key names two speeches.
    """
    reading = SpeechReading(folder)
    try:
        _read_into(reading, sources, cleaning, filters)
        if cleaning.max_speeches is not None and len(reading.speeches) > cleaning.max_speeches:
            reading.limit_to(cleaning.max_speeches)
    except BaseException:
        reading.close()
        raise
    return reading


def _read_into(
    reading: SpeechReading, sources: Iterable[SpeechRows], cleaning: CleaningConfig, filters: SpeechFilters
) -> None:
    seen: set[int] = set()
    text_of_key: dict[str, str] = {}
    for source in sources:
        name = source.name
        ahead, rows_in_order = tee(speech_cells(source))
        texts = filters.prepare_all(raw_cells(ahead))
        for row, text in zip(rows_in_order, texts, strict=True):
            if isinstance(row, BadRow):
                reading.log.drop(*_bad(name, row))
                continue
            speech, history = None, ()
            if row.history:
                history, text = filters.in_session(row.history, text)
            if text.text:
                said = (*history, Turn("user", text.text))
                crisis = client_mentions_crisis(said) if row.crisis is None else row.crisis
                speech = Speech(text.text, row.topic, crisis, name, history=history)
            key, text_id = row.key, "" if speech is None else speech.id
            digest = raw_digest(row.text, row.history)
            provenance = RowProvenance(name, row.where, key, digest, text_id, text.changed_by)
            if key and text_of_key.setdefault(key, text_id) != text_id:
                raise InputError(
                    f"the key {key!r} already names another speech",
                    where=row.where,
                    remedy="make keys distinct over all sources, as [{constant: NAME}, KEY] does, or join responses by "
                    "speech_text",
                )
            if speech is None:
                if not (cleaning.drop_empty or source.drops_bad_rows):
                    remedy = "drop the row, or set drop_empty: true under cleaning"
                    raise InputError("the speech is empty", where=row.where, remedy=remedy)
                reading.log.drop(provenance, Dropped(NONE_EMPTY, "empty"))
                continue
            dropped = _reason_to_drop(speech, row.history, text, seen, cleaning, filters)
            seen.add(int(speech.id, 16))
            if dropped is None:
                reading.speeches.append(speech, row.split, row.conversation and f"{source.path} {row.conversation}")
                reading.log.keep(provenance)
            else:
                reading.log.drop(provenance, dropped)


def _reason_to_drop(
    speech: Speech,
    before: Sequence[Turn],
    text: Prepared,
    seen: set[int],
    cleaning: CleaningConfig,
    filters: SpeechFilters,
) -> Dropped | None:
    if int(speech.id, 16) in seen:
        return Dropped(REPETITION, "repeated_speech")
    if text.foreign is not None:
        return Dropped("language", "other_language", text.foreign)
    if (shared := filters.benchmark(before, text.plain)) is not None:
        return Dropped("exclusion", "shares_span_with_benchmark", shared)
    if len(speech.text) < cleaning.min_chars:
        return Dropped("length", "too_short")
    return Dropped("length", "too_long") if len(speech.text) > cleaning.max_chars else None


# --- Responses --------------------


class CandidateRows(NamedTuple):
    """Name, columns and rows of a source; a row with a cell that cannot be read is an error, unless it is dropped."""

    name: str
    columns: CandidateColumns
    rows: Iterable[SourceRow | BadRow]
    drops_bad_rows: bool = False


class CandidateCells(NamedTuple):
    """What a row says of a response; the speech is given by its text and the turns before it, or its key."""

    where: str
    text: str
    author: str
    speech_text: str
    speech_key: str
    speech_history: tuple[Turn, ...] = ()


def candidate_cells(source: CandidateRows) -> Iterator[CandidateCells | BadRow]:
    """Yield what the rows of a source say; raises InputError for a bad cell, unless such rows are dropped."""
    columns = source.columns

    def read(row: SourceRow) -> CandidateCells:
        text = text_cell(row, columns.text, "assistant")
        return CandidateCells(
            row.where,
            text,
            name_cell(row, columns.author) if text else "",
            text_cell(row, columns.speech_text) if columns.speech_text else "",
            key_cell(row, columns.speech_key) if columns.speech_key else "",
            history_cell(row, columns.speech_history) if columns.speech_history else (),
        )

    return _cells(source.rows, read, source.drops_bad_rows)


class SpeechIndex:
    """The id of the speech that a key or the digest of a raw text names, and whether it was kept."""

    def __init__(self, rows: Iterable[RowProvenance]) -> None:
        self.by_key: dict[str, str] = {}
        self.by_raw: dict[str, str] = {}
        self._is_kept: dict[str, bool] = {}
        for row in rows:
            if row.key:
                self.by_key[row.key] = row.text_id
            self.by_raw[row.raw_digest] = row.text_id
            self._is_kept[row.text_id] = self._is_kept.get(row.text_id, False) or not row.reason

    def fault(self, speech_id: str) -> Dropped | None:
        """Return why a response to this speech has to be dropped, None if the speech was kept."""
        is_kept = self._is_kept.get(speech_id)
        if is_kept:
            return None
        return Dropped("join", "no_such_speech" if is_kept is None else "its_speech_was_dropped")


class ResponseFilters(NamedTuple):
    """How responses are read.

    Names of the cleaning steps, how to clean, the clean text of a raw speech, the author's name to publish, and, with
    de-identification, the text to keep of a response given its speech's id and what it was before cleaning.
    """

    steps: Sequence[str]
    prepare_all: PrepareAll
    speech_text: Callable[[str], str]
    author: Callable[[str], str] = str
    joined: Callable[[str, str, Prepared], str] = lambda speech_id, raw, prepared: prepared.text


def read_candidates(
    sources: Iterable[CandidateRows], index: SpeechIndex, filters: ResponseFilters, folder: Path
) -> tuple[list[Candidate], RowLog]:
    """Return the distinct responses to the speeches that were kept, and the log of all rows, which the caller closes.

    Raises InputError if a column is missing, or a cell holds what Parquet cannot.
    """
    steps = (BAD_ROW, NONE_EMPTY, *filters.steps, DEIDENTIFICATION, "remainder", REPETITION, "join")
    log = RowLog(folder / "candidates.rows", steps)
    try:
        return list(_read_responses(sources, index, filters, log)), log
    except BaseException:
        log.close()
        raise


def _read_responses(
    sources: Iterable[CandidateRows], index: SpeechIndex, filters: ResponseFilters, log: RowLog
) -> Iterator[Candidate]:
    seen: set[tuple[str, str]] = set()
    for source in sources:
        name = source.name
        ahead, rows_in_order = tee(candidate_cells(source))
        texts = filters.prepare_all(raw_cells(ahead))
        for row, text in zip(rows_in_order, texts, strict=True):
            if isinstance(row, BadRow):
                log.drop(*_bad(name, row))
                continue
            key, speech_id = row.speech_key, _speech_of(row, index, filters)
            provenance = RowProvenance(name, row.where, key, raw_digest(row.text), "", text.changed_by)
            if not row.text:
                log.drop(provenance, Dropped(NONE_EMPTY, "empty"))
                continue
            if not text.text:
                log.drop(provenance, Dropped("remainder", "nothing_left_after_cleaning"))
                continue
            written = filters.joined(speech_id, row.text, text)
            candidate = Candidate(speech_id, filters.author(row.author), written)
            provenance = provenance._replace(text_id=candidate.id)
            is_repeated = (speech_id, candidate.text) in seen
            seen.add((speech_id, candidate.text))
            dropped = Dropped(REPETITION, "repeated_text") if is_repeated else index.fault(speech_id)
            if dropped is None:
                log.keep(provenance)
                yield candidate
            else:
                log.drop(provenance, dropped)


def _speech_of(row: CandidateCells, index: SpeechIndex, filters: ResponseFilters) -> str:
    """Return the id of the speech that a row answers."""
    if row.speech_key:
        return index.by_key.get(row.speech_key, f"unknown {row.speech_key}")
    if (known := index.by_raw.get(raw_digest(row.speech_text, row.speech_history))) is not None:
        return known
    text = filters.speech_text(row.speech_text) if row.speech_text and not row.speech_history else ""
    return Speech(text).id if text else ""
