"""Builds the artifacts of a corpus: its split speeches and the ready responses to them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.sources import CandidateSource, ExcludedSource, SpeechSource
from psychocounsel.corpus.authors import KnownPeople, Person, author_name, common_phrases, person
from psychocounsel.corpus.cleaning import DEIDENTIFICATION, Step
from psychocounsel.corpus.deduplicate import assign_splits, cluster_ids, with_conversations
from psychocounsel.corpus.deidentify import open_deidentifier
from psychocounsel.corpus.formats import BadRow
from psychocounsel.corpus.preparation import Cleaner, PreparedTexts, open_preparation, services_of, steps_of
from psychocounsel.corpus.reading import (
    SPEECH_FUNNEL,
    CandidateCells,
    Funnel,
    SpeechCells,
    SpeechIndex,
    SpooledSpeeches,
    candidate_cells,
    candidate_funnel,
    raw_cells,
    raw_digest,
    read_candidates,
    read_speeches,
    rows_within_limit,
    speech_cells,
)
from psychocounsel.corpus.sources import column_name, source_fingerprint, source_name
from psychocounsel.corpus.topics import Topic, TopicAssigner, Unassigned, unassigned_by_reason
from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.llm.endpoints import keep_restricted_text_here
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.files import cached_digest
from psychocounsel.store.schemas import (
    RowProvenance,
    SplitSpeech,
    read_row_provenance,
    read_written_rows,
    write_candidates,
    write_records,
    write_speeches,
)
from psychocounsel.store.store import Store
from psychocounsel.types import SPLITS, Candidate, ReplyStatus, Turn, content_id

STAGE = "read-corpus"
VERSION = 35

_TOPIC_BATCH = 4096
_MANY_ROWS, _MOST_AUTHORS = 50, 0.95
_TEMPLATE_SPEECHES, _TEMPLATE_SHARE = 20, 0.1
_TALKS_SHARE = 0.25

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
    deidentifier = open_deidentifier(config.deidentification, services_of(config))
    services = config.cleaning.crisis_services
    own = {} if services is None else {"crisis_services": cached_digest(Path(services))}
    settings: dict[str, Any] = {
        "speeches": [_source(each) for each in config.speeches],
        "cleaning": config.cleaning.fingerprint() | own,
        "split": config.split.fingerprint(),
        "deidentification": None if deidentifier is None else deidentifier.fingerprint,
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
    """An artifact of a corpus, the steps that cleaned it, and each row of its sources with its text before cleaning.

    `renamed` are the labels of authors that were taken for people's names, where no `author_is` says what they are.
    """

    artifact: Artifact
    steps: tuple[Step, ...]
    rows: Iterator[tuple[RowProvenance, str]]
    renamed: tuple[str, ...] = ()


def raw_texts(config: CorpusConfig, corpus: CorpusArtifacts) -> Iterator[RawTexts]:
    """Read the sources of a corpus again; yield the speeches, then the responses if it has any."""
    raws = raw_cells(chain.from_iterable(map(speech_cells, config.speeches)))
    rows = zip(read_row_provenance(corpus.speeches), raws, strict=True)
    yield RawTexts(corpus.speeches, steps_of(config, None), rows)
    if corpus.candidates is not None:
        responses = _read_responses(config)
        raws = raw_cells(chain.from_iterable(cells for _, cells in responses.sources))
        rows = zip(read_row_provenance(corpus.candidates), raws, strict=True)
        renamed = responses.guessed() if config.cleaning.signatures == "remove" else ()
        yield RawTexts(corpus.candidates, steps_of(config, responses.people), rows, renamed)


# --- Speeches --------------------


def _build_speeches(
    config: CorpusConfig, topics: TopicAssigner | None, writer: ArtifactWriter, progress: Progress
) -> None:
    cleaner = Cleaner(config, ahead=_ahead(config, "speeches"))
    writer.warnings.extend(
        f"rows of the excluded {name} that cannot be read whole: {count}; no speech is compared with what is lost"
        for name, count in (+cleaner.bad_excluded).items()
    )
    writer.warnings.extend(_english_only(config))
    speeches, funnel = _read_speeches(config, cleaner, writer)
    unassigned = [] if topics is None else _assign_topics(topics, config, speeches, progress)
    alike = cluster_ids(speeches.ids, speeches.texts, config.split.near_duplicate_similarity)
    clusters = with_conversations(alike, speeches, speeches.conversations) if speeches.in_sessions else alike
    splits = assign_splits(clusters, speeches.topics, config.split, speeches.splits)
    rows = zip(speeches, splits, clusters.tolist(), strict=True)
    write_speeches(writer, (SplitSpeech(speech, split, f"{cluster:016x}") for speech, split, cluster in rows))
    sizes = np.unique(alike, return_counts=True)[1]
    if (largest := int(sizes.max())) >= _TEMPLATE_SPEECHES and largest > _TEMPLATE_SHARE * len(speeches):
        writer.warnings.append(
            f"{largest} of {len(speeches)} speeches are near-duplicates of each other, as texts from one template "
            "are; they are one cluster in one split (split.near_duplicate_similarity)"
        )
    elif (joined := int(np.unique(clusters, return_counts=True)[1].max())) > max(
        _TEMPLATE_SPEECHES, _TALKS_SHARE * len(speeches)
    ):
        writer.warnings.append(
            f"{joined} of {len(speeches)} speeches are one cluster in one split: a conversation stays together, and "
            "so do all that share a near-duplicate; a larger cleaning.min_chars leaves out what many have in common"
        )
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
            "topics": _counts(speeches.topics),
            "fine_topics": _counts(speeches.fine_topics),
            "without_topic": unassigned_by_reason(unassigned),
            "splits": {name: splits.count(name) for name in SPLITS},
            "topics_by_split": {
                name: _counts(topic for topic, split in zip(speeches.topics, splits, strict=True) if split == name)
                for name in SPLITS
            },
            "clusters": len(np.unique(clusters)),
            "near_duplicates": len(speeches) - len(sizes),
            "crisis": sum(speeches.crisis),
            "deidentification": cleaner.deidentification(speeches.texts, len(speeches)),
        }
    )


def _counts(labels: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(labels).items()))


def _read_speeches(config: CorpusConfig, cleaner: Cleaner, writer: ArtifactWriter) -> tuple[SpooledSpeeches, Funnel]:
    """Return the speeches that are kept, and what became of every row, which is written."""
    speeches, funnel = SpooledSpeeches(writer.work), Funnel(SPEECH_FUNNEL)
    write_records(writer, RowProvenance, funnel.counting(read_speeches(cleaner, speeches)))
    if not funnel.rows_in:
        fault = (
            "no row was read: a file has a header alone, `where` holds for no row, a list is empty, or the client says "
            "nothing that is answered"
        )
        remedy = "check the files, where, explode and conversation"
        raise DataQualityError(fault, where="corpus.speeches", remedy=remedy)
    if not len(speeches):
        raise DataQualityError(
            f"no speech is left of {funnel.rows_in} rows: {counted(funnel.dropped)}",
            where="corpus.speeches",
            remedy="check the columns, or loosen cleaning",
        )
    if config.cleaning.max_speeches is not None and len(speeches) > config.cleaning.max_speeches:
        speeches, beyond = speeches.limited_to(config.cleaning.max_speeches, writer.work)
        funnel = Funnel(SPEECH_FUNNEL)
        write_records(writer, RowProvenance, funnel.counting(rows_within_limit(read_written_rows(writer), beyond)))
    return speeches, funnel


def _english_only(config: CorpusConfig) -> Iterator[str]:
    """Yield what knows English alone, where a corpus keeps other languages."""
    languages = set(config.cleaning.languages)
    if config.deidentification.engine == "patterns" and languages != {"en"}:
        yield (
            "the patterns of the de-identification know names in English only; those in other languages stay, unless "
            "deidentification.engine: presidio has a pipeline for them"
        )
    if languages - {"en"} and not all(source.columns.crisis for source in config.speeches):
        yield (
            "speeches about a crisis are found by words in English only; those in other languages are missed, unless "
            "columns.crisis of a source says which they are"
        )


def _assign_topics(
    assigner: TopicAssigner, config: CorpusConfig, speeches: SpooledSpeeches, progress: Progress
) -> list[Unassigned]:
    """Replace the topics of all speeches by assigned ones; return those without one, which get an empty topic."""
    unassigned: list[Unassigned] = []
    remaining = iter(speeches)
    with progress("naming topics", len(speeches)) as advance:
        for start in range(0, len(speeches), _TOPIC_BATCH):
            batch = list(islice(remaining, _TOPIC_BATCH))
            for at, topic in enumerate(assigner.assign(batch, advance), start):
                speeches.topics[at], speeches.fine_topics[at] = topic if isinstance(topic, Topic) else ("", "")
                unassigned += [topic] if isinstance(topic, Unassigned) else []
    failed = Counter(each.reason for each in unassigned if each.is_failure)
    if lost := failed[ReplyStatus.ERROR.value]:
        raise IncompleteError(
            f"{lost} of {len(speeches)} speeches got no reply from the model that names topics",
            where="corpus.topics.endpoint",
            remedy="check the endpoint, then run the same command again; only pending requests are sent",
        )
    allowed = 0.0 if config.topics is None else config.topics.max_missing_share
    if failed.total() > allowed * len(speeches):
        raise DataQualityError(
            f"{failed.total()} of {len(speeches)} speeches got no topic: {counted(failed)}",
            where="corpus.topics.max_missing_share",
            remedy="run the same command to request those again",
        )
    return unassigned


# --- Responses --------------------


def _build_candidates(config: CorpusConfig, speeches: Artifact, writer: ArtifactWriter) -> None:
    responses = _read_responses(config)
    writer.warnings.extend(
        f"the author label {name!r} is taken for a phrase, not a name: it stands in {share:.0%} of others' responses"
        for name, share in sorted(responses.phrases.items())
    )
    cleaner = Cleaner(config, responses.people, _ahead(config, "responses"))
    cleaner.share_placeholders(_changed_sessions(config, speeches))
    author = responses.pseudonym if config.cleaning.signatures == "remove" else str
    index, funnel = SpeechIndex(read_row_provenance(speeches)), candidate_funnel(cleaner)
    candidates: list[Candidate] = []
    rows = read_candidates(responses.sources, index, cleaner, author, candidates)
    write_records(writer, RowProvenance, funnel.counting(rows))
    if not candidates:
        raise DataQualityError(
            f"no response is left: {counted(funnel.dropped)}",
            where="corpus.candidates",
            remedy="check that speech_key or speech_text names the column that repeats the speech, and text the answer",
        )
    write_candidates(writer, candidates)
    deidentification = cleaner.deidentification((each.text for each in candidates), len(candidates))
    writer.write_metrics({"funnel": funnel.as_dict(), "deidentification": deidentification})


def _changed_sessions(config: CorpusConfig, speeches: Artifact) -> Iterator[tuple[str, Sequence[Turn], str]]:
    """Yield the sessions in which something was replaced: the speech's id, the raw turns before it, its raw text."""
    rows = read_row_provenance(speeches)
    changed = {row.raw_digest: row.text_id for row in rows if DEIDENTIFICATION in row.changed_by}
    for source in config.speeches if changed else ():
        for row in speech_cells(source):
            if isinstance(row, SpeechCells) and (known := changed.get(raw_digest(row.text, row.history))) is not None:
                yield known, row.history, row.text


class _Responses(NamedTuple):
    """Name and rows of each source of responses, and their authors.

    These are people, names that others write too often with their shares, and labels to publish; of the `unsaid` labels
    no source says whether they are of people or models.
    """

    sources: list[tuple[str, list[CandidateCells | BadRow]]]
    people: KnownPeople
    phrases: dict[str, float]
    public: frozenset[str]
    unsaid: frozenset[str]

    def guessed(self) -> tuple[str, ...]:
        """Return the labels that get a number only because they look like names."""
        return tuple(label for label in sorted(self.unsaid) if self.pseudonym(label) != label)

    def pseudonym(self, author: str) -> str:
        """Return a name that can be published: a person or a page becomes a number of its own."""
        name = author_name(author)
        is_public = author in self.public or name in self.phrases or (name is None and "://" not in author)
        return author if is_public else pseudonym(author)


def pseudonym(author: str) -> str:
    """Return the number under which a person is published."""
    return f"person-{content_id('author', author)[:8]}"


def _read_responses(config: CorpusConfig) -> _Responses:
    """Read the responses; raises DataQualityError if nearly every row of a source has an author of its own."""
    sources: list[tuple[str, list[CandidateCells | BadRow]]] = []
    written: list[tuple[str, str]] = []
    people: dict[str, Person | None] = {}
    public, unsaid = set[str](), set[str]()
    for source in config.candidates:
        name, cells = source_name(source.path), list(candidate_cells(source))
        sources.append((name, cells))
        rows = [each for each in cells if isinstance(each, CandidateCells)]
        labels = [row.author for row in rows]
        if len(rows) >= _MANY_ROWS and len(set(labels)) > _MOST_AUTHORS * len(rows):
            raise DataQualityError(
                f"{len(set(labels))} authors in {len(rows)} rows",
                where=f"{name} column {column_name(source.columns.author)}",
                remedy="name the column that says who wrote a response as author, or {constant: NAME} for all of them",
            )
        people |= {label: person(label, source.author_is) for label in set(labels)}
        public.update(labels if source.author_is == "model" else ())
        unsaid.update(labels if source.author_is is None else ())
        for label, row in zip(labels, rows, strict=True):
            author = people[label]
            written.append((label if author is None else author.name, row.text))
    phrases = common_phrases(KnownPeople.of(people.values()), written)
    known = KnownPeople.of(each for each in people.values() if each and each.name not in phrases)
    return _Responses(sources, known, phrases, frozenset(public), frozenset(unsaid))


# --- Ahead of the corpus --------------------


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
        config, responses = self._config, _read_responses(self._config)
        speeches, answers = map(speech_cells, config.speeches), (cells for _, cells in responses.sources)
        for what, authors, sources in (("speeches", None, speeches), ("responses", responses.people, answers)):
            ahead, prepare = PreparedTexts(self._folder, _key(config, what)), open_preparation(config, authors)
            for cells in sources:
                ahead.write(raw_cells(cells), prepare, rank, world_size)


def _ahead(config: CorpusConfig, what: str) -> PreparedTexts | None:
    return None if config.prepared is None else PreparedTexts(Path(config.prepared), _key(config, what))


def _key(config: CorpusConfig, what: str) -> str:
    specs = corpus_specs(config.model_copy(update={"topics": None}), None)
    return f"{what} of {(specs.candidates or specs.speeches).id}"
