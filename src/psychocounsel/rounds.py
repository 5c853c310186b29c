"""Policy + speeches + reward model -> pairs: one round of online DPO, each step an artifact of its own.

The policy answers drawn speeches several times, the reward model ranks the answers, the highest against the
lowest becomes a pair (arXiv 2502.19731).
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psychocounsel.config.stages import AlignConfig, OnlineConfig
from psychocounsel.console import step_progress
from psychocounsel.domain import Candidate, Policy, ScoredCandidate, Speech, content_id
from psychocounsel.errors import DataQualityError, counted
from psychocounsel.evaluation.decay import text_health
from psychocounsel.evaluation.intervals import BootstrapSettings
from psychocounsel.interrupts import stoppable
from psychocounsel.llm.engine import never_stop
from psychocounsel.pairing import PairingRule, pair_extremes
from psychocounsel.store.artifacts import Draft, Parent, Plan
from psychocounsel.store.references import POLICY_KINDS, resolve_model, resolve_parent
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import (
    RewardScore,
    read_candidates,
    read_scores,
    read_speeches,
    write_candidates,
    write_pairs,
    write_scores,
)

VERSION = 2
STAGE = "align"
"""Of the whole stage: a round is a part of it."""
MAX_DEV_SPEECHES = 64
AUTHOR = "policy"
"""Of the answers of a round: the same whatever the round is called, for a name is no part of an id."""


class RoundPlans(NamedTuple):
    """What a round makes before the policy is trained, in order."""

    candidates: Plan
    scores: Plan
    pairs: Plan


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
        reward.identity,
        initial.parents("previous policy"),
        initial.identity,
    )


def plan_round(
    config: AlignConfig, online: OnlineConfig, name: str, seed: int, models: RoundModels
) -> RoundPlans:
    """Return what one round makes; only what affects a step enters its id."""
    sampling = {
        "seed": seed,
        "speeches_per_round": online.speeches_per_round,
        "candidates_per_speech": online.candidates_per_speech,
        "sampling": online.sampling.identity(),
        "chat": config.chat.identity(),
        "policy": models.policy_identity,
    }
    candidates = Plan("candidates", name, STAGE, VERSION, sampling, (models.speeches, *models.policy))
    scoring = {"chat": config.chat.identity(), "reward_model": models.reward_identity}
    answered = (candidates.as_parent("candidates"), models.speeches)
    scores = Plan("scores", name, STAGE, VERSION, scoring, (*answered, *models.reward_model))
    selection = {
        "unfinished": online.unfinished,
        "unfinished_penalty": online.unfinished_penalty,
        "length_penalty_per_100_tokens": online.length_penalty_per_100_tokens,
    }
    pairs = Plan("preferences", name, STAGE, VERSION, selection, (scores.as_parent("scores"), *answered))
    return RoundPlans(candidates, scores, pairs)


def drawn(speeches: Sequence[Speech], count: int, seed: int) -> list[Speech]:
    """Return `count` of the speeches, drawn by a hash of seed and content; all of them if there are fewer."""
    return sorted(speeches, key=lambda speech: content_id("round", str(seed), speech.id))[:count]


def sample_round(
    config: AlignConfig, online: OnlineConfig, store: Store, draft: Draft, stop: Callable[[], bool]
) -> None:
    """Let the policy answer the round's speeches.

    Raises:
        Preempted: a signal asked to stop.
    """
    seed = int(draft.plan.settings["seed"])
    speeches = drawn(_split(store, draft.parent("speeches"), "train"), online.speeches_per_round, seed)
    policy = current_policy(config, store, draft)
    candidates = _answers(config, online, Asked(policy, speeches, seed), stop)
    write_candidates(draft, candidates)
    health = text_health(candidates, _bootstrap(config))
    draft.write_metrics({"speeches": len(speeches), "health": health.as_dict()})


def current_policy(config: AlignConfig, store: Store, draft: Draft) -> Policy:
    """Return the policy that a round starts from: the round's before, or the initial one."""
    for parent in draft.plan.parents:
        if parent.role == "previous policy":
            return Policy(str(store.open(parent).folder))
    return resolve_model(store, config.policy, POLICY_KINDS).policy(store)


class Asked(NamedTuple):
    """A policy, the speeches it answers, and the seed of its draws."""

    policy: Policy
    speeches: Sequence[Speech]
    seed: int


def _answers(
    config: AlignConfig, online: OnlineConfig, asked: Asked, stop: Callable[[], bool]
) -> list[Candidate]:
    from psychocounsel.llm.local_model import AnswerGenerator  # torch: only when answers are sampled
    from psychocounsel.training.sampling import SampleRequest, sample_candidates

    generator = AnswerGenerator.load(asked.policy)
    per_speech = online.candidates_per_speech
    request = SampleRequest(AUTHOR, per_speech, online.sampling, config.chat, asked.seed)
    with step_progress("sampling answers") as report:
        watch = stoppable(report, stop, config.name)
        return sample_candidates(generator, generator.tokenizer, asked.speeches, request, watch)


def score_round(
    config: AlignConfig, online: OnlineConfig, store: Store, draft: Draft, stop: Callable[[], bool]
) -> None:
    """Let the reward model score every answer that has a text.

    Raises:
        Preempted: a signal asked to stop.
    """
    speeches = {speech.id: speech for speech in _split(store, draft.parent("speeches"), "train")}
    candidates = read_candidates(store.open(draft.parent("candidates")))
    answers = [(speeches[each.speech_id], each) for each in candidates if each.text]
    scores = _rewards(config, online, store, answers, stop)
    write_scores(draft, scores)
    draft.write_metrics({"scored": len(scores), "reward": _mean_and_spread(scores)})


def _rewards(
    config: AlignConfig,
    online: OnlineConfig,
    store: Store,
    answers: Sequence[tuple[Speech, Candidate]],
    stop: Callable[[], bool],
) -> list[RewardScore]:
    from psychocounsel.training.reward import Exchange, RewardScorer  # torch: only when answers are scored

    if not answers:
        raise DataQualityError(
            "the policy gave only empty answers", where=config.name, remedy="check the policy"
        )
    model = resolve_model(store, online.reward_model, ("reward-models",)).policy(store)
    scorer = RewardScorer.load(model, config.chat)
    exchanges = [Exchange(speech.text, candidate.text) for speech, candidate in answers]
    with step_progress("scoring answers") as report:
        watch = stoppable(report, stop, config.name)
        raw = scorer.raw(exchanges, online.sampling.batch_size, watch)
    lengths = scorer.response_tokens(exchanges)
    return [
        RewardScore(candidate.id, value, scorer.scale.normalise(value), tokens)
        for (_, candidate), value, tokens in zip(answers, raw, lengths, strict=True)
    ]


def _mean_and_spread(scores: Sequence[RewardScore]) -> dict[str, float]:
    rewards = [score.reward for score in scores]
    return {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "n": len(rewards)}


def pair_round(online: OnlineConfig, store: Store, draft: Draft) -> None:
    """Pair the highest-ranked answer of each speech with the lowest.

    Raises:
        DataQualityError: no speech gives a pair.
    """
    scores = {score.candidate_id: score for score in read_scores(store.open(draft.parent("scores")))}
    speeches = {each.speech.id: each.speech for each in read_speeches(store.open(draft.parent("speeches")))}
    ranked: dict[str, list[ScoredCandidate]] = {}
    left_out: Counter[str] = Counter()
    for candidate in read_candidates(store.open(draft.parent("candidates"))):
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
            where=draft.plan.ref,
            remedy="sample at a higher temperature, or let answers end by a larger max_new_tokens",
        )
    write_pairs(draft, "train", pairing.pairs, ())
    draft.write_metrics({"pairing": pairing.as_dict(), "left_out": dict(left_out)})


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
    candidates = _answers(config, online, Asked(policy, asked, config.seed), never_stop)
    by_id = {speech.id: speech for speech in asked}
    answers = [(by_id[each.speech_id], each) for each in candidates if each.text]
    scores = _rewards(config, online, store, answers, never_stop)
    return {
        "reward": _mean_and_spread(scores),
        "health": text_health(candidates, _bootstrap(config)).as_dict(),
    }


def _split(store: Store, parent: Parent, split: str) -> list[Speech]:
    return [each.speech for each in read_speeches(store.open(parent)) if each.split == split]


def _bootstrap(config: AlignConfig) -> BootstrapSettings:
    return BootstrapSettings(samples=1000, seed=config.seed)
