"""Every statistic by hand once, by a reference library where one is installed, and the rules that hold of all."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.evaluation.agreement import (
    absolute_icc,
    agreement,
    agreement_by_principle,
    coefficient,
    interval_alpha,
    jackknife,
    nominal_alpha,
    nominal_kappa,
    pearson,
    rank_correlation,
    spearman,
    weighted_kappa,
)
from psychocounsel.evaluation.judge_audit import mean_difference
from psychocounsel.store.shapes import Agreement
from psychocounsel.types import Coefficient

RATING = st.integers(1, 5)
PAIRS = st.lists(st.tuples(RATING, RATING), min_size=1, max_size=30)
NUMBERS = st.lists(st.integers(-50, 50), min_size=4, max_size=30)


def rated(**columns: Sequence[int]) -> list[dict[str, int]]:
    """Return one mapping per response from one list per principle."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class TestAgreement:
    def test_by_hand(self) -> None:
        # Squared distances 0, 1, 0, 9: mean 2.5. By chance 9.75 + 5.75 - 2 * 2.75 * 2.25 = 3.125.
        assert agreement([(1, 1), (2, 3), (3, 3), (5, 2)]) == Agreement(4, 0.5, 0.75, pytest.approx(0.2))
        assert agreement([(1, 5), (5, 1)]) == Agreement(2, 0.0, 0.0, -1.0)
        assert agreement([(4, 4), (4, 4)]) == Agreement(2, 1.0, 1.0, None)
        assert agreement([]) is None

    def test_means_one_point_apart_are_one_point_apart(self) -> None:
        apart = [(7 / 3, 4 / 3), (4 / 3, 7 / 3), (11 / 6, 5 / 6), (2, 3)]
        assert any(abs(one - other) > 1 for one, other in apart)
        found = agreement([*apart, (7 / 3, 1.333332)])
        assert found is not None
        assert (found.exact, found.within_one) == (0.0, 0.8)

    def test_by_principle(self) -> None:
        first, second = rated(a=[1, 2], b=[3, 3]), rated(a=[1, 2], b=[3, 5])
        found = agreement_by_principle(first, second, ("a", "b"))
        assert found == {"a": Agreement(2, 1.0, 1.0, 1.0), "b": Agreement(2, 0.5, 0.5, 0.0)}
        assert mean_difference(first, second, ("a", "b")) == 0.5
        assert mean_difference([], [], ("a",)) is None

    @given(PAIRS)
    def test_kappa_follows_its_definition_in_either_order(self, pairs: list[tuple[int, int]]) -> None:
        n = len(pairs)
        by_chance = sum((a - b) ** 2 for a, _ in pairs for _, b in pairs) / n**2
        found = agreement(pairs)
        assert found is not None
        assert found == agreement([(b, a) for a, b in pairs])
        if by_chance:
            assert found.kappa == pytest.approx(1 - sum((a - b) ** 2 for a, b in pairs) / n / by_chance)
        else:
            assert found.kappa is None


class TestCorrelation:
    def test_ties_share_their_mean_rank(self) -> None:
        # Ranks 1, 2.5, 2.5, 4 and 4, 1, 2.5, 2.5: covariance -2.25, both sums of squares 4.5.
        # Interval: atanh(-0.5) -/+ 1.959964 * sqrt(1.125).
        low, high = pytest.approx(-0.98963, abs=1e-5), pytest.approx(0.91035, abs=1e-5)
        assert spearman([10, 20, 20, 40], [3, 1, 2, 2]) == Coefficient(pytest.approx(-0.5), low, high, 4)

    def test_few_points_have_no_interval_and_constants_no_correlation(self) -> None:
        assert spearman([1, 2, 3], [1, 2, 3]) == Coefficient(pytest.approx(1.0), -1.0, 1.0, 3)
        assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) is None
        assert spearman([], []) is None
        assert pearson([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
        assert pearson([1, 2, 3], [7, 7, 7]) is None

    @given(NUMBERS)
    def test_only_the_order_counts_and_its_reverse_changes_the_sign(self, numbers: list[int]) -> None:
        places = range(len(numbers))
        forward, backward = spearman(numbers, places), spearman([-each for each in numbers], places)
        assert forward == spearman([math.atan(each) for each in numbers], places)
        if forward is None or backward is None:
            assert forward is backward
        else:
            assert forward.estimate == pytest.approx(-backward.estimate, abs=1e-12)
            assert -1 <= forward.low <= forward.estimate <= forward.high <= 1


def test_alpha_by_hand() -> None:
    # Observed: (2 + 0 + 2) / 6. Expected: 120 / 30 over the six values.
    assert interval_alpha([(1, 2), (3, 3), (5, 4), (2,)]) == pytest.approx(1 - (4 / 6) / 4)
    assert interval_alpha([(1, 1), (4, 4)]) == 1.0
    assert interval_alpha([(3, 3), (3, 3)]) is None
    assert interval_alpha([(3,), (4,)]) is None


class TestAgainstReferenceLibraries:
    """Random tables; 1e-9 is the rounding of two ways to add. The libraries are those of the extra `oracles`."""

    @pytest.fixture(params=range(6))
    def pairs(self, request: pytest.FixtureRequest) -> list[tuple[int, int]]:
        rng = np.random.default_rng(request.param)
        first = rng.integers(1, 6, size=5 + 40 * request.param)
        second = np.clip(first + rng.integers(-1, 3, size=len(first)), 1, 5)
        return [(int(one), int(other)) for one, other in zip(first, second, strict=True)]

    def test_kappas(self, pairs: list[tuple[int, int]]) -> None:
        kappa = pytest.importorskip("sklearn.metrics").cohen_kappa_score
        first, second = zip(*pairs, strict=True)
        expected = kappa(first, second, weights="quadratic", labels=[1, 2, 3, 4, 5])
        assert weighted_kappa(pairs) == pytest.approx(expected, abs=1e-9)
        assert nominal_kappa(pairs) == pytest.approx(kappa(first, second), abs=1e-9)

    @pytest.mark.parametrize("level", ["interval", "nominal"])
    def test_alphas_with_missing_ratings(self, pairs: list[tuple[int, int]], level: str) -> None:
        alpha = pytest.importorskip("krippendorff").alpha
        rng = np.random.default_rng(len(pairs))
        table = np.array([[*pair, pair[0]] for pair in pairs], dtype=float)
        table[rng.random(table.shape) < 0.2] = np.nan
        units = [[rating for rating in row if not math.isnan(rating)] for row in table]
        found = (interval_alpha if level == "interval" else nominal_alpha)(units)
        assert found == pytest.approx(alpha(table.T, level_of_measurement=level), abs=1e-9)

    @pytest.mark.filterwarnings("ignore")  # pingouin uses what pandas 3 deprecates
    def test_icc(self, pairs: list[tuple[int, int]]) -> None:
        pandas, pingouin = pytest.importorskip("pandas"), pytest.importorskip("pingouin")
        rows = [(*pair, max(pair)) for pair in pairs]
        long: list[dict[str, Any]] = [
            {"item": at, "rater": rater, "score": score}
            for at, row in enumerate(rows)
            for rater, score in enumerate(row)
        ]
        found = pingouin.intraclass_corr(pandas.DataFrame(long), "item", "rater", "score").set_index("Type")["ICC"]
        expected = found["ICC(A,1)"] if "ICC(A,1)" in found else found["ICC2"]
        assert absolute_icc(rows) == pytest.approx(expected, abs=1e-9)

    def test_spearman(self, pairs: list[tuple[int, int]]) -> None:
        expected = pytest.importorskip("scipy.stats").spearmanr(*zip(*pairs, strict=True)).statistic
        assert rank_correlation(*zip(*pairs, strict=True)) == pytest.approx(expected, abs=1e-9)


def test_kappa_and_alpha_of_labels_by_hand() -> None:
    pairs = [("left", "left"), ("tie", "left"), ("right", "right"), ("left", "tie")]
    # Equal in 2 of 4; by chance (2 * 2 + 1 * 1 + 1 * 1) / 16.
    assert nominal_kappa(pairs) == pytest.approx((0.5 - 6 / 16) / (1 - 6 / 16))
    # Unequal pairs: 4 of 8 ordered ones in the units, 64 - (16 + 4 + 4) of 56 in all.
    assert nominal_alpha(pairs) == pytest.approx(1 - (4 / 8) / (40 / 56))
    assert nominal_kappa([("a", "a"), ("a", "a")]) is None
    assert nominal_kappa([]) is None
    assert nominal_alpha([("a",), ("b",)]) is None


@given(st.lists(st.tuples(RATING, RATING, RATING), min_size=2, max_size=20))
def test_icc_follows_its_definition(rows: list[tuple[int, int, int]]) -> None:
    """Two-way analysis of variance, cell by cell."""
    n, k = len(rows), 3
    grand = sum(map(sum, rows)) / (n * k)
    of_row, of_rater = [sum(row) / k for row in rows], [sum(column) / n for column in zip(*rows, strict=True)]
    r = k * sum((mean - grand) ** 2 for mean in of_row) / (n - 1)
    c = n * sum((mean - grand) ** 2 for mean in of_rater) / (k - 1)
    cells = [(rows[i][j] - of_row[i] - of_rater[j] + grand) ** 2 for i in range(n) for j in range(k)]
    e = sum(cells) / ((n - 1) * (k - 1))
    found = absolute_icc(rows)
    if found is None:
        assert len({rating for row in rows for rating in row}) == 1
    else:
        assert found * (r + (k - 1) * e + k * (c - e) / n) == pytest.approx(r - e, abs=1e-9)


@given(st.lists(st.lists(RATING, max_size=4), max_size=12))
def test_alphas_follow_their_definition(units: list[list[int]]) -> None:
    """Differences over all ordered pairs, within units and over all of them."""
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    for alpha, distance in (
        (interval_alpha, lambda a, b: (a - b) ** 2),
        (nominal_alpha, lambda a, b: float(a != b)),
    ):
        within = sum(distance(a, b) / (len(unit) - 1) for unit in paired for a in unit for b in unit)
        over_all = sum(distance(a, b) for a in values for b in values)
        if over_all == 0:
            assert alpha(units) is None
        else:
            assert alpha(units) == pytest.approx(1 - (len(values) - 1) * within / over_all, abs=1e-9)


def test_icc_by_hand() -> None:
    # Means of rows 1.5, 2.5, 3.5, of raters 2, 3: R = 2 * 2 / 2, C = 3 * 0.5 / 1, E = 0.
    assert absolute_icc([(1, 2), (2, 3), (3, 4)]) == pytest.approx(2 / (2 + 2 * 1.5 / 3))
    assert absolute_icc([(1, 1), (4, 4), (2, 2)]) == pytest.approx(1.0)
    assert absolute_icc([(3, 3), (3, 3)]) is None
    assert absolute_icc([(1, 2)]) is None


def test_jackknife_by_hand_and_over_clusters() -> None:
    def mean(values: Sequence[float]) -> float | None:
        return sum(values) / len(values) if values else None

    # The jackknife of a mean has its standard error: sqrt(5/3) / 2 for these four, t 3.1824 with three degrees.
    assert jackknife(mean, [1, 2, 3, 4], range(4)) == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2)
    # Copies of rows in the same cluster add nothing.
    assert jackknife(mean, [1, 2, 3, 4] * 3, [*range(4)] * 3) == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2)
    assert jackknife(mean, [1.0, 2.0], range(2)) is None


def test_perfect_agreement_of_a_few_has_a_wide_interval() -> None:
    found = coefficient(weighted_kappa, [(1, 1), (2, 2), (3, 3), (5, 5)], range(4))
    low = pytest.approx(1 - 2 * 1.959964**2 / (4 + 1.959964**2))
    assert found == Coefficient(pytest.approx(1.0), low, 1.0, 4)
    assert coefficient(weighted_kappa, [(2, 2)], range(1)) is None


def test_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    correlation, covered = 0.6, 0
    for _ in range(200):
        first = rng.normal(size=60)
        second = correlation * first + math.sqrt(1 - correlation**2) * rng.normal(size=60)
        found = coefficient(
            lambda rows: pearson(*zip(*rows, strict=True)), [*zip(first, second, strict=True)], range(60)
        )
        assert found is not None
        covered += found.low <= correlation <= found.high
    assert 180 <= covered <= 198
