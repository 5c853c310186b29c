"""A file of ready responses -> Candidate: a reference model's answers that were collected before."""

from collections.abc import Callable, Iterable, Sequence

from psychocounsel.domain import Candidate, Speech
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.store.tables.sources import SourceRow

SPEECH_COLUMN = "speech"
RESPONSE_COLUMN = "response"

CleanText = Callable[[object, str, str], str]
"""Cell, its column and its place -> clean text, as the speeches of a corpus were cleaned."""


def ready_responses(
    rows: Iterable[SourceRow], author: str, speeches: Sequence[Speech], clean_text: CleanText
) -> list[Candidate]:
    """Return the response to each speech from rows with the columns `speech` and `response`.

    The first response to a speech counts; a speech without one has no candidate.

    Raises:
        InputError: a column is missing, or a cell holds what no table can.
        DataQualityError: no row answers one of the speeches.
    """
    texts: dict[str, str] = {}
    for row in rows:
        speech, response = (_cell(row, column, clean_text) for column in (SPEECH_COLUMN, RESPONSE_COLUMN))
        if response:
            texts.setdefault(speech, response)
    answered = [Candidate(each.id, author, texts[each.text]) for each in speeches if each.text in texts]
    if not answered:
        raise DataQualityError(
            "no row answers one of the speeches", where=author, remedy="repeat each speech word for word"
        )
    return answered


def _cell(row: SourceRow, column: str, clean_text: CleanText) -> str:
    if column not in row.values:
        known = ", ".join(row.values)
        raise InputError(
            f"there is no column {column!r}",
            where=row.where,
            remedy=f"name two columns {SPEECH_COLUMN} and {RESPONSE_COLUMN}; there are: {known}",
        )
    return clean_text(row.values[column], column, row.where)
