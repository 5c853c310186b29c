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

CODES: dict[type[PsychoCounselError], int] = {
    **dict.fromkeys((ConfigError, InputError, StoreError, EndpointError), 2),
    IncompleteError: 3,
    DataQualityError: 4,
    Preempted: 75,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_each_kind_has_its_exit_code(kind: type[PsychoCounselError], code: int) -> None:
    assert kind("what").exit_code == code


def test_a_message_is_where_what_and_remedy_as_far_as_they_are_known() -> None:
    whole = InputError("'text' is empty", where="a.csv line 812", remedy="drop the row")
    assert str(whole) == "a.csv line 812: 'text' is empty; drop the row"
    assert str(InputError("'text' is empty")) == "'text' is empty"
    assert (whole.what, whole.where, whole.remedy) == ("'text' is empty", "a.csv line 812", "drop the row")


def test_counts_are_in_words_without_zeros() -> None:
    assert counted({"gap_too_small": 6, "vetoed": 0, "equal_texts": 1}) == "6 gap_too_small, 1 equal_texts"
    assert counted({}) == "none"
