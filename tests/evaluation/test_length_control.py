"""Win rates at equal length: planted effects, coverage, and no figure where lengths do not overlap."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.length_control import (
    LengthComparison,
    length_controlled_rate,
    length_controlled_rates,
)
from psychocounsel.evaluation.statistics import student_t


def comparisons(points: Sequence[float | None], differences: Sequence[float]) -> list[LengthComparison]:
    return [
        LengthComparison(f"s{index}", point, 500 + difference, 500)
        for index, (point, difference) in enumerate(zip(points, differences, strict=True))
    ]


def simulated(
    theta: float, beta: float, n: int, seed: int = 7, mean: float = 60, spread: float = 40
) -> list[LengthComparison]:
    """Outcomes of a judge who favours length by `beta`; at equal length the policy wins sigmoid(theta)."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(mean, spread, n)
    chance = 1 / (1 + np.exp(-(theta + beta * np.tanh(differences / spread))))
    return comparisons((rng.random(n) < chance).astype(float).tolist(), differences.tolist())


@pytest.mark.parametrize(("theta", "beta"), [(0.0, 1.5), (1.0, -0.8), (-0.5, 0.0)])
def test_planted_effects_are_recovered(theta: float, beta: float) -> None:
    result = length_controlled_rate(simulated(theta, beta, 4000))
    assert result.rate is not None
    assert result.length_effect is not None
    assert result.rate.low < 1 / (1 + math.exp(-theta)) < result.rate.high
    assert result.rate.high - result.rate.low < 0.12
    assert result.length_effect.low < beta < result.length_effect.high
    assert (result.shorter, result.longer) == pytest.approx((0.067, 0.933), abs=0.01)
    assert (result.reason, result.sigma) == ("", pytest.approx(40, abs=2))


@pytest.mark.parametrize(
    ("points", "differences", "reason"),
    [
        # The judge favours length alone; the policy is always longer, so that nothing can be said at equal length.
        ([1.0] * 180 + [0.0] * 20, [100.0 + at % 60 - 30 for at in range(200)], "shorter one in only 0 of 200"),
        ([1.0, 0.0] * 100, [-5.0 - at for at in range(200)], "longer one in only 0 of 200"),
        ([1.0, 0.0] * 100, [0.0] * 200, "shorter one in only 0 of 200"),
        ([1.0, 0.0] * 500, [-1.0] * 49 + [1.0] * 951, "shorter one in only 49 of 1000"),
        ([1.0, 0.0] * 49, [-1.0, -1.0, 2.0, 1.0] * 24 + [1.0] * 2, "98 comparisons"),
        ([1.0] * 191 + [0.0] * 9, [-1.0, 1.0] * 100, "9 losses"),
        ([0.5] * 191 + [1.0] * 9, [-1.0, 1.0] * 100, "9 wins"),
    ],
)
def test_no_figure_where_length_and_merit_cannot_be_told_apart(
    points: list[float], differences: list[float], reason: str
) -> None:
    result = length_controlled_rate(comparisons(points, differences))
    assert (result.rate, result.length_effect, result.sigma) == (None, None, None)
    assert reason in result.reason


def test_missing_outcomes_are_left_out_with_their_lengths() -> None:
    rows = simulated(0.5, 0.5, 200, mean=0)
    more = [LengthComparison("lost", None, 5000, 1), *rows]
    one, other = length_controlled_rate(rows), length_controlled_rate(more)
    assert one.rate is not None
    assert other.rate is not None
    assert (other.rate.estimate, other.sigma) == (one.rate.estimate, one.sigma)
    assert (other.rate.n, other.rate.missing) == (200, 1)
    with pytest.raises(DataQualityError):
        length_controlled_rate(comparisons([None], [1.0]))


def test_exchanging_the_sides_gives_one_minus_the_rate() -> None:
    one = simulated(0.8, 0.6, 300, mean=20)
    two = [LengthComparison(row[0], 1 - (row[1] or 0.0), row[3], row[2]) for row in one]
    result, other = length_controlled_rate(one), length_controlled_rate(two)
    assert result.rate is not None
    assert other.rate is not None
    mirrored = (1 - result.rate.high, 1 - result.rate.estimate, 1 - result.rate.low)
    assert (other.rate.low, other.rate.estimate, other.rate.high) == pytest.approx(mirrored, abs=1e-9)
    assert other.length_effect == result.length_effect


def test_always_longer_always_wins_converges() -> None:
    differences = [float(at) for at in range(-30, 170)]
    result = length_controlled_rate(comparisons([float(each > 0) for each in differences], differences))
    assert result.rate is not None
    assert result.rate.low < 0.5 < result.rate.high
    assert result.rate.estimate == pytest.approx(0.5, abs=0.1)


def test_interval_is_that_of_the_sandwich_hc3() -> None:
    """The variance by its textbook form: residuals over one less the leverage, with the pseudo-tie among the rows."""
    rows = simulated(0.4, 0.9, 150, mean=15)
    result = length_controlled_rate(rows)
    assert result.rate is not None
    assert result.length_effect is not None
    theta, beta = math.log(result.rate.estimate / (1 - result.rate.estimate)), result.length_effect.estimate
    differences = np.array([row.policy_length - row.reference_length for row in rows])
    design = np.stack([np.ones(151), np.append(np.tanh(differences / result.sigma), 0)], axis=1)
    chances = 1 / (1 + np.exp(-design @ [theta, beta]))
    residuals = np.append([row.points or 0.0 for row in rows], 0.5) - chances
    assert design.T @ residuals - [0, 0.01 * beta] == pytest.approx([0, 0], abs=1e-6)
    weights = chances * (1 - chances)
    bread = np.linalg.inv((design * weights[:, None]).T @ design)
    leverage = weights * np.einsum("ni,ij,nj->n", design, bread, design)
    meat = (design * (residuals / (1 - leverage))[:, None] ** 2).T @ design
    deviation = math.sqrt((bread @ meat @ bread)[0, 0])
    high = 1 / (1 + math.exp(-(theta + student_t(148) * deviation)))
    assert result.rate.high == pytest.approx(high, abs=1e-4)  # but for the ridge


def test_policies_under_one_judge_share_the_effect_of_length() -> None:
    near = simulated(0.0, 1.0, 400, seed=1, mean=5)
    far = simulated(1.0, 1.0, 400, seed=2, mean=60)
    never = comparisons([1.0, 0.0] * 100, [50.0] * 200)
    alone = length_controlled_rate(far)
    first, pooled, without = length_controlled_rates([near, far, never])
    assert alone.rate is not None
    assert first.rate is not None
    assert pooled.rate is not None
    assert without.rate is None
    assert first.length_effect == pooled.length_effect
    assert pooled.rate.high - pooled.rate.low < alone.rate.high - alone.rate.low
    assert pooled.rate.low < 1 / (1 + math.exp(-1)) < pooled.rate.high
    assert first.rate.low < 0.5 < first.rate.high


def test_draws_of_one_speech_are_no_further_evidence() -> None:
    rows = simulated(0.3, 0.5, 200, mean=0)
    once, often = length_controlled_rate(rows), length_controlled_rate([row for row in rows for _ in range(8)])
    assert once.rate is not None
    assert often.rate is not None
    assert (often.rate.low, often.rate.high) == pytest.approx((once.rate.low, once.rate.high), abs=0.01)


@pytest.mark.parametrize(("theta", "beta", "mean"), [(0.0, 0.0, 0.0), (1.0, 0.8, 20.0)])
def test_intervals_cover_the_truth(theta: float, beta: float, mean: float) -> None:
    truth = 1 / (1 + math.exp(-theta))
    found = [length_controlled_rate(simulated(theta, beta, 200, seed, mean)).rate for seed in range(400)]
    covered = [rate.low <= truth <= rate.high for rate in found if rate is not None]
    assert len(covered) == 400
    assert 0.92 <= sum(covered) / 400 <= 0.985
    assert sum(rate.estimate for rate in found if rate is not None) / 400 == pytest.approx(truth, abs=0.012)
