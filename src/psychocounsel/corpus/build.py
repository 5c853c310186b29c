"""Builds the artifacts of a corpus: its split speeches and the ready responses to them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.sources import CandidateSource, ExcludedSource, SpeechSource
from psychocounsel.corpus.ahead import PreparedTexts
from psychocounsel.corpus.authors import KnownPeople, Person, author_name, common_phrases, person
from psychocounsel.corpus.cleaning import (
    DEIDENTIFICATION,
    SPEECH_STEPS,
    Prepared,
    Step,
    clean,
    parallel_map,
    prepare,
    response_steps,
    worker_count,
)
from psychocounsel.corpus.crisis import CrisisServices, crisis_services
from psychocounsel.corpus.deduplicate import ExclusionIndex, assign_splits, cluster_ids, with_conversations
from psychocounsel.corpus.deidentify import (
    PLACEHOLDER,
    Deidentifier,
    Placeholders,
    deidentify,
    evaluate,
    open_deidentifier,
    read_pii_set,
)
from psychocounsel.corpus.deidentify.patterns import Fingerprint, Span
from psychocounsel.corpus.deidentify.planted import PLANTED_TEXTS, plant, planted_language
from psychocounsel.corpus.reading import (
    CandidateCells,
    CandidateRows,
    PrepareAll,
    ResponseFilters,
    SpeechCells,
    SpeechFilters,
    SpeechIndex,
    SpeechRows,
    SpooledSpeeches,
    candidate_cells,
    raw_cells,
    raw_digest,
    read_candidates,
    read_speeches,
    speech_cells,
)
from psychocounsel.corpus.sources import (
    BadRow,
    column_name,
    merged_turns,
    read_source,
    source_fingerprint,
    source_name,
    texts_in,
)
from psychocounsel.corpus.text import is_foreign
from psychocounsel.corpus.topics import Assigned, Topic, TopicAssigner, Unassigned, unassigned_by_reason
from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.llm.endpoints import keep_restricted_text_here
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.files import cached_digest
from psychocounsel.store.schemas import (
    RowProvenance,
    SplitSpeech,
    read_row_provenance,
    write_candidates,
    write_row_provenance,
    write_speeches,
)
from psychocounsel.store.store import Store
from psychocounsel.types import SPLITS, ReplyStatus, Turn, content_id

STAGE = "read-corpus"
VERSION = 12

_TOPIC_BATCH = 4096
_CACHED_TURNS = 10_000
_CONTACTS = {"PHONE", "EMAIL", "URL"}
_MANY_ROWS, _MOST_AUTHORS = 50, 0.95
_TEMPLATE_SPEECHES, _TEMPLATE_SHARE = 20, 0.1

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of work with a label and a total: a context that yields `advance(count)`."""


# --- Artifacts --------------------


class CorpusSpecs(NamedTuple):
    """The two artifacts of a corpus; a corpus without ready responses has no candidates."""

    speeches: ArtifactSpec
    candidates: ArtifactSpec | None


class CorpusArtifacts(NamedTuple):
    """A corpus on disk."""

    speeches: Artifact
    candidates: Artifact | None


def corpus_specs(config: CorpusConfig, topics: TopicAssigner | None) -> CorpusSpecs:
    """Return the specs of a corpus, which depend on the content of its files.

    Raises ConfigError if an engine is not installed, or if a remote model would name the topics of restricted text.
    """
    if config.topics is not None:
        keep_restricted_text_here([config.topics.endpoint], {each.path: each.data_class for each in config.speeches})
    deidentifier = open_deidentifier(config.deidentification, _crisis_services(config))
    settings: dict[str, Any] = {
        "speeches": [_source(each) for each in config.speeches],
        "cleaning": config.cleaning.fingerprint() | _own_services(config),
        "split": config.split.fingerprint(),
        "deidentification": None if deidentifier is None else dict(deidentifier.fingerprint),
    }
    if config.cleaning.languages:
        settings["language_identifier"] = f"py3langid {version('py3langid')}"
    if config.exclude:
        settings["exclude"] = [_source(each) for each in config.exclude]
        settings["exclude_span_words"] = config.exclude_span_words
    if topics is not None:
        settings["topics"] = topics.fingerprint
    speeches = ArtifactSpec("speeches", config.name, STAGE, VERSION, settings)
    if not config.candidates:
        return CorpusSpecs(speeches, None)
    ready = {"candidates": [_source(each) for each in config.candidates]}
    parents = (speeches.as_parent("speeches"),)
    return CorpusSpecs(speeches, ArtifactSpec("candidates", config.name, STAGE, VERSION, ready, parents))


def _crisis_services(config: CorpusConfig) -> CrisisServices:
    """Return the services that stay in every text: those of the bundled list, and of the config's own."""
    own = config.cleaning.crisis_services
    return crisis_services() if own is None else crisis_services(Path(own))


def _own_services(config: CorpusConfig) -> dict[str, str]:
    own = config.cleaning.crisis_services
    return {} if own is None else {"crisis_services": cached_digest(Path(own))}


def _source(source: SpeechSource | CandidateSource | ExcludedSource) -> dict[str, Any]:
    content = source_fingerprint(source.path, source.split, source.config)
    return {**source.fingerprint(), "path": content, "name": source_name(source.path)}


def make_corpus(
    config: CorpusConfig,
    store: Store,
    topics: TopicAssigner | None = None,
    progress: Progress = lambda label, total: nullcontext(lambda count: None),
) -> CorpusArtifacts:
    """Return the corpus, and build it if it is not in the store yet.

    Raises:
        InputError: a source cannot be read, or the folder `prepared` lacks a text.
        DataQualityError: nothing is left, a split is empty, or too many speeches have no topic.
        Preempted: cancelled while a model named topics; its replies are kept.
    """
    specs = corpus_specs(config, topics)
    speeches = store.make(specs.speeches, lambda writer: _build_speeches(config, topics, writer, progress))
    if specs.candidates is None:
        return CorpusArtifacts(speeches, None)
    candidates = store.make(specs.candidates, lambda writer: _build_candidates(config, speeches, writer))
    return CorpusArtifacts(speeches, candidates)


class RawTexts(NamedTuple):
    """An artifact of a corpus, the steps that cleaned it, and each row of its sources with its text before cleaning."""

    artifact: Artifact
    steps: tuple[Step, ...]
    rows: Iterator[tuple[RowProvenance, str]]


def raw_texts(config: CorpusConfig, corpus: CorpusArtifacts) -> Iterator[RawTexts]:
    """Read the sources of a corpus again; yield the speeches, then the responses if it has any."""
    speeches = (cells for each in config.speeches for cells in speech_cells(_speech_rows(each)))
    yield RawTexts(corpus.speeches, SPEECH_STEPS, _with_provenance(corpus.speeches, speeches))
    if corpus.candidates is not None:
        sources = _candidate_rows(config)
        steps = response_steps(config.cleaning, _authors(config, sources).people, _crisis_services(config))
        responses = (cells for each in sources for cells in candidate_cells(each))
        yield RawTexts(corpus.candidates, steps, _with_provenance(corpus.candidates, responses))


def _with_provenance(
    artifact: Artifact, rows: Iterable[SpeechCells | CandidateCells | BadRow]
) -> Iterator[tuple[RowProvenance, str]]:
    return zip(read_row_provenance(artifact), raw_cells(rows), strict=True)


# --- Speeches --------------------


def _build_speeches(
    config: CorpusConfig, topics: TopicAssigner | None, writer: ArtifactWriter, progress: Progress
) -> None:
    cleaner = _Cleaner(config)
    sources = map(_speech_rows, config.speeches)
    with closing(read_speeches(sources, config.cleaning, cleaner.speech_filters(), writer.work)) as reading:
        speeches, funnel = reading.speeches, reading.log.funnel
        if not len(speeches):
            if not funnel.rows_in:
                fault = "no row was read: a file has a header alone, or `where` holds for no row"
                raise DataQualityError(fault, where="corpus.speeches", remedy="check the files, and where")
            raise DataQualityError(
                f"no speech is left of {funnel.rows_in} rows: {counted(funnel.dropped)}",
                where="corpus.speeches",
                remedy="check the columns, or loosen cleaning",
            )
        assigned = [] if topics is None else _assign_topics(topics, config, speeches, progress)
        alike = cluster_ids(speeches.ids, speeches.texts, config.split.near_duplicate_similarity)
        clusters = with_conversations(alike, speeches, speeches.conversations) if speeches.in_sessions else alike
        splits = assign_splits(clusters, speeches.topics, config.split, speeches.splits)
        rows = zip(speeches, splits, clusters.tolist(), strict=True)
        write_speeches(writer, (SplitSpeech(speech, split, f"{cluster:016x}") for speech, split, cluster in rows))
        write_row_provenance(writer, reading.rows())
        sizes = np.unique(alike, return_counts=True)[1]
        if (largest := int(sizes.max())) >= _TEMPLATE_SPEECHES and largest > _TEMPLATE_SHARE * len(speeches):
            writer.warnings.append(
                f"{largest} of {len(speeches)} speeches are near-duplicates of each other, as texts from one template "
                "are; they are one cluster in one split (split.near_duplicate_similarity)"
            )
        by_split = Counter(zip(splits, speeches.topics, strict=True))
        # A source stands once, though several of its columns may be read.
        terms = {source_name(each.path): (each.licence, each.data_class) for each in config.speeches}
        by_source = Counter(speeches.sources)
        writer.write_metrics(
            {
                "funnel": funnel.as_dict(),
                "sources": [
                    {"name": name, "licence": licence, "data_class": data_class, "speeches": by_source[name]}
                    for name, (licence, data_class) in terms.items()
                ],
                "topics": dict(sorted(Counter(speeches.topics).items())),
                "fine_topics": dict(sorted(Counter(speeches.fine_topics).items())),
                "without_topic": unassigned_by_reason(assigned),
                "splits": {name: splits.count(name) for name in SPLITS},
                "topics_by_split": {
                    name: {topic: count for (split, topic), count in sorted(by_split.items()) if split == name}
                    for name in SPLITS
                },
                "clusters": len(np.unique(clusters)),
                "near_duplicates": len(speeches) - len(sizes),
                "crisis": sum(speeches.crisis),
                "deidentification": cleaner.deidentification(speeches.texts, len(speeches)),
            }
        )


def _speech_rows(source: SpeechSource) -> SpeechRows:
    drops = source.on_bad_row == "drop"
    name, rows = source_name(source.path), read_source(source)
    return SpeechRows(name, source.columns, rows, source.split_column, drops, source.path)


def _assign_topics(
    assigner: TopicAssigner, config: CorpusConfig, speeches: SpooledSpeeches, progress: Progress
) -> list[Assigned]:
    """Replace the topics of all speeches by assigned ones; a speech without one gets an empty topic."""
    assigned: list[Assigned] = []
    remaining = iter(speeches)
    with progress("naming topics", len(speeches)) as advance:
        while batch := list(islice(remaining, _TOPIC_BATCH)):
            assigned += assigner.assign(batch, advance)
    for at, topic in enumerate(assigned):
        speeches.topics[at], speeches.fine_topics[at] = topic if isinstance(topic, Topic) else ("", "")
    failed = Counter(each.reason for each in assigned if isinstance(each, Unassigned) and each.is_failure)
    if lost := failed[ReplyStatus.ERROR.value]:
        raise IncompleteError(
            f"{lost} of {len(assigned)} speeches got no reply from the model that names topics",
            where="corpus.topics.endpoint",
            remedy="check the endpoint, then run the same command again; only pending requests are sent",
        )
    allowed = 0.0 if config.topics is None else config.topics.max_missing_share
    if failed.total() > allowed * len(assigned):
        raise DataQualityError(
            f"{failed.total()} of {len(assigned)} speeches got no topic: {counted(failed)}",
            where="corpus.topics.max_missing_share",
            remedy="run the same command to request those again",
        )
    return assigned


# --- Responses --------------------


def _build_candidates(config: CorpusConfig, speeches: Artifact, writer: ArtifactWriter) -> None:
    cleaner = _Cleaner(config)
    sources = _candidate_rows(config)
    authors = _authors(config, sources)
    writer.warnings.extend(
        f"the author label {name!r} is taken for a phrase, not a name: it stands in {share:.0%} of others' responses"
        for name, share in sorted(authors.phrases.items())
    )
    index = SpeechIndex(read_row_provenance(speeches))
    filters = cleaner.response_filters(authors, speeches)
    candidates, log = read_candidates(sources, index, filters, writer.work)
    with closing(log):
        if not candidates:
            raise DataQualityError(
                f"no response is left: {counted(log.funnel.dropped)}",
                where="corpus.candidates",
                remedy="check that speech_key or speech_text names the column that repeats the speech",
            )
        write_candidates(writer, candidates)
        write_row_provenance(writer, log)
        writer.write_metrics(
            {
                "funnel": log.funnel.as_dict(),
                "deidentification": cleaner.deidentification((each.text for each in candidates), len(candidates)),
            }
        )


def _candidate_rows(config: CorpusConfig) -> list[CandidateRows]:
    return [
        CandidateRows(source_name(each.path), each.columns, list(read_source(each)), each.on_bad_row == "drop")
        for each in config.candidates
    ]


class _Authors(NamedTuple):
    """Who wrote the responses: people, names that others write too often with their shares, labels to publish."""

    people: KnownPeople
    phrases: dict[str, float]
    public: frozenset[str]

    def pseudonym(self, author: str) -> str:
        """Return a name that can be published: a person or a page becomes a number of its own."""
        name = author_name(author)
        is_public = author in self.public or name in self.phrases or (name is None and "://" not in author)
        return author if is_public else pseudonym(author)


def pseudonym(author: str) -> str:
    """Return the number under which a person is published."""
    return f"person-{content_id('author', author)[:8]}"


def _authors(config: CorpusConfig, sources: Sequence[CandidateRows]) -> _Authors:
    """Return who wrote the responses of the sources.

    Raises:
        DataQualityError: nearly every row of a source has an author of its own.
    """
    written: list[tuple[str, str]] = []
    people: dict[str, Person | None] = {}
    public: set[str] = set()
    for source, given in zip(config.candidates, sources, strict=True):
        rows = [each for each in candidate_cells(given) if isinstance(each, CandidateCells)]
        labels = [row.author for row in rows]
        if len(rows) >= _MANY_ROWS and len(set(labels)) > _MOST_AUTHORS * len(rows):
            raise DataQualityError(
                f"{len(set(labels))} authors in {len(rows)} rows",
                where=f"{given.name} column {column_name(given.columns.author)}",
                remedy="name the column that says who wrote a response, as author",
            )
        people |= {label: person(label, source.author_is) for label in set(labels)}
        public.update(labels if source.author_is == "model" else ())
        for label, row in zip(labels, rows, strict=True):
            author = people[label]
            written.append((label if author is None else author.name, row.text))
    phrases = common_phrases(KnownPeople.of(people.values()), written)
    known = KnownPeople.of(each for each in people.values() if each and each.name not in phrases)
    return _Authors(known, phrases, frozenset(public))


# --- Cleaning --------------------


class _CachedDeidentifier:
    """An engine that looks once at what stands in the histories of several speeches."""

    def __init__(self, engine: Deidentifier) -> None:
        self._engine = engine
        self._find = lru_cache(_CACHED_TURNS)(engine.find)

    @property
    def fingerprint(self) -> Fingerprint:
        return self._engine.fingerprint

    def find(self, text: str) -> Sequence[Span]:
        return self._find(text)


class _Cleaner:
    """Cleans and de-identifies the texts of an artifact, or reads them prepared, and counts what was replaced."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        engine = open_deidentifier(config.deidentification, _crisis_services(config))
        self._deidentifier = None if engine is None else _CachedDeidentifier(engine)
        # A placeholder for a contact, so that no answer vanishes and what it stands between becomes one turn; numbered
        # over the whole session by an engine that finds contacts.
        is_found = engine is not None and {*config.deidentification.entities} >= _CONTACTS
        contacts = "keep" if is_found or config.cleaning.contacts == "keep" else "placeholder"
        in_history = config.cleaning.model_copy(update={"contacts": contacts})
        answers = response_steps(in_history, KnownPeople.of(()), _crisis_services(config))

        @lru_cache(_CACHED_TURNS)  # what is said once stands in the histories of all that follows
        def clean_turn(turn: Turn) -> str:
            return clean(turn.content, SPEECH_STEPS if turn.role == "user" else answers).text

        self._clean_turn = clean_turn
        self._replaced: Counter[str] = Counter()

    def speech_filters(self) -> SpeechFilters:
        prepare_all = self._prepare_all("speeches", partial(_speech_preparation, self._config))
        excluded = self._config.exclude
        sources = ((source_name(each.path), texts_in(read_source(each), each.columns)) for each in excluded)
        if not excluded:
            return SpeechFilters(prepare_all, in_session=self._in_session)
        shares = lru_cache(_CACHED_TURNS)(ExclusionIndex(sources, self._config.exclude_span_words).shares_span)

        def benchmark(turns: Sequence[Turn], text: str) -> str | None:
            return next(filter(None, map(shares, (text, *map(self._clean_turn, turns)))), None)

        return SpeechFilters(prepare_all, benchmark, self._in_session)

    def _in_session(self, turns: Sequence[Turn], speech: Prepared) -> tuple[tuple[Turn, ...], Prepared]:
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

    def response_filters(self, authors: _Authors, speeches: Artifact) -> ResponseFilters:
        cleaning, known = self._config.cleaning, authors.people
        return ResponseFilters(
            [step.name for step in response_steps(cleaning, known, _crisis_services(self._config))],
            self._prepare_all("responses", partial(_response_preparation, self._config, known)),
            self._speech_text,
            authors.pseudonym if cleaning.signatures == "remove" else str,
            partial(self._joined, self._hidden_speeches(speeches), {}),
        )

    def _hidden_speeches(self, speeches: Artifact) -> dict[str, list[str]]:
        """Return the turns of each session in which something was replaced, as they were before that, by speech."""
        if self._deidentifier is None:
            return {}
        rows = read_row_provenance(speeches)
        changed = {row.raw_digest: row.text_id for row in rows if DEIDENTIFICATION in row.changed_by}
        found: dict[str, list[str]] = {}
        for source in self._config.speeches if changed else ():
            for row in speech_cells(_speech_rows(source)):
                raw, turns = (row.text, row.history) if isinstance(row, SpeechCells) else ("", ())
                if (text_id := changed.get(raw_digest(raw, turns))) is not None and text_id not in found:
                    before = (turn.content for turn in self._clean_turns(turns))
                    found[text_id] = [*before, clean(raw, SPEECH_STEPS).text]
        return found

    def _joined(
        self,
        hidden: Mapping[str, Sequence[str]],
        known: dict[str, Placeholders],
        speech_id: str,
        raw: str,
        prepared: Prepared,
    ) -> str:
        """Return a response in which one placeholder is one person, in its speech and in all responses to it."""
        finder = self._deidentifier
        if finder is None or (prepared.text == prepared.plain and speech_id not in hidden):
            return prepared.text
        if speech_id not in known:
            known[speech_id] = Placeholders()
            for turn in hidden.get(speech_id, ()):
                deidentify(turn, finder, known[speech_id])
        shared, plain = known[speech_id], prepared.plain
        of_authors = {match.group() for match in PLACEHOLDER.finditer(plain) if match.group() not in raw}
        return deidentify(shared.rename(plain, of_authors), finder, shared)

    def _prepare_all(self, what: str, open_preparation: Callable[[], Callable[[str], Prepared]]) -> PrepareAll:
        folder = self._config.prepared
        ahead = None if folder is None else _prepared_texts(self._config, Path(folder), what)
        # Each worker would load a language model of its own.
        workers = 0 if self._config.deidentification.engine == "presidio" else worker_count()

        def prepare_all(raws: Iterable[str]) -> Iterator[Prepared]:
            texts = (
                parallel_map(open_preparation(), raws, open_preparation, workers) if ahead is None else ahead.read(raws)
            )
            for prepared in texts:
                self._count(prepared.plain, prepared.text)
                yield prepared

        return prepare_all

    def _speech_text(self, raw: str) -> str:
        """Return the text under which a speech is known, whether or not it is kept."""
        plain = clean(raw, SPEECH_STEPS).text
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
        language = planted_language(self._config.cleaning.languages)
        sample = list(islice(texts, 0, None, count // PLANTED_TEXTS + 1))
        planted = plant(sample, language, self._config.deidentification.entities)
        in_own_texts, in_own_texts_by_entity = evaluate(self._deidentifier, planted)
        return {
            "engine": self._config.deidentification.engine,
            "found": dict(sorted(self._replaced.items())),
            "pii_evaluation": {name: each._asdict() for name, each in sorted(by_entity.items())},
            "pii_evaluation_overall": overall._asdict(),
            "planted": {name: each._asdict() for name, each in sorted(in_own_texts_by_entity.items()) if each.marked},
            "planted_overall": in_own_texts._asdict(),
            "planted_language": language,
        }


class PrepareTexts:
    """A step of a datatrove pipeline, whose tasks share the work of cleaning and de-identifying a corpus's texts.

        LocalPipelineExecutor([PrepareTexts(config, folder)], tasks=16, logging_dir=...).run()

    Then `prepared: folder` in the config lets the corpus be built from what is there. Every task reads all rows, and
    prepares its part of them.
    """

    def __init__(self, config: CorpusConfig, folder: str | Path) -> None:
        self._config, self._folder = config, Path(folder)

    def __call__(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Prepare what falls to the task `rank` of `world_size`; `data` is what a step before would have yielded."""
        config = self._config
        ahead = _prepared_texts(config, self._folder, "speeches")
        prepare = _speech_preparation(config)
        for source in config.speeches:
            ahead.write(raw_cells(speech_cells(_speech_rows(source))), prepare, rank, world_size)
        ahead = _prepared_texts(config, self._folder, "responses")
        sources = _candidate_rows(config)
        prepare = _response_preparation(config, _authors(config, sources).people)
        for source in sources:
            ahead.write(raw_cells(candidate_cells(source)), prepare, rank, world_size)


def _prepared_texts(config: CorpusConfig, folder: Path, what: str) -> PreparedTexts:
    specs = corpus_specs(config.model_copy(update={"topics": None}), None)
    return PreparedTexts(folder, f"{what} of {(specs.candidates or specs.speeches).id}")


def _speech_preparation(config: CorpusConfig) -> Callable[[str], Prepared]:
    wanted = config.cleaning.languages

    def other_language(text: str) -> str | None:
        return f"not {' or '.join(wanted)}" if is_foreign(text, wanted) else None

    return partial(prepare, steps=SPEECH_STEPS, deidentify=_deidentification(config), other_language=other_language)


def _response_preparation(config: CorpusConfig, known: KnownPeople) -> Callable[[str], Prepared]:
    steps = response_steps(config.cleaning, known, _crisis_services(config))
    return partial(prepare, steps=steps, deidentify=_deidentification(config))


def _deidentification(config: CorpusConfig) -> Callable[[str], str] | None:
    engine = open_deidentifier(config.deidentification, _crisis_services(config))
    return None if engine is None else partial(deidentify, finder=engine)
