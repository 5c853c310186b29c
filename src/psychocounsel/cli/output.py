"""Words that every command understands -> Store and settings."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from psychocounsel.errors import ConfigError
from psychocounsel.reporting import console
from psychocounsel.reporting.tables import BASELINES, EMPTY_REPLY, REPORT_FILE, audit_lines
from psychocounsel.store.artifacts import Artifact, Parent
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from psychocounsel.config.recipe import StageName


Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the config. Repeatable."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what would be created; create nothing.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection beyond this machine.")]
StoreFolder = Annotated[
    Path, typer.Option("--store", envvar="PSYCHOCOUNSEL_STORE", help="The folder of the artifacts.")
]

DEFAULT_STORE = Path("data")


def open_store(folder: Path, is_offline: bool = False) -> Store:
    """Return the store at a folder."""
    return Store(folder, is_offline)


SOURCES = ("speeches", "candidates", "judgements")
SPLITS = ("train", "dev", "test")
VALID = "valid"
FLAWS = (
    "safety_inverted",
    "not_preferred",
    "missing_ratings",
    "equal_texts",
    "repeated",
    "leaks_exactly",
    "leaks_nearly",
    "too_long_chosen",
    "too_long_rejected",
)

Metrics = Mapping[str, Any]


def headlines(artifact: Artifact, store: Store) -> list[str]:
    """Return the headline numbers of an artifact, without its name; some kinds have none."""
    match artifact.kind:
        case "base-models":
            return _base_model(artifact.metrics)
        case "preferences":
            return _preferences(artifact, store)
        case "reward-models":
            return _reward_model(artifact.metrics)
        case "policies":
            return _policy(artifact.metrics)
        case "comparisons":
            return _verdicts(artifact.metrics)
        case "audits":
            return audit_lines(artifact.metrics)
        case _:
            return []


def _base_model(metrics: Metrics) -> list[str]:
    sft, speeches = metrics["sft"], metrics["training_speeches"]
    losses = f"loss {sft['first_loss']:.2f} -> {sft['last_loss']:.2f} nats per token"
    return [f"{sft['parameters']:,} parameters, warmed up on {speeches} speeches: {losses}"]


def _preferences(artifact: Artifact, store: Store) -> list[str]:
    """Return the whole way from rows to pairs: at every step, kept and dropped add up to what came in."""
    sources = sorted(artifact.parents, key=lambda parent: SOURCES.index(parent.kind))
    lines = [line for parent in sources for line in _source(store.open(parent).metrics, parent)]
    pairing: Metrics = artifact.metrics["pairing"]
    kept = ", ".join(f"{split} {pairing[split]['kept']}" for split in SPLITS)
    lines.append(f"pairs: {sum(counts['kept'] for counts in pairing.values())}; {kept}")
    flaws: Metrics = artifact.metrics.get("flaws", {})
    what = "rows" if flaws else "combinations"
    lines += [f"  {split}: {_kept(pairing[split]['combinations'], what, pairing[split])}" for split in SPLITS]
    return lines + [_flaws(split, flaws[split]) for split in SPLITS if split in flaws]


def _flaws(split: str, flaws: Metrics) -> str:
    """Return what a split held as others released it; a row may have several flaws."""
    words = f"{flaws['mean_words_chosen']:.0f} words chosen, {flaws['mean_words_rejected']:.0f} rejected"
    found = _counts({name: flaws[name] for name in FLAWS if flaws[name]})
    return f"  {split} as released, {flaws['rows']} rows: {found or 'no flaw'}; {words}"


def _source(metrics: Metrics, parent: Parent) -> list[str]:
    if parent.kind == "judgements":
        return _judgements(metrics)
    if parent.kind == "speeches":
        splits = ", ".join(f"{split} {metrics['splits'][split]}" for split in SPLITS)
        return [f"speeches: {_kept(metrics['funnel']['rows_in'], 'rows', metrics['funnel'])}; {splits}"]
    if "funnel" in metrics:
        return [f"{parent.role}: {_kept(metrics['funnel']['rows_in'], 'rows', metrics['funnel'])}"]
    failed: Metrics = metrics["failed"]
    dropped = {f"{author} {why}": count for author in failed for why, count in failed[author].items()}
    dropped["repeated_text"] = metrics["repeated_text"]
    asked = metrics["kept"] + sum(dropped.values())
    return [f"{parent.role}: {_kept(asked, 'asked', {'kept': metrics['kept'], 'dropped': dropped})}"]


def _judgements(metrics: Metrics) -> list[str]:
    failed = {EMPTY_REPLY.get(why, why): count for why, count in metrics["status"].items() if why != VALID}
    candidates = metrics["judged"] + sum(metrics["left_out"].values())
    judged = {"kept": metrics["status"].get(VALID, 0), "dropped": {**metrics["left_out"], **failed}}
    lines = [f"judgements: {_kept(candidates, 'candidates', judged)}", *_missing_by_topic(metrics)]
    if metrics["addresses_judge"]:
        lines.append(f"  ! {metrics['addresses_judge']} responses seem to address the judge")
    return lines + _draws(metrics)


def _draws(metrics: Metrics) -> list[str]:
    """Tell what the ratings are means of, and how far these lie apart on the average principle."""
    if "samples" not in metrics:
        return []
    told = f"  means of {metrics['samples']['asked']} samples, scored by {_counts(metrics['samples']['scored_by'])}"
    known = {
        name: [value for value in metrics["disagreement"][name].values() if value is not None]
        for name in ("spread", "alpha")
    }
    if known["spread"]:
        told += f"; spread {fmean(known['spread']):.2f} points"
    if known["alpha"]:
        told += f", Krippendorff's alpha {fmean(known['alpha']):.2f}"
    return [told]


def _missing_by_topic(metrics: Metrics) -> list[str]:
    """Tell the topics of which something is missing: refusals are not missing at random."""
    topics = [
        f"{topic or '(no topic)'} {share['missing']} of {share['total']}"
        for topic, share in metrics["missing_by_topic"].items()
        if share["missing"]
    ]
    return [f"  missing by topic: {', '.join(topics)}"] if topics else []


def _kept(count: int, what: str, funnel: Metrics) -> str:
    dropped = {reason: number for reason, number in funnel["dropped"].items() if number}
    lost = f", {sum(dropped.values())} dropped ({_counts(dropped)})" if dropped else ""
    return f"{count} {what}, {funnel['kept']} kept{lost}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _reward_model(metrics: Metrics) -> list[str]:
    accuracy = metrics["test"]["accuracy"]
    lines = [
        f"trained on pairs: {_trained_on(metrics)}",
        f"test accuracy {_rate(accuracy)} on {accuracy['n']} pairs",
    ]
    baselines = {name: rate for name, rate in metrics["baselines"].items() if rate is not None}
    return lines + [f"  beside it: {BASELINES[name].full} {_rate(rate)}" for name, rate in baselines.items()]


def _trained_on(metrics: Metrics) -> str:
    """Return how many pairs fitted the length policy, and why the others were dropped."""
    dropped: dict[str, int] = dict(metrics["training"]["lengths"])
    kept = dropped.pop("kept")
    return _kept(kept + sum(dropped.values()), "read", {"kept": kept, "dropped": dropped})


def _policy(metrics: Metrics) -> list[str]:
    rounds = metrics.get("rounds")
    if rounds is None:
        history, steps = metrics["training"]["history"], metrics["training"]["steps"]
        losses = f"loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}"
        return [f"trained on pairs: {_trained_on(metrics)}", f"{steps} steps: {losses}"]
    rewards = " -> ".join(f"{each['dev']['reward']['mean']:+.3f}" for each in rounds)
    words = " -> ".join(f"{each['dev']['text_quality']['length_words']['mean']:.0f}" for each in rounds)
    pairs = ", ".join(f"{each['trained_on']} of {each['pairs']}" for each in rounds)
    return [f"dev reward by round: {rewards}", f"  words of an answer: {words}; trained on pairs: {pairs}"]


def _verdicts(metrics: Metrics) -> list[str]:
    counts = ", ".join(f"{metrics[key]} {key}" for key in ("wins", "ties", "losses", "missing"))
    controlled = _rate(metrics["length_controlled"]["rate"])
    lines = [
        f"win rate {_rate(metrics['win_rate'])} (ties count half): {counts}",
        f"  the order decided {_rate(metrics['position_inconsistent_rate'])}; at equal length {controlled}",
        *_unanswered(metrics),
        *_missing_by_topic(metrics),
    ]
    if metrics["judges"]["same_family"]:
        lines.append("  ! the judge is of the family that rated the training data")
    for side in metrics["judges"]["own_family"]:
        models = ", ".join(metrics["judges"]["judged"][side])
        lines.append(f"  ! the judge is of the family of the {side} that it judges ({models})")
    return lines


def _unanswered(metrics: Metrics) -> list[str]:
    sides = [f"{side} {_counts(by)}" for side, by in metrics["missing_answers"].items() if by]
    return [f"  speeches without an answer: {'; '.join(sides)}"] if sides else []


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['estimate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


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
    "comparisons": "artifacts=[comparisons/{ref}]",
}
"""How a config of the next stage names an artifact of a kind."""


def tell(artifacts: Sequence[Artifact], store: Store) -> None:
    """Print what was made or found: first what heads it, then the names and headline numbers."""
    notices = dict.fromkeys(notice for artifact in artifacts for notice in artifact.warnings)
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
    from psychocounsel.config.recipe import RECIPE_FILE, RecipeConfig

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
