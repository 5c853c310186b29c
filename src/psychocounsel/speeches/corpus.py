"""CorpusConfig -> speeches and candidates artifacts: sources read, cleaned, split once for every stage."""

from collections.abc import Iterator
from typing import NamedTuple

from psychocounsel.config.corpus import CorpusConfig, SpeechColumns
from psychocounsel.errors import DataQualityError
from psychocounsel.speeches.reading import (
    CandidateReading,
    Row,
    SpeechReading,
    read_candidates,
    read_speeches,
)
from psychocounsel.speeches.splitting import assign_splits, clusters
from psychocounsel.store.artifacts import Artifact, Draft, Plan
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import SplitSpeech, write_candidates, write_speeches
from psychocounsel.store.tables.sources import read_rows, source_identity, source_name

VERSION = 1
STAGE = "read-corpus"


class CorpusPlans(NamedTuple):
    """The two artifacts of a corpus; a corpus without ready responses has no candidates."""

    speeches: Plan
    candidates: Plan | None


class Corpus(NamedTuple):
    """A corpus on disk."""

    speeches: Artifact
    candidates: Artifact | None


def plan_corpus(config: CorpusConfig) -> CorpusPlans:
    """Return what the corpus is, by the content of its files."""
    sources = [
        {**source.identity(), "path": source_identity(source.path, source.split)}
        for source in config.speeches
    ]
    settings = {
        "speeches": sources,
        "cleaning": config.cleaning.identity(),
        "split": config.split.identity(),
    }
    speeches = Plan("speeches", config.name, STAGE, VERSION, settings)
    if not config.candidates:
        return CorpusPlans(speeches, None)
    ready = [
        {**source.identity(), "path": source_identity(source.path, source.split)}
        for source in config.candidates
    ]
    parents = (speeches.as_parent("speeches"),)
    return CorpusPlans(
        speeches, Plan("candidates", config.name, STAGE, VERSION, {"candidates": ready}, parents)
    )


def open_corpus(config: CorpusConfig, store: Store) -> Corpus:
    """Return the corpus, reading its sources only if it is not in the store yet."""
    plans = plan_corpus(config)
    speeches = store.make(plans.speeches, lambda draft: _build_speeches(config, draft))
    if plans.candidates is None:
        return Corpus(speeches, None)
    candidates = store.make(plans.candidates, lambda draft: _build_candidates(config, draft))
    return Corpus(speeches, candidates)


class CorpusReading(NamedTuple):
    """A corpus as its sources give it, before anything is kept."""

    speeches: SpeechReading
    candidates: CandidateReading


def read_corpus(config: CorpusConfig) -> CorpusReading:
    """Read and clean the speeches of all sources, and the responses to them; nothing is written."""
    speeches = read_corpus_speeches(config)
    sources = ((source.columns, read_rows(source.path, source.split)) for source in config.candidates)
    return CorpusReading(speeches, read_candidates(sources, speeches))


def read_corpus_speeches(config: CorpusConfig) -> SpeechReading:
    """Read and clean the speeches of all sources, without splitting them."""
    return read_speeches(_speech_sources(config), config.cleaning)


def _speech_sources(config: CorpusConfig) -> Iterator[tuple[str, SpeechColumns, Iterator[Row]]]:
    for source in config.speeches:
        yield source_name(source.path), source.columns, read_rows(source.path, source.split)


def _build_speeches(config: CorpusConfig, draft: Draft) -> None:
    reading = read_corpus_speeches(config)
    cluster_ids = clusters(reading.speeches, config.split.near_duplicate_similarity)
    splits = assign_splits(reading.speeches, cluster_ids, config.split)
    rows = [SplitSpeech(*row) for row in zip(reading.speeches, splits, cluster_ids, strict=True)]
    write_speeches(draft, rows)
    draft.write_metrics(
        {
            "funnel": reading.funnel.as_dict(),
            "splits": {name: splits.count(name) for name in ("train", "dev", "test")},
            "clusters": len(set(cluster_ids)),
            "crisis": sum(speech.crisis for speech in reading.speeches),
        }
    )


def _build_candidates(config: CorpusConfig, draft: Draft) -> None:
    reading = read_corpus(config).candidates
    if not reading.candidates:
        raise DataQualityError(
            f"no response is left: {dict(reading.funnel.dropped)}",
            where="corpus.candidates",
            remedy="check that speech_key or speech_text names the column that repeats the speech",
        )
    write_candidates(draft, reading.candidates)
    draft.write_metrics({"funnel": reading.funnel.as_dict()})
