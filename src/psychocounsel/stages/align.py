"""Preferences -> policy (DPO), or speeches + reward model -> policy in rounds (online DPO).

Every round's candidates, scores, pairs and policy are artifacts of their own, so a killed run goes on at the
round, and within it at the checkpoint, where it was. The reference stays the initial policy throughout
(arXiv 2502.19731).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psychocounsel.config.stages import AlignConfig, OnlineConfig
from psychocounsel.console import note, step_progress
from psychocounsel.domain import Policy, PreferencePair, content_id
from psychocounsel.interrupts import go_on, stop_requests
from psychocounsel.reporting.cards import ModelFacts, model_card
from psychocounsel.rounds import (
    STAGE,
    VERSION,
    RoundPlans,
    current_policy,
    measure_dev,
    pair_round,
    plan_models,
    plan_round,
    sample_round,
    score_round,
)
from psychocounsel.store.artifacts import Artifact, Draft, Plan
from psychocounsel.store.references import POLICY_KINDS, resolve_model, resolve_parent
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import read_pairs


class TrainedRound(NamedTuple):
    """One round: its own artifacts and the policy that they lead to."""

    own: RoundPlans
    policy: Plan


def plan(config: AlignConfig, store: Store) -> list[Plan]:
    """Return what a config means, without making it: every artifact in order, the final policy last."""
    if config.online is None:
        return [_plan_dpo(config, store)]
    rounds = _plan_rounds(config, config.online, store)
    return [each for planned in rounds for each in (*planned.own, planned.policy)]


def align(config: AlignConfig, store: Store) -> Artifact:
    """Align the policy of a config, or return it if it exists.

    Raises:
        DataQualityError: a round ends without a pair, or too many pairs do not fit.
        Preempted: a signal asked to stop; finished rounds and the checkpoint are kept.
    """
    with stop_requests() as stop:
        if config.online is not None:
            return _align_online(config, config.online, store, stop)
        planned = _plan_dpo(config, store)
        return store.make(planned, lambda draft: _train_on_preferences(config, store, draft, stop))


def _settings(config: AlignConfig, initial_policy: dict[str, Any]) -> dict[str, Any]:
    """Return what shapes one DPO training; models and data stand among the parents."""
    left_out = {"name", "policy", "preferences", "online"}
    own = {key: value for key, value in config.identity().items() if key not in left_out}
    return {**own, "initial_policy": initial_policy}


def _plan_dpo(config: AlignConfig, store: Store) -> Plan:
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    preferences = resolve_parent(store, config.preferences or "", "preferences", "preferences")
    parents = (preferences, *initial.parents("initial policy"))
    return Plan("policies", config.name, STAGE, VERSION, _settings(config, initial.identity), parents)


def _train_on_preferences(config: AlignConfig, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    preferences = store.open(draft.parent("preferences"))
    pairs = read_pairs(preferences, "train")
    training = _train(config, store, draft, pairs, stop)
    draft.write_metrics({"training": training, "pairs": len(pairs)})
    _write_card(config, draft, preferences.notices)


def _train(
    config: AlignConfig, store: Store, draft: Draft, pairs: Sequence[PreferencePair], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train the draft's policy on pairs, held to the initial policy, and return what training tells."""
    from psychocounsel.training.dpo import DpoRun, train_dpo
    from psychocounsel.training.run import TrainingOutput  # torch: only when a policy is trained

    initial = resolve_model(store, config.policy, POLICY_KINDS).policy(store)
    steps = config.online.steps_per_round if config.online else config.max_steps
    seed = int(draft.plan.settings["seed"])
    run = DpoRun(current_policy(config, store, draft), initial, config, seed, steps)
    with step_progress(f"aligning {draft.plan.name}") as report:
        output = TrainingOutput(draft.folder, draft.work, stop, report, draft.plan.id)
        return train_dpo(run, pairs, output).as_dict()


def _write_card(config: AlignConfig, draft: Draft, notices: tuple[str, ...]) -> None:
    card = model_card(ModelFacts(config.name, f"policy aligned by {config.mode}", notices))
    draft.write_card(card)


def _plan_rounds(config: AlignConfig, online: OnlineConfig, store: Store) -> list[TrainedRound]:
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    models = plan_models(config, online, store)
    rounds: list[TrainedRound] = []
    for number in range(1, online.rounds + 1):
        is_last = number == online.rounds
        name = f"{config.name}-round-{number:02d}"
        seed = int(content_id("round", str(config.seed), str(number)), 16) % 2**32
        own = plan_round(config, online, name, seed, models)
        settings = _settings(config, initial.identity) | {"seed": seed, "max_steps": online.steps_per_round}
        parents = (
            own.pairs.as_parent("pairs"),
            models.speeches,
            *models.policy,
            *initial.parents("initial policy"),
            *models.reward_model,
        )
        policy = Plan("policies", config.name if is_last else name, STAGE, VERSION, settings, parents)
        rounds.append(TrainedRound(own, policy))
        models = models._replace(policy=(policy.as_parent("previous policy"),))
    return rounds


def _align_online(
    config: AlignConfig, online: OnlineConfig, store: Store, stop: Callable[[], bool]
) -> Artifact:
    made: list[Artifact] = []
    rounds = _plan_rounds(config, online, store)
    for number, planned in enumerate(rounds, start=1):
        store.make(planned.own.candidates, lambda draft: sample_round(config, online, store, draft, stop))
        go_on(stop, planned.own.candidates.ref)
        store.make(planned.own.scores, lambda draft: score_round(config, online, store, draft, stop))
        store.make(planned.own.pairs, lambda draft: pair_round(online, store, draft))
        go_on(stop, planned.own.pairs.ref)
        earlier = tuple(made)
        made.append(
            store.make(
                planned.policy,
                lambda draft, earlier=earlier: _train_round(config, store, draft, earlier, stop),
            )
        )
        note(f"round {number} of {len(rounds)}: dev reward {_dev_reward(made[-1].metrics):+.3f}")
    return made[-1]


def _dev_reward(metrics: dict[str, Any]) -> float:
    return float(metrics["dev"]["reward"]["mean"])


def _train_round(
    config: AlignConfig, store: Store, draft: Draft, earlier: Sequence[Artifact], stop: Callable[[], bool]
) -> None:
    """Train on the round's pairs; `@best` of the policy is the round with the highest dev reward so far."""
    pairs = read_pairs(store.open(draft.parent("pairs")), "train")
    training = _train(config, store, draft, pairs, stop)
    policy = Policy(str(draft.folder))
    if config.online is None:
        return
    dev = measure_dev(config, config.online, store, draft.parent("speeches"), policy)
    before: list[Any] = earlier[-1].metrics["rounds"] if earlier else []
    metrics = {"training": training, "pairs": len(pairs), "dev": dev}
    present = {"dev": dev, "pairs": len(pairs), "trained_on": training["lengths"]["kept"]}
    draft.write_metrics({**metrics, "rounds": [*before, present]})
    best = max(earlier, key=lambda policy: _dev_reward(policy.metrics), default=None)
    is_best = best is None or _dev_reward(best.metrics) <= _dev_reward(metrics)
    chosen = draft.plan.as_parent("best") if best is None or is_best else best.as_parent("best")
    draft.notes["best"] = chosen._asdict()
    _write_card(config, draft, store.open(draft.parent("pairs")).notices)
