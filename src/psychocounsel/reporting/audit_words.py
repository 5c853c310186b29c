"""`metrics.json` of an audit -> the quality table of a judge, line by line, as a terminal shows it."""

from collections.abc import Mapping
from typing import Any

Metrics = Mapping[str, Any]

OBEYS = "OBEYS: do not trust its ratings of texts that address it"
UNTRIED = "not tried: no response could gain a point"


def audit_lines(metrics: Metrics) -> list[str]:
    """Return what a judge is worth; a part that was left out has no line."""
    return [
        *_judged(metrics["judged"]),
        _spread(metrics),
        *_length(metrics["length"]),
        *_retested(metrics["retest"]),
        *_alone(metrics["one_principle"]),
        *_resistance(metrics["canaries"]),
    ]


def _judged(judged: Metrics) -> list[str]:
    status = ", ".join(f"{count} {name}" for name, count in judged["status"].items())
    missing = judged["judged"] - judged["status"].get("valid", 0)
    share = f"{missing} missing ({_percent(missing / judged['judged'] if judged['judged'] else 0.0)})"
    lines = [f"judgements: {judged['judged']} ({status}); {share}"]
    for topic, by in judged["missing_by_topic"].items():
        if by["missing"]:
            told = f"{by['missing']} of {by['total']} ({_percent(by['missing'] / by['total'])})"
            lines.append(f"  missing in {topic or 'no topic'}: {told}")
    lines += [f"  {name}: {_histogram(counts)}" for name, counts in judged["histograms"].items()]
    return [*lines, f"responses that seem to address the judge: {judged['addresses_judge']}"]


def _histogram(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {rating}" for rating, count in counts.items())


def _spread(metrics: Metrics) -> str:
    return (
        f"ties between responses to one speech: {_rate(metrics['ties'])}; "
        f"halo (mean correlation of two principles): {_number(metrics['halo'])}"
    )


def _length(length: Metrics | None) -> list[str]:
    if length is None:
        return []
    return [f"rank correlation of rating and length: {length['estimate']:.2f} {_bounds(length)}"]


def _retested(retest: Metrics | None) -> list[str]:
    if retest is None:
        return []
    whole = f"asked again: {retest['asked']} responses, {retest['missing']} missing"
    if retest["change"] is None:
        return [whole]
    return [
        f"{whole}; equal ratings {_rate(retest['equal'])}, within a point {_rate(retest['within_one'])}",
        f"  weighted kappa {_number(retest['kappa'])}; the mean rating changed by {_gain(retest['change'])}",
    ]


def _alone(alone: Metrics | None) -> list[str]:
    if alone is None:
        return []
    whole = f"one principle per call: {alone['asked']} responses, {alone['missing']} missing"
    if alone["mean_difference"] is not None:
        whole += f"; ratings differ by {_number(alone['mean_difference'])} points in the mean"
    halo = alone["halo"]
    if halo is None:
        return [whole]
    difference = f"difference {halo['difference']:+.2f} {_bounds(halo)}"
    return [whole, f"  halo {halo['together']:.2f} all in one, {halo['alone']:.2f} alone: {difference}"]


def _resistance(canaries: Metrics | None) -> list[str]:
    if canaries is None:
        return []
    if not canaries["asked"]:
        return [f"canaries: {UNTRIED}"]
    whole = (
        f"canaries: {canaries['asked']} copies, {canaries['missing']} missing, {canaries['flagged']} flagged"
    )
    if canaries["gain"] is None:
        return [whole]
    won = len(canaries["gained_a_point"])
    verdict = "resists" if canaries["resists"] else OBEYS
    return [
        f"{whole}; the mean rating changed by {_gain(canaries['gain'])}",
        f"  {won} of {canaries['gain']['n']} gained a point or more, {canaries['lost_a_point']} lost one: "
        f"the judge {verdict}",
    ]


def _gain(gain: Metrics) -> str:
    return f"{gain['mean']:+.2f} {_bounds(gain)}, at most {gain['largest']:+.2f} points"


def _bounds(told: Mapping[str, float | None]) -> str:
    low, high = told["low"], told["high"]
    return "[unknown]" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _rate(rate: Mapping[str, float] | None) -> str:
    if rate is None:
        return "unknown"
    return f"{_percent(rate['estimate'])} [{_percent(rate['low'])}, {_percent(rate['high'])}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
