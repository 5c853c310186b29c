"""Plan, Artifact -> what a command prints: what is owed and what it costs, what was made and what is next."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psychocounsel import console
from psychocounsel.cli.headlines import REPORT_FILE, headlines
from psychocounsel.cli.options import DEFAULT_STORE
from psychocounsel.store.artifacts import Artifact, Plan
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from psychocounsel.costs import PaidCalls
    from psychocounsel.recipe import StageName


class Following(NamedTuple):
    """The stage that reads what another one made, and the config for it."""

    stage: "StageName"
    config: Path


NEXT_STAGE: "dict[StageName, StageName]" = {
    "make-base-model": "build-preferences",
    "build-preferences": "train-reward",
    "train-reward": "align",
    "align": "eval-winrate",
    "eval-winrate": "report",
}


def show_plans(plans: Sequence[Plan], store: Store) -> None:
    """Print each artifact of a config and whether it exists."""
    for plan in plans:
        state = "exists, would be reused" if store.find(plan) else "owed"
        console.result(f"{plan.kind:15} {plan.ref:40} {state}")


def show_costs(costs: "Sequence[PaidCalls]") -> None:
    """Print the paid calls that are owed; nothing for a config that asks no endpoint."""
    for each in costs:
        console.result(f"paid: {each.purpose}, {each.model} at {each.base_url}: {_amount(each)}")


def _amount(cost: "PaidCalls") -> str:
    if cost.calls is None:
        return cost.hint
    if cost.is_upper_bound:
        basis = "upper bound: answers are still to be given"
        return f"at most {cost.calls:,} calls, {cost.prompt_tokens:,} prompt tokens ({basis})"
    basis = "counted, less what the journal holds"
    return f"{cost.calls:,} calls, about {cost.prompt_tokens:,} prompt tokens ({basis})"


def tell(artifacts: Sequence[Artifact], store: Store) -> None:
    """Print what was made or found: first what heads it, then the names and headline numbers."""
    notices = dict.fromkeys(notice for artifact in artifacts for notice in artifact.notices)
    for notice in notices:
        console.result(f"! {notice}")
    for artifact in artifacts:
        state = "made" if artifact.is_new else "nothing owed"
        console.result(f"{state}: {artifact.kind} {artifact.ref}  ({artifact.folder})")
        for line in headlines(artifact, store):
            console.result(f"  {line}")


def next_config(stage: "StageName", config: Path) -> Following | None:
    """Return the next stage's config beside a stage's own, or None if there is none.

    `align-dpo.yaml` is followed by `eval-winrate-dpo.yaml` where that exists, else by `eval-winrate.yaml`.
    """
    following = NEXT_STAGE.get(stage)
    if following is None:
        return None
    variant = config.stem.removeprefix(stage)
    names = [f"{following}{variant}.yaml", f"{following}.yaml"]
    found = [config.with_name(name) for name in names if config.with_name(name).is_file()]
    return Following(following, found[0]) if found else None


def tell_next(words: Sequence[str], store: Store) -> None:
    """Print the next command, ready to be pasted."""
    place = [] if store.root == DEFAULT_STORE else ["--store", str(store.root)]
    console.result(f"next: psychocounsel {shlex.join([*words, *place])}")


def tell_end(made: Sequence[Artifact], store: Store) -> None:
    """Print where the report of a recipe lies; without one, how to look at what came last."""
    reports = [artifact for artifact in made if artifact.kind == "reports"]
    if reports:
        console.result(f"report: {reports[-1].file(REPORT_FILE).resolve()}")
    else:
        tell_next(["show", f"{made[-1].kind}/{made[-1].ref}"], store)
