"""A judge's win rate and its correction: by hand, by the reference implementation, and by how often it is right."""

import numpy as np
import pytest

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.anchor import Units, anchor, corrected_mean, judge_weight, units_of
from psychocounsel.types import Coefficient

POINTS = [0.0, 0.5, 1.0]


def drawn(rng: np.random.Generator, n: int, rest: int, agree: float = 0.7) -> Units:
    """Return units of a judge that says what people say in a share of the cases, and anything in the others."""
    truth = rng.choice(POINTS, p=[0.25, 0.15, 0.6], size=n + rest)
    judge = np.where(rng.random(n + rest) < agree, truth, rng.choice(POINTS, size=n + rest))
    return Units([str(at) for at in range(n)], truth[:n], judge[:n], judge[n:], np.ones(n, dtype=bool))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_reference_implementation_at_a_fixed_weight(weight: float, seed: int) -> None:
    ppi = pytest.importorskip("ppi_py")
    units = drawn(np.random.default_rng(seed), 30 + 40 * seed, 500)
    given = (units.labels, units.judged, units.unlabelled)
    mean, error = corrected_mean(units, weight)
    assert mean == pytest.approx(np.squeeze(ppi.ppi_mean_pointestimate(*given, lam=weight)).item(), abs=1e-9)
    low, high = (float(np.squeeze(end)) for end in ppi.ppi_mean_ci(*given, alpha=0.05, lam=weight))
    assert (high - low) / 2 / 1.959963984540054 == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_published_formula(seed: int) -> None:
    units = drawn(np.random.default_rng(seed), 30 + 40 * seed, 500)
    h, f, rest = (each.tolist() for each in (units.labels, units.judged, units.unlabelled))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def variance(values: list[float]) -> float:
        return sum((each - mean(values)) ** 2 for each in values) / len(values)

    both = mean([(one - mean(h)) * (other - mean(f)) for one, other in zip(h, f, strict=True)])
    weight = min(1.0, max(0.0, both / ((1 + len(h) / len(rest)) * variance([*f, *rest]))))
    assert judge_weight(units) == pytest.approx(weight, abs=1e-12)
    left = [one - weight * other for one, other in zip(h, f, strict=True)]
    error = (weight**2 * variance(rest) / len(rest) + variance(left) / len(left)) ** 0.5
    assert corrected_mean(units, weight) == pytest.approx((weight * mean(rest) + mean(left), error), abs=1e-12)


def test_a_perfect_judge_makes_a_label_worth_many_and_a_coin_none() -> None:
    rng = np.random.default_rng(1)
    perfect, coin = anchor(drawn(rng, 100, 900, agree=1.0)), anchor(drawn(rng, 100, 900, agree=0.0))
    assert perfect.labels_worth is not None and coin.labels_worth is not None
    assert perfect.labels_worth > 8
    assert perfect.bias == Coefficient(0, 0, 0, 100)
    assert (perfect.rho, perfect.headline) == (pytest.approx(1.0), "anchored")
    assert coin.labels_worth < 1.1
    assert perfect.anchored.high - perfect.anchored.low < 0.4 * (perfect.human_only.high - perfect.human_only.low)


@pytest.mark.parametrize(
    ("labels", "judged", "why"),
    [
        ([1.0] * 60 + [0.0] * 39, [1.0] * 60 + [0.0] * 39, "few labels"),
        ([1.0] * 91 + [0.0] * 9, [1.0] * 91 + [0.0] * 9, "few losses"),
        ([1.0] * 60 + [0.0] * 40, [1.0] * 100, "a judge that always says the same"),
        ([1.0] * 60 + [0.0] * 40, [0.0] * 60 + [1.0] * 40, "a judge that is always wrong"),
    ],
)
def test_the_labels_alone_are_believed_where_a_judge_cannot_help(
    labels: list[float], judged: list[float], why: str
) -> None:
    names = [str(at) for at in range(len(labels))]
    found = anchor(
        Units(names, np.array(labels), np.array(judged), np.array(judged * 5), np.ones(len(labels), dtype=bool))
    )
    assert found.headline == "human_only", why
    assert found.rate == found.human_only
    assert found.human_only.low < np.mean(labels) < found.human_only.high


def test_every_speech_weighs_alike_and_only_draws_with_both_count() -> None:
    judged = {("a", 0): 1.0, ("a", 1): 0.0, ("b", 0): 0.5, ("b", 1): 0.0, ("c", 0): 1.0, ("c", 1): 0.5}
    units = units_of(judged, {("a", 0): [1.0, 0.5], ("b", 0): [0.0], ("b", 1): [1.0], ("d", 0): [1.0]})
    assert units.speeches == ["a", "b"]
    assert (units.labels.tolist(), units.judged.tolist()) == ([0.75, 0.5], [1.0, 0.25])
    assert units.unlabelled.tolist() == [0.75]


def test_a_judge_that_fails_where_the_policy_loses_hides_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = {(str(at), 0): float(rng.random() < 0.7) for at in range(1000)}
    judged = {draw: None if points == 0 and rng.random() < 0.6 else points for draw, points in truth.items()}
    known = [points for points in judged.values() if points is not None]
    assert sum(known) / len(known) > 0.83
    labels = {draw: [points] for draw, points in list(truth.items())[:150]}
    units = units_of(judged, labels)
    found = anchor(units)
    assert (found.labelled, found.unlabelled, found.headline) == (150, 850, "anchored")
    assert found.bias is not None and found.bias.n == units.has_verdict.sum() < 150
    assert found.bias.estimate == 0
    assert found.anchored.low < sum(truth.values()) / 1000 < found.anchored.high < 0.8


def test_fewer_than_thirty_labels_are_refused() -> None:
    with pytest.raises(DataQualityError):
        anchor(drawn(np.random.default_rng(0), 29, 100))


def test_labels_of_everything_need_no_judge() -> None:
    found = anchor(drawn(np.random.default_rng(0), 150, 0))
    assert (found.weight, found.unlabelled, found.headline) == (0.0, 0, "human_only")
    assert found.anchored.estimate == pytest.approx(found.human_only.estimate)


@pytest.mark.parametrize(("n", "rate", "agree"), [(100, 0.6, 0.6), (300, 0.9, 0.8), (60, 0.98, 0.3)])
def test_covers_the_truth_however_wrong_the_judge(n: int, rate: float, agree: float) -> None:
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(400):
        truth = (rng.random(n + 1000) < rate).astype(float)
        judge = np.where(rng.random(n + 1000) < agree, truth, 1.0)  # it favours the policy
        found = anchor(Units([str(at) for at in range(n)], truth[:n], judge[:n], judge[n:], np.ones(n, dtype=bool)))
        covered += found.rate.low <= rate <= found.rate.high
    assert covered / 400 >= 0.92
