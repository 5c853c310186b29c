"""What a round of online DPO did to the policy, and when a run has gone too far.

The figures come from answers to the same held-out speeches after every round. A reward that rises says little by
itself: a policy that games the reward model drifts from the reference, grows long or never ends, and an independent
judge no longer prefers its answers.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from psychocounsel.config.schema import StopConfig
from psychocounsel.store.metrics import ProbeMetrics

_QUESTION = re.compile(r"[?\uff1f\u061f]+")


def kl_estimates(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return estimates of the KL divergence of a policy from the reference, in nats.

    Both are log-probabilities of the tokens of answers that the policy sampled at temperature 1, by answer.
    `per_answer` and `per_token` are means of log(policy / reference), unbiased. `k3_per_token` is the mean of
    ratio - 1 - log(ratio) with ratio = reference / policy: unbiased too, never negative, and of lower variance while
    the two are close (Schulman 2020, "Approximating KL divergence").
    """
    differences = [
        left - right
        for mine, theirs in zip(policy, reference, strict=True)
        for left, right in zip(mine, theirs, strict=True)
    ]
    tokens = len(differences)
    return {
        "per_answer": math.fsum(differences) / len(policy),
        "per_token": math.fsum(differences) / tokens,
        "k3_per_token": math.fsum(math.expm1(-each) + each for each in differences) / tokens,
    }


def questions(text: str) -> int:
    """Return how many question marks, or runs of them, a text has."""
    return len(_QUESTION.findall(text))


def reason_to_stop(probes: Sequence[ProbeMetrics], rules: StopConfig) -> str:
    """Return which limit the last of some probes passes, and by how much; empty if none.

    The first probe is that of the initial policy, the others are those of the rounds so far.
    """
    initial, *_, last = probes
    unfinished = last.text_quality.unfinished_rate.estimate
    ratio = last.text_quality.length_words.mean / max(1.0, initial.text_quality.length_words.mean)
    kl = last.kl.per_answer
    if rules.unfinished_share is not None and unfinished > rules.unfinished_share:
        return f"{unfinished:.1%} of the answers are unfinished, more than {rules.unfinished_share:.1%}"
    if rules.kl is not None and kl > rules.kl:
        return f"the KL divergence is {kl:.2f} nats per answer, more than {rules.kl:g}"
    if rules.length_ratio is not None and ratio > rules.length_ratio:
        return f"answers are {ratio:.2f} times as long as the initial policy's, more than {rules.length_ratio:g}"
    rates = [each.win_rate.estimate for each in probes if each.win_rate is not None]
    if rules.win_rate_drop is not None and rates and max(rates) - rates[-1] > rules.win_rate_drop:
        fall = f"the win rate fell from {max(rates):.1%} to {rates[-1]:.1%}"
        return f"{fall}, by more than {100 * rules.win_rate_drop:g} points"
    return ""


def best_round(probes: Sequence[ProbeMetrics], rules: StopConfig) -> int:
    """Return the number of the best round: by the judge's win rate, or without a judge by the reward.

    A round that passes a limit of the rules is the best only if all do. Of equal rounds the later one is the best.
    `probes` are as for `reason_to_stop`.
    """
    is_judged = any(probe.win_rate is not None for probe in probes[1:])

    def rank(number: int) -> tuple[Any, ...]:
        probe = probes[number]
        value = probe.reward.mean
        if is_judged:  # a round of which no comparison succeeded comes last
            value = -math.inf if probe.win_rate is None else probe.win_rate.estimate
        return not reason_to_stop(probes[: number + 1], rules), value, number

    return max(range(1, len(probes)), key=rank)
