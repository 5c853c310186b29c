"""A file of ready responses -> Candidate: a reference model's answers that were collected before."""

from collections.abc import Iterable, Sequence

from psychocounsel.domain import Candidate, Speech
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.store.tables.sources import SourceRow

SPEECH_COLUMN = "speech"
RESPONSE_COLUMN = "response"


def ready_responses(rows: Iterable[SourceRow], author: str, speeches: Sequence[Speech]) -> list[Candidate]:
    """Return the response to each speech from rows with the columns `speech` and `response`.

    Raises:
        InputError: a column is missing.
        DataQualityError: no row answers one of the speeches.
    """
    texts: dict[str, str] = {}
    for row in rows:
        for column in (SPEECH_COLUMN, RESPONSE_COLUMN):
            if not isinstance(row.values.get(column), str):
                raise InputError(
                    f"there is no text in {column!r}", where=row.where, remedy="give columns speech and response"
                )
        texts.setdefault(row.values[SPEECH_COLUMN].strip(), row.values[RESPONSE_COLUMN].strip())
    answered = [Candidate(each.id, author, texts[each.text]) for each in speeches if texts.get(each.text)]
    if not answered:
        raise DataQualityError(
            "no row answers one of the speeches", where=author, remedy="repeat each speech word for word"
        )
    return answered
