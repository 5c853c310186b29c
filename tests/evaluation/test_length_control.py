"""The logistic model recovers what made the data, is fair under exchange, and stays finite."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.statistics import BootstrapSettings, bootstrap_rate
from psychocounsel.evaluation.winrate import LengthComparison, fit_logistic, length_controlled_rate

FAST = BootstrapSettings(samples=100)


def comparisons(points: Sequence[float | None], differences: Sequence[float]) -> list[LengthComparison]:
    return [
        LengthComparison(f"s{index}", point, 100 + difference, 100)
        for index, (point, difference) in enumerate(zip(points, differences, strict=True))
    ]


def simulated(theta: float, beta: float, n: int) -> list[LengthComparison]:
    rng = np.random.default_rng(7)
    differences = rng.normal(60, 40, n)
    chance = 1 / (1 + np.exp(-(theta + beta * np.tanh(differences / differences.std()))))
    wins = (rng.random(n) < chance).astype(float)
    return comparisons(wins.tolist(), differences.tolist())


def test_a_win_rate_bought_by_length_alone_is_controlled_to_one_half() -> None:
    # Theta is 0: at equal length the two are equals, yet the longer policy wins far more than half.
    rows = simulated(theta=0.0, beta=1.5, n=3000)
    raw = bootstrap_rate([row.points for row in rows], [row.speech_id for row in rows], FAST)
    result = length_controlled_rate(rows, FAST)
    assert raw.low > 0.65
    assert result.controlled
    assert result.rate.low < 0.5 < result.rate.high
    assert result.length_effect == pytest.approx(1.5, abs=0.3)


def test_true_merit_survives_the_control() -> None:
    result = length_controlled_rate(simulated(theta=1.0, beta=-0.8, n=3000), FAST)
    truth = 1 / (1 + math.exp(-1.0))
    assert result.rate.low < truth < result.rate.high
    assert result.rate.high - result.rate.low < 0.12
    assert result.length_effect == pytest.approx(-0.8, abs=0.3)


def test_the_fit_worked_by_hand() -> None:
    # At x = 1 three of four are won, at -1 one of four: logits ±ln 3, so theta = 0 and beta = ln 3.
    # The weights drown the ridge.
    x = np.array([1.0] * 4 + [-1.0] * 4)
    y = np.array([1.0, 1, 1, 0, 1, 0, 0, 0])
    ((theta, beta),) = fit_logistic(x, y, np.full((1, 8), 1000.0))
    assert theta == pytest.approx(0, abs=1e-9)
    assert beta == pytest.approx(math.log(3), abs=1e-4)
    # Counted three times, the loss at 1 brings that side to 3 of 6: logits 0 and -ln 3.
    ((theta, beta),) = fit_logistic(x, y, np.array([[1.0, 1, 1, 3, 1, 1, 1, 1]]) * 1000)
    assert theta == pytest.approx(-math.log(3) / 2, abs=1e-4)
    assert beta == pytest.approx(math.log(3) / 2, abs=1e-4)


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    rng = np.random.default_rng(1)
    x, y = np.tanh(rng.normal(size=50)), rng.choice([0.0, 0.5, 1.0], 50)
    weights = rng.integers(0, 4, (6, 50)).astype(float)
    fit = fit_logistic(x, y, weights)
    for theta, beta, weight in zip(*fit.T, weights, strict=True):
        error = weight * (1 / (1 + np.exp(-(theta + beta * x))) - y)
        assert error.sum() + 1e-6 * theta == pytest.approx(0, abs=1e-7)
        assert error @ x + 1e-2 * beta == pytest.approx(0, abs=1e-7)


def test_the_fit_converges_where_full_newton_steps_run_away() -> None:
    # Sixteen thousand losses against twenty ties: undamped steps from zero end beyond 1e10 here.
    x, y = np.array([-0.63, -0.27, 0.66]), np.array([0.5, 0.001, 0.0])
    weights = np.array([[20.0, 11130.0, 5231.0]])
    ((theta, beta),) = fit_logistic(x, y, weights)
    error = weights[0] * (1 / (1 + np.exp(-(theta + beta * x))) - y)
    assert error.sum() + 1e-6 * theta == pytest.approx(0, abs=1e-6)
    assert error @ x + 1e-2 * beta == pytest.approx(0, abs=1e-6)


def test_separation_by_length_stays_finite() -> None:
    rows = comparisons([1.0] * 10 + [0.0] * 10, [50.0 + i for i in range(10)] + [-50.0 - i for i in range(10)])
    result = length_controlled_rate(rows, FAST)
    assert result.controlled
    assert 1 < result.length_effect < 20
    assert result.rate.estimate == pytest.approx(0.5, abs=1e-6)
    assert 0 <= result.rate.low <= result.rate.high <= 1


def test_without_any_spread_of_length_the_raw_rate_stands_and_says_so() -> None:
    rows = comparisons([1.0, 1.0, 0.0, None, 0.5], [30.1] * 5)
    result = length_controlled_rate(rows, FAST)
    raw = bootstrap_rate([1.0, 1.0, 0.0, None, 0.5], [row.speech_id for row in rows], FAST)
    assert (result.controlled, result.rate, result.sigma, result.length_effect) == (False, raw, 0.0, 0.0)


def test_equal_outcomes_leave_nothing_to_explain() -> None:
    rows = comparisons([1.0] * 6, [1.0, 5.0, 3.0, 2.0, 8.0, 9.0])
    result = length_controlled_rate(rows, FAST)
    assert (result.controlled, result.rate.estimate) == (False, 1.0)
    assert result.rate.low < 0.7


def test_missing_outcomes_are_left_out_with_their_lengths() -> None:
    rows = comparisons([1.0, 0.0, 1.0, 0.0, 1.0, 0.5], [40.0, 10.0, -20.0, -30.0, 5.0, 0.0])
    more = [LengthComparison("lost", None, 5000, 1), *rows]
    assert length_controlled_rate(more, FAST).rate.missing == 1
    assert length_controlled_rate(more, FAST).sigma == length_controlled_rate(rows, FAST).sigma
    assert length_controlled_rate(more, FAST).rate.estimate == length_controlled_rate(rows, FAST).rate.estimate
    with pytest.raises(DataQualityError):
        length_controlled_rate(comparisons([None], [1.0]), FAST)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 300), st.integers(1, 300)),
        min_size=2,
        max_size=30,
    )
)
def test_exchanging_the_sides_gives_one_minus_the_rate(rows: list[tuple[float, int, int]]) -> None:
    one = [LengthComparison(str(i), point, ours, theirs) for i, (point, ours, theirs) in enumerate(rows)]
    two = [LengthComparison(str(i), 1 - point, theirs, ours) for i, (point, ours, theirs) in enumerate(rows)]
    result, other = length_controlled_rate(one, FAST), length_controlled_rate(two, FAST)
    assert other.rate.estimate == pytest.approx(1 - result.rate.estimate, abs=1e-6)
    assert (other.rate.low, other.rate.high) == pytest.approx((1 - result.rate.high, 1 - result.rate.low), abs=1e-6)
    assert other.length_effect == pytest.approx(result.length_effect, abs=1e-5)
    assert 0 <= result.rate.low <= result.rate.estimate <= result.rate.high <= 1


def test_the_unit_of_length_does_not_matter() -> None:
    rows = simulated(0.3, 1.0, 80)
    tenfold = [r._replace(policy_length=10 * r.policy_length, reference_length=1000) for r in rows]
    assert length_controlled_rate(tenfold, FAST).rate.estimate == pytest.approx(
        length_controlled_rate(rows, FAST).rate.estimate
    )
