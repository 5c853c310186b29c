import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.training.trainer import StepsByLength

LENGTHS = [30, 10, 50, 20, 40, 60, 15, 25]


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 16), st.integers(0, 9))
def test_every_row_comes_once(lengths: list[int], rows_per_step: int, seed: int) -> None:
    order = list(StepsByLength(lengths, rows_per_step, seed))
    assert sorted(order) == list(range(len(lengths)))


def test_rows_of_a_step_come_longest_first() -> None:
    order = list(StepsByLength(LENGTHS, 4, seed=1))
    for start in (0, 4):
        step = [LENGTHS[row] for row in order[start : start + 4]]
        assert step == sorted(step, reverse=True)


def test_lengths_do_not_decide_which_rows_make_a_step() -> None:
    by_length = list(StepsByLength(LENGTHS, 4, seed=1))
    all_alike = list(StepsByLength([1] * 8, 4, seed=1))
    assert set(by_length[:4]) == set(all_alike[:4])


@pytest.mark.parametrize("change", ["seed", "epoch"])
def test_seed_and_epoch_draw_other_steps(change: str) -> None:
    rows = list(range(100))
    plain, other = StepsByLength(rows, 10, seed=1), StepsByLength(rows, 10, seed=2 if change == "seed" else 1)
    if change == "epoch":
        other.set_epoch(1)
    assert list(plain) == list(plain)
    assert list(plain) != list(other)
