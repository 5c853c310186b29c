"""CorpusConfig -> speeches and candidates artifacts: read once for every stage that starts from them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from psychocounsel.config.corpus import CandidateSource, CorpusConfig, ExcludedSource, SpeechSource
from psychocounsel.endpoints import keep_restricted_text_here
from psychocounsel.speeches.corpus import VERSION, Progress, build_candidates, build_speeches, no_progress
from psychocounsel.speeches.screens import screens_identity
from psychocounsel.store.artifacts import Artifact, Draft, Plan
from psychocounsel.store.store import Store
from psychocounsel.store.tables.sources import source_identity, source_name
from psychocounsel.topic_assigners import open_topics, plan_topics

STAGE = "read-corpus"


class CorpusPlans(NamedTuple):
    """The two artifacts of a corpus; a corpus without ready responses has no candidates."""

    speeches: Plan
    candidates: Plan | None


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
        keep_restricted_text_here(
            [config.topics.endpoint], {each.path: each.data_class for each in config.speeches}
        )
    settings: dict[str, Any] = {
        "speeches": [_source(each) for each in config.speeches],
        "cleaning": config.cleaning.identity(),
        "split": config.split.identity(),
        **screens_identity(config),
    }
    if config.exclude:
        settings["exclude"] = [_source(each) for each in config.exclude]
        settings["exclude_span_words"] = config.exclude_span_words
    if config.topics is not None:
        settings["topics"] = plan_topics(config.topics, store)
    speeches = Plan("speeches", config.name, STAGE, VERSION, settings)
    if not config.candidates:
        return CorpusPlans(speeches, None)
    ready = {"candidates": [_source(each) for each in config.candidates]}
    parents = (speeches.as_parent("speeches"),)
    return CorpusPlans(speeches, Plan("candidates", config.name, STAGE, VERSION, ready, parents))


def _source(source: SpeechSource | CandidateSource | ExcludedSource) -> dict[str, Any]:
    """Return what identifies a source: its content, and the name under which its rows remember it."""
    content = source_identity(source.path, source.split, source.config)
    return {**source.identity(), "path": content, "name": source_name(source.path)}


def open_corpus(
    config: CorpusConfig, store: Store, stop: Callable[[], bool], progress: Progress = no_progress
) -> CorpusArtifacts:
    """Return the corpus, reading its sources only if it is not in the store yet.

    Raises:
        Preempted: a signal asked to stop while a model named topics; what it said is kept.
    """
    plans = plan_corpus(config, store)
    speeches = store.make(plans.speeches, lambda draft: _build_speeches(config, store, draft, stop, progress))
    if plans.candidates is None:
        return CorpusArtifacts(speeches, None)
    candidates = store.make(plans.candidates, lambda draft: build_candidates(config, speeches, draft))
    return CorpusArtifacts(speeches, candidates)


def _build_speeches(
    config: CorpusConfig, store: Store, draft: Draft, stop: Callable[[], bool], progress: Progress
) -> None:
    if config.topics is None:
        build_speeches(config, None, draft, progress)
        return
    with open_topics(config.topics, store, stop) as assigner:
        build_speeches(config, assigner, draft, progress)
