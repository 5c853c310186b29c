"""Preferences -> policy (DPO), or speeches + reward model -> policy in rounds (online DPO).

Every round's candidates, scores, pairs and policy are artifacts of their own, so a killed run goes on at the
round, and within it at the checkpoint, where it was. The reference stays the initial policy throughout
(arXiv 2502.19731).
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from psychocounsel.config.schema import AlignConfig, OnlineConfig
from psychocounsel.errors import DataQualityError, counted
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.evaluation.text_quality import measure_text_quality
from psychocounsel.judging.pairing import PairingRule, pair_extremes
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals, interruptible
from psychocounsel.reporting.cards import ModelFacts, model_card
from psychocounsel.reporting.console import note, step_progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.references import POLICY_KINDS, resolve_model, resolve_parent
from psychocounsel.store.schemas import (
    RewardScore,
    read_candidates,
    read_pairs,
    read_scores,
    read_speeches,
    write_candidates,
    write_pairs,
    write_scores,
)
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Policy, PreferencePair, ScoredCandidate, Speech, content_id

VERSION = 2
STAGE = "align"
"""Of the whole stage: a round is a part of it."""
MAX_DEV_SPEECHES = 64
AUTHOR = "policy"
"""Of the answers of a round: the same whatever the round is called, for a name is no part of an id."""


class RoundPlans(NamedTuple):
    """What a round makes before the policy is trained, in order."""

    candidates: ArtifactSpec
    scores: ArtifactSpec
    pairs: ArtifactSpec


class RoundModels(NamedTuple):
    """What a round reads: the speeches, the reward model, and the policy as it stands."""

    speeches: Parent
    reward_model: tuple[Parent, ...]
    reward_identity: dict[str, Any]
    policy: tuple[Parent, ...]
    policy_identity: dict[str, Any]


def plan_models(config: AlignConfig, online: OnlineConfig, store: Store) -> RoundModels:
    """Return the models of the first round, in which the policy is the initial one."""
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    reward = resolve_model(store, online.reward_model, ("reward-models",))
    return RoundModels(
        resolve_parent(store, online.speeches, "speeches", "speeches"),
        reward.parents("reward model"),
        reward.fingerprint,
        initial.parents("previous policy"),
        initial.fingerprint,
    )


def plan_round(config: AlignConfig, online: OnlineConfig, name: str, seed: int, models: RoundModels) -> RoundPlans:
    """Return what one round makes; only what affects a step enters its id."""
    sampling = {
        "seed": seed,
        "speeches_per_round": online.speeches_per_round,
        "candidates_per_speech": online.candidates_per_speech,
        "sampling": online.sampling.fingerprint(),
        "chat": config.chat.fingerprint(),
        "policy": models.policy_identity,
    }
    candidates = ArtifactSpec("candidates", name, STAGE, VERSION, sampling, (models.speeches, *models.policy))
    scoring = {"chat": config.chat.fingerprint(), "reward_model": models.reward_identity}
    answered = (candidates.as_parent("candidates"), models.speeches)
    scores = ArtifactSpec("scores", name, STAGE, VERSION, scoring, (*answered, *models.reward_model))
    selection = {
        "unfinished": online.unfinished,
        "unfinished_penalty": online.unfinished_penalty,
        "length_penalty_per_100_tokens": online.length_penalty_per_100_tokens,
    }
    pairs = ArtifactSpec("preferences", name, STAGE, VERSION, selection, (scores.as_parent("scores"), *answered))
    return RoundPlans(candidates, scores, pairs)


def drawn(speeches: Sequence[Speech], count: int, seed: int) -> list[Speech]:
    """Return `count` of the speeches, drawn by a hash of seed and content; all of them if there are fewer."""
    return sorted(speeches, key=lambda speech: content_id("round", str(seed), speech.id))[:count]


def sample_round(
    config: AlignConfig, online: OnlineConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken
) -> None:
    """Let the policy answer the round's speeches.

    Raises:
        RunCancelledError: SIGINT or SIGTERM came.
    """
    seed = int(writer.spec.settings["seed"])
    speeches = drawn(_split(store, writer.parent("speeches"), "train"), online.speeches_per_round, seed)
    policy = current_policy(config, store, writer)
    candidates = _answers(config, online, Asked(policy, speeches, seed), cancel)
    write_candidates(writer, candidates)
    quality = measure_text_quality(candidates, _bootstrap(config))
    writer.write_metrics({"speeches": len(speeches), "text_quality": quality.as_dict()})


def current_policy(config: AlignConfig, store: Store, writer: ArtifactWriter) -> Policy:
    """Return the policy that a round starts from: the round's before, or the initial one."""
    for parent in writer.spec.parents:
        if parent.role == "previous policy":
            return Policy(str(store.open(parent).folder))
    return resolve_model(store, config.policy, POLICY_KINDS).policy(store)


class Asked(NamedTuple):
    """A policy, the speeches it answers, and the seed of its draws."""

    policy: Policy
    speeches: Sequence[Speech]
    seed: int


def _answers(config: AlignConfig, online: OnlineConfig, asked: Asked, cancel: CancelToken) -> list[Candidate]:
    from psychocounsel.training.generate import AnswerGenerator, sample_candidates  # imports torch

    generator = AnswerGenerator.load(asked.policy)
    with step_progress("sampling answers") as report:
        watch = interruptible(report, cancel, config.name)
        return sample_candidates(
            generator,
            asked.speeches,
            author=AUTHOR,
            per_speech=online.candidates_per_speech,
            sampling=online.sampling,
            chat=config.chat,
            seed=asked.seed,
            progress=watch,
        )


def score_round(
    config: AlignConfig, online: OnlineConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken
) -> None:
    """Let the reward model score every answer that has a text.

    Raises:
        RunCancelledError: SIGINT or SIGTERM came.
    """
    speeches = {speech.id: speech for speech in _split(store, writer.parent("speeches"), "train")}
    candidates = read_candidates(store.open(writer.parent("candidates")))
    answers = [(speeches[each.speech_id], each) for each in candidates if each.text]
    scores = _rewards(config, online, store, answers, cancel)
    write_scores(writer, scores)
    writer.write_metrics({"scored": len(scores), "reward": _mean_and_spread(scores)})


def _rewards(
    config: AlignConfig,
    online: OnlineConfig,
    store: Store,
    answers: Sequence[tuple[Speech, Candidate]],
    cancel: CancelToken,
) -> list[RewardScore]:
    from psychocounsel.training.reward import Exchange, RewardScorer  # torch: only when answers are scored

    if not answers:
        raise DataQualityError("the policy gave only empty answers", where=config.name, remedy="check the policy")
    model = resolve_model(store, online.reward_model, ("reward-models",)).policy(store)
    scorer = RewardScorer.load(model, config.chat)
    exchanges = [Exchange(speech.text, candidate.text) for speech, candidate in answers]
    with step_progress("scoring answers") as report:
        watch = interruptible(report, cancel, config.name)
        raw = scorer.raw(exchanges, online.sampling.batch_size, watch)
    lengths = scorer.response_tokens(exchanges)
    return [
        RewardScore(candidate.id, value, scorer.scale.normalise(value), tokens)
        for (_, candidate), value, tokens in zip(answers, raw, lengths, strict=True)
    ]


def _mean_and_spread(scores: Sequence[RewardScore]) -> dict[str, float]:
    rewards = [score.reward for score in scores]
    return {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "n": len(rewards)}


def pair_round(online: OnlineConfig, store: Store, writer: ArtifactWriter) -> None:
    """Pair the highest-ranked answer of each speech with the lowest.

    Raises:
        DataQualityError: no speech gives a pair.
    """
    scores = {score.candidate_id: score for score in read_scores(store.open(writer.parent("scores")))}
    speeches = {each.speech.id: each.speech for each in read_speeches(store.open(writer.parent("speeches")))}
    ranked: dict[str, list[ScoredCandidate]] = {}
    left_out: Counter[str] = Counter()
    for candidate in read_candidates(store.open(writer.parent("candidates"))):
        group = ranked.setdefault(candidate.speech_id, [])
        reason = _reason_to_leave_out(candidate, online)
        if reason is None:
            group.append(ScoredCandidate(candidate, selection_score(candidate, scores[candidate.id], online)))
        else:
            left_out[reason] += 1
    scored = [(speeches[speech_id], group) for speech_id, group in ranked.items()]
    pairing = pair_extremes(scored, PairingRule())
    if not pairing.pairs:
        raise DataQualityError(
            f"a round ends without a pair: {counted(pairing.dropped)}; left out: {counted(left_out)}",
            where=writer.spec.ref,
            remedy="sample at a higher temperature, or let answers end by a larger max_new_tokens",
        )
    write_pairs(writer, "train", pairing.pairs, ())
    writer.write_metrics({"pairing": pairing.as_dict(), "left_out": dict(left_out)})


def _reason_to_leave_out(candidate: Candidate, online: OnlineConfig) -> str | None:
    if not candidate.text:
        return "empty"
    return "unfinished" if not candidate.finished and online.unfinished == "leave_out" else None


def selection_score(candidate: Candidate, score: RewardScore, online: OnlineConfig) -> float:
    """Return the normalised reward less the penalties for an unfinished and for a long answer."""
    unfinished = 0.0 if candidate.finished else online.unfinished_penalty
    return score.reward - unfinished - online.length_penalty_per_100_tokens * score.tokens / 100


def measure_dev(
    config: AlignConfig, online: OnlineConfig, store: Store, speeches: Parent, policy: Policy
) -> dict[str, Any]:
    """Let a policy answer at most 64 dev speeches: mean reward, length, repetition, unfinished answers.

    It is not stopped: what it measures is trained already, and would be trained again.
    """
    held_out = _split(store, speeches, "dev") or _split(store, speeches, "train")
    asked = drawn(held_out, MAX_DEV_SPEECHES, config.seed)
    candidates = _answers(config, online, Asked(policy, asked, config.seed), CancelToken())
    by_id = {speech.id: speech for speech in asked}
    answers = [(by_id[each.speech_id], each) for each in candidates if each.text]
    scores = _rewards(config, online, store, answers, CancelToken())
    return {
        "reward": _mean_and_spread(scores),
        "text_quality": measure_text_quality(candidates, _bootstrap(config)).as_dict(),
    }


def _split(store: Store, parent: Parent, split: str) -> list[Speech]:
    return [each.speech for each in read_speeches(store.open(parent)) if each.split == split]


def _bootstrap(config: AlignConfig) -> BootstrapSettings:
    return BootstrapSettings(samples=1000, seed=config.seed)


class TrainedRound(NamedTuple):
    """One round: its own artifacts and the policy that they lead to."""

    own: RoundPlans
    policy: ArtifactSpec


def plan(config: AlignConfig, store: Store) -> list[ArtifactSpec]:
    """Return what a config means, without making it: every artifact in order, the final policy last."""
    if config.online is None:
        return [_plan_dpo(config, store)]
    rounds = _plan_rounds(config, config.online, store)
    return [each for planned in rounds for each in (*planned.own, planned.policy)]


def align(config: AlignConfig, store: Store) -> Artifact:
    """Align the policy of a config, or return it if it exists.

    Raises:
        DataQualityError: a round ends without a pair, or too many pairs do not fit.
        RunCancelledError: SIGINT or SIGTERM came; finished rounds and the checkpoint are kept.
    """
    with cancelled_by_signals() as cancel:
        if config.online is not None:
            return _align_online(config, config.online, store, cancel)
        planned = _plan_dpo(config, store)
        return store.make(planned, lambda writer: _train_on_preferences(config, store, writer, cancel))


def _settings(config: AlignConfig, initial_policy: dict[str, Any]) -> dict[str, Any]:
    """Return what shapes one DPO training; models and data stand among the parents."""
    left_out = {"name", "policy", "preferences", "online"}
    own = {key: value for key, value in config.fingerprint().items() if key not in left_out}
    return {**own, "initial_policy": initial_policy}


def _plan_dpo(config: AlignConfig, store: Store) -> ArtifactSpec:
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    preferences = resolve_parent(store, config.preferences or "", "preferences", "preferences")
    parents = (preferences, *initial.parents("initial policy"))
    return ArtifactSpec("policies", config.name, STAGE, VERSION, _settings(config, initial.fingerprint), parents)


def _train_on_preferences(config: AlignConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    preferences = store.open(writer.parent("preferences"))
    pairs = read_pairs(preferences, "train")
    training = _train(config, store, writer, pairs, cancel)
    writer.write_metrics({"training": training, "pairs": len(pairs)})
    _write_card(config, writer, preferences.warnings)


def _train(
    config: AlignConfig,
    store: Store,
    writer: ArtifactWriter,
    pairs: Sequence[PreferencePair],
    cancel: CancelToken,
) -> dict[str, Any]:
    """Train the writer's policy on pairs, held to the initial policy, and return what training tells."""
    from psychocounsel.training.dpo import DpoRun, train_dpo
    from psychocounsel.training.trainer import TrainingOutput  # torch: only when a policy is trained

    initial = resolve_model(store, config.policy, POLICY_KINDS).policy(store)
    steps = config.online.steps_per_round if config.online else config.max_steps
    seed = int(writer.spec.settings["seed"])
    run = DpoRun(current_policy(config, store, writer), initial, config, seed, steps)
    with step_progress(f"aligning {writer.spec.name}") as report:
        output = TrainingOutput(writer.folder, writer.work, cancel, report, writer.spec.id)
        return train_dpo(run, pairs, output).as_dict()


def _write_card(config: AlignConfig, writer: ArtifactWriter, notices: tuple[str, ...]) -> None:
    card = model_card(ModelFacts(config.name, f"policy aligned by {config.mode}", notices))
    writer.write_card(card)


def _plan_rounds(config: AlignConfig, online: OnlineConfig, store: Store) -> list[TrainedRound]:
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    models = plan_models(config, online, store)
    rounds: list[TrainedRound] = []
    for number in range(1, online.rounds + 1):
        is_last = number == online.rounds
        name = f"{config.name}-round-{number:02d}"
        seed = int(content_id("round", str(config.seed), str(number)), 16) % 2**32
        own = plan_round(config, online, name, seed, models)
        settings = _settings(config, initial.fingerprint) | {"seed": seed, "max_steps": online.steps_per_round}
        parents = (
            own.pairs.as_parent("pairs"),
            models.speeches,
            *models.policy,
            *initial.parents("initial policy"),
            *models.reward_model,
        )
        policy = ArtifactSpec("policies", config.name if is_last else name, STAGE, VERSION, settings, parents)
        rounds.append(TrainedRound(own, policy))
        models = models._replace(policy=(policy.as_parent("previous policy"),))
    return rounds


def _align_online(config: AlignConfig, online: OnlineConfig, store: Store, cancel: CancelToken) -> Artifact:
    made: list[Artifact] = []
    rounds = _plan_rounds(config, online, store)
    for number, planned in enumerate(rounds, start=1):
        store.make(planned.own.candidates, lambda writer: sample_round(config, online, store, writer, cancel))
        cancel.raise_if_cancelled(planned.own.candidates.ref)
        store.make(planned.own.scores, lambda writer: score_round(config, online, store, writer, cancel))
        store.make(planned.own.pairs, lambda writer: pair_round(online, store, writer))
        cancel.raise_if_cancelled(planned.own.pairs.ref)
        earlier = tuple(made)
        made.append(
            store.make(
                planned.policy,
                lambda writer, earlier=earlier: _train_round(config, store, writer, earlier, cancel),
            )
        )
        note(f"round {number} of {len(rounds)}: dev reward {_dev_reward(made[-1].metrics):+.3f}")
    return made[-1]


def _dev_reward(metrics: dict[str, Any]) -> float:
    return float(metrics["dev"]["reward"]["mean"])


def _train_round(
    config: AlignConfig,
    store: Store,
    writer: ArtifactWriter,
    earlier: Sequence[Artifact],
    cancel: CancelToken,
) -> None:
    """Train on the round's pairs; `@best` of the policy is the round with the highest dev reward so far."""
    pairs = read_pairs(store.open(writer.parent("pairs")), "train")
    training = _train(config, store, writer, pairs, cancel)
    policy = Policy(str(writer.folder))
    if config.online is None:
        return
    dev = measure_dev(config, config.online, store, writer.parent("speeches"), policy)
    before: list[Any] = earlier[-1].metrics["rounds"] if earlier else []
    metrics = {"training": training, "pairs": len(pairs), "dev": dev}
    present = {"dev": dev, "pairs": len(pairs), "trained_on": training["lengths"]["kept"]}
    writer.write_metrics({**metrics, "rounds": [*before, present]})
    best = max(earlier, key=lambda policy: _dev_reward(policy.metrics), default=None)
    is_best = best is None or _dev_reward(best.metrics) <= _dev_reward(metrics)
    chosen = writer.spec.as_parent("best") if best is None or is_best else best.as_parent("best")
    writer.notes["best"] = chosen._asdict()
    _write_card(config, writer, store.open(writer.parent("pairs")).warnings)
