"""Artifact -> the lines that a person wants to see first: its numbers, read from `metrics.json`."""

from collections.abc import Mapping
from typing import Any

from psychocounsel.store.artifacts import Artifact, Parent
from psychocounsel.store.store import Store

REPORT_FILE = "report.html"
SOURCES = ("speeches", "candidates", "judgements")
SPLITS = ("train", "dev", "test")
BASELINES = {
    "author_identity": "the better author wins",
    "longer_wins": "the longer answer wins",
    "same_tier": "between authors of one tier",
}

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
        case "verdicts":
            return _verdicts(artifact.metrics)
        case _:
            return []


def _base_model(metrics: Metrics) -> list[str]:
    warm_up, speeches = metrics["warm_up"], metrics["training_speeches"]
    losses = f"loss {warm_up['first_loss']:.2f} -> {warm_up['last_loss']:.2f} nats per token"
    return [f"{warm_up['parameters']:,} parameters, warmed up on {speeches} speeches: {losses}"]


def _preferences(artifact: Artifact, store: Store) -> list[str]:
    """Return the whole way from rows to pairs: at every step, kept and dropped add up to what came in."""
    sources = sorted(artifact.parents, key=lambda parent: SOURCES.index(parent.kind))
    lines = [_source(store.open(parent).metrics, parent) for parent in sources]
    pairing: Metrics = artifact.metrics["pairing"]
    kept = ", ".join(f"{split} {pairing[split]['kept']}" for split in SPLITS)
    lines.append(f"pairs: {sum(counts['kept'] for counts in pairing.values())}; {kept}")
    return lines + [
        f"  {split}: {_kept(pairing[split]['combinations'], 'combinations', pairing[split])}"
        for split in SPLITS
    ]


def _source(metrics: Metrics, parent: Parent) -> str:
    if parent.kind == "judgements":
        candidates = metrics["judged"] + sum(metrics["left_out"].values())
        judged = {"kept": metrics["judged"], "dropped": metrics["left_out"]}
        return f"judgements: {_kept(candidates, 'candidates', judged)}; {_counts(metrics['status'])}"
    if parent.kind == "speeches":
        splits = ", ".join(f"{split} {metrics['splits'][split]}" for split in SPLITS)
        return f"speeches: {_kept(metrics['funnel']['rows_in'], 'rows', metrics['funnel'])}; {splits}"
    if "funnel" in metrics:
        return f"{parent.role}: {_kept(metrics['funnel']['rows_in'], 'rows', metrics['funnel'])}"
    failed: Metrics = metrics["failed"]
    dropped = {f"{author} {why}": count for author in failed for why, count in failed[author].items()}
    dropped["repeated_text"] = metrics["repeated_text"]
    asked = metrics["kept"] + sum(dropped.values())
    return f"{parent.role}: {_kept(asked, 'asked', {'kept': metrics['kept'], 'dropped': dropped})}"


def _kept(count: int, what: str, funnel: Metrics) -> str:
    dropped = {reason: number for reason, number in funnel["dropped"].items() if number}
    lost = f", {sum(dropped.values())} dropped ({_counts(dropped)})" if dropped else ""
    return f"{count} {what}, {funnel['kept']} kept{lost}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _reward_model(metrics: Metrics) -> list[str]:
    accuracy, trained = metrics["test"]["accuracy"], metrics["pairs"]["train"]
    baselines = {name: rate for name, rate in metrics["baselines"].items() if rate is not None}
    lines = [f"test accuracy {_rate(accuracy)} on {accuracy['n']} pairs, trained on {trained}"]
    return lines + [f"  beside it: {BASELINES[name]} {_rate(rate)}" for name, rate in baselines.items()]


def _policy(metrics: Metrics) -> list[str]:
    rounds = metrics.get("rounds")
    if rounds is None:
        history, steps = metrics["training"]["history"], metrics["training"]["steps"]
        losses = f"loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}"
        return [f"{metrics['pairs']} pairs, {steps} steps: {losses}"]
    rewards = " -> ".join(f"{each['dev']['reward']['mean']:+.3f}" for each in rounds)
    words = " -> ".join(f"{each['dev']['health']['length_words']['mean']:.0f}" for each in rounds)
    pairs = ", ".join(str(each["pairs"]) for each in rounds)
    return [f"dev reward by round: {rewards}", f"  words of an answer: {words}; pairs of a round: {pairs}"]


def _verdicts(metrics: Metrics) -> list[str]:
    counts = ", ".join(f"{metrics[key]} {key}" for key in ("wins", "ties", "losses", "missing"))
    controlled = _rate(metrics["length_controlled"]["rate"])
    lines = [
        f"win rate {_rate(metrics['win_rate'])} (ties count half): {counts}",
        f"  the order decided {_rate(metrics['flip_rate'])}; at equal length {controlled}",
    ]
    if metrics["judges"]["same_family"]:
        lines.append("  ! the judge is of the family that rated the training data")
    return lines


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['estimate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
