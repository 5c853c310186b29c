"""Plan, Artifact -> what a command prints: what is owed and what it costs, what was made and what is next."""

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psychocounsel import console
from psychocounsel.cli.headlines import headlines
from psychocounsel.cli.options import DEFAULT_STORE
from psychocounsel.errors import ConfigError
from psychocounsel.reporting.report_data import REPORT_FILE
from psychocounsel.store.artifacts import Artifact, Plan
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from decimal import Decimal

    from psychocounsel.costs import PaidCalls
    from psychocounsel.recipe import StageName


_CENTS = 100


class Following(NamedTuple):
    """The stage that reads what another one made, and the config for it."""

    stage: "StageName"
    config: Path


NEXT_STAGE: "dict[StageName, StageName]" = {
    "make-base-model": "build-preferences",
    "build-preferences": "train-reward",
    "import-preferences": "train-reward",
    "train-reward": "align",
    "align": "eval-winrate",
    "eval-winrate": "report",
}
NAMING = {
    "preferences": "preferences={ref}",
    "reward-models": "online.reward_model={ref}",
    "policies": "policy.model={ref}",
    "verdicts": "artifacts=[verdicts/{ref}]",
}
"""How a config of the next stage names an artifact of a kind."""


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
    tokens = cost.tokens
    counted = (
        "upper bound: answers are still to be given"
        if cost.is_upper_bound
        else "without what the journal holds"
    )
    about = "" if cost.tokens_are_exact else "about "
    most = "at most " if cost.is_upper_bound else ""
    awaited = f"; {cost.awaited:,} more wait in batches with the provider" if cost.awaited else ""
    shared = f" ({tokens.cached:,} of a prefix that they share)" if tokens.cached else ""
    return (
        f"{most}{cost.calls:,} calls, {about}{tokens.prompt:,} prompt tokens{shared}, "
        f"at most {tokens.completion:,} of answers; {counted}{awaited}; {_price(cost)}"
    )


def _price(cost: "PaidCalls") -> str:
    from psychocounsel.llm.prices import BATCH_SHARE

    if cost.price is None:
        return "price unknown: write it under endpoint.price"
    whole = cost.price.cost(cost.tokens._replace(cached=0))
    cached = cost.price.cost(cost.tokens)
    from_cache = f", {_dollars(cached)} with the prefix from the cache" if cached != whole else ""
    batch = f", as a batch {_dollars(whole * BATCH_SHARE)}" if whole and cost.has_batches else ""
    return f"at most {_dollars(whole)}{from_cache}{batch} (by {cost.price.source})"


def _dollars(cost: "Decimal") -> str:
    return f"${cost:,.4f}" if 0 < cost * _CENTS < 1 else f"${cost:,.2f}"


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
    """Return the config with which one goes on after a stage's own, or None if there is none beside it.

    It is the recipe's next step where a `recipe.yaml` there names the config; else that of the next stage:
    `align-dpo.yaml` is followed by `eval-winrate-dpo.yaml` where that exists, else by `eval-winrate.yaml`.
    """
    step = _next_in_recipe(config)
    following = NEXT_STAGE.get(stage)
    if step is not None or following is None:
        return step
    variant = config.stem.removeprefix(stage)
    names = [f"{following}{variant}.yaml", f"{following}.yaml"]
    found = [config.with_name(name) for name in names if config.with_name(name).is_file()]
    return Following(following, found[0]) if found else None


def _next_in_recipe(config: Path) -> Following | None:
    from psychocounsel.config.loading import load_config
    from psychocounsel.recipe import RECIPE_FILE, RecipeConfig

    recipe = config.with_name(RECIPE_FILE)
    if not recipe.is_file():
        return None
    try:
        steps = load_config(RecipeConfig, recipe).steps
    except ConfigError:  # nobody asked for the recipe
        return None
    for step, following in pairwise(steps):
        if step.config == config.name and config.with_name(following.config).is_file():
            return Following(following.stage, config.with_name(following.config))
    return None


def next_words(made: Artifact, stage: "StageName", config: Path) -> list[str]:
    """Return the command that reads what a stage made; CONFIG stands for a file where none lies beside."""
    following = next_config(stage, config)
    if following is not None:
        return [following.stage, str(following.config)]
    if stage not in NEXT_STAGE:
        return _show(made)
    naming = NAMING.get(made.kind)
    return [NEXT_STAGE[stage], "CONFIG", *([] if naming is None else ["--set", naming.format(ref=made.ref)])]


def tell_end(artifact: Artifact, following: Sequence[str], store: Store) -> None:
    """Print as the last line what is there and the next command, ready to be pasted; of a report its path."""
    if artifact.kind == "reports":
        console.result(f"report: {artifact.file(REPORT_FILE).resolve()}")
        return
    place = [] if store.root == DEFAULT_STORE else ["--store", str(store.root)]
    command = shlex.join([*following, *place])
    console.result(f"{artifact.kind} {artifact.ref} is ready; next: psychocounsel {command}")


def tell_end_of_recipe(made: Sequence[Artifact], store: Store) -> None:
    """Print where the report of a recipe lies; without one, how to look at what came last."""
    last = next((each for each in reversed(made) if each.kind == "reports"), made[-1])
    tell_end(last, _show(last), store)


def _show(artifact: Artifact) -> list[str]:
    return ["show", f"{artifact.kind}/{artifact.ref}"]
