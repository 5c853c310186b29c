"""Agreement of several raters, against figures that were counted by hand."""

from fractions import Fraction

import pytest

from psychocounsel.evaluation.annotations import inter_rater

LEFT, TIE, RIGHT = "left", "tie", "right"


def test_two_raters_with_labels_in_words() -> None:
    pairs = [(LEFT, LEFT)] * 4 + [(RIGHT, RIGHT)] * 3 + [(LEFT, RIGHT)] * 2 + [(TIE, LEFT)]
    found = inter_rater([{"ana": one, "bo": other} for one, other in pairs], [str(at) for at in range(10)])
    assert (found["items"], found["raw"].estimate) == (10, 0.7)
    # Ana: 6 left, 3 right, 1 tie; Bo: 5 left, 5 right.
    expected = Fraction(6 * 5 + 3 * 5, 100)
    assert found["kappa"].estimate == pytest.approx(float((Fraction(7, 10) - expected) / (1 - expected)), abs=1e-12)
    # 20 labels: 11 left, 8 right, 1 tie; 3 of 10 pairs differ.
    by_chance = Fraction(400 - 121 - 64 - 1, 20 * 19)
    assert found["alpha"].estimate == pytest.approx(float(1 - Fraction(3, 10) / by_chance), abs=1e-12)
    assert found["kappa"].low < found["kappa"].estimate < found["kappa"].high <= 1


def test_kappa_of_three_raters_is_the_mean_over_pairs() -> None:
    labels = {"ana": [1, 2, 3, 4, 5, 3], "bo": [1, 2, 3, 4, 5, 2], "cy": [2, 2, 3, 5, 5, 3]}
    rows = [{name: of[at] for name, of in labels.items()} for at in range(6)]
    names = [str(at) for at in range(6)]
    whole = inter_rater(rows, names)
    of_pairs = [
        inter_rater([{one: row[one], other: row[other]} for row in rows], names)["kappa"].estimate
        for one, other in (("ana", "bo"), ("ana", "cy"), ("bo", "cy"))
    ]
    assert whole["kappa"].estimate == pytest.approx(sum(of_pairs) / 3, abs=1e-12)
    assert whole["raw"].estimate == pytest.approx((5 + 4 + 3) / 18)


def test_raters_of_different_items_and_labels_that_never_differ() -> None:
    apart = [{"ana": LEFT, "bo": LEFT}, {"bo": RIGHT, "cy": RIGHT}, {"ana": TIE, "cy": LEFT}]
    found = inter_rater(apart, ["a", "b", "c"])
    assert found["raw"].estimate == pytest.approx(2 / 3)
    assert found["kappa"].estimate == pytest.approx(0)  # only of ana and cy, whose labels differ
    same = inter_rater([{"ana": TIE, "bo": TIE}] * 3, ["a", "b", "c"])
    assert (same["raw"].estimate, same["kappa"], same["alpha"]) == (1, None, None)
    none = inter_rater([], [])
    assert (none["items"], none["raw"], none["kappa"]) == (0, None, None)
