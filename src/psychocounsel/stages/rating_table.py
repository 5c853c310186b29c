"""Opens a table of ratings as a judge: finds the responses that its rows are about.

A row names the speech by its key or its text, and the response by its author or its text, as the sources have them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from psychocounsel.config.expressions import nested
from psychocounsel.config.sources import RatingTable
from psychocounsel.corpus.build import pseudonym
from psychocounsel.corpus.formats import BadRow, SourceRow
from psychocounsel.corpus.reading import SpeechIndex, raw_digest
from psychocounsel.corpus.sources import (
    cell,
    label_cell,
    name_cell,
    rating_of,
    read_source,
    source_fingerprint,
    source_name,
    text_cell,
)
from psychocounsel.errors import InputError, did_you_mean
from psychocounsel.judging.rubric import Rubric
from psychocounsel.judging.table import TableJudge, TableRatings
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.schemas import ROWS_FILE, read_candidates, read_row_provenance
from psychocounsel.types import Rating

Responses = Callable[[], tuple[Artifact, Sequence[Artifact]]]
"""Returns the speeches and the candidates that are rated, once they exist."""


def open_rating_table(table: RatingTable, rubric: Rubric, responses: Responses) -> TableJudge:
    """Return the ratings of a table as a judge; the table is read when it first rates.

    Raises:
        InputError: there is no such file.
    """
    content = source_fingerprint(table.path, table.split, table.config)
    fingerprint = {"backend": "table", "rubric": rubric.digest, "table": {**table.fingerprint(), "path": content}}
    return TableJudge(source_name(table.path), rubric, fingerprint, lambda: _read(table, rubric, *responses()))


class _Responses(NamedTuple):
    """The rated responses, by what names them in a table."""

    speeches: SpeechIndex
    by_author: Mapping[tuple[str, str], Sequence[str]]
    by_text: Mapping[tuple[str, str], str]

    def speech_of(self, row: SourceRow, table: RatingTable) -> str | None:
        value = cell(row, table.columns.speech)
        text = "" if isinstance(value, int | float) else text_cell(row, table.columns.speech)
        key = label_cell(row, table.columns.speech)
        return self.speeches.by_key.get(key) or self.speeches.by_raw.get(raw_digest(text))

    def find(self, row: SourceRow, table: RatingTable) -> str | None:
        """Return the id of the response that a row rates; None if there is none."""
        columns, speech = table.columns, self.speech_of(row, table)
        if speech is None:
            return None
        if columns.response is not None:
            return self.by_text.get((speech, raw_digest(text_cell(row, columns.response, "assistant"))))
        label = name_cell(row, columns.author or "")
        found = self.by_author.get((speech, label)) or self.by_author.get((speech, pseudonym(label)), ())
        if len(found) > 1:
            raise InputError(
                f"{label!r} has given {len(found)} responses to this speech",
                where=row.where,
                remedy="name the column with the text of the rated response as columns.response",
            )
        return found[0] if found else None


def _responses(speeches: Artifact, candidates: Sequence[Artifact]) -> _Responses:
    by_author: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_text: dict[tuple[str, str], str] = {}
    for artifact in candidates:
        speech_of = {each.id: each.speech_id for each in read_candidates(artifact)}
        for each in read_candidates(artifact):
            by_author[each.speech_id, each.author].append(each.id)
            by_text[each.speech_id, raw_digest(each.text)] = each.id
        if ROWS_FILE in artifact.manifest["files"]:
            for row in read_row_provenance(artifact):
                if row.text_id in speech_of:
                    by_text[speech_of[row.text_id], row.raw_digest] = row.text_id
    return _Responses(SpeechIndex(read_row_provenance(speeches)), by_author, by_text)


def _read(table: RatingTable, rubric: Rubric, speeches: Artifact, candidates: Sequence[Artifact]) -> TableRatings:
    """Return the ratings in a table of the responses to some speeches.

    Raises:
        InputError: a row cannot be read, a rating is off the scale or given twice, no row is about a response, or none
            rates one of the principles.
    """
    responses = _responses(speeches, candidates)
    drops = table.on_bad_row == "drop"
    found: dict[str, dict[str, dict[str, Rating]]] = defaultdict(lambda: defaultdict(dict))
    faults: dict[tuple[str, str], str] = {}
    raters: dict[str, None] = {}
    rows: Counter[str] = Counter()
    for row in read_source(table):
        rows["read"] += 1
        if isinstance(row, BadRow):
            rows["bad_row"] += 1
            continue
        candidate, rater = None, ""
        try:
            candidate = responses.find(row, table)
            if candidate is None:
                rows["no_such_response"] += 1
                continue
            rater = "" if table.columns.rater is None else name_cell(row, table.columns.rater)
            raters[rater] = None
            _add(found[candidate][rater], _ratings_of(row, table, rubric), row.where)
        except InputError as fault:
            if not drops:
                raise
            rows["bad_row"] += 1
            if candidate is not None:
                faults[candidate, rater] = fault.what
    if not found:
        raise InputError(
            f"none of its {rows['read']} rows is about a response of the corpus",
            where=table.path,
            remedy="check columns.speech (the key or the text of a speech) and columns.author (or response)",
        )
    rated = {name for given in found.values() for ratings in given.values() for name in ratings}
    unrated = [name for name in rubric.principle_ids if name not in rated]
    if unrated and not faults:  # else its rows may rate them and not be readable
        raise InputError(
            f"it rates {', '.join(sorted(rated)) or 'no principle of the rubric'}, and never {', '.join(unrated)}",
            where=table.path,
            remedy="name under judge.rubric a rubric of the principles that it rates",
        )
    by_candidate = {
        candidate: {
            rater: faults.get((candidate, rater)) or _complete(ratings, rubric) for rater, ratings in given.items()
        }
        for candidate, given in found.items()
    }
    return TableRatings(by_candidate, list(raters), dict(rows))


def _add(given: dict[str, Rating], more: Iterable[tuple[str, Rating]], where: str) -> None:
    for name, rating in more:
        if name in given:
            remedy = "name the column that tells raters apart as columns.rater, or keep one of the rows"
            raise InputError(f"{name} of this response is rated twice", where=where, remedy=remedy)
        given[name] = rating


def _complete(ratings: Mapping[str, Rating], rubric: Rubric) -> Mapping[str, Rating] | str:
    """Return the ratings in the order of the rubric, or which of them are missing."""
    missing = [name for name in rubric.principle_ids if name not in ratings]
    if missing:
        return f"no rating of {', '.join(missing)}"
    return {name: ratings[name] for name in rubric.principle_ids}


def _ratings_of(row: SourceRow, table: RatingTable, rubric: Rubric) -> Iterator[tuple[str, Rating]]:
    """Yield the ratings of a row by principle: one, or all that an object holds, or a text with one in JSON."""
    known = {word.casefold(): each.id for each in rubric.principles for word in (each.name, each.id)}
    columns = table.columns
    value = cell(row, columns.value)
    if columns.principle is not None:
        name = name_cell(row, columns.principle)
        if name.casefold() not in known:
            remedy = f"{did_you_mean(name, rubric.principle_ids)}, or leave its rows out with where"
            raise InputError(f"{name!r} is no principle of the rubric", where=row.where, remedy=remedy)
        given: object = {name: value}
    else:
        given = nested({} if value in (None, "") else value)
        if not isinstance(given, dict):
            remedy = "name the column of the principle as columns.principle"
            raise InputError("its value is no object of ratings", where=row.where, remedy=remedy)
    points = {word.casefold(): point for word, point in table.points.items()}
    for name, rating in cast("dict[str, Any]", given).items():
        if isinstance(rating, str | int | float):
            word = " ".join(str(rating).split()).casefold()
            # Where some ratings are missing, other programs write 4.0.
            rating = points.get(word, points.get(word.removesuffix(".0"), rating))
        if name.casefold() in known and rating not in (None, ""):
            yield known[name.casefold()], rating_of(rating, row.where, rubric.minimum, rubric.maximum)
