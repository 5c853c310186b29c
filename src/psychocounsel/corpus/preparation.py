"""Cleans and de-identifies the texts of a corpus: when it is built, or ahead of that on many machines."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.sources import ExcludedSource
from psychocounsel.corpus.authors import KnownPeople
from psychocounsel.corpus.cleaning import (
    DEIDENTIFICATION,
    Prepared,
    Step,
    parallel_map,
    prepare,
    response_steps,
    speech_steps,
    worker_count,
)
from psychocounsel.corpus.crisis import CrisisServices, crisis_services
from psychocounsel.corpus.deduplicate import ExclusionIndex
from psychocounsel.corpus.deidentify import (
    PLACEHOLDER,
    Placeholders,
    deidentify,
    evaluate,
    open_deidentifier,
    read_pii_set,
)
from psychocounsel.corpus.deidentify.planted import PLANTED_TEXTS, plant, planted_language
from psychocounsel.corpus.formats import BadRow, SourceRow
from psychocounsel.corpus.sources import (
    cell,
    merged_turns,
    messages_in,
    messages_of,
    read_cells,
    read_source,
    source_name,
    text_cell,
)
from psychocounsel.errors import InputError
from psychocounsel.store.files import write_bytes
from psychocounsel.types import Turn, content_id

BATCH = 250
_CACHED_TURNS = 10_000
_CONTACTS = {"PHONE", "EMAIL", "URL"}


class PreparedTexts(NamedTuple):
    """A folder with one file per batch, named by a hash of its raw texts and of `key`, which says what they are.

    So the files do not depend on who wrote them, nor in which order. They hold texts from before de-identification.
    """

    folder: Path
    key: str

    def write(
        self, raws: Iterable[str], prepare: Callable[[str], Prepared], rank: int = 0, world_size: int = 1
    ) -> None:
        """Prepare every `world_size`-th batch, from the one at `rank` on, unless its file exists."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for batch in islice(_batches(raws), rank, None, world_size):
            path = self._path(batch)
            if not path.exists():
                write_bytes(path, json.dumps([prepare(raw) for raw in batch]).encode("ascii"))

    def read(self, raws: Iterable[str]) -> Iterator[Prepared]:
        """Yield each text as it was prepared.

        Raises:
            InputError: a batch has no file, or it cannot be read.
        """
        for batch in _batches(raws):
            try:
                rows = json.loads(self._path(batch).read_bytes())
            except FileNotFoundError as error:
                raise InputError(
                    f"the text that begins with {batch[0][:40]!r} was not prepared, or for another config",
                    where=str(self.folder),
                    remedy="run the pipeline again on this config; if its executor skips finished tasks, with an empty "
                    "logging_dir",
                ) from error
            except OSError as error:
                message = f"cannot be opened or read: {error.strerror or error}"
                remedy = "check the folder and its permissions"
                raise InputError(message, where=str(self.folder), remedy=remedy) from error
            yield from (Prepared(plain, text, tuple(names), is_foreign) for plain, text, names, is_foreign in rows)

    def _path(self, batch: list[str]) -> Path:
        return self.folder / f"{content_id(self.key, *batch)}.json"


def _batches(raws: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(raws)
    return iter(lambda: list(islice(remaining, BATCH)), [])


def services_of(config: CorpusConfig) -> CrisisServices:
    """Return the services that stay in every text: those of the bundled list, and of the config's own."""
    own = config.cleaning.crisis_services
    return crisis_services() if own is None else crisis_services(Path(own))


def steps_of(config: CorpusConfig, authors: KnownPeople | None) -> tuple[Step, ...]:
    """Return the steps that clean responses by, among others, these authors; without `authors`, those for speeches."""
    crisis = services_of(config)
    return speech_steps(crisis) if authors is None else response_steps(config.cleaning, authors, crisis)


def open_preparation(config: CorpusConfig, authors: KnownPeople | None) -> Callable[[str], Prepared]:
    """Return what prepares a response, or without `authors`, a speech."""
    engine = open_deidentifier(config.deidentification, services_of(config))
    return partial(
        prepare,
        steps=steps_of(config, authors),
        deidentify=None if engine is None else partial(deidentify, finder=engine),
        languages=config.cleaning.languages if authors is None else (),
    )


def _texts_of(source: ExcludedSource, bad_rows: Counter[str]) -> Iterator[str]:
    """Yield what can be read of each row, and count the rows of which something cannot."""
    for row in read_source(source):
        read = partial(read_cells, [row], on_bad_row=source.on_bad_row)
        cells = list(chain.from_iterable(read(partial(_texts_in, column)) for column in source.columns))
        bad_rows[source_name(source.path)] += any(isinstance(each, BadRow) for each in cells)
        yield from chain.from_iterable(each for each in cells if not isinstance(each, BadRow))


def _texts_in(column: str, row: SourceRow) -> list[str]:
    """Return the text of a cell, or of every message in it: a speech may repeat a later turn too."""
    value = messages_in(cell(row, column))
    if isinstance(value, list):
        return [text for _, text in messages_of(value, column, row.where)]
    return [text_cell(row, column)]


class Cleaner:
    """Cleans and de-identifies the texts of an artifact, or reads them prepared, and counts what was replaced.

    With `authors` these are responses, else speeches; `ahead` is where they have been prepared. `bad_excluded` has by
    name of an excluded source the rows that could not be read whole.
    """

    def __init__(
        self, config: CorpusConfig, authors: KnownPeople | None = None, ahead: PreparedTexts | None = None
    ) -> None:
        self.config, self._authors, self._ahead = config, authors, ahead
        self.steps = steps_of(config, authors)
        self._deidentifier = open_deidentifier(config.deidentification, services_of(config))
        # A placeholder for a contact, so that no answer vanishes and what it stands between becomes one turn; numbered
        # over the whole session by an engine that finds contacts.
        is_found = self._deidentifier is not None and {*config.deidentification.entities} >= _CONTACTS
        contacts = "keep" if is_found or config.cleaning.contacts == "keep" else "placeholder"
        in_history = config.cleaning.model_copy(update={"contacts": contacts})
        answers = response_steps(in_history, KnownPeople.of(()), services_of(config))
        self._speech_steps = asked = steps_of(config, None)

        @lru_cache(_CACHED_TURNS)  # what is said once stands in the histories of all that follows
        def clean_turn(turn: Turn) -> str:
            return prepare(turn.content, asked if turn.role == "user" else answers).text

        self._clean_turn = clean_turn
        self._shares_span: Callable[[str], str | None] = lambda text: None
        self.bad_excluded: Counter[str] = Counter()
        if config.exclude and authors is None:
            excluded = ((source_name(each.path), _texts_of(each, self.bad_excluded)) for each in config.exclude)
            index = ExclusionIndex(excluded, config.exclude_span_words)
            self._shares_span = lru_cache(_CACHED_TURNS)(index.shares_span)
        self._hidden: dict[str, list[str]] = {}
        self._placeholders: dict[str, Placeholders] = {}
        self._replaced: Counter[str] = Counter()

    def prepare_all(self, raws: Iterable[str]) -> Iterator[Prepared]:
        """Yield each text clean and de-identified."""
        if self._ahead is None:
            # Each worker would load a language model of its own.
            workers = 0 if self.config.deidentification.engine == "presidio" else worker_count()
            texts = parallel_map(partial(open_preparation, self.config, self._authors), raws, workers)
        else:
            texts = self._ahead.read(raws)
        for prepared in texts:
            self._count(prepared.plain, prepared.text)
            yield prepared

    def benchmark(self, turns: Sequence[Turn], text: str) -> str | None:
        """Return the benchmark with which a raw turn before a speech, or its clean text, shares a span."""
        return next(filter(None, map(self._shares_span, (text, *map(self._clean_turn, turns)))), None)

    def in_session(self, turns: Sequence[Turn], speech: Prepared) -> tuple[tuple[Turn, ...], Prepared]:
        """Return the clean turns before a speech, and the speech, with one map of placeholders."""
        plain, finder = self._clean_turns(turns), self._deidentifier
        if finder is None or not speech.plain:
            return plain, speech
        known = Placeholders()
        history = tuple(turn._replace(content=deidentify(turn.content, finder, known)) for turn in plain)
        text = deidentify(speech.plain, finder, known)
        if history != plain:  # what the speech itself names was counted with it
            known_already = "\n".join(turn.content for turn in (*plain, Turn("user", text)))
            self._count(known_already, "\n".join(turn.content for turn in history))
        is_changed = (history, text) != (plain, speech.plain)
        changed_by = [each for each in speech.changed_by if each != DEIDENTIFICATION]
        return history, speech._replace(
            text=text, changed_by=(*changed_by, *([DEIDENTIFICATION] if is_changed else []))
        )

    def _clean_turns(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(merged_turns(turn._replace(content=self._clean_turn(turn)) for turn in turns))

    def share_placeholders(self, sessions: Iterable[tuple[str, Sequence[Turn], str]]) -> None:
        """Use in responses the placeholders of these sessions: the speech's id, the raw turns before it, its raw text.

        All others have none.
        """
        for speech_id, turns, raw in sessions:
            if speech_id not in self._hidden:
                before = (turn.content for turn in self._clean_turns(turns))
                self._hidden[speech_id] = [*before, prepare(raw, self._speech_steps).text]

    def joined(self, speech_id: str, raw: str, prepared: Prepared) -> str:
        """Return a response in which one placeholder is one person, in its speech and in all responses to it."""
        finder = self._deidentifier
        if finder is None or (prepared.text == prepared.plain and speech_id not in self._hidden):
            return prepared.text
        if speech_id not in self._placeholders:
            self._placeholders[speech_id] = Placeholders()
            for turn in self._hidden.get(speech_id, ()):
                deidentify(turn, finder, self._placeholders[speech_id])
        shared, plain = self._placeholders[speech_id], prepared.plain
        of_authors = {match.group() for match in PLACEHOLDER.finditer(plain) if match.group() not in raw}
        return deidentify(shared.rename(plain, of_authors), finder, shared)

    def speech_text(self, raw: str) -> str:
        """Return the text under which a speech is known, whether or not it is kept."""
        plain = prepare(raw, self._speech_steps).text
        text = plain if self._deidentifier is None else deidentify(plain, self._deidentifier)
        self._count(plain, text)
        return text

    def _count(self, plain: str, text: str) -> None:
        if text != plain:
            new = set(PLACEHOLDER.findall(text)) - set(PLACEHOLDER.findall(plain))
            self._replaced.update(entity for entity, _ in new)

    def deidentification(self, texts: Iterable[str], count: int) -> dict[str, Any] | None:
        """Return the counts of what was replaced, and how well the engine does.

        That is on the PII evaluation set, and on copies of some of the corpus's `count` texts with planted identities.
        """
        if self._deidentifier is None:
            return None
        overall, by_entity = evaluate(self._deidentifier, read_pii_set("held_out"))
        language = planted_language(self.config.cleaning.languages)
        sample = list(islice(texts, 0, None, count // PLANTED_TEXTS + 1))
        planted = plant(sample, language, self.config.deidentification.entities)
        in_own_texts, in_own_texts_by_entity = evaluate(self._deidentifier, planted)
        return {
            "engine": self.config.deidentification.engine,
            "found": dict(sorted(self._replaced.items())),
            "pii_evaluation": {name: each._asdict() for name, each in sorted(by_entity.items())},
            "pii_evaluation_overall": overall._asdict(),
            "planted": {name: each._asdict() for name, each in sorted(in_own_texts_by_entity.items()) if each.marked},
            "planted_overall": in_own_texts._asdict(),
            "planted_language": language,
        }
