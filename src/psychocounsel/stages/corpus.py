"""corpus: sources become a corpus, and a private page shows what each rule did to the texts."""

from pathlib import Path

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.corpus.build import CorpusArtifacts, corpus_specs, make_corpus, raw_texts
from psychocounsel.corpus.changes import CorpusEffects, effects
from psychocounsel.corpus.topics import open_topics
from psychocounsel.errors import DataQualityError, first_of
from psychocounsel.llm.endpoints import require_usable
from psychocounsel.llm.session import PendingCalls, Session, open_session
from psychocounsel.reporting import console
from psychocounsel.reporting.console import progress
from psychocounsel.reporting.corpus_page import effects_table, render_corpus
from psychocounsel.reporting.tables import as_text
from psychocounsel.stages.estimate import count_corpus
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.files import write_bytes, write_faults
from psychocounsel.store.gc import PRIVATE, page_of_corpus
from psychocounsel.store.schemas import read_candidates, read_speeches
from psychocounsel.store.store import Store

_FEW = 5


def specs(config: CorpusConfig, store: Store) -> list[ArtifactSpec]:
    """Return what a config makes."""
    made = corpus_specs(config, open_topics(config.topics, Session(store)))
    return [made.speeches] if made.candidates is None else [made.speeches, made.candidates]


def build_corpus(config: CorpusConfig, store: Store, calls: list[PendingCalls] | None = None) -> Artifact:
    """Build the corpus, or find it, and write the page of what each rule did; return its last artifact.

    In a dry run, `store` is an overlay and `calls` receives the calls of the model that names topics.

    Raises:
        InputError: a source cannot be read.
        DataQualityError: nothing is left, or with `cleaning.strict`, a rule did too much; the page is written first.
        Preempted: SIGINT or SIGTERM came while a model named topics; its replies are kept.
    """
    with open_session(store, calls) as session:
        topics = open_topics(config.topics, session)
        endpoint = None if config.topics is None else config.topics.endpoint
        is_pending = store.find(corpus_specs(config, topics).speeches) is None
        if session.is_dry_run:
            if endpoint is None or not is_pending:
                session.stop_counting()
            count_corpus(config, session, topics)
            session.stop_counting()
        if is_pending:
            require_usable({"corpus.topics": endpoint}, store)
        corpus = make_corpus(config, store, topics, progress)
        _show_effects(config, corpus, store)
    return corpus.candidates or corpus.speeches


def _show_effects(config: CorpusConfig, corpus: CorpusArtifacts, store: Store) -> None:
    """Write the page, and show its tables and flags."""
    found: list[tuple[Artifact, CorpusEffects]] = []
    for raw in raw_texts(config, corpus):
        found.append((raw.artifact, effects(raw, _texts(raw.artifact))))
        if raw.renamed:
            console.note(
                f"taken for names of people and called person-NUMBER: {first_of(raw.renamed, _FEW)}; "
                "author_is: model beside their columns keeps labels of models, author_is: person confirms it"
            )
    page = _write_page(config, corpus.candidates or corpus.speeches, found, store)
    for artifact, done in found:
        console.note(as_text(effects_table(artifact, done)))
    flags = [flag for _, done in found for flag in done.flags()]
    for flag in flags:
        console.note(f"! {flag}")
    console.note(f"private page with the largest changes, before and after: {page}")
    if flags and config.cleaning.strict:
        raise DataQualityError(
            "; ".join(flags),
            where="corpus.cleaning.strict",
            remedy=f"look at {page}, then change cleaning or leave strict out",
        )


def _texts(artifact: Artifact) -> dict[str, str]:
    if artifact.kind == "speeches":
        return {each.speech.id: each.speech.text for each in read_speeches(artifact)}
    return {each.id: each.text for each in read_candidates(artifact)}


def _write_page(
    config: CorpusConfig, named_after: Artifact, found: list[tuple[Artifact, CorpusEffects]], store: Store
) -> Path:
    """Write the page where only its owner can read it, outside every artifact: none of them may hold its texts."""
    page = (store.root / PRIVATE / page_of_corpus(named_after)).resolve()
    with write_faults(page):
        page.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(page, render_corpus(config.name, found).encode("utf-8"))
    page.chmod(0o600)
    return page
