"""Corpus -> a tiny Llama 3: the stand-in for a downloaded base model, warmed up on training speeches."""

from typing import NamedTuple

from psychocounsel.config.schema import BaseModelConfig
from psychocounsel.corpus.build import CorpusPlans, open_corpus, plan_corpus
from psychocounsel.errors import ConfigError
from psychocounsel.llm.cancel import cancelled_by_signals
from psychocounsel.reporting.console import progress, step_progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.schemas import read_candidates, read_speeches
from psychocounsel.store.store import Store

VERSION = 1
STAGE = "make-base-model"


class BaseModelPlans(NamedTuple):
    """What the stage makes, in order."""

    corpus: CorpusPlans
    model: ArtifactSpec


def plan(config: BaseModelConfig, store: Store) -> BaseModelPlans:
    """Return what a config means, without making it."""
    corpus = plan_corpus(config.corpus, store)
    if corpus.candidates is None:
        raise ConfigError(
            "the corpus has no ready responses to warm up on",
            where="corpus.candidates",
            remedy="add a source",
        )
    settings = {
        "seed": config.seed,
        "shape": config.shape.fingerprint(),
        "sft": config.sft.fingerprint(),
        "chat": config.chat.fingerprint(),
    }
    parents = (corpus.speeches.as_parent("speeches"), corpus.candidates.as_parent("candidates"))
    return BaseModelPlans(corpus, ArtifactSpec("base-models", config.name, STAGE, VERSION, settings, parents))


def create_base_model(config: BaseModelConfig, store: Store) -> Artifact:
    """Make the tiny Llama 3 of a config, or return it if it exists."""
    plans = plan(config, store)
    with cancelled_by_signals() as cancel:
        open_corpus(config.corpus, store, cancel, progress)
    return store.make(plans.model, lambda writer: _build(config, store, writer))


def _build(config: BaseModelConfig, store: Store, writer: ArtifactWriter) -> None:
    from psychocounsel.training.tiny_llama import make_tiny_llama  # torch: only when a model is made

    parents = {parent.role: store.open(parent) for parent in writer.spec.parents}
    speeches = [each.speech for each in read_speeches(parents["speeches"]) if each.split == "train"]
    with step_progress("warming up the tiny Llama") as report:
        summary = make_tiny_llama(speeches, read_candidates(parents["candidates"]), config, writer.folder, report)
    writer.write_metrics({"sft": {**vars(summary)}, "training_speeches": len(speeches)})
