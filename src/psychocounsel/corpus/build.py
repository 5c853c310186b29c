"""CorpusConfig -> the tables of its speeches and ready responses, with funnels that add up."""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.config.schema import ENTITIES, CandidateSource, CorpusConfig, ExcludedSource, SpeechSource
from psychocounsel.corpus.authors import author_name
from psychocounsel.corpus.cleaning import SPEECH_STEPS, Prepared, prepare, response_steps
from psychocounsel.corpus.decontaminate import ExcludedTexts, ExclusionIndex, texts_in
from psychocounsel.corpus.deduplicate import SPLITS, assign_splits, cluster_ids
from psychocounsel.corpus.deidentify.pii_evaluation import Counts, evaluate, read_pii_set
from psychocounsel.corpus.deidentify.presidio import open_deidentifier
from psychocounsel.corpus.deidentify.spans import deidentify
from psychocounsel.corpus.language import OfflineIdentifier, is_foreign
from psychocounsel.corpus.parallel import KeptSpeeches, SideBySide, processors
from psychocounsel.corpus.reading import (
    LIMIT,
    CandidateReading,
    CandidateScreens,
    Screen,
    SpeechIndex,
    SpeechReading,
    SpeechScreens,
    beyond_limit,
    read_candidates,
    read_speeches,
)
from psychocounsel.corpus.sources import read_rows, source_identity, source_name, text_cell
from psychocounsel.corpus.topic_model import open_topics, plan_topics
from psychocounsel.corpus.topics import Assigned, Topic, TopicAssigner, Unassigned, unassigned_by_reason
from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.endpoints import keep_restricted_text_here
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.schemas import (
    RowProvenance,
    SplitSpeech,
    read_row_provenance,
    write_candidates,
    write_row_provenance,
    write_speeches,
)
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, ReplyStatus, Speech, content_id

_Opened = Callable[[], Callable[[str], Prepared]]
_PLACEHOLDER = re.compile(rf"\[({'|'.join(ENTITIES)})_(\d+)\]")


def screens_identity(config: CorpusConfig) -> dict[str, Any]:
    """Return what identifies those who look: the language identifier and the engine for identities.

    Raises:
        ConfigError: an engine is not installed.
    """
    identity: dict[str, Any] = {}
    if config.cleaning.languages:
        identity["language_identifier"] = f"py3langid {version('py3langid')}"
    deidentifier = open_deidentifier(config.deidentification)
    identity["deidentification"] = None if deidentifier is None else dict(deidentifier.identity)
    return identity


class Filters:
    """Those who look at the texts of one corpus, and what was found by them."""

    def __init__(self, config: CorpusConfig) -> None:
        """Open what a config asks for.

        Raises:
            ConfigError: an engine is not installed.
            InputError: an excluded source cannot be read.
        """
        self._config = config
        self._deidentifier = open_deidentifier(config.deidentification)
        self._found: Counter[str] = Counter()
        deidentify = None if self._deidentifier is None else self._hide
        self.for_speeches = SpeechScreens(
            SPEECH_STEPS,
            _other_language(config),
            _benchmark(config),
            deidentify,
            self._together(partial(open_for_speeches, config)),
        )

    def for_candidates(self, authors: Iterable[str]) -> CandidateScreens:
        """Return how responses are cleaned; the authors who are people are looked for in every text."""
        cleaning = self._config.cleaning
        return CandidateScreens(
            response_steps(cleaning, authors),
            self.for_speeches.text_of,
            _pseudonym if cleaning.signatures == "remove" else str,
            self.for_speeches.deidentify,
            self._together(partial(open_for_candidates, self._config, frozenset(authors))),
        )

    def _together(self, opened: _Opened) -> Callable[[Iterable[str]], Iterator[Prepared]]:
        # An engine with a language model of its own would be loaded by every worker.
        workers = 0 if self._config.deidentification.engine == "presidio" else processors()
        parallel_map = SideBySide(opened(), opened, workers)

        def prepare_all(raws: Iterable[str]) -> Iterator[Prepared]:
            for prepared in parallel_map.each(raws):
                self._count(prepared.plain, prepared.text)
                yield prepared

        return prepare_all

    def _hide(self, text: str) -> str:
        assert self._deidentifier is not None  # noqa: S101
        hidden = deidentify(text, self._deidentifier)
        self._count(text, hidden)
        return hidden

    def _count(self, text: str, hidden: str) -> None:
        if hidden != text:
            new = set(_PLACEHOLDER.findall(hidden)) - set(_PLACEHOLDER.findall(text))
            self._found.update(entity for entity, _ in new)

    def found(self) -> dict[str, Any] | None:
        """Return what the engine for identities found, and how it does on texts with planted identities."""
        if self._deidentifier is None:
            return None
        planted = evaluate(self._deidentifier, read_pii_set("held_out"))
        return {
            "engine": self._config.deidentification.engine,
            "found": dict(sorted(self._found.items())),
            "pii_evaluation": {name: _entity_counts(each) for name, each in sorted(planted.by_entity.items())},
            "pii_evaluation_overall": _entity_counts(planted.overall),
        }


def open_for_speeches(config: CorpusConfig) -> Callable[[str], Prepared]:
    """Return what prepares one speech, here or in a worker."""
    return partial(prepare, steps=SPEECH_STEPS, deidentify=_hiding(config), other_language=_other_language(config))


def open_for_candidates(config: CorpusConfig, authors: Iterable[str]) -> Callable[[str], Prepared]:
    """Return what prepares one response, here or in a worker."""
    steps = response_steps(config.cleaning, sorted(authors))
    return partial(prepare, steps=steps, deidentify=_hiding(config))


def _hiding(config: CorpusConfig) -> Callable[[str], str] | None:
    engine = open_deidentifier(config.deidentification)
    return None if engine is None else partial(deidentify, finder=engine)


def _entity_counts(counts: Counts) -> dict[str, int]:
    return {**counts._asdict()}


def _other_language(config: CorpusConfig) -> Screen | None:
    if not config.cleaning.languages:
        return None
    identifier = OfflineIdentifier()
    wanted = config.cleaning.languages
    told = f"not {' or '.join(wanted)}"
    return lambda text: told if is_foreign(text, wanted, identifier) else None


def _benchmark(config: CorpusConfig) -> Screen | None:
    if not config.exclude:
        return None
    sources = (
        ExcludedTexts(source_name(each.path), texts_in(read_rows(each.path, each.split, each.config), each.columns))
        for each in config.exclude
    )
    return ExclusionIndex(sources, config.exclude_span_words).shares_span


def _pseudonym(author: str) -> str:
    """Return a name that can be published: a person's, or a page's, gives way to a number of its own."""
    is_public = author_name(author) is None and "://" not in author
    return author if is_public else f"person-{content_id('author', author)[:8]}"


VERSION = 2

_BATCH = 4096

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far work with a label and a total is: a context that yields `advance(count)`."""


def no_progress(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    del label, total
    return nullcontext(lambda count: None)


def build_speeches(
    config: CorpusConfig,
    topics: TopicAssigner | None,
    writer: ArtifactWriter,
    progress: Progress = no_progress,
) -> None:
    """Read, clean, de-duplicate and split the speeches of a corpus.

    Raises:
        InputError: a source cannot be read.
        DataQualityError: nothing is left, a split stays empty, or too many speeches got no topic.
    """
    screens = Filters(config)
    with _read(config, screens, writer.work) as reading:
        left_out = beyond_limit(reading, config.cleaning.max_speeches)
        kept = _within_limit(reading, left_out, writer.work)
        assigned = [] if topics is None else _assign(topics, config, kept, progress)
        clusters = cluster_ids(kept.ids, kept.texts, config.split.near_duplicate_similarity)
        splits = assign_splits(clusters, kept.topics, config.split)
        write_speeches(writer, _rows(kept, splits, clusters))
        write_row_provenance(writer, _with_limit(reading.fates(), left_out))
        writer.write_metrics(
            {
                "funnel": reading.funnel.as_dict(),
                "sources": _sources(config, kept),
                "topics": _counts(kept.topics),
                "fine_topics": _counts(kept.fine_topics),
                "without_topic": unassigned_by_reason(assigned),
                "splits": {name: splits.count(name) for name in SPLITS},
                "topics_by_split": _by_split(splits, kept.topics),
                "clusters": len(np.unique(clusters)),
                "near_duplicates": len(kept) - len(np.unique(clusters)),
                "crisis": kept.crisis_count,
                "deidentification": screens.found(),
            }
        )


@contextmanager
def _read(config: CorpusConfig, screens: Filters, folder: Path) -> Generator[SpeechReading]:
    sources = (
        (source_name(each.path), each.columns, read_rows(each.path, each.split, each.config))
        for each in config.speeches
    )
    reading = read_speeches(sources, config.cleaning, screens.for_speeches, folder)
    try:
        if not reading.kept:
            raise DataQualityError(
                f"no speech is left of {reading.funnel.rows_in} rows: {counted(reading.funnel.dropped)}",
                where="corpus.speeches",
                remedy="check the columns, or loosen corpus.cleaning",
            )
        yield reading
    finally:
        reading.close()


def _within_limit(reading: SpeechReading, left_out: frozenset[int], folder: Path) -> KeptSpeeches:
    if not left_out:
        return reading.kept
    places = (at for at in range(len(reading.kept)) if at not in left_out)
    return reading.kept.chosen(places, folder / "chosen.texts")


def _with_limit(fates: Iterable[RowProvenance], left_out: frozenset[int]) -> Iterator[RowProvenance]:
    """Yield what became of each row, now that it is known which kept speeches the limit leaves out."""
    place = 0
    for fate in fates:
        if fate.reason:
            yield fate
            continue
        beyond = place in left_out
        yield fate._replace(dropped_by=LIMIT, reason="beyond_max_speeches") if beyond else fate
        place += 1


def _assign(assigner: TopicAssigner, config: CorpusConfig, kept: KeptSpeeches, progress: Progress) -> list[Assigned]:
    """Give every speech its topic, where one was found; the others have none, whatever their source said."""
    assigned: list[Assigned] = []
    speeches = iter(kept)
    with progress("naming topics", len(kept)) as advance:
        while batch := list(islice(speeches, _BATCH)):
            assigned += assigner.assign(batch, advance)
    for at, topic in enumerate(assigned):
        kept.name_topic(at, *(topic if isinstance(topic, Topic) else ("", "")))
    _require_few_failed(assigned, config)
    return assigned


def _require_few_failed(assigned: Sequence[Assigned], config: CorpusConfig) -> None:
    failed = Counter(each.reason for each in assigned if isinstance(each, Unassigned) and each.is_failure)
    if lost := failed[ReplyStatus.ERROR.value]:
        raise IncompleteError(
            f"{lost} of {len(assigned)} speeches got no answer from whom names topics",
            where="corpus.topics.endpoint",
            remedy="see to the endpoint, then run the same command again; only what is owed is asked",
        )
    allowed = 0.0 if config.topics is None else config.topics.max_missing_share
    if failed.total() > allowed * len(assigned):
        raise DataQualityError(
            f"{failed.total()} of {len(assigned)} speeches got no topic: {counted(failed)}",
            where="corpus.topics.max_missing_share",
            remedy="run the same command to ask those again",
        )


def _rows(kept: KeptSpeeches, splits: Iterable[str], clusters: NDArray[np.uint64]) -> Iterator[SplitSpeech]:
    for speech, split, cluster in zip(kept, splits, clusters.tolist(), strict=True):
        yield SplitSpeech(speech, split, f"{cluster:016x}")


def _sources(config: CorpusConfig, kept: KeptSpeeches) -> list[dict[str, Any]]:
    """Tell of each source once, though several columns of it may be read."""
    speeches = Counter(kept.sources)
    terms = {source_name(each.path): (each.licence, each.data_class) for each in config.speeches}
    return [
        {"name": name, "licence": licence, "data_class": data_class, "speeches": speeches[name]}
        for name, (licence, data_class) in terms.items()
    ]


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _by_split(splits: Iterable[str], topics: Iterable[str]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(splits, topics, strict=True))
    return {split: {topic: counts[at, topic] for at, topic in sorted(counts) if at == split} for split in SPLITS}


def build_candidates(config: CorpusConfig, speeches: Artifact, writer: ArtifactWriter) -> None:
    """Read and clean the ready responses to the speeches of a corpus.

    Raises:
        DataQualityError: no response is left.
    """
    screens = Filters(config)
    reading = _read_candidates(config, SpeechIndex(read_row_provenance(speeches)), screens)
    if not reading.candidates:
        raise DataQualityError(
            f"no response is left: {counted(reading.funnel.dropped)}",
            where="corpus.candidates",
            remedy="check that speech_key or speech_text names the column that repeats the speech",
        )
    write_candidates(writer, reading.candidates)
    write_row_provenance(writer, reading.fates)
    writer.write_metrics({"funnel": reading.funnel.as_dict(), "deidentification": screens.found()})


def _read_candidates(config: CorpusConfig, index: SpeechIndex, screens: Filters) -> CandidateReading:
    sources = [
        (source_name(each.path), each.columns, list(read_rows(each.path, each.split, each.config)))
        for each in config.candidates
    ]
    authors = {text_cell(row, columns.author) for _, columns, rows in sources for row in rows}
    return read_candidates(sources, index, screens.for_candidates(authors))


class Corpus(NamedTuple):
    """The speeches of a corpus and the ready responses to them, in memory."""

    speeches: list[Speech]
    candidates: list[Candidate]


def read_corpus(config: CorpusConfig) -> Corpus:
    """Read and clean a corpus without making an artifact of it, its topics left as the sources give them."""
    screens = Filters(config)
    with TemporaryDirectory() as folder, _read(config, screens, Path(folder)) as reading:
        left_out = beyond_limit(reading, config.cleaning.max_speeches)
        speeches = list(_within_limit(reading, left_out, Path(folder)))
        index = SpeechIndex(_with_limit(reading.fates(), left_out))
        return Corpus(speeches, _read_candidates(config, index, screens).candidates)


STAGE = "read-corpus"


class CorpusPlans(NamedTuple):
    """The two artifacts of a corpus; a corpus without ready responses has no candidates."""

    speeches: ArtifactSpec
    candidates: ArtifactSpec | None


class CorpusArtifacts(NamedTuple):
    """A corpus on disk."""

    speeches: Artifact
    candidates: Artifact | None


def plan_corpus(config: CorpusConfig, store: Store) -> CorpusPlans:
    """Return what the corpus is, by the content of its files.

    Raises:
        ConfigError: the model that names topics is not on this machine, and the run is offline or the text
            restricted.
    """
    if config.topics is not None:
        keep_restricted_text_here([config.topics.endpoint], {each.path: each.data_class for each in config.speeches})
    settings: dict[str, Any] = {
        "speeches": [_source(each) for each in config.speeches],
        "cleaning": config.cleaning.fingerprint(),
        "split": config.split.fingerprint(),
        **screens_identity(config),
    }
    if config.exclude:
        settings["exclude"] = [_source(each) for each in config.exclude]
        settings["exclude_span_words"] = config.exclude_span_words
    if config.topics is not None:
        settings["topics"] = plan_topics(config.topics, store)
    speeches = ArtifactSpec("speeches", config.name, STAGE, VERSION, settings)
    if not config.candidates:
        return CorpusPlans(speeches, None)
    ready = {"candidates": [_source(each) for each in config.candidates]}
    parents = (speeches.as_parent("speeches"),)
    return CorpusPlans(speeches, ArtifactSpec("candidates", config.name, STAGE, VERSION, ready, parents))


def _source(source: SpeechSource | CandidateSource | ExcludedSource) -> dict[str, Any]:
    """Return what identifies a source: its content, and the name under which its rows remember it."""
    content = source_identity(source.path, source.split, source.config)
    return {**source.fingerprint(), "path": content, "name": source_name(source.path)}


def open_corpus(
    config: CorpusConfig, store: Store, cancel: CancelToken, progress: Progress = no_progress
) -> CorpusArtifacts:
    """Return the corpus, reading its sources only if it is not in the store yet.

    Raises:
        Preempted: a signal asked to stop while a model named topics; what it said is kept.
    """
    plans = plan_corpus(config, store)
    speeches = store.make(plans.speeches, lambda writer: _build_speeches(config, store, writer, cancel, progress))
    if plans.candidates is None:
        return CorpusArtifacts(speeches, None)
    candidates = store.make(plans.candidates, lambda writer: build_candidates(config, speeches, writer))
    return CorpusArtifacts(speeches, candidates)


def _build_speeches(
    config: CorpusConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken, progress: Progress
) -> None:
    if config.topics is None:
        build_speeches(config, None, writer, progress)
        return
    with open_topics(config.topics, store, cancel) as assigner:
        build_speeches(config, assigner, writer, progress)
