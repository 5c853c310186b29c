"""Preferences -> policy (DPO), or speeches + reward model -> policy in rounds (online DPO).

Every round's candidates, scores, pairs and policy are artifacts of their own, so a killed run goes on at the
round, and within it at the checkpoint, where it was. The reference stays the initial policy throughout
(PAPER: Policy).
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psychocounsel.config.stages import AlignConfig, OnlineConfig
from psychocounsel.connect import POLICY_KINDS
from psychocounsel.console import note, step_progress
from psychocounsel.domain import Candidate, PreferencePair, ScoredCandidate, Speech, content_id
from psychocounsel.errors import ConfigError, DataQualityError
from psychocounsel.evaluation.decay import text_health
from psychocounsel.evaluation.intervals import BootstrapSettings
from psychocounsel.interrupts import stop_requests
from psychocounsel.pairing import ScoredSpeech, pair_extremes
from psychocounsel.reporting.cards import ModelFacts, model_card
from psychocounsel.store.artifacts import Artifact, Draft, Parent, Plan
from psychocounsel.store.references import resolve_model, resolve_parent
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import (
    RewardScore,
    read_candidates,
    read_pairs,
    read_scores,
    read_speeches,
    write_candidates,
    write_pairs,
    write_scores,
)

VERSION = 1
STAGE = "align"
MAX_DEV_SPEECHES = 64


class RoundPlans(NamedTuple):
    """What one round makes, in order."""

    candidates: Plan
    scores: Plan
    pairs: Plan
    policy: Plan


def plan(config: AlignConfig, store: Store) -> tuple[Plan, ...]:
    """Return what a config means, without making it: every artifact in order, the final policy last."""
    if config.online is None:
        return (_plan_dpo(config, store),)
    rounds = _plan_rounds(config, config.online, store)
    return tuple(each for made in rounds for each in made)


def align(config: AlignConfig, store: Store) -> Artifact:
    """Align the policy of a config, or return it if it exists.

    Raises:
        DataQualityError: a round ends without a pair, or too many pairs do not fit.
        Preempted: a signal asked to stop; finished rounds and the checkpoint are kept.
    """
    with stop_requests() as stop:
        if config.online is None:
            planned = _plan_dpo(config, store)
            return store.make(planned, lambda draft: _train_on_preferences(config, store, draft, stop))
        return _align_online(config, config.online, store, stop)


def _settings(config: AlignConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what shapes one DPO training; models and data stand among the parents."""
    left_out = {"name", "policy", "preferences", "online"}
    own = {key: value for key, value in config.identity().items() if key not in left_out}
    return {**own, "initial_policy": identity}


def _plan_dpo(config: AlignConfig, store: Store) -> Plan:
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    preferences = resolve_parent(store, config.preferences or "", "preferences", "preferences")
    parents = (preferences, *initial.parents("initial policy"))
    return Plan("policies", config.name, STAGE, VERSION, _settings(config, initial.identity), parents)


def _train_on_preferences(config: AlignConfig, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    preferences = store.open(_parent(draft, "preferences"))
    pairs = read_pairs(preferences, "train")
    summary = _train(config, store, draft, pairs, stop)
    draft.write_metrics({"training": summary, "pairs": len(pairs)})
    _write_card(config, draft, preferences.notices)


def _train(
    config: AlignConfig, store: Store, draft: Draft, pairs: Sequence[PreferencePair], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train the draft's policy on pairs; the policy to start from is a parent in a round, else the initial one."""
    from psychocounsel.training.dpo import DpoRun, train_dpo
    from psychocounsel.training.run import TrainingOutput  # torch: only when a policy is trained

    initial = resolve_model(store, config.policy, POLICY_KINDS).policy(store)
    previous = [parent for parent in draft.plan.parents if parent.role == "previous policy"]
    policy = initial if not previous else _policy_of(store, previous[0])
    steps = config.online.steps_per_round if config.online else config.max_steps
    run = DpoRun(policy, initial, config, draft.plan.settings["seed"], steps)
    with step_progress(f"aligning {draft.plan.name}") as report:
        summary = train_dpo(run, pairs, TrainingOutput(draft.folder, draft.work, stop, report))
    return {
        "steps": summary.steps,
        "seconds": summary.seconds,
        "lengths": summary.lengths.as_dict(),
        "history": [dict(row) for row in summary.history],
    }


def _policy_of(store: Store, parent: Parent) -> Any:
    from psychocounsel.domain import Policy

    return Policy(str(store.open(parent).folder))


def _write_card(config: AlignConfig, draft: Draft, notices: tuple[str, ...]) -> None:
    card = model_card(ModelFacts(config.name, f"policy aligned by {config.mode}", notices))
    draft.file("README.md").write_text(card, encoding="utf-8")


def _plan_rounds(config: AlignConfig, online: OnlineConfig, store: Store) -> list[RoundPlans]:
    rounds: list[RoundPlans] = []
    previous = resolve_model(store, config.policy, POLICY_KINDS).parents("previous policy")
    for number in range(1, online.rounds + 1):
        rounds.append(_plan_round(config, online, store, number, previous))
        previous = (rounds[-1].policy.as_parent("previous policy"),)
    return rounds


def _plan_round(
    config: AlignConfig, online: OnlineConfig, store: Store, number: int, previous: tuple[Parent, ...]
) -> RoundPlans:
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    speeches = resolve_parent(store, online.speeches, "speeches", "speeches")
    reward = resolve_model(store, online.reward_model, ("reward-models",))
    name = f"{config.name}-round-{number:02d}"
    seed = config.seed * 1000 + number
    candidates = Plan(
        "candidates",
        name,
        STAGE,
        VERSION,
        {
            "seed": seed,
            "speeches_per_round": online.speeches_per_round,
            "candidates_per_speech": online.candidates_per_speech,
            "sampling": online.sampling.identity(),
            "chat": config.chat.identity(),
            "policy": initial.identity,
        },
        (speeches, *previous),
    )
    scores = Plan(
        "scores",
        name,
        STAGE,
        VERSION,
        {"chat": config.chat.identity(), "reward_model": reward.identity},
        (candidates.as_parent("candidates"), speeches, *reward.parents("reward model")),
    )
    selection = {
        "unfinished": online.unfinished,
        "unfinished_penalty": online.unfinished_penalty,
        "length_penalty_per_100_tokens": online.length_penalty_per_100_tokens,
    }
    pair_parents = (scores.as_parent("scores"), candidates.as_parent("candidates"), speeches)
    pairs = Plan("preferences", name, STAGE, VERSION, selection, pair_parents)
    settings = _settings(config, initial.identity) | {"seed": seed, "max_steps": online.steps_per_round}
    policy_name = config.name if number == online.rounds else name
    parents = (
        pairs.as_parent("pairs"),
        speeches,
        *previous,
        *initial.parents("initial policy"),
        *reward.parents("reward model"),
    )
    return RoundPlans(candidates, scores, pairs, Plan("policies", policy_name, STAGE, VERSION, settings, parents))


def _align_online(
    config: AlignConfig, online: OnlineConfig, store: Store, stop: Callable[[], bool]
) -> Artifact:
    made: list[Artifact] = []
    rounds = _plan_rounds(config, online, store)
    for number, planned in enumerate(rounds, start=1):
        store.make(planned.candidates, lambda draft: _sample(config, online, store, draft))
        store.make(planned.scores, lambda draft: _score(config, online, store, draft))
        store.make(planned.pairs, lambda draft: _pair(online, store, draft))
        made.append(
            store.make(planned.policy, lambda draft: _train_round(config, store, draft, made, stop))  # noqa: B023
        )
        note(f"round {number} of {len(rounds)}: dev reward {_dev_reward(made[-1]):+.3f}")
    return made[-1]


def _dev_reward(policy: Artifact) -> float:
    return policy.metrics["dev"]["reward"]["mean"]


def drawn(speeches: Sequence[Speech], count: int, seed: int) -> list[Speech]:
    """Return `count` of the speeches, drawn by a hash of seed and content; all of them if there are fewer."""
    return sorted(speeches, key=lambda speech: content_id("round", str(seed), speech.id))[:count]


def _split(store: Store, parent: Parent, split: str) -> list[Speech]:
    return [each.speech for each in read_speeches(store.open(parent)) if each.split == split]


def _sample(config: AlignConfig, online: OnlineConfig, store: Store, draft: Draft) -> None:
    seed = draft.plan.settings["seed"]
    speeches = drawn(_split(store, _parent(draft, "speeches"), "train"), online.speeches_per_round, seed)
    previous = [parent for parent in draft.plan.parents if parent.role == "previous policy"]
    policy = (
        _policy_of(store, previous[0])
        if previous
        else resolve_model(store, config.policy, POLICY_KINDS).policy(store)
    )
    candidates = _answers(config, policy, speeches, online.candidates_per_speech, seed)
    write_candidates(draft, candidates)
    draft.write_metrics({"speeches": len(speeches), "health": text_health(candidates, _bootstrap(config)).as_dict()})


def _answers(
    config: AlignConfig, policy: Any, speeches: Sequence[Speech], per_speech: int, seed: int
) -> list[Candidate]:
    from psychocounsel.llm.local_model import Generator
    from psychocounsel.training.sampling import SampleRequest, sample_candidates

    online = _online(config)
    generator = Generator.load(policy)
    request = SampleRequest(config.name, per_speech, online.sampling, config.chat, seed)
    with step_progress("sampling answers") as report:
        return sample_candidates(generator, generator.tokenizer, speeches, request, report)


def _online(config: AlignConfig) -> OnlineConfig:
    if config.online is None:
        raise ConfigError("mode: online needs an online block", where="align", remedy="add it")
    return config.online


def _bootstrap(config: AlignConfig) -> BootstrapSettings:
    return BootstrapSettings(samples=1000, seed=config.seed)


def _score(config: AlignConfig, online: OnlineConfig, store: Store, draft: Draft) -> None:
    speeches = {speech.id: speech for speech in _split(store, _parent(draft, "speeches"), "train")}
    candidates = [each for each in read_candidates(store.open(_parent(draft, "candidates"))) if each.text]
    scores = _rewards(config, online, store, [(speeches[each.speech_id], each) for each in candidates])
    write_scores(draft, scores)
    rewards = [score.reward for score in scores]
    draft.write_metrics(
        {"scored": len(scores), "reward": {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards)}}
    )


def _rewards(
    config: AlignConfig, online: OnlineConfig, store: Store, answers: Sequence[tuple[Speech, Candidate]]
) -> list[RewardScore]:
    from pathlib import Path

    from psychocounsel.training.reward import Exchange, RewardScorer

    if not answers:
        raise DataQualityError("the policy gave only empty answers", where=config.name, remedy="check the policy")
    model = resolve_model(store, online.reward_model, ("reward-models",)).policy(store)
    scorer = RewardScorer.load(Path(model.location), config.chat)
    exchanges = [Exchange(speech.text, candidate.text) for speech, candidate in answers]
    raw = scorer.raw(exchanges, online.sampling.batch_size)
    lengths = [len(scorer.tokenizer(candidate.text)["input_ids"]) for _, candidate in answers]
    return [
        RewardScore(candidate.id, value, scorer.scale.normalise(value), tokens)
        for (_, candidate), value, tokens in zip(answers, raw, lengths, strict=True)
    ]


def _pair(online: OnlineConfig, store: Store, draft: Draft) -> None:
    parents = {parent.role: store.open(parent) for parent in draft.plan.parents}
    scores = {score.candidate_id: score for score in read_scores(parents["scores"])}
    speeches = {each.speech.id: each.speech for each in read_speeches(parents["speeches"])}
    candidates = read_candidates(parents["candidates"])
    ranked: dict[str, list[ScoredCandidate]] = {each.speech_id: [] for each in candidates}
    left_out = {"unfinished": 0, "empty": 0}
    for candidate in candidates:
        reason = _reason_to_leave_out(candidate, online)
        if reason is not None:
            left_out[reason] += 1
            continue
        ranked[candidate.speech_id].append(ScoredCandidate(candidate, selection_score(candidate, scores[candidate.id], online)))
    scored: list[ScoredSpeech] = [(speeches[speech_id], group) for speech_id, group in ranked.items()]
    pairing = pair_extremes(scored, drop_safety_inverted=False)
    if not pairing.pairs:
        raise DataQualityError(
            f"a round ends without a pair: {dict(pairing.dropped)}, left out {left_out}",
            where=draft.plan.ref,
            remedy="sample at a higher temperature, or let answers end by a larger max_new_tokens",
        )
    write_pairs(draft, "train", pairing.pairs, ())
    draft.write_metrics({"pairing": pairing.as_dict(), "left_out": left_out})


def _reason_to_leave_out(candidate: Candidate, online: OnlineConfig) -> str | None:
    if not candidate.text:
        return "empty"
    return "unfinished" if not candidate.finished and online.unfinished == "leave_out" else None


def selection_score(candidate: Candidate, score: RewardScore, online: OnlineConfig) -> float:
    """Return the normalised reward less the penalties for an unfinished and for a long answer."""
    unfinished = 0.0 if candidate.finished else online.unfinished_penalty
    return score.reward - unfinished - online.length_penalty_per_100_tokens * score.tokens / 100


def _train_round(
    config: AlignConfig, store: Store, draft: Draft, earlier: Sequence[Artifact], stop: Callable[[], bool]
) -> None:
    from psychocounsel.domain import Policy

    pairs = read_pairs(store.open(_parent(draft, "pairs")), "train")
    summary = _train(config, store, draft, pairs, stop)
    dev = _measure_dev(config, store, draft, Policy(str(draft.folder)))
    rounds = [*(earlier[-1].metrics["rounds"] if earlier else []), {"dev": dev, "pairs": len(pairs)}]
    draft.write_metrics({"training": summary, "pairs": len(pairs), "dev": dev, "rounds": rounds})
    best = max([*earlier], key=_dev_reward, default=None)
    if best is not None and _dev_reward(best) > dev["reward"]["mean"]:
        draft.notes["best"] = best.as_parent("best")._asdict()
    else:
        draft.notes["best"] = draft.plan.as_parent("best")._asdict()
    _write_card(config, draft, store.open(_parent(draft, "pairs")).notices)


def _measure_dev(config: AlignConfig, store: Store, draft: Draft, policy: Any) -> dict[str, Any]:
    """Answer dev speeches once: mean reward, length, repetition and unfinished answers after this round."""
    online = _online(config)
    parent = _parent(draft, "speeches")
    speeches = _split(store, parent, "dev") or _split(store, parent, "train")
    speeches = drawn(speeches, MAX_DEV_SPEECHES, config.seed)
    candidates = _answers(config, policy, speeches, 1, config.seed)
    by_id = {speech.id: speech for speech in speeches}
    answered = [(by_id[each.speech_id], each) for each in candidates if each.text]
    rewards = [score.reward for score in _rewards(config, online, store, answered)]
    return {
        "reward": {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "n": len(rewards)},
        "health": text_health(candidates, _bootstrap(config)).as_dict(),
    }


def _parent(draft: Draft, role: str) -> Parent:
    return next(parent for parent in draft.plan.parents if parent.role == role)
