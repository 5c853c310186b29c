"""Artifact -> the lines that a person wants to see first: its numbers, read from `metrics.json`."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from psychocounsel.reporting.audit_words import audit_lines
from psychocounsel.reporting.labels import BASELINES, EMPTY_REPLY
from psychocounsel.store.artifacts import Artifact, Parent
from psychocounsel.store.store import Store

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
        case "verdicts":
            return _verdicts(artifact.metrics)
        case "audits":
            return audit_lines(artifact.metrics)
        case _:
            return []


def _base_model(metrics: Metrics) -> list[str]:
    warm_up, speeches = metrics["warm_up"], metrics["training_speeches"]
    losses = f"loss {warm_up['first_loss']:.2f} -> {warm_up['last_loss']:.2f} nats per token"
    return [f"{warm_up['parameters']:,} parameters, warmed up on {speeches} speeches: {losses}"]


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
    if "draws" not in metrics:
        return []
    told = f"  means of {metrics['draws']['asked']} draws, scored by {_counts(metrics['draws']['scored_by'])}"
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
    words = " -> ".join(f"{each['dev']['health']['length_words']['mean']:.0f}" for each in rounds)
    pairs = ", ".join(f"{each['trained_on']} of {each['pairs']}" for each in rounds)
    return [f"dev reward by round: {rewards}", f"  words of an answer: {words}; trained on pairs: {pairs}"]


def _verdicts(metrics: Metrics) -> list[str]:
    counts = ", ".join(f"{metrics[key]} {key}" for key in ("wins", "ties", "losses", "missing"))
    controlled = _rate(metrics["length_controlled"]["rate"])
    lines = [
        f"win rate {_rate(metrics['win_rate'])} (ties count half): {counts}",
        f"  the order decided {_rate(metrics['flip_rate'])}; at equal length {controlled}",
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
