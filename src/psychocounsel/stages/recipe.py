"""Folder of configs -> a run: the stages of a recipe in order, each reading what the ones before it made.

Within a run a name means what this run made or will make, so that an older config run again does not pick up
newer artifacts of the same name.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from psychocounsel.config.components import Settings
from psychocounsel.config.recipe import StageName, Step
from psychocounsel.stages.dry_run import PaidCalls
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.store import Store


def _nothing_is_paid(config: Any, store: Store) -> list[PaidCalls]:
    del config, store
    return []


class StageTools(NamedTuple):
    """What a recipe needs of a stage: what a config would make and cost, and how it is run."""

    plan: Callable[[Any, Store], object]
    run: Callable[[Any, Store], Artifact]
    costs: Callable[[Any, Store], list[PaidCalls]] = _nothing_is_paid

    def plans(self, config: Settings, store: Store) -> list[ArtifactSpec]:
        """Return what a config would make, in order."""
        return _flat(self.plan(config, store))


def stage_tools(stage: StageName) -> StageTools:
    """Return the tools of a stage; its module is imported only now, for stages import their crafts."""
    if stage == "make-base-model":
        from psychocounsel.stages import base_model as create_base_model

        return StageTools(create_base_model.plan, create_base_model.create_base_model)
    if stage == "build-preferences":
        from psychocounsel.stages import build_preferences

        return StageTools(build_preferences.plan, build_preferences.build_preferences, build_preferences.costs)
    if stage == "import-preferences":
        from psychocounsel.stages import import_preferences

        return StageTools(import_preferences.plan, import_preferences.import_preferences)
    if stage == "train-reward":
        from psychocounsel.stages import train_reward

        return StageTools(train_reward.plan, train_reward.train_reward)
    if stage == "align":
        from psychocounsel.stages import align

        return StageTools(align.plan, align.align)
    if stage == "eval-winrate":
        from psychocounsel.stages import eval_winrate

        return StageTools(eval_winrate.plan, eval_winrate.eval_winrate, eval_winrate.costs)
    from psychocounsel.stages import report as make_report

    return StageTools(make_report.plan, make_report.make_report)


def _flat(plans: object) -> list[ArtifactSpec]:
    if isinstance(plans, ArtifactSpec):
        return [plans]
    if not isinstance(plans, list | tuple):
        return []
    nested = cast("Sequence[object]", plans)
    return [each for group in nested for each in _flat(group)]


class StepResult(NamedTuple):
    """What a step made or found."""

    step: Step
    artifact: Artifact


def run_recipe(steps: Sequence[Step], store: Store, announce: Callable[[int, Step], None]) -> list[StepResult]:
    """Run the steps in order; what exists is found again and costs nothing."""
    results: list[StepResult] = []
    for number, step in enumerate(steps, start=1):
        announce(number, step)
        tools = stage_tools(step.stage)
        planned = tools.plans(step.config, store)
        artifact = tools.run(step.config, store)
        results.append(StepResult(step, artifact))
        made = [found for found in map(store.find, planned) if found is not None]
        store = store.pinned(*reversed(made))
    return results


class StepPlan(NamedTuple):
    """What a step would make, in order, and the calls it would pay for."""

    step: Step
    plans: list[ArtifactSpec]
    costs: list[PaidCalls]


def plan_recipe(steps: Sequence[Step], store: Store) -> list[StepPlan]:
    """Return what each step would make; plans of earlier steps stand in for artifacts not made yet."""
    planned: list[StepPlan] = []
    for step in steps:
        tools = stage_tools(step.stage)
        plans = tools.plans(step.config, store)
        planned.append(StepPlan(step, plans, tools.costs(step.config, store)))
        store = store.pinned(*(store.find(plan) or plan for plan in reversed(plans)))
    return planned
