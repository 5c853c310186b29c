"""What, where and how to mend, and the exit code of each kind of ending."""

import pytest

from psychocounsel.errors import (
    ConfigError,
    DataQualityError,
    EndpointError,
    IncompleteError,
    InputError,
    Preempted,
    PsychoCounselError,
    StoreError,
    counted,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (InputError, 2),
        (StoreError, 2),
        (EndpointError, 2),
        (IncompleteError, 3),
        (DataQualityError, 4),
        (Preempted, 75),
    ],
)
def test_each_kind_has_its_exit_code(kind: type[PsychoCounselError], code: int) -> None:
    assert kind("what").exit_code == code


def test_a_message_is_where_what_and_remedy_as_far_as_they_are_known() -> None:
    whole = InputError("'text' is empty", where="a.csv line 812", remedy="drop the row")
    assert str(whole) == "a.csv line 812: 'text' is empty; drop the row"
    assert str(InputError("'text' is empty")) == "'text' is empty"
    assert (whole.what, whole.where, whole.remedy) == ("'text' is empty", "a.csv line 812", "drop the row")


def test_counts_are_told_in_words_and_nothing_that_is_none() -> None:
    assert counted({"gap_too_small": 6, "vetoed": 0, "equal_texts": 1}) == "6 gap_too_small, 1 equal_texts"
    assert counted({}) == "none"
