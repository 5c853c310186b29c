"""Preferences -> reward model: trained on train, scaled on dev, measured on test beside its baselines."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from psychocounsel.config.schema import TrainRewardConfig
from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.reward_metrics import DEFAULT_SCALE, measure_baselines, reward_metrics
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals
from psychocounsel.reporting.cards import ModelFacts, model_card
from psychocounsel.reporting.console import step_progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.references import POLICY_KINDS, resolve_model, resolve_parent
from psychocounsel.store.schemas import RewardScore, read_pairs, write_scores
from psychocounsel.store.store import Store
from psychocounsel.types import Policy, PreferencePair, RewardModel

if TYPE_CHECKING:
    from psychocounsel.training.reward import Exchange, RewardScorer


VERSION = 2
STAGE = "train-reward"


class Margins(NamedTuple):
    """The distinct candidates of some pairs, their raw rewards, and each pair's margin."""

    exchanges: "dict[str, Exchange]"
    rewards: dict[str, float]
    margins: list[float]


def plan(config: TrainRewardConfig, store: Store) -> ArtifactSpec:
    """Return what a config means, without making it."""
    base = resolve_model(store, config.base_model, POLICY_KINDS)
    preferences = resolve_parent(store, config.preferences, "preferences", "preferences")
    settings = config.fingerprint() | {"base_model": base.fingerprint, "preferences": None, "name": None}
    parents = (preferences, *base.parents("base model"))
    return ArtifactSpec("reward-models", config.name, STAGE, VERSION, settings, parents)


def train_reward(config: TrainRewardConfig, store: Store) -> Artifact:
    """Train and measure the reward model of a config, or return it if it exists.

    Raises:
        DataQualityError: there is nothing to train or to test on.
        RunCancelledError: SIGINT or SIGTERM came; the checkpoint is kept.
    """
    planned = plan(config, store)
    with cancelled_by_signals() as cancel:
        return store.make(planned, lambda writer: _build(config, store, writer, cancel))


def _build(config: TrainRewardConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    from psychocounsel.training.reward import RewardScorer, train_reward_model, write_normalisation
    from psychocounsel.training.trainer import TrainingOutput  # torch: only when a model is trained

    preferences = store.open(writer.parent("preferences"))
    pairs = {split: read_pairs(preferences, split) for split in ("train", "dev", "test")}
    _require_splits(pairs, preferences)
    base = resolve_model(store, config.base_model, POLICY_KINDS).policy(store)
    with step_progress("training the reward model") as report:
        output = TrainingOutput(writer.folder, writer.work, cancel, report, writer.spec.id)
        summary = train_reward_model(base, pairs["train"], config, output)
    scorer = RewardScorer.load(Policy(str(writer.folder)), config.chat)
    batch_size = config.optimisation.per_device_batch_size
    scaling = _margins(scorer, pairs["dev"] or pairs["train"], batch_size)
    mean, std = statistics.fmean(scaling.rewards.values()), statistics.pstdev(scaling.rewards.values())
    write_normalisation(writer.folder, mean, std)
    test = _margins(scorer, pairs["test"], batch_size)
    write_scores(writer, _scores(scorer, RewardModel(str(writer.folder), mean, std), test))
    writer.write_metrics(
        {
            **_measure(pairs["train"], pairs["test"], test.margins, config.seed, _scale(preferences)),
            "dev": _accuracy(pairs["dev"], scaling.margins, config.seed),
            "normalisation": {"mean": mean, "std": std, "split": "dev" if pairs["dev"] else "train"},
            "training": summary.as_dict(),
            "test_margins": test.margins,
        }
    )
    card = model_card(ModelFacts(config.name, "reward model", store.open(writer.parent("preferences")).warnings))
    writer.write_card(card)


def _require_splits(pairs: dict[str, list[PreferencePair]], preferences: Artifact) -> None:
    for split in ("train", "test"):
        if not pairs[split]:
            raise DataQualityError(
                f"the split {split} has no pairs",
                where=f"preferences {preferences.ref}",
                remedy="build preferences with a larger share for it",
            )


def _margins(scorer: "RewardScorer", pairs: Sequence[PreferencePair], batch_size: int) -> Margins:
    from psychocounsel.training.reward import Exchange

    exchanges = {
        side.candidate.id: Exchange(pair.speech.text, side.candidate.text)
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    }
    rewards = dict(zip(exchanges, scorer.raw(list(exchanges.values()), batch_size), strict=True))
    margins = [rewards[pair.chosen.candidate.id] - rewards[pair.rejected.candidate.id] for pair in pairs]
    return Margins(exchanges, rewards, margins)


def _scores(scorer: "RewardScorer", scale: RewardModel, scored: Margins) -> list[RewardScore]:
    lengths = scorer.response_tokens(list(scored.exchanges.values()))
    return [
        RewardScore(candidate_id, raw, scale.normalise(raw), tokens)
        for (candidate_id, raw), tokens in zip(scored.rewards.items(), lengths, strict=True)
    ]


def _scale(preferences: Artifact) -> tuple[int, int]:
    """Return the scale on which the responses of a dataset were rated."""
    low, high = preferences.manifest["notes"].get("scale", DEFAULT_SCALE)
    return low, high


def _measure(
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    margins: Sequence[float],
    seed: int,
    scale: tuple[int, int],
) -> dict[str, Any]:
    settings = BootstrapSettings(seed=seed)
    speeches = [pair.speech.id for pair in test]
    return {
        "test": reward_metrics(margins, speeches, settings).as_dict(),
        "baselines": measure_baselines(train, test, margins, settings, scale).as_dict(),
        "pairs": {"train": len(train), "test": len(test)},
    }


def _accuracy(pairs: Sequence[PreferencePair], margins: Sequence[float], seed: int) -> dict[str, Any] | None:
    if not pairs:
        return None
    settings = BootstrapSettings(samples=1000, seed=seed)
    return reward_metrics(margins, [pair.speech.id for pair in pairs], settings).as_dict()
