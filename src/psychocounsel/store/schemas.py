"""The Parquet tables of artifacts: the only place that knows column names.

Schemas are explicit, so that equal rows give equal bytes and a column of nulls keeps its type.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import Artifact, ArtifactWriter
from psychocounsel.store.files import digest_of_file, partial_path, put_in_place, write_faults
from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    PreferencePair,
    Rating,
    ReplyStatus,
    ScoredCandidate,
    Speech,
    Turn,
    Winner,
)

SPEECHES_FILE = "speeches.parquet"
CANDIDATES_FILE = "candidates.parquet"
JUDGEMENTS_FILE = "judgements.parquet"
SAMPLES_FILE = "samples.parquet"
SCORES_FILE = "scores.parquet"
REFERENCE_FILE = "reference.parquet"
COMPARISONS_FILE = "comparisons.parquet"
VOTES_FILE = "votes.parquet"
ANNOTATION_KEY_FILE = "key.parquet"
ANNOTATIONS_FILE = "annotations.parquet"
RATINGS_FILE = "ratings.parquet"
CRISIS_ANSWERS_FILE = "answers.parquet"
ROWS_FILE = "rows.parquet"
BATCH_ROWS = 8192

TEXT, INT, FLOAT, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
RATING = "_rating"
REWARD = "_reward"
SPREAD = "_spread"
WINNER = "_winner"

HISTORY = pa.list_(pa.struct({"role": TEXT, "content": TEXT}))
SPEECH_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("speech_id", "text", "topic", "fine_topic"), TEXT),
        "crisis": FLAG,
        **dict.fromkeys(("source", "split", "cluster"), TEXT),
        "history": HISTORY,
    }
)
CANDIDATE_SCHEMA = pa.schema(
    {**dict.fromkeys(("candidate_id", "speech_id", "author", "text"), TEXT), "finished": FLAG, "draw": INT}
)
SCORE_COLUMNS = {"candidate_id": TEXT, "raw_reward": FLOAT, "reward": FLOAT, "tokens": INT}


class SplitSpeech(NamedTuple):
    """A speech, its split and the cluster of near-duplicates that decided the split."""

    speech: Speech
    split: str
    cluster: str


class RewardScore(NamedTuple):
    """A candidate's reward, raw and normalised, its length in tokens, and its normalised reward by principle."""

    candidate_id: str
    raw_reward: float
    reward: float
    tokens: int
    principles: Mapping[str, float] = {}


class ReferenceLogprobs(NamedTuple):
    """The log-probabilities that a reference gives to the answers of a pair, in nats, and their lengths in tokens."""

    pair_id: str
    chosen_logps: float
    rejected_logps: float
    chosen_tokens: int
    rejected_tokens: int


class OrderedComparison(NamedTuple):
    """A comparison, the order that the judge saw (in `forward` the policy comes first), and the draw of both sides."""

    comparison: Comparison
    order: str
    draw: int = 0


class AnnotationItem(NamedTuple):
    """What raters are shown as one item: the answers from left to right, and the place of the policy's in a comparison.

    Only this key says whose the answers are; `item` is all that raters see.
    """

    item: str
    speech_id: str
    draw: int
    answer_ids: tuple[str, ...]
    policy_at: int | None


class Annotation(NamedTuple):
    """A rater's label of one draw of a comparison.

    Attributes:
        comparison_id: the full id of the comparisons artifact.
        labeller: `human` or `model`.
        choice: `left`, `right` or `tie` as it was shown, or `skip`.
        points: 1, 0.5 or 0 for the policy; None where skipped.
        sampled: `random` if the labelled items are a random sample of the comparison, else `other`.
    """

    item: str
    comparison_id: str
    speech_id: str
    draw: int
    rater: str
    labeller: str
    choice: str
    points: float | None
    sampled: str


class HumanRating(NamedTuple):
    """A rater's score of one response on one principle, None where skipped; `item` is the id of the candidate."""

    item: str
    speech_id: str
    rater: str
    labeller: str
    principle: str
    score: Rating | None
    sampled: str
    speech: str
    response: str


class CrisisAnswer(NamedTuple):
    """An answer to an item of the crisis suite by a `side`: `policy`, `base`, or `planted` for the judge to find.

    A missing answer has neither text nor `candidate_id`. `read` says whether two people found harm in it (of a
    look-alike, an alarm); None where fewer have read it. `planted` is the harm of a planted one.
    """

    item: str
    kind: str
    speech: str
    side: str
    candidate_id: str
    text: str
    read: bool | None = None
    planted: str = ""


class RowProvenance(NamedTuple):
    """One row of a source and what happened to it.

    `text_id` is the id of the speech or candidate in it, kept or not, and empty if there is none. `raw_digest` is a
    digest of the text as the source has it. `dropped_by` and `reason` are empty for a row that was kept.
    """

    source: str
    where: str
    key: str
    raw_digest: str
    text_id: str
    changed_by: tuple[str, ...] = ()
    dropped_by: str = ""
    reason: str = ""
    detail: str = ""


_FILE_OF: dict[type[NamedTuple], str] = {
    ReferenceLogprobs: REFERENCE_FILE,
    AnnotationItem: ANNOTATION_KEY_FILE,
    Annotation: ANNOTATIONS_FILE,
    HumanRating: RATINGS_FILE,
    CrisisAnswer: CRISIS_ANSWERS_FILE,
    RowProvenance: ROWS_FILE,
}
_Record = TypeVar("_Record", bound=NamedTuple)


class TextColumn(NamedTuple):
    """Consecutive cells of one column. `first_row` is the row of the first cell, counted from 1."""

    first_row: int
    name: str
    texts: list[str]


_TYPES = {str: TEXT, int: INT, float: FLOAT, bool: FLAG, tuple[str, ...]: pa.list_(TEXT)}


def _columns_of(row: type[NamedTuple]) -> dict[str, pa.DataType]:
    """Return the columns of a table whose rows are such tuples."""
    hints = get_type_hints(row)
    return {name: _TYPES[hint if hint in _TYPES else get_args(hint)[0]] for name, hint in hints.items()}


def write_table(writer: ArtifactWriter, name: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write the columns of `schema` in batches, so that a table may be larger than memory; note its number of rows.

    Raises:
        IncompleteError: the disk is full; there is no partial table.
    """
    path = writer.file(name)
    partial = partial_path(path)
    written = 0
    source = iter(rows)
    with write_faults(path):
        with pq.ParquetWriter(partial, schema) as parquet:
            while batch := list(islice(source, BATCH_ROWS)):
                parquet.write_table(pa.Table.from_pylist(batch, schema=schema))
                written += len(batch)
        put_in_place(partial, path)
    writer.rows[name] = written


def write_records(writer: ArtifactWriter, record: type[_Record], rows: Iterable[_Record]) -> None:
    """Write the table of tuples of a type, which has one column for each field."""
    write_table(writer, _FILE_OF[record], (each._asdict() for each in rows), pa.schema(_columns_of(record)))


def read_records(artifact: Artifact, record: type[_Record]) -> list[_Record]:
    """Read the tuples that `write_records` wrote, in their order; errors are those of `read_table`."""
    return list(_records(record, read_table(artifact, _FILE_OF[record])))


def _records(record: type[_Record], rows: Iterable[dict[str, Any]]) -> Iterator[_Record]:
    make = cast("Callable[..., _Record]", record)
    for row in rows:
        yield make(**{name: tuple(cell) if isinstance(cell, list) else cell for name, cell in row.items()})


def read_table(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a table, after comparing its digest with the manifest: Parquet misses many flipped bytes.

    Raises:
        StoreError: the table is missing or damaged.
    """
    path = artifact.file(name)
    try:
        is_intact = digest_of_file(path) == artifact.manifest["files"][name]["sha256"]
    except (OSError, KeyError):
        is_intact = False
    if not is_intact:
        raise StoreError(
            "the table is missing or damaged",
            where=str(path),
            remedy="check it with `psychocounsel verify`; move the folder away to create it again",
        )

    return _rows_of(path)


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def text_columns(path: Path) -> Iterator[TextColumn]:
    """Yield the columns of a Parquet file that may hold text, in pieces. Lists become JSON, nulls empty texts."""
    with pq.ParquetFile(path) as table:
        fields = [each for each in table.schema_arrow if not (pa.types.is_primitive(each.type))]
        names = [each.name for each in fields if not pa.types.is_null(each.type)]
        first_row = 1
        for batch in table.iter_batches(BATCH_ROWS, columns=names):
            for name in names:
                yield TextColumn(first_row, name, [_as_text(cell) for cell in batch.column(name).to_pylist()])
            first_row += batch.num_rows


def _as_text(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell, ensure_ascii=False, default=str)


def write_speeches(writer: ArtifactWriter, speeches: Iterable[SplitSpeech]) -> None:
    """Write the speeches of a corpus with their splits."""
    rows = (
        {"speech_id": speech.id, **_speech_row(speech), "split": split, "cluster": cluster}
        for speech, split, cluster in speeches
    )
    write_table(writer, SPEECHES_FILE, rows, SPEECH_SCHEMA)


def read_speeches(artifact: Artifact) -> list[SplitSpeech]:
    """Read every speech of a corpus, in its order."""
    rows = read_table(artifact, SPEECHES_FILE)
    return [SplitSpeech(_speech(row, "text"), row["split"], row["cluster"]) for row in rows]


def speeches_by_id(artifact: Artifact) -> dict[str, Speech]:
    """Read the speeches of a corpus by their ids, in its order."""
    return {each.speech.id: each.speech for each in read_speeches(artifact)}


def speeches_in(artifact: Artifact, split: str) -> list[Speech]:
    """Read the speeches of a split, in the order of the corpus."""
    return [each.speech for each in read_speeches(artifact) if each.split == split]


def _speech(row: Mapping[str, Any], text_column: str) -> Speech:
    history = tuple(Turn(**turn) for turn in row.get("history") or ())
    return Speech(row[text_column], row["topic"], row["crisis"], row["source"], row["fine_topic"], history)


def _speech_row(speech: Speech) -> dict[str, Any]:
    """Return the columns of a speech; the history is null where there is none."""
    return {**vars(speech), "history": [turn._asdict() for turn in speech.history] or None}


def write_candidates(writer: ArtifactWriter, candidates: Iterable[Candidate]) -> None:
    """Write candidate responses."""
    rows = ({"candidate_id": each.id, **vars(each)} for each in candidates)
    write_table(writer, CANDIDATES_FILE, rows, CANDIDATE_SCHEMA)


def read_candidates(artifact: Artifact) -> list[Candidate]:
    """Read candidate responses, in their order."""
    return [
        Candidate(row["speech_id"], row["author"], row["text"], row["finished"], row["draw"])
        for row in read_table(artifact, CANDIDATES_FILE)
    ]


def write_judgements(writer: ArtifactWriter, judgements: Iterable[Judgement], principles: Sequence[str]) -> None:
    """Write judgements; a failed one has nulls instead of ratings.

    Ratings that are means of several samples have four more kinds of columns: the number of `samples`, the number of
    `valid_samples` in the means, `scored_by` (`mixed` if not all were read from replies in the same way), and
    `PRINCIPLE_spread`, their population standard deviation, null for a single one. The samples get a table of their
    own.
    """
    judgements = list(judgements)
    is_averaged = any(each.samples for each in judgements)
    given = (rating for each in judgements for rating in each.ratings.values())
    rating_type = FLOAT if is_averaged else _rating_type(given)
    columns = {
        **dict.fromkeys(("candidate_id", "judge", "status"), TEXT),
        **dict.fromkeys((name + RATING for name in principles), rating_type),
        **dict.fromkeys(("reason", "reasons"), TEXT),
    }
    if is_averaged:
        columns |= {"samples": INT, "valid_samples": INT, "scored_by": TEXT}
        columns |= dict.fromkeys((name + SPREAD for name in principles), FLOAT)
        _write_samples(writer, judgements, principles)
    rows = (
        {
            "candidate_id": each.candidate_id,
            "judge": each.judge,
            "status": each.status.value,
            **{name + RATING: each.ratings.get(name) for name in principles},
            "reason": each.reason,
            "reasons": each.reasons,
            **(_sample_statistics(each, principles) if is_averaged else {}),
        }
        for each in judgements
    )
    write_table(writer, JUDGEMENTS_FILE, rows, pa.schema(columns))


def _rating_type(ratings: Iterable[Rating | None]) -> pa.DataType:
    return FLOAT if any(isinstance(rating, float) for rating in ratings) else INT


def _sample_statistics(judgement: Judgement, principles: Sequence[str]) -> dict[str, Any]:
    valid = [sample for sample in judgement.samples if sample.status is ReplyStatus.VALID]
    scored_by = {sample.scored_by.value for sample in valid}
    return {
        "samples": len(judgement.samples),
        "valid_samples": len(valid),
        "scored_by": "mixed" if len(scored_by) > 1 else "".join(scored_by),
        **{name + SPREAD: _spread([sample.ratings[name] for sample in valid]) for name in principles},
    }


def _spread(ratings: Sequence[float]) -> float | None:
    if len(ratings) < 2:
        return None
    mean = math.fsum(ratings) / len(ratings)
    return math.sqrt(math.fsum((rating - mean) ** 2 for rating in ratings) / len(ratings))


def _write_samples(writer: ArtifactWriter, judgements: Sequence[Judgement], principles: Sequence[str]) -> None:
    columns = {
        **{"candidate_id": TEXT, "judge": TEXT, "sample_index": INT, "status": TEXT},
        **dict.fromkeys((name + RATING for name in principles), FLOAT),
        **{"scored_by": TEXT, "reason": TEXT},
    }
    rows = (
        {
            "candidate_id": judgement.candidate_id,
            **vars(sample),
            "status": sample.status.value,
            "scored_by": sample.scored_by.value,
            **{name + RATING: sample.ratings.get(name) for name in principles},
        }
        for judgement in judgements
        for sample in judgement.samples
    )
    write_table(writer, SAMPLES_FILE, rows, pa.schema(columns))


def read_judgements(artifact: Artifact) -> list[Judgement]:
    """Read judgements, in their order, without the samples behind them."""
    return [
        Judgement(
            row["candidate_id"],
            row["judge"],
            ReplyStatus(row["status"]),
            _ratings(row),
            row["reason"],
            reasons=row.get("reasons", ""),
        )
        for row in read_table(artifact, JUDGEMENTS_FILE)
    ]


def _ratings(row: Mapping[str, Any], prefix: str = "") -> dict[str, Rating]:
    return {
        column.removeprefix(prefix).removesuffix(RATING): value
        for column, value in row.items()
        if column.endswith(RATING) and column.startswith(prefix) and value is not None
    }


def write_scores(writer: ArtifactWriter, scores: Iterable[RewardScore]) -> None:
    """Write rewards of candidates; a model with heads by principle adds a column `PRINCIPLE_reward` for each."""
    scores = list(scores)
    principles = dict.fromkeys((name + REWARD for score in scores for name in score.principles), FLOAT)
    rows = (
        {**each._asdict(), **{name + REWARD: reward for name, reward in each.principles.items()}} for each in scores
    )
    write_table(writer, SCORES_FILE, rows, pa.schema({**SCORE_COLUMNS, **principles}))


def read_scores(artifact: Artifact) -> list[RewardScore]:
    """Read rewards of candidates, in their order."""
    return [
        RewardScore(
            **{name: row.pop(name) for name in SCORE_COLUMNS},
            principles={name.removesuffix(REWARD): reward for name, reward in row.items()},
        )
        for row in read_table(artifact, SCORES_FILE)
    ]


def write_comparisons(
    writer: ArtifactWriter, comparisons: Iterable[OrderedComparison], criteria: Sequence[str]
) -> None:
    """Write comparisons in both orders; a failed one has nulls instead of winners.

    The votes behind comparisons, if there are any, get a table of their own.
    """
    comparisons = list(comparisons)
    winners = dict.fromkeys((name + WINNER for name in criteria), TEXT)
    texts = ("speech_id", "order", "first_id", "second_id", "status", "reasons")
    rows = (
        {
            **vars(comparison),
            "order": order,
            "draw": draw,
            "status": comparison.status.value,
            **{name + WINNER: comparison.winners.get(name) for name in criteria},
        }
        for comparison, order, draw in comparisons
    )
    write_table(writer, COMPARISONS_FILE, rows, pa.schema({**dict.fromkeys(texts, TEXT), "draw": INT, **winners}))
    if not any(each.comparison.votes for each in comparisons):
        return
    votes = (
        {
            "speech_id": comparison.speech_id,
            "order": order,
            "draw": draw,
            "judge": vote.judge,
            "status": vote.status.value,
            **{name + WINNER: vote.winners.get(name) for name in criteria},
            "sample_index": vote.sample_index,
        }
        for comparison, order, draw in comparisons
        for vote in comparison.votes
    )
    texts = ("speech_id", "order", "judge", "status")
    schema = pa.schema({**dict.fromkeys(texts, TEXT), "draw": INT, **winners, "sample_index": INT})
    write_table(writer, VOTES_FILE, votes, schema)


def read_comparisons(artifact: Artifact) -> list[OrderedComparison]:
    """Read comparisons in both orders, without the votes behind them."""
    read: list[OrderedComparison] = []
    for row in read_table(artifact, COMPARISONS_FILE):
        winners = {
            column.removesuffix(WINNER): Winner(value)
            for column, value in row.items()
            if column.endswith(WINNER) and value is not None
        }
        status = ReplyStatus(row["status"])
        comparison = Comparison(
            row["speech_id"], row["first_id"], row["second_id"], status, winners, reasons=row.get("reasons", "")
        )
        read.append(OrderedComparison(comparison, row["order"], row["draw"]))
    return read


def write_human_ratings(writer: ArtifactWriter, ratings: Iterable[HumanRating]) -> None:
    """Write raters' scores by principle."""
    ratings = list(ratings)
    columns = {**_columns_of(HumanRating), "score": _rating_type(each.score for each in ratings)}
    write_table(writer, RATINGS_FILE, (each._asdict() for each in ratings), pa.schema(columns))


def pairs_file(split: str) -> str:
    """Return the file of one split, with the name that `datasets.load_dataset` expects."""
    return f"data/{split}-00000-of-00001.parquet"


def write_pairs(writer: ArtifactWriter, split: str, pairs: Sequence[PreferencePair], principles: Sequence[str]) -> None:
    """Write one split of a preference dataset.

    The first columns are those of the released dataset (arXiv 2502.19731), with whole ratings; ratings that are
    means of samples are floats. Our own columns follow.
    """
    sides = (side for pair in pairs for side in (pair.chosen, pair.rejected))
    ratings = (rating for side in sides for rating in side.ratings.values())
    rating_type = _rating_type(ratings)
    columns = {
        **{"ID": TEXT, "prefID": INT},
        **dict.fromkeys(("question", "chosen", "rejected", "chosen_model", "rejected_model"), TEXT),
        **dict.fromkeys(
            (f"{side}_{name}{RATING}" for side in ("chosen", "rejected") for name in principles), rating_type
        ),
        **dict.fromkeys(("pair_id", "speech_id", "topic", "fine_topic"), TEXT),
        **{"crisis": FLAG, "source": TEXT, "chosen_score": FLOAT, "rejected_score": FLOAT},
        **{"chosen_finished": FLAG, "rejected_finished": FLAG, "history": HISTORY},
    }
    rows = (
        {
            "ID": pair.speech.id,
            "prefID": number,
            "question": pair.speech.text,
            **_side_row("chosen", pair.chosen),
            **_side_row("rejected", pair.rejected),
            "pair_id": pair.id,
            "speech_id": pair.speech.id,
            **_speech_row(pair.speech),
        }
        for number, pair in enumerate(pairs)
    )
    write_table(writer, pairs_file(split), rows, pa.schema(columns))


def _side_row(side: str, scored: ScoredCandidate) -> dict[str, Any]:
    return {
        side: scored.candidate.text,
        f"{side}_model": scored.candidate.author,
        f"{side}_score": float(scored.score),
        f"{side}_finished": scored.candidate.finished,
        **{f"{side}_{name}{RATING}": rating for name, rating in scored.ratings.items()},
    }


def read_pairs(artifact: Artifact, split: str) -> list[PreferencePair]:
    """Read one split of a preference dataset; a split without a file has no pairs."""
    name = pairs_file(split)
    return [_pair(row) for row in read_table(artifact, name)] if name in artifact.manifest["files"] else []


def _pair(row: Mapping[str, Any]) -> PreferencePair:
    speech = _speech(row, "question")
    chosen, rejected = (
        ScoredCandidate(
            Candidate(speech.id, row[f"{side}_model"], row[side], row[f"{side}_finished"]),
            row[f"{side}_score"],
            _ratings(row, f"{side}_"),
        )
        for side in ("chosen", "rejected")
    )
    return PreferencePair(speech, chosen, rejected)


def read_row_provenance(artifact: Artifact) -> Iterator[RowProvenance]:
    """Yield what happened to each row, in the order of the sources: there may be more than fit into memory."""
    return _records(RowProvenance, read_table(artifact, ROWS_FILE))


def read_written_rows(writer: ArtifactWriter) -> Iterator[RowProvenance]:
    """Yield the rows of sources that were written last; they may be written again meanwhile."""
    return _records(RowProvenance, _rows_of(writer.file(ROWS_FILE)))
