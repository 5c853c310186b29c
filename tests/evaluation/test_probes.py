"""Probes of online rounds: estimates of drift by hand, limits that end a run, and which round is the best."""

import math
from typing import Any

import numpy as np
import pytest

from psychocounsel.config.schema import StopConfig
from psychocounsel.evaluation.probes import best_round, kl_estimates, questions, reason_to_stop
from psychocounsel.store.metrics import ProbeMetrics
from psychocounsel.types import Rate


def probe(
    reward: float = 0.0, *, unfinished: float = 0.0, kl: float = 0.0, words: float = 50.0, win: float | None = None
) -> ProbeMetrics:
    def rate(estimate: float) -> Rate:
        return Rate(estimate, 0.0, 1.0, 10)

    metrics: dict[str, Any] = {
        "reward": {"mean": reward, "std": 1.0, "n": 10},
        "text_quality": {
            **{"repetition_rate": rate(0), "distinct_4gram_ratio": None, "empty_rate": rate(0)},
            "unfinished_rate": rate(unfinished),
            "length_words": {"mean": words, "median": words, "p95": words},
        },
        "kl": {"per_answer": kl, "per_token": kl / 10, "k3_per_token": kl / 10},
        **{"questions_per_answer": 1.0, "entropy": 2.0, "agreement": None, "crisis": None},
        "win_rate": None if win is None else rate(win),
    }
    return ProbeMetrics.model_validate(metrics)


def test_kl_by_hand() -> None:
    found = kl_estimates([[-1.0, -2.0], [-0.5]], [[-1.5, -1.0], [-0.5]])
    assert found["per_answer"] == pytest.approx((0.5 - 1.0 + 0.0) / 2)
    assert found["per_token"] == pytest.approx((0.5 - 1.0) / 3)
    terms = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0, 0.0]
    assert found["k3_per_token"] == pytest.approx(sum(terms) / 3)


def test_both_estimates_approach_the_true_divergence() -> None:
    policy, reference = (0.5, 0.3, 0.2), (0.4, 0.4, 0.2)
    truth = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    tokens = np.random.default_rng(0).choice(3, 100_000, p=policy)
    found = kl_estimates(
        [[math.log(policy[each]) for each in tokens]], [[math.log(reference[each]) for each in tokens]]
    )
    assert found["per_token"] == pytest.approx(truth, abs=0.003)
    assert found["k3_per_token"] == pytest.approx(truth, abs=0.001)


def test_questions_are_counted_by_runs_of_marks() -> None:
    assert [questions(text) for text in ("No.", "What? And then?", "Really?!? Why??", "何ですか\uff1f")] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("rules", "passing", "stopping"),
    [
        ({"unfinished_share": 0.3}, {"unfinished": 0.3}, {"unfinished": 0.31}),
        ({"kl": 5.0}, {"kl": 4.9}, {"kl": 5.1}),
        ({"length_ratio": 1.5}, {"words": 75.0}, {"words": 76.0}),
        ({"win_rate_drop": 0.1}, {"win": 0.6}, {"win": 0.59}),
    ],
)
def test_a_limit_ends_the_run_beyond_it_only(
    rules: dict[str, float], passing: dict[str, float], stopping: dict[str, float]
) -> None:
    before = [probe(), probe(win=0.7)]
    limits = StopConfig.model_validate(rules)
    assert reason_to_stop([*before, probe(**passing)], limits) == ""
    assert reason_to_stop([*before, probe(**stopping)], limits) != ""
    assert reason_to_stop([*before, probe(**stopping)], StopConfig()) == ""


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        ([{"reward": 1.0}, {"reward": 3.0}, {"reward": 2.0}], 2),
        ([{"reward": 1.0}, {"reward": 1.0}], 2),
        ([{"reward": 9.0, "win": 0.5}, {"reward": 1.0, "win": 0.6}], 2),  # the judge counts, not the reward
        ([{"reward": 1.0, "win": 0.4}, {"reward": 9.0}], 1),  # of the second, no comparison succeeded
        ([{"reward": 1.0}, {"reward": 9.0, "words": 200.0}], 1),  # games the reward by its length
        ([{"reward": 1.0, "words": 200.0}, {"reward": 2.0, "words": 300.0}], 2),  # none keeps to the limits
    ],
)
def test_the_best_round_keeps_to_the_limits(rounds: list[dict[str, float]], best: int) -> None:
    assert best_round([probe(), *(probe(**each) for each in rounds)], StopConfig(length_ratio=2.0)) == best
