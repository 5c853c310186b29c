"""make-base-model: a tiny Llama 3 instead of a downloaded base model, fine-tuned on the corpus's training responses."""

from psychocounsel.config.schema import BaseModelConfig
from psychocounsel.corpus.build import CorpusSpecs, corpus_specs, make_corpus
from psychocounsel.corpus.topics import open_topics
from psychocounsel.errors import ConfigError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.session import Session, open_session
from psychocounsel.reporting.console import progress, step_progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.schemas import read_candidates, speeches_in
from psychocounsel.store.store import Store
from psychocounsel.training.tracking import prepare_tracker

VERSION = 1
STAGE = "make-base-model"


def specs(config: BaseModelConfig, store: Store) -> tuple[CorpusSpecs, ArtifactSpec]:
    """Return what the stage would create."""
    corpus = corpus_specs(config.corpus, open_topics(config.corpus.topics, Session(store)))
    if corpus.candidates is None:
        raise ConfigError(
            "the corpus has no ready responses to train on", where="corpus.candidates", remedy="add a source"
        )
    settings = {
        "seed": config.seed,
        "shape": config.shape.fingerprint(),
        "sft": config.sft.fingerprint(),
        "chat": config.chat.fingerprint(),
    }
    parents = (corpus.speeches.as_parent("speeches"), corpus.candidates.as_parent("candidates"))
    return corpus, ArtifactSpec("base-models", config.name, STAGE, VERSION, settings, parents)


def create_base_model(config: BaseModelConfig, store: Store) -> Artifact:
    """Create the tiny Llama 3 of a config, or return it if it exists.

    Raises:
        ConfigError: the tracker cannot be used here.
        Preempted: SIGINT or SIGTERM came; the checkpoint is kept.
    """
    _, spec = specs(config, store)
    prepare_tracker(config.sft.tracker, store)
    with open_session(store) as session:
        make_corpus(config.corpus, store, open_topics(config.corpus.topics, session), progress)
        session.cancel.raise_if_cancelled(spec.ref)
        return store.make(spec, lambda writer: _build(config, store, writer, session.cancel))


def _build(config: BaseModelConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    from psychocounsel.training.checkpoints import damage_warnings  # imports torch
    from psychocounsel.training.tiny_llama import make_tiny_llama
    from psychocounsel.training.trainer import TrainingOutput

    speeches = speeches_in(store.open(writer.parent("speeches")), "train")
    candidates = read_candidates(store.open(writer.parent("candidates")))
    with step_progress("training the tiny Llama") as report:
        output = TrainingOutput(writer.folder, writer.work, cancel, report, writer.spec.id)
        summary = make_tiny_llama(speeches, candidates, config, output)
    writer.warnings.extend(damage_warnings(writer.work))
    writer.write_metrics({"sft": summary, "training_speeches": len(speeches)})
