"""train-reward: a reward model trained on train pairs, normalised on dev, measured on test with its baselines."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from psychocounsel.config.recipe import is_project
from psychocounsel.config.schema import TrainRewardConfig
from psychocounsel.corpus.preferences import outside_fingerprint, read_outside_pairs
from psychocounsel.corpus.sources import source_name
from psychocounsel.errors import ConfigError, DataQualityError, counted, did_you_mean
from psychocounsel.evaluation.reward_metrics import (
    DEFAULT_SCALE,
    by_principle,
    measure_baselines,
    reliability,
    reward_metrics,
    slices,
)
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals
from psychocounsel.reporting.cards import REWARD_MODEL, model_card
from psychocounsel.stages.jobs import Jobs
from psychocounsel.stages.leakage import count_leakage, leakage_warning
from psychocounsel.stages.preflight import require_disk, require_launchable, require_suitable
from psychocounsel.store.artifacts import MANIFEST, Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.references import (
    HUB,
    POLICY_KINDS,
    UnknownReferenceError,
    model_of,
    resolve_model,
    resolve_parent,
    warn_unless_pinned,
)
from psychocounsel.store.schemas import RewardScore, read_pairs, write_scores
from psychocounsel.store.shapes import RankedPairs
from psychocounsel.store.store import Store
from psychocounsel.training.tracking import prepare_tracker
from psychocounsel.types import SPLITS, Policy, PreferencePair, Rating, RatingScale, Reward, sample_by_hash

if TYPE_CHECKING:
    from psychocounsel.training.reward import Exchange

VERSION = 4
STAGE = "train-reward"
BASE_MODEL = "base model"


def specs(config: TrainRewardConfig, store: Store) -> ArtifactSpec:
    """Return what the stage would create.

    Raises:
        ConfigError: a reference matches nothing, or there is no such split.
        InputError: a file of `mix` is missing.
    """
    base = resolve_model(store, config.base_model, POLICY_KINDS)
    preferences = resolve_parent(store, config.preferences, "preferences", "preferences")
    mixed = [
        pair_source(store, each.preferences, each.split, each.config, mix_role(at))
        for at, each in enumerate(config.mix)
    ]
    settings = config.fingerprint() | {
        "base_model": base.fingerprint,
        "preferences": None,
        "name": None,
        "mix": [
            {"ratio": each.ratio, "count": each.count, "source": source.fingerprint}
            for each, source in zip(config.mix, mixed, strict=True)
        ],
    }
    parents = (preferences, *base.parents(BASE_MODEL), *(each.parent for each in mixed if each.parent))
    return ArtifactSpec("reward-models", config.name, STAGE, VERSION, settings, parents)


def mix_role(place: int) -> str:
    """Return the role of an artifact whose pairs are mixed in, by its place in the config."""
    return f"mixed preferences {place + 1}"


class PairSource(NamedTuple):
    """Where pairs come from: an artifact (`parent`), or a dataset from elsewhere and what identifies it."""

    parent: Parent | None
    fingerprint: list[dict[str, Any]] | None


def pair_source(store: Store, ref: str, split: str, config: str | None, role: str) -> PairSource:
    """Return what a reference to pairs names: an artifact, else a file or folder, or a dataset on the Hub.

    Raises:
        ConfigError: nothing has this reference, or an artifact has no such split.
    """
    if not ref.startswith(HUB):
        try:
            parent = resolve_parent(store, ref, "preferences", role)
        except UnknownReferenceError:
            folder = Path(ref)
            if not folder.exists() or (folder / MANIFEST).is_file() or is_project(folder):
                raise  # a project's store may hold several datasets: read as files, they would become one
        else:
            if split not in SPLITS:
                raise ConfigError(f"there is no split {split!r}", where="split", remedy=did_you_mean(split, SPLITS))
            return PairSource(parent, None)
    warn_unless_pinned(store, ref)
    return PairSource(None, outside_fingerprint(ref, split, config))


def train_reward(config: TrainRewardConfig, store: Store) -> Artifact:
    """Train and measure the reward model of a config, or return it if it exists.

    Raises:
        ConfigError: a setting cannot be met here, such as a tracker without its package.
        DataQualityError: there is nothing to train or to test on, or too few pairs to mix in.
        Preempted: SIGINT or SIGTERM came; the checkpoint is kept.
    """
    prepare_tracker(config.optimisation.tracker, store)
    with cancelled_by_signals() as cancel:
        return store.make(specs(config, store), lambda writer: _build(config, store, writer, cancel))


def _build(config: TrainRewardConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    from psychocounsel.training.reward import normalise_on, train_reward_model  # imports torch

    require_suitable(config, store)
    preferences = store.open(writer.parent("preferences"))
    train, dev, test = _pairs_by_split(preferences)
    scale = rating_scale(preferences, train)
    _require_ratings(config, preferences, scale)
    own = train if config.max_pairs is None else sample_by_hash(train, config.max_pairs, "mix", config.seed)
    mixed, sources = mix(config, store, writer, own, scale)
    trained = [store.open(each) for each in writer.spec.parents]
    rest = iter(mixed)
    new = [(f"preferences {each['source']}", [pair.speech for pair in islice(rest, each["used"])]) for each in sources]
    tested = [pair.speech for pair in test]
    leakage = count_leakage(store, tested, preferences, trained, config.allow_leakage, new)
    if leakage["leaked"]:
        writer.warnings.append(leakage_warning(leakage))
    base = model_of(store, writer.spec, BASE_MODEL, config.base_model, POLICY_KINDS).policy(store)
    require_launchable(config, base)
    require_disk(config, base, writer.work)
    plain = {"base": base, "pairs": [*own, *mixed], "config": config, "scale": scale}
    jobs = Jobs(config.launch, writer, cancel)
    summary = jobs.train("training the reward model", train_reward_model, **plain)
    model, size = Policy(str(writer.folder)), config.optimisation.per_device_batch_size
    score = partial(jobs.score, "scoring responses", model, config.chat, batch_size=size)
    scaling = score_pairs(score, dev or train)
    normalisation = normalise_on(writer.folder, list(scaling.rewards.values())).normalisation
    scored = score_pairs(score, test)
    write_scores(writer, scored.rows)
    few = BootstrapSettings(samples=1000, seed=config.seed)
    writer.write_metrics(
        {
            **ranked_pairs(test, scored, scale, BootstrapSettings(seed=config.seed)),
            "baselines": measure_baselines(train, test, scored.margins, (scale.low, scale.high)),
            "pairs": {"train": len(own) + len(mixed), "test": len(test)},
            "sources": [{"source": preferences.ref, "pairs": len(train), "used": len(own), "dropped": {}}, *sources],
            "dev": reward_metrics(scaling.margins, _speech_ids(dev), few) if dev else None,
            "normalisation": {**vars(normalisation), "split": "dev" if dev else "train"},
            "training": summary.as_dict(),
            "leakage": leakage,
        }
    )
    writer.write_card(model_card(store, writer, REWARD_MODEL, preferences.warnings))


def _pairs_by_split(preferences: Artifact) -> list[list[PreferencePair]]:
    """Return the pairs of train, dev and test; dev may have none."""
    *found, test = (read_pairs(preferences, split) for split in SPLITS)
    if not test:
        raise DataQualityError(
            "the split test has no pairs",
            where=f"preferences {preferences.ref}",
            remedy="add speeches or raise corpus.split.test_share, and build the preferences again",
        )
    return [*found, test]


def _require_ratings(config: TrainRewardConfig, preferences: Artifact, scale: RatingScale) -> None:
    if not scale.weights and (config.heads == "principles" or config.margin == "score_gap"):
        raise ConfigError(
            "the preferences have no ratings",
            where=f"preferences {preferences.ref}",
            remedy="name preferences with ratings, or set heads: overall and margin: none",
        )


def rating_scale(preferences: Artifact, pairs: Sequence[PreferencePair]) -> RatingScale:
    """Return the scale of a preference dataset's ratings, and the weights by which its own pairing summed them."""
    low, high = preferences.manifest["notes"].get("scale", DEFAULT_SCALE)
    given = preferences.manifest["settings"].get("pairing", {}).get("weights") or {}
    rated = next((pair.chosen.ratings for pair in pairs if pair.chosen.ratings), dict[str, Rating]())
    weights = {name: Fraction(given.get(name, 1)) for name in rated}
    total = sum(weights.values())
    return RatingScale(low, high, {name: weight / total for name, weight in weights.items()})


def mix(
    config: TrainRewardConfig, store: Store, writer: ArtifactWriter, own: Sequence[PreferencePair], scale: RatingScale
) -> tuple[list[PreferencePair], list[dict[str, Any]]]:
    """Return the pairs that join our own `own` ones, and the counts of each source.

    Pairs rated on another scale, or on other principles, lose their ratings: they have neither margin nor signs.

    Raises:
        DataQualityError: a source has fewer pairs than it should give.
    """
    mixed: list[PreferencePair] = []
    sources: list[dict[str, Any]] = []
    known = {pair.id for pair in own}
    for at, each in enumerate(config.mix):
        parent = next((parent for parent in writer.spec.parents if parent.role == mix_role(at)), None)
        if parent is None:
            pairs, dropped = read_outside_pairs(each.preferences, each.split, each.config)
            name = source_name(each.preferences)
        else:
            artifact = store.open(parent)
            name, pairs, dropped = artifact.ref, read_pairs(artifact, "train"), Counter[str]()
            theirs = rating_scale(artifact, pairs)
            if (theirs.low, theirs.high, theirs.weights.keys()) != (scale.low, scale.high, scale.weights.keys()):
                pairs = [_without_ratings(pair) for pair in pairs]
        new = [pair for pair in pairs if pair.id not in known]
        wanted = each.count or round((each.ratio or 0) * len(own))
        if len(new) < wanted:
            raise DataQualityError(
                f"{wanted} pairs are wanted, and there are {len(new)} new ones; rows left out: {counted(dropped)}",
                where=each.preferences,
                remedy="lower its count or ratio in mix",
            )
        chosen = sample_by_hash(new, wanted, "mix", config.seed)
        known |= {pair.id for pair in chosen}
        mixed += chosen
        sources.append({"source": name, "pairs": len(pairs), "used": len(chosen), "dropped": dict(dropped)})
    return mixed, sources


def _without_ratings(pair: PreferencePair) -> PreferencePair:
    return replace(pair, chosen=replace(pair.chosen, ratings={}), rejected=replace(pair.rejected, ratings={}))


class ScoredPairs(NamedTuple):
    """Rewards and lengths in tokens of the distinct candidates of some pairs, and margins of the raw rewards.

    `margins` are r(chosen) - r(rejected) of each pair, `heads` the same of each principle's head.
    """

    rewards: dict[str, Reward]
    tokens: dict[str, int]
    margins: list[float]
    heads: dict[str, list[float]]

    @property
    def rows(self) -> list[RewardScore]:
        """The rewards as a table holds them."""
        return [
            RewardScore(each, reward.raw, reward.reward, self.tokens[each], reward.principles)
            for each, reward in self.rewards.items()
        ]


def score_pairs(
    score: "Callable[[list[Exchange]], list[tuple[Reward, int]]]", pairs: Sequence[PreferencePair]
) -> ScoredPairs:
    """Return the rewards of both sides of each pair; `score` returns rewards of exchanges, and lengths of responses."""
    from psychocounsel.training.reward import Exchange  # imports torch

    exchanges = {
        side.candidate.id: Exchange(pair.speech.text, side.candidate.text, pair.speech.history)
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    }
    found = dict(zip(exchanges, score(list(exchanges.values())), strict=True))
    rewards = {name: reward for name, (reward, _) in found.items()}
    tokens = {name: length for name, (_, length) in found.items()}
    both = [(rewards[pair.chosen.candidate.id], rewards[pair.rejected.candidate.id]) for pair in pairs]
    heads = {
        name: [chosen.raw_principles[name] - rejected.raw_principles[name] for chosen, rejected in both]
        for name in both[0][0].raw_principles
    }
    return ScoredPairs(rewards, tokens, [chosen.raw - rejected.raw for chosen, rejected in both], heads)


def ranked_pairs(
    pairs: Sequence[PreferencePair], scored: ScoredPairs, scale: RatingScale, bootstrap: BootstrapSettings
) -> dict[str, Any]:
    """Return how a reward model ranks pairs, as `metrics.json` holds it: whole, by slice and by principle."""
    margins, ids = scored.margins, _speech_ids(pairs)
    ranked = RankedPairs(
        test=reward_metrics(margins, ids, bootstrap),
        test_margins=tuple(margins),
        slices={name: tuple(parts) for name, parts in slices(pairs, margins, scale).items()},
        principles=by_principle(pairs, margins, scored.heads, scale),
        reliability=tuple(reliability(margins, ids)),
    )
    return dict(ranked)


def _speech_ids(pairs: Sequence[PreferencePair]) -> list[str]:
    return [pair.speech.id for pair in pairs]
