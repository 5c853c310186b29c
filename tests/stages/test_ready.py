"""A file of ready responses -> Candidate: joined by the words of the speech."""

import pytest

from psychocounsel.corpus.sources import SourceRow
from psychocounsel.corpus.text import clean_text
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.stages.respond import ready_responses
from psychocounsel.types import Candidate, Speech

SPEECHES = [Speech("I lie awake at four."), Speech("Caf\u00e9s are too loud now.")]


def answered(*cells: dict[str, object]) -> list[Candidate]:
    rows = [SourceRow(f"a.csv line {number}", cell) for number, cell in enumerate(cells, start=2)]
    return ready_responses(rows, "elm", SPEECHES, clean_text)


def test_responses_come_in_the_order_of_the_speeches_and_are_cleaned_like_them() -> None:
    found = answered(
        {"speech": "Cafe\u0301s  are too loud now. ", "response": " Too loud? "},
        {"speech": "I lie awake at four.\r\n", "response": "Oh."},
        {"speech": "I lie awake at four.", "response": "A second one."},
        {"speech": "Somebody else's.", "response": "Oh."},
    )
    assert found == [Candidate(SPEECHES[0].id, "elm", "Oh."), Candidate(SPEECHES[1].id, "elm", "Too loud?")]


def test_a_speech_without_response_has_no_candidate() -> None:
    found = answered({"speech": SPEECHES[0].text, "response": "Oh."}, {"speech": SPEECHES[1].text, "response": None})
    assert [each.speech_id for each in found] == [SPEECHES[0].id]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            {"question": "x", "response": "y"},
            "a.csv line 2: there is no column 'speech'; .* there are: question, resp",
        ),
        ({"speech": "x", "answer": "y"}, "there is no column 'response'"),
        ({"speech": "x", "response": 3}, "'response' is int, not text"),
        ({"speech": "x", "response": "\ud800"}, "'response' holds a lone surrogate"),
        ({"speech": "x\x00", "response": "y"}, "'speech' holds a NUL character"),
    ],
)
def test_a_wrong_row_is_named(cell: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        answered(cell)


def test_a_file_that_answers_nobody_ends_with_data_quality() -> None:
    with pytest.raises(DataQualityError, match="no row answers one of the speeches"):
        answered({"speech": "Somebody else's.", "response": "Oh."})
