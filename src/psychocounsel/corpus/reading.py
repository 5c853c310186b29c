"""Reads rows into clean speeches and responses, and counts what every step changed and dropped.

A million speeches need little memory: their texts are spooled to disk.
"""

import json
import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, tee
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from psychocounsel.config.sources import CandidateSource, SpeechSource
from psychocounsel.corpus.cleaning import DEIDENTIFICATION, SPEECH_STEPS, Prepared
from psychocounsel.corpus.crisis import client_mentions_crisis
from psychocounsel.corpus.formats import BadRow, SourceRow
from psychocounsel.corpus.preparation import Cleaner
from psychocounsel.corpus.sources import (
    asked_cell,
    flag_cell,
    label_cell,
    name_cell,
    read_cells,
    read_source,
    source_name,
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
    """Texts in an unnamed file in `folder`, which ends with the process; eight bytes each are in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = array("Q", [0])
        self._flushed = 0
        self._file = TemporaryFile(buffering=_BUFFER_BYTES, dir=folder)  # noqa: SIM115 - closed with the spool
        finalize(self, _close, self._file)

    def append(self, text: str) -> None:
        """Add one text; raises IncompleteError if the disk is full."""
        content = text.encode("utf-8")
        with write_faults(self._folder):
            self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> str:
        if self._flushed < len(self):
            with write_faults(self._folder):
                self._file.flush()
            self._flushed = len(self)
        start, end = self._ends[at], self._ends[at + 1]
        return os.pread(self._file.fileno(), end - start, start).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def _close(file: IO[bytes]) -> None:
    """Close a spool; that a full disk refuses the rest of it was said when it was written."""
    with suppress(OSError):
        file.close()


class SpooledSpeeches:
    """Speeches in the order of their rows; everything but what is said is held in memory."""

    def __init__(self, folder: Path) -> None:
        self.texts, self._histories = TextSpool(folder), TextSpool(folder)
        self.topics: list[str] = []
        self.fine_topics: list[str] = []
        self.crisis = bytearray()
        self.sources: list[str] = []
        self.splits: list[str] = []
        self.conversations: list[str] = []
        self.in_sessions = False
        """Whether some of them are turns of a longer conversation."""
        self._ids = array("Q")

    def append(self, speech: Speech, split: str = "", conversation: str = "") -> None:
        """Add a speech at the end; `split` and `conversation` are those that its source gives, if it gives them."""
        self.texts.append(speech.text)
        self._histories.append(json.dumps(speech.history) if speech.history else "")
        self.topics.append(sys.intern(speech.topic))
        self.fine_topics.append(sys.intern(speech.fine_topic))
        self.crisis.append(speech.crisis)
        self.sources.append(speech.source)
        self.splits.append(sys.intern(split))
        self.conversations.append(sys.intern(conversation))
        self.in_sessions = self.in_sessions or bool(speech.history or conversation)
        self._ids.append(int(speech.id, 16))

    @property
    def ids(self) -> NDArray[np.uint64]:
        """[speeches]; the ids as numbers."""
        return np.array(self._ids, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Speech]:
        for at, (text, said) in enumerate(zip(self.texts, self._histories, strict=True)):
            history = tuple(Turn(*each) for each in json.loads(said)) if said else ()
            about = (self.topics[at], bool(self.crisis[at]), self.sources[at], self.fine_topics[at])
            yield Speech(text, *about, history)

    def limited_to(self, count: int, folder: Path) -> "tuple[SpooledSpeeches, frozenset[int]]":
        """Return `count` of the speeches and the places of the others; hashes decide, not the order of the rows."""
        ids = [f"{number:016x}" for number in self._ids]
        beyond = frozenset(sorted(range(len(ids)), key=lambda at: content_id("limit", ids[at]))[count:])
        kept = SpooledSpeeches(folder)
        for at, speech in enumerate(self):
            if at not in beyond:
                kept.append(speech, self.splits[at], self.conversations[at])
        return kept, beyond


# --- The funnel --------------------


class Dropped(NamedTuple):
    """Why a row was dropped, and by which step; `detail` names what was found, such as a benchmark."""

    step: str
    reason: str
    detail: str = ""

    def mark(self, row: RowProvenance) -> RowProvenance:
        """Return the row as dropped for this."""
        return row._replace(dropped_by=self.step, reason=self.reason, detail=self.detail)


class Funnel:
    """The steps of a reading in order; a row enters a step if all steps before it let it pass."""

    def __init__(self, steps: Sequence[str]) -> None:
        self.rows_in = 0
        self._changed = dict.fromkeys(steps, 0)
        self._dropped = {name: Counter[str]() for name in steps}

    def counting(self, rows: Iterable[RowProvenance]) -> Iterator[RowProvenance]:
        """Yield rows, each counted."""
        for row in rows:
            self.count(Dropped(row.dropped_by, row.reason) if row.reason else None, row.changed_by)
            yield row

    def count(self, dropped: Dropped | None = None, changed_by: Iterable[str] = ()) -> None:
        """Count a row: one that passed every step, or the one that dropped it; earlier steps may have changed it."""
        self.rows_in += 1
        for name in changed_by:
            self._changed[name] += 1
        if dropped is not None:
            self._dropped[dropped.step][dropped.reason] += 1

    @property
    def dropped(self) -> Counter[str]:
        """Rows by the reason for which they were dropped."""
        return sum(self._dropped.values(), Counter[str]())

    def as_dict(self) -> dict[str, Any]:
        """Return the funnel as in `metrics.json`: the whole, then step by step."""
        steps: list[dict[str, Any]] = []
        rows = self.rows_in
        for name, dropped in self._dropped.items():
            left = rows - dropped.total()
            counts = {"rows_in": rows, "rows_out": left, "changed": self._changed[name]}
            steps.append({"step": name, **counts, "dropped": dict(sorted(dropped.items()))})
            rows = left
        return {"rows_in": self.rows_in, "kept": rows, "dropped": dict(sorted(self.dropped.items())), "steps": steps}


def raw_digest(raw: str, history: Iterable[Turn] = ()) -> str:
    """Return what identifies a text before cleaning, and the turns before it; words cannot be read back from it."""
    return content_id("raw", raw, *chain.from_iterable(history))


# --- Speeches --------------------

BAD_ROW = "readable"
NONE_EMPTY = "none_empty"
REPETITION = "repetition"
_EMPTY = Dropped(NONE_EMPTY, "empty")
_REPEATED = Dropped(REPETITION, "repeated_speech")
_BEYOND_LIMIT = Dropped("limit", "beyond_max_speeches")
SPEECH_FUNNEL = (
    *(BAD_ROW, NONE_EMPTY, *SPEECH_STEPS, DEIDENTIFICATION, REPETITION),
    *("language", "exclusion", "length", _BEYOND_LIMIT.step),
)


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


def speech_cells(source: SpeechSource) -> Iterator[SpeechCells | BadRow]:
    """Yield what the rows of a source say; raises InputError for a bad cell, unless such rows are dropped."""
    columns, split = source.columns, source.split_column

    def read(row: SourceRow) -> SpeechCells:
        text, history = asked_cell(row, columns.text, columns.history)
        return SpeechCells(
            row.where,
            text,
            label_cell(row, columns.topic) if columns.topic else "",
            flag_cell(row, columns.crisis) if columns.crisis else None,
            name_cell(row, columns.key) if columns.key else "",
            split_cell(row, split) if split else "",
            history,
            name_cell(row, columns.conversation) if columns.conversation else row.conversation,
        )

    return read_cells(read_source(source), read, source.on_bad_row)


def raw_cells(rows: Iterable["SpeechCells | CandidateCells | BadRow"]) -> Iterator[str]:
    """Yield the text of each row before cleaning, empty for a bad one."""
    return ("" if isinstance(row, BadRow) else row.text for row in rows)


def _bad(name: str, row: BadRow) -> RowProvenance:
    return Dropped(BAD_ROW, "bad_row", row.error.what).mark(RowProvenance(name, row.where, "", "", ""))


def read_speeches(cleaner: Cleaner, speeches: SpooledSpeeches) -> Iterator[RowProvenance]:
    """Yield what becomes of each row of a corpus's sources, and add the distinct speeches that are kept.

    Raises InputError if a column is missing, a cell holds what Parquet cannot, or one key names two speeches.
    """
    seen: set[int] = set()
    id_of_key: dict[str, int] = {}  # numbers that `seen` has anyway: a million ids as text take 60 MB
    for source in cleaner.config.speeches:
        name = source_name(source.path)
        ahead, rows = tee(speech_cells(source))
        for row, text in zip(rows, cleaner.prepare_all(raw_cells(ahead)), strict=True):
            if isinstance(row, BadRow):
                yield _bad(name, row)
                continue
            speech, history = None, ()
            if row.history:
                history, text = cleaner.in_session(row.history, text)
            if text.text:
                said = (*history, Turn("user", text.text))
                crisis = client_mentions_crisis(said) if row.crisis is None else row.crisis
                speech = Speech(text.text, row.topic, crisis, name, history=history)
            key, text_id = row.key, "" if speech is None else speech.id
            number = int(text_id or "0", 16)
            digest = raw_digest(row.text, row.history)
            provenance = RowProvenance(name, row.where, key, digest, text_id, text.changed_by)
            if key and id_of_key.setdefault(key, number) != number:
                raise InputError(
                    f"the key {key!r} already names another speech",
                    where=row.where,
                    remedy="make keys distinct over all sources, as [{constant: NAME}, KEY] does, or join responses by "
                    "speech_text",
                )
            if speech is not None:
                is_repeated = number in seen
                seen.add(number)
                dropped = _REPEATED if is_repeated else _reason_to_drop(speech, row.history, text, cleaner)
            elif cleaner.config.cleaning.drop_empty or source.on_bad_row == "drop":
                dropped = _EMPTY
            else:
                remedy = "drop the row, or set drop_empty: true under cleaning; if it has a text, correct columns.text"
                raise InputError("the speech is empty", where=row.where, remedy=remedy)
            if speech is not None and dropped is None:
                # Its path tells a conversation from those of a source with the same name.
                speeches.append(speech, row.split, row.conversation and f"{source.path} {row.conversation}")
            yield provenance if dropped is None else dropped.mark(provenance)


def _reason_to_drop(speech: Speech, before: Sequence[Turn], text: Prepared, cleaner: Cleaner) -> Dropped | None:
    if text.is_foreign:
        return Dropped("language", "other_language", f"not {' or '.join(cleaner.config.cleaning.languages)}")
    if (shared := cleaner.benchmark(before, text.plain)) is not None:
        return Dropped("exclusion", "shares_span_with_benchmark", shared)
    if len(speech.text) < cleaner.config.cleaning.min_chars:
        return Dropped("length", "too_short")
    return Dropped("length", "too_long") if len(speech.text) > cleaner.config.cleaning.max_chars else None


def rows_within_limit(rows: Iterable[RowProvenance], beyond: frozenset[int]) -> Iterator[RowProvenance]:
    """Yield rows; of those that were kept, the ones at the places `beyond` are dropped after all."""
    place = 0
    for row in rows:
        yield _BEYOND_LIMIT.mark(row) if not row.reason and place in beyond else row
        place += not row.reason


# --- Responses --------------------


class CandidateCells(NamedTuple):
    """What a row says of a response; the speech is given by its text and the turns before it, or its key."""

    where: str
    text: str
    author: str
    speech_text: str
    speech_key: str
    speech_history: tuple[Turn, ...] = ()


def candidate_cells(source: CandidateSource) -> Iterator[CandidateCells | BadRow]:
    """Yield what the rows of a source say; raises InputError for a bad cell, unless such rows are dropped."""
    columns = source.columns

    def read(row: SourceRow) -> CandidateCells:
        text = text_cell(row, columns.text, "assistant")
        known_by = asked_cell(row, columns.speech_text, columns.speech_history) if columns.speech_text else ("", ())
        return CandidateCells(
            row.where,
            text,
            name_cell(row, columns.author) if text else "",
            known_by[0],
            name_cell(row, columns.speech_key) if columns.speech_key else "",
            known_by[1],
        )

    return read_cells(read_source(source), read, source.on_bad_row)


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


def candidate_funnel(cleaner: Cleaner) -> Funnel:
    """Return the steps of responses, with nothing counted yet."""
    cleaning = (step.name for step in cleaner.steps)
    return Funnel([BAD_ROW, NONE_EMPTY, *cleaning, DEIDENTIFICATION, "remainder", REPETITION, "join"])


def read_candidates(
    sources: Iterable[tuple[str, Sequence[CandidateCells | BadRow]]],
    index: SpeechIndex,
    cleaner: Cleaner,
    author: Callable[[str], str],
    candidates: list[Candidate],
) -> Iterator[RowProvenance]:
    """Yield what becomes of each row, and add the distinct responses to the speeches that were kept.

    `sources` are their names and rows; `author` returns the name to publish for a label.
    """
    seen: set[tuple[str, str]] = set()
    for name, rows in sources:
        for row, text in zip(rows, cleaner.prepare_all(raw_cells(rows)), strict=True):
            if isinstance(row, BadRow):
                yield _bad(name, row)
                continue
            speech_id = _speech_of(row, index, cleaner)
            provenance = RowProvenance(name, row.where, row.speech_key, raw_digest(row.text), "", text.changed_by)
            if not row.text:
                yield _EMPTY.mark(provenance)
                continue
            if not text.text:
                yield Dropped("remainder", "nothing_left_after_cleaning").mark(provenance)
                continue
            candidate = Candidate(speech_id, author(row.author), cleaner.joined(speech_id, row.text, text))
            provenance = provenance._replace(text_id=candidate.id)
            is_repeated = (speech_id, candidate.text) in seen
            seen.add((speech_id, candidate.text))
            dropped = Dropped(REPETITION, "repeated_text") if is_repeated else index.fault(speech_id)
            if dropped is None:
                candidates.append(candidate)
            yield provenance if dropped is None else dropped.mark(provenance)


def _speech_of(row: CandidateCells, index: SpeechIndex, cleaner: Cleaner) -> str:
    """Return the id of the speech that a row answers."""
    if row.speech_key:
        return index.by_key.get(row.speech_key, f"unknown {row.speech_key}")
    if (known := index.by_raw.get(raw_digest(row.speech_text, row.speech_history))) is not None:
        return known
    text = cleaner.speech_text(row.speech_text) if row.speech_text and not row.speech_history else ""
    return Speech(text).id if text else ""
