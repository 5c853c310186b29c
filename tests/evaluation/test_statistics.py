"""Intervals over speeches: properties, figures by hand, and simulated coverage."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.statistics import (
    BootstrapSettings,
    FloatArray,
    bootstrap_statistic,
    clustered_rate,
    student_t,
    wilson_interval,
)

FAST = BootstrapSettings(samples=200)
points = st.sampled_from([0.0, 0.5, 1.0])
rows_by_speech = st.lists(st.tuples(st.none() | points, st.sampled_from("abcdefgh")), min_size=1).filter(
    lambda rows: any(value is not None for value, _ in rows)
)


def weighted_mean(rows: FloatArray, weights: FloatArray) -> FloatArray:
    return (weights @ rows) / weights.sum(axis=1)


def test_interval_of_two_speeches_by_hand() -> None:
    # Two independent outcomes: Wilson's interval with n = 2, 1/2 ± 1.96·sqrt(1/8 + 3.8415/16) / (1 + 3.8415/2).
    rate = clustered_rate([0.0, 1.0], ["a", "b"])
    assert (rate.estimate, rate.n, rate.missing) == (0.5, 2, 0)
    assert (rate.low, rate.high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert clustered_rate([0.0, 1.0], ["a", "b"], 0.4).high == pytest.approx(wilson_interval(0.5, 2, 0.4)[1])


def test_ratio_of_sums_weighs_a_speech_by_its_rows() -> None:
    # Three wins on one speech, one loss on another: 3/4, where a mean of speeches would say 1/2. With pseudo-speeches
    # (2, 2) and (0, 2): q = 5/8, residuals 9/8, -5/8, 6/8, -10/8, V = (242/64)/64, n_eff = (15/64)/V·(2/4) = 1.983.
    rate = clustered_rate([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert (rate.estimate, rate.n) == (0.75, 4)
    assert (rate.low, rate.high) == pytest.approx(wilson_interval(0.75, 15 * 64 / 242 / 2, 0.95))


def test_missing_value_is_counted_and_never_a_number() -> None:
    with_missing = clustered_rate([1.0, None, 0.0, 1.0, None], ["a", "a", "b", "c", "d"])
    without = clustered_rate([1.0, 0.0, 1.0], ["a", "b", "c"])
    assert with_missing == replace(without, missing=2)


def test_rows_of_one_speech_are_no_further_evidence() -> None:
    # Ten copies of every row would shrink an interval over rows by a factor of three.
    values = [float(index % 3 == 0) for index in range(60)]
    speeches = [f"s{index}" for index in range(60)]
    once = clustered_rate(values, speeches)
    copied = clustered_rate(values * 10, speeches * 10)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert copied.n == 600


def test_wilson_by_hand() -> None:
    # p = 1/2, n = 4, z² = 3.8415: 1/2 ± (1.96·sqrt(1/16 + 3.8415/64)) / (1 + 3.8415/4) = 1/2 ± 0.35.
    interval = wilson_interval(0.5, 4, 0.95)
    assert interval == pytest.approx((0.15, 0.85), abs=5e-4)
    # Equal outcomes: z²/(n + z²) with n = 10 speeches is 0.2775; ten wins in ten do not prove a sure thing.
    rate = clustered_rate([1.0] * 30, [f"s{index % 10}" for index in range(30)])
    assert (rate.low, rate.estimate, rate.high) == (pytest.approx(1 - 0.2775, abs=1e-4), 1.0, 1.0)


@given(rows_by_speech, st.randoms(use_true_random=False))
def test_interval_contains_its_estimate_in_any_order_and_is_mirrored(
    rows: list[tuple[float | None, str]], random: Random
) -> None:
    values, speeches = [value for value, _ in rows], [speech for _, speech in rows]
    rate = clustered_rate(values, speeches)
    assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
    assert rate.n + rate.missing == len(rows)
    other = clustered_rate([None if v is None else 1 - v for v in values], speeches)
    mirrored = (1 - rate.low, 1 - rate.estimate, 1 - rate.high)
    assert (other.high, other.estimate, other.low) == pytest.approx(mirrored)
    shuffled = random.sample(rows, len(rows))
    again = clustered_rate([value for value, _ in shuffled], [speech for _, speech in shuffled])
    assert (again.low, again.high) == pytest.approx((rate.low, rate.high))


@given(st.data())
def test_more_wins_never_lower_an_interval(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    sizes.append(data.draw(st.integers(1, 90)))  # one speech may have more rows than all others
    speeches = [f"s{speech}" for speech, size in enumerate(sizes) for _ in range(size)]
    values = data.draw(st.lists(points, min_size=len(speeches), max_size=len(speeches)))
    at = data.draw(st.integers(0, len(values) - 1))
    before = clustered_rate(values, speeches)
    after = clustered_rate([*values[:at], min(1.0, values[at] + 0.5), *values[at + 1 :]], speeches)
    assert (after.low, after.high) >= (before.low - 1e-12, before.high - 1e-12)
    assert after.high >= before.high - 1e-12


def test_more_wins_never_lower_an_interval_by_hand() -> None:
    speeches = [f"s{at}" for at in range(48)]
    ends = [clustered_rate([1.0] * won + [0.0] * (48 - won), speeches) for won in range(49)]
    assert all(one.low < other.low and one.high < other.high for one, other in pairwise(ends[:48]))
    assert ends[47].low < ends[48].low
    assert ends[48].high == 1.0
    # One speech has four answers: its first half point lowers V so much that the formula alone would lower the end.
    none, half = (clustered_rate([0.0, 0.0, first, 0.0, 0.0, 0.0], list("abcccc")) for first in (0.0, 0.5))
    assert half.high >= none.high
    # One of 77 beside seven small ones: its last wins raise V most, and it is not the first that would be won.
    sizes = (77, 1, 3, 2, 1, 2, 1, 2)
    fewer, more = (
        clustered_rate(
            [
                float(at < won)
                for size, won in zip(sizes, (first, 1, 3, 2, 0, 2, 1, 2), strict=True)
                for at in range(size)
            ],
            [f"s{speech}" for speech, size in enumerate(sizes) for _ in range(size)],
        )
        for first in (64, 66)
    )
    assert more.low >= fewer.low


@pytest.mark.parametrize("shape", [(48, 1), (200, 1), (19, 12)])
@pytest.mark.parametrize(("rate", "ties"), [(0.5, 0.0), (0.7, 0.4), (0.95, 0.0)])
def test_intervals_cover_the_truth(shape: tuple[int, int], rate: float, ties: float) -> None:
    """95 % intervals; with twelve answers to a speech it wins them all or none in half of the cases."""
    rng, (n_speeches, draws) = np.random.default_rng(5), shape
    speeches = [f"s{at // draws}" for at in range(n_speeches * draws)]
    covered = 0
    for _ in range(400):
        shared, own = rng.random((n_speeches, 1)), rng.random(shape)
        chance = np.where(rng.random((n_speeches, 1)) < (0.9 if draws > 1 else 0), shared, own)
        values = np.where(chance < rate - ties / 2, 1.0, np.where(chance < rate + ties / 2, 0.5, 0.0))
        found = clustered_rate(values.ravel().tolist(), speeches)
        covered += found.low <= rate <= found.high
    assert 0.915 <= covered / 400 <= 0.995


def test_statistic_sees_the_weight_of_its_speech_on_every_row() -> None:
    speeches = list("aabccde")

    def mean(rows: FloatArray, weights: FloatArray) -> FloatArray:
        assert (weights[:, 0] == weights[:, 1]).all()
        assert (weights[:, 3] == weights[:, 4]).all()
        assert (weights[:, [0, 2, 3, 5, 6]].sum(axis=1) == 5).all()
        return weighted_mean(rows, weights)

    found = bootstrap_statistic(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]), speeches, mean, FAST, missing=3)
    assert (found.estimate, found.n, found.missing) == (pytest.approx(4 / 7), 7, 3)


def test_bootstrap_covers_where_outcomes_are_few_and_keeps_its_width_where_they_agree() -> None:
    rng, held = np.random.default_rng(0), 0
    for at in range(200):  # 19 speeches of 12 rows, wrong in 5 %, and more or less so by speech
        rows = rng.random((19, 12)) < rng.beta(5, 95, (19, 1))
        speeches = [str(speech) for speech in range(19) for _ in range(12)]
        found = bootstrap_statistic(
            rows.ravel().astype(float), speeches, weighted_mean, BootstrapSettings(samples=200, seed=at)
        )
        held += found.low <= 0.05 <= found.high
    assert 184 <= held <= 199  # 95 % of 200, give or take three standard errors
    certain = bootstrap_statistic(np.ones(40), [str(at) for at in range(40)], weighted_mean, FAST)
    assert (certain.low, certain.high) == (pytest.approx(0.90, abs=0.02), 1)


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), float("inf")])
def test_value_outside_0_to_1_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1|finite"):
        clustered_rate([0.5, bad], ["a", "b"])


def test_nothing_left_is_an_error_and_not_a_rate() -> None:
    with pytest.raises(DataQualityError, match="all 2 values are missing"):
        clustered_rate([None, None], ["a", "b"])


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        clustered_rate([1.0], ["a", "b"])


@pytest.mark.parametrize(
    ("degrees", "confidence", "expected"),  # R's qt(c((1 + confidence) / 2), degrees)
    [
        *((1, 0.95, 12.7062047362), (2, 0.95, 4.3026527297), (3, 0.9, 2.3533634348), (10, 0.99, 3.1692726726)),
        *((29, 0.95, 2.0452296421), (47, 0.95, 2.0117405137), (1000, 0.95, 1.9623390808)),
    ],
)
def test_quantiles_of_students_t(degrees: int, confidence: float, expected: float) -> None:
    assert student_t(degrees, confidence) == pytest.approx(expected, abs=1e-9)
