"""Hand-worked figures, and brute force as oracle, for accuracy, AUC, ECE and Brier."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.reward_metrics import RewardMetrics, correctness, reward_metrics
from psychocounsel.evaluation.statistics import BootstrapSettings

FAST = BootstrapSettings(samples=200)
margin_lists = st.lists(st.integers(-4, 4).map(float) | st.floats(-6, 6), min_size=1, max_size=25)


def measured(margins: list[float]) -> RewardMetrics:
    return reward_metrics(margins, [f"s{index}" for index in range(len(margins))], FAST)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def brute_force_auc(margins: list[float]) -> float:
    wins = [(a > -b) + 0.5 * (a == -b) for a, b in product(margins, margins)]
    return sum(wins) / len(wins)


def brute_force_ece(margins: list[float]) -> float:
    seen = [(sigmoid(m), 1.0) for m in margins] + [(sigmoid(-m), 0.0) for m in margins]
    bins: dict[int, list[tuple[float, float]]] = {}
    for chance, truth in seen:
        bins.setdefault(min(int(chance * 10), 9), []).append((chance, truth))
    return sum(abs(sum(t for _, t in held) - sum(c for c, _ in held)) for held in bins.values()) / len(seen)


def test_the_figures_worked_by_hand() -> None:
    # Margins ln 4, ln 4 and -ln 4 are probabilities 0.8, 0.8 and 0.2 of the chosen one.
    metrics = measured([math.log(4), math.log(4), -math.log(4)])
    assert metrics.accuracy.estimate == pytest.approx(2 / 3)
    # The 9 sums m_i + m_j: 4 positive, 4 zero, 1 negative.
    assert metrics.auc.estimate == pytest.approx((4 + 0.5 * 4) / 9)
    # (0.2² + 0.2² + 0.8²) / 3.
    assert metrics.brier.estimate == pytest.approx(0.72 / 3)
    # At 0.8 the truth is 2 of 3, at 0.2 it is 1 of 3: off by 0.1333 everywhere.
    assert metrics.ece.estimate == pytest.approx(0.8 - 2 / 3)
    assert (metrics.ties, metrics.accuracy.n) == (0, 3)


def test_equal_rewards_count_half_and_are_told() -> None:
    metrics = measured([0.0, 0.0, 1.0, -1.0])
    assert (metrics.accuracy.estimate, metrics.ties) == (0.5, 2)
    flat = measured([0.0] * 5)
    assert (flat.auc.estimate, flat.ece.estimate, flat.brier.estimate) == (0.5, 0.0, 0.25)


def test_a_perfect_and_certain_model() -> None:
    metrics = measured([60.0] * 40)
    assert (metrics.accuracy.estimate, metrics.auc.estimate) == (1.0, 1.0)
    assert (metrics.ece.estimate, metrics.brier.estimate) == (pytest.approx(0), pytest.approx(0))
    # Forty of forty does not prove 100 %: z²/(40 + z²) = 0.0876.
    assert metrics.auc.low == metrics.accuracy.low == pytest.approx(1 - 0.0876, abs=1e-4)
    inverted = measured([-60.0] * 40)
    assert (inverted.auc.estimate, inverted.brier.estimate) == (0.0, pytest.approx(1))


def test_huge_margins_overflow_nothing() -> None:
    metrics = measured([1e6, -1e6])
    assert (metrics.auc.estimate, metrics.brier.estimate, metrics.ece.estimate) == (0.5, 0.5, 0.5)


@given(margin_lists)
def test_auc_is_the_share_of_won_comparisons(margins: list[float]) -> None:
    assert measured(margins).auc.estimate == pytest.approx(brute_force_auc(margins))


@given(margin_lists)
def test_calibration_and_brier_follow_their_definitions(margins: list[float]) -> None:
    metrics = measured(margins)
    assert metrics.brier.estimate == pytest.approx(sum((1 - sigmoid(m)) ** 2 for m in margins) / len(margins))
    # A probability on the edge of a bin may fall on either side by rounding: judge where none is near.
    edges = [sigmoid(sign * m) * 10 % 1 for m in margins for sign in (1, -1) if m]
    if all(1e-9 < edge < 1 - 1e-9 for edge in edges):
        assert metrics.ece.estimate == pytest.approx(brute_force_ece(margins), abs=1e-9)


@given(margin_lists)
def test_turning_every_pair_round_mirrors_accuracy_and_auc(margins: list[float]) -> None:
    metrics, turned = measured(margins), measured([-m for m in margins])
    assert turned.accuracy.estimate == pytest.approx(1 - metrics.accuracy.estimate)
    assert turned.auc.estimate == pytest.approx(1 - metrics.auc.estimate)
    assert turned.ties == metrics.ties
    for rate in (metrics.accuracy, metrics.auc, metrics.ece, metrics.brier):
        assert 0 <= rate.low <= rate.estimate <= rate.high <= 1


def test_the_interval_of_the_auc_resamples_whole_speeches() -> None:
    # An oracle that draws speeches one resample at a time and scores each by brute force.
    rng = np.random.default_rng(3)
    margins = rng.normal(0.5, 1, 24).round(1).tolist()
    speeches = [f"s{index // 3}" for index in range(24)]
    figures: list[float] = []
    for _ in range(1500):
        drawn = rng.integers(8, size=8)
        figures.append(brute_force_auc([margins[3 * s + k] for s in drawn for k in range(3)]))
    rate = reward_metrics(margins, speeches, BootstrapSettings(samples=4000)).auc
    assert (rate.low, rate.high) == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])), abs=0.03)
    as_rows = measured(margins).auc
    assert as_rows.estimate == rate.estimate
    assert as_rows.low != rate.low


def test_an_unscored_pair_is_missing_in_every_figure() -> None:
    metrics = reward_metrics([1.0, None, -2.0], ["a", "b", "c"], FAST)
    for rate in (metrics.accuracy, metrics.auc, metrics.ece, metrics.brier):
        assert (rate.n, rate.missing) == (2, 1)
    assert correctness([1.0, None, -2.0, 0.0]) == [1.0, None, 0.0, 0.5]
    assert metrics.as_dict()["auc"] == metrics.auc.as_dict()
    assert metrics.as_dict()["ties"] == 0


def test_a_broken_model_gives_no_figure() -> None:
    with pytest.raises(ValueError, match="finite"):
        measured([1.0, float("nan")])
    with pytest.raises(DataQualityError):
        reward_metrics([None], ["a"], FAST)
