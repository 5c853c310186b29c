"""Corpus -> a tiny Llama 3: the stand-in for a downloaded base model, warmed up on training speeches."""

from typing import NamedTuple

from psychocounsel.config.stages import MakeBaseModelConfig
from psychocounsel.console import progress, step_progress
from psychocounsel.corpora import CorpusPlans, open_corpus, plan_corpus
from psychocounsel.errors import ConfigError
from psychocounsel.interrupts import stop_requests
from psychocounsel.store.artifacts import Artifact, Draft, Plan
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import read_candidates, read_speeches

VERSION = 1
STAGE = "make-base-model"


class BaseModelPlans(NamedTuple):
    """What the stage makes, in order."""

    corpus: CorpusPlans
    model: Plan


def plan(config: MakeBaseModelConfig, store: Store) -> BaseModelPlans:
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
        "shape": config.shape.identity(),
        "warm_up": config.warm_up.identity(),
        "chat": config.chat.identity(),
    }
    parents = (corpus.speeches.as_parent("speeches"), corpus.candidates.as_parent("candidates"))
    return BaseModelPlans(corpus, Plan("base-models", config.name, STAGE, VERSION, settings, parents))


def make_base_model(config: MakeBaseModelConfig, store: Store) -> Artifact:
    """Make the tiny Llama 3 of a config, or return it if it exists."""
    plans = plan(config, store)
    with stop_requests() as stop:
        open_corpus(config.corpus, store, stop, progress)
    return store.make(plans.model, lambda draft: _build(config, store, draft))


def _build(config: MakeBaseModelConfig, store: Store, draft: Draft) -> None:
    from psychocounsel.training.tiny_llama import make_tiny_llama  # torch: only when a model is made

    parents = {parent.role: store.open(parent) for parent in draft.plan.parents}
    speeches = [each.speech for each in read_speeches(parents["speeches"]) if each.split == "train"]
    with step_progress("warming up the tiny Llama") as report:
        summary = make_tiny_llama(
            speeches, read_candidates(parents["candidates"]), config, draft.folder, report
        )
    draft.write_metrics({"warm_up": {**vars(summary)}, "training_speeches": len(speeches)})
