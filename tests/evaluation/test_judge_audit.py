"""Every statistic by hand once, and the rules that hold of all."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.evaluation.judge_audit import (
    gain,
    gains,
    halo,
    halo_both_ways,
    histograms,
    sample_metrics,
    ties,
)
from psychocounsel.store.shapes import Agreement, Gain, Halo
from psychocounsel.types import Judgement, RatingSample, ReplyStatus

RATING = st.integers(1, 5)


def rated(**columns: Sequence[int]) -> list[dict[str, int]]:
    """Return one mapping per response from one list per principle."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class TestHalo:
    def test_is_the_mean_over_pairs_of_principles_that_vary(self) -> None:
        ratings = rated(a=[1, 2, 3], b=[1, 2, 3], c=[3, 2, 1], still=[4, 4, 4])
        assert halo(ratings, ("a", "b", "c", "still")) == pytest.approx((1 - 1 - 1) / 3)
        assert halo(ratings, ("a", "still")) is None
        assert halo([], ("a", "b")) is None

    def test_both_ways_are_compared_on_the_same_principles(self) -> None:
        together = rated(a=[1, 2, 3], b=[1, 2, 3], c=[4, 4, 4])
        alone = rated(a=[1, 2, 3], b=[3, 2, 1], c=[1, 2, 3])
        assert halo_both_ways(together, alone, ("a", "b", "c")) == Halo(3, 1, 1.0, -1.0, 2.0, 2.0, 2.0)

    def test_interval_by_hand(self) -> None:
        # Left out one by one: 0.5, 33/42, 3/sqrt(28/3) twice, each less -1. Mean 1.812419, squares 0.155821.
        together = rated(a=[1, 2, 3, 4], b=[1, 2, 4, 3])
        found = halo_both_ways(together, rated(a=[1, 2, 3, 4], b=[4, 3, 2, 1]), ("a", "b"))
        assert found is not None
        half = 3.1824 * math.sqrt(0.155821 * 3 / 4)
        assert found.difference == pytest.approx(1.8)
        assert (found.low, found.high) == (pytest.approx(1.8 - half, abs=1e-4), pytest.approx(1.8 + half, abs=1e-4))
        both = rated(a=[1, 2], b=[1, 2])
        assert halo_both_ways(both, both, ("a", "b")) == Halo(2, 1, 1.0, 1.0, 0.0, None, None)
        assert halo_both_ways([], [], ("a", "b")) is None

    @given(st.lists(st.tuples(RATING, RATING, RATING), min_size=51, max_size=60))
    def test_equal_ratings_do_not_differ(self, rows: list[tuple[int, int, int]]) -> None:
        ratings = [dict(zip("abc", row, strict=True)) for row in rows]
        found = halo_both_ways(ratings, ratings, tuple("abc"))
        if found is not None:
            assert found.together == found.alone == halo(ratings, tuple("abc"))
            assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)


class TestGain:
    def test_by_hand(self) -> None:
        first, second = rated(a=[3, 2, 5], b=[4, 2, 5]), rated(a=[4, 2, 4], b=[5, 3, 4])
        assert gains(first, second) == [1.0, 0.5, -1.0]
        # Variance (0.6944 + 0.1111 + 1.3611) / 2, t 4.3027 with two degrees of freedom.
        half = 4.3027 * math.sqrt(1.083333 / 3)
        low, high = pytest.approx(1 / 6 - half, abs=1e-4), pytest.approx(1 / 6 + half, abs=1e-4)
        assert gain(first, second) == Gain(3, pytest.approx(1 / 6), low, high, 1.0)
        assert gain(rated(a=[2]), rated(a=[5])) == Gain(1, 3.0, None, None, 3.0)
        assert gain([], []) is None

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    def test_a_whole_point_is_exactly_one(self, earlier: list[int]) -> None:
        # The difference of two floating means is 0.9999999999999996 for sums of 26 and 33 of seven.
        first = {str(at): rating for at, rating in enumerate(earlier)}
        assert gains([first], [{name: rating + 1 for name, rating in first.items()}]) == [1.0]


@given(st.lists(RATING, max_size=12))
def test_ties_are_counted_over_every_pair_once(totals: list[int]) -> None:
    assert len(ties(totals)) == len(totals) * (len(totals) - 1) // 2
    assert sum(ties(totals)) == sum(totals.count(each) * (totals.count(each) - 1) // 2 for each in set(totals))


def both(low: int, high: int) -> Judgement:
    samples = tuple(RatingSample(judge, 0, ReplyStatus.VALID, {"p": r}) for judge, r in (("a", low), ("b", high)))
    return Judgement("c", "a + b", ReplyStatus.VALID, {"p": (low + high) / 2}, samples=samples)


def test_disagreement_by_hand() -> None:
    found = sample_metrics([both(1, 2), both(3, 3), both(5, 4)], ("p",))["disagreement"]
    (pair,) = found.pop("pairs")
    assert found == {
        "responses": 3,
        "spread": {"p": pytest.approx((0.5 + 0 + 0.5) / 3)},
        "alpha": {"p": pytest.approx(5 / 6)},
        "mean_rating": {"a": {"p": 3.0}, "b": {"p": 3.0}},
    }
    # Squared distance 2/3 of an expected (35 + 29) / 3 - 2 * 3 * 3 = 10/3.
    kappa, third = pytest.approx(1 - (2 / 3) / (10 / 3)), pytest.approx(1 / 3)
    assert pair == {"judges": ["a", "b"], "by_principle": {"p": Agreement(3, third, 1.0, kappa)}}


def test_histograms_count_every_reply_to_the_nearest_point() -> None:
    plain, missing = Judgement("c", "j", ReplyStatus.VALID, {"p": 4}), Judgement("c", "j", ReplyStatus.CUT)
    assert histograms([plain, missing, both(1, 4)], ("p",), range(1, 5)) == {"p": {"1": 1, "2": 0, "3": 0, "4": 2}}
    assert histograms([Judgement("c", "j", ReplyStatus.VALID, {"p": 2.5})], ("p",), (2, 3)) == {"p": {"2": 0, "3": 1}}
    halves = [Judgement("c", "j", ReplyStatus.VALID, {"p": each}) for each in (1.5, 1.3, 1.75)]
    assert histograms(halves, ("p",), (1, 1.5, 2)) == {"p": {"1": 0, "1.5": 2, "2": 1}}
    assert sample_metrics([plain, missing], ("p",)) == {}
