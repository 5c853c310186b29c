"""eval-reward: any reward model with a sequence-classification head, measured on preference pairs or best-of-k rows."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import EvalRewardConfig, LaunchConfig
from psychocounsel.corpus.preferences import BestOfK, OutsidePairs, read_outside
from psychocounsel.corpus.sources import source_name
from psychocounsel.errors import DataQualityError, counted
from psychocounsel.evaluation.best_of_k import ScoredPrompt, best_of_k_metrics
from psychocounsel.evaluation.reward_metrics import measure_baselines
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals
from psychocounsel.stages.jobs import Jobs
from psychocounsel.stages.leakage import count_leakage, leakage_warning
from psychocounsel.stages.train_reward import pair_source, ranked_pairs, rating_scale, score_pairs
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.references import model_of, resolve_model, trained_chat
from psychocounsel.store.schemas import FLOAT, TEXT, read_pairs, write_scores, write_table
from psychocounsel.store.store import Store
from psychocounsel.types import Policy, PreferencePair, RatingScale, Reward, content_id

if TYPE_CHECKING:
    from psychocounsel.training.reward import Exchange

VERSION = 2
STAGE = "eval-reward"
MODEL, PAIRS = "reward model", "preferences"
BEST_OF_K_FILE = "best_of_k.parquet"
BEST_OF_K_SCHEMA = pa.schema(
    {"id": TEXT, "subset": TEXT, "chosen": pa.list_(FLOAT), "rejected": pa.list_(FLOAT), "prompt_id": TEXT}
)


def specs(config: EvalRewardConfig, store: Store) -> ArtifactSpec:
    """Return what the stage would create.

    Raises:
        ConfigError: a reference matches nothing, or there is no such split.
        InputError: a file is missing.
    """
    model = resolve_model(store, config.model, ("reward-models",))
    source = pair_source(store, config.on, config.split, config.config, PAIRS)
    known_by = {"model": model.fingerprint, "on": source.fingerprint}
    settings = config.fingerprint() | {"name": None, "config": None} | known_by
    parents = (*model.parents(MODEL), *((source.parent,) if source.parent else ()))
    return ArtifactSpec("reward-evaluations", config.name, STAGE, VERSION, settings, parents)


def eval_reward(config: EvalRewardConfig, store: Store) -> Artifact:
    """Measure the reward model of a config, or return the result if it exists.

    Raises:
        DataQualityError: there is nothing to measure on, or the model was trained on it.
        Preempted: SIGINT or SIGTERM came; the same command goes on.
    """
    with cancelled_by_signals() as cancel:
        return store.make(specs(config, store), lambda writer: _build(config, store, writer, cancel))


def _build(config: EvalRewardConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    model = model_of(store, writer.spec, MODEL, config.model, ("reward-models",))
    chat = config.chat or trained_chat(store, model)
    policy, jobs = model.policy(store), Jobs(LaunchConfig(), writer, cancel)

    def score(exchanges: "list[Exchange]") -> list[tuple[Reward, int]]:
        from psychocounsel.training.runtime import quiet_libraries  # imports torch

        with quiet_libraries():  # transformers warns of the first text that is too long
            _warn_of_long(writer, policy, chat, exchanges)
            return jobs.score("scoring responses", policy, chat, exchanges, config.batch_size)

    source = next((store.open(parent) for parent in writer.spec.parents if parent.role == PAIRS), None)
    if source is not None:
        pairs, train, dropped = read_pairs(source, config.split), read_pairs(source, "train"), Counter[str]()
        scale = rating_scale(source, pairs)
    else:
        read = read_outside(config.on, config.split, config.config, config.columns)
        if not isinstance(read, OutsidePairs):
            _measure_best_of_k(config, read, writer, score)
            return
        (pairs, dropped), train, scale = read, list[PreferencePair](), RatingScale()
    if not pairs:
        raise DataQualityError(
            f"the split {config.split} has no pairs: {counted(dropped)} left out",
            where=config.on,
            remedy="name another split or dataset",
        )
    leakage = None
    if model.parent is not None:
        trained, tested = [store.open(model.parent)], [pair.speech for pair in pairs]
        leakage = count_leakage(store, tested, source, trained, config.allow_leakage)
        if leakage["leaked"]:
            writer.warnings.append(leakage_warning(leakage))
    scored = score_pairs(score, pairs)
    write_scores(writer, scored.rows)
    bootstrap = BootstrapSettings(seed=config.seed)
    writer.write_metrics(
        {
            **_named(config, writer),
            **ranked_pairs(pairs, scored, scale, bootstrap),
            "baselines": measure_baselines(train, pairs, scored.margins, (scale.low, scale.high)),
            "dropped": dict(dropped),
            "leakage": leakage,
        }
    )


def _warn_of_long(writer: ArtifactWriter, policy: Policy, chat: ChatFormat, exchanges: "Sequence[Exchange]") -> None:
    """Have the result say how many exchanges are longer than the model takes: all of a benchmark's rows count."""
    from psychocounsel.training.tokenize import encode_exchange, load_tokenizer  # imports torch

    tokenizer = load_tokenizer(policy)
    most = tokenizer.model_max_length
    encoded = (encode_exchange(tokenizer, *each[:2], chat, each.history) for each in exchanges)
    long = sum(sum(map(len, each)) > most for each in encoded)
    if long:
        writer.warnings.append(
            f"{long} of {len(exchanges)} responses are with their prompts longer than the {most} tokens that the "
            "model takes: their rewards count, and may mean little."
        )


def _measure_best_of_k(
    config: EvalRewardConfig,
    prompts: Sequence[BestOfK],
    writer: ArtifactWriter,
    score: "Callable[[list[Exchange]], list[tuple[Reward, int]]]",
) -> None:
    from psychocounsel.training.reward import Exchange

    exchanges = [
        Exchange(each.prompt, text, each.history) for each in prompts for text in (*each.chosen, *each.rejected)
    ]
    rewards = iter([reward.raw for reward, _ in score(exchanges)])
    scored = [
        ScoredPrompt(
            each.id,
            each.subset,
            [next(rewards) for _ in each.chosen],
            [next(rewards) for _ in each.rejected],
            content_id(*chain(*each.history), each.prompt),
        )
        for each in prompts
    ]
    write_table(writer, BEST_OF_K_FILE, (each._asdict() for each in scored), BEST_OF_K_SCHEMA)
    metrics = best_of_k_metrics(scored)
    writer.write_metrics({**_named(config, writer), **dict(metrics)})


def _named(config: EvalRewardConfig, writer: ArtifactWriter) -> dict[str, str]:
    """Return how tables call the model and what it was measured on."""
    refs = {parent.role: parent.ref for parent in writer.spec.parents}
    return {"model": refs.get(MODEL, source_name(config.model)), "on": refs.get(PAIRS, source_name(config.on))}
