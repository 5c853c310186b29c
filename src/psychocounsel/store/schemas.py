# pyright: standard, for its libraries come without types
"""Nouns <-> Parquet: every table of an artifact, and the only home of column names.

Schemas are explicit, so that equal rows give equal bytes and a column of nulls keeps its type.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from psychocounsel.errors import InputError
from psychocounsel.store.artifacts import Artifact, ArtifactWriter
from psychocounsel.store.tables import read_table, write_table
from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    PreferencePair,
    Rating,
    RatingSample,
    ReplyStatus,
    ScoredCandidate,
    Scoring,
    Speech,
    Winner,
)

SAMPLES_FILE = "samples.parquet"
VOTES_FILE = "votes.parquet"
RATING = "_rating"
WINNER = "_winner"

_SPREAD = "_spread"


class OrderedComparison(NamedTuple):
    """A verdict and which order the judge saw: `forward` puts the policy first."""

    verdict: Comparison
    order: str


class StoredSample(NamedTuple):
    """A sample and the response that it is about."""

    candidate_id: str
    sample: RatingSample


def write_averaged(
    writer: ArtifactWriter, name: str, judgements: Iterable[Judgement], principles: Sequence[str]
) -> None:
    """Write judgements that are means of samples.

    `samples` were asked for, `valid_samples` stand behind the means; `PRINCIPLE_spread` is the standard deviation
    of these (over their number, not one less), null where there is only one. `scored_by` says how ratings
    were had from replies; `mixed` where not all of a judgement's were had in the same way.
    """
    texts = [(column, pa.string()) for column in ("candidate_id", "judge", "status")]
    ratings = [(principle + RATING, pa.float64()) for principle in principles]
    counts = [("reason", pa.string()), ("samples", pa.int64()), ("valid_samples", pa.int64())]
    spreads = [(principle + _SPREAD, pa.float64()) for principle in principles]
    schema = pa.schema([*texts, *ratings, *counts, ("scored_by", pa.string()), *spreads])
    write_table(writer, name, (_averaged_row(each, principles) for each in judgements), schema)


def _averaged_row(judgement: Judgement, principles: Sequence[str]) -> dict[str, Any]:
    valid = [sample for sample in judgement.samples if sample.status is ReplyStatus.VALID]
    ways = {sample.scored_by.value for sample in valid}
    spreads = {name + _SPREAD: _spread([sample.ratings[name] for sample in valid]) for name in principles}
    return {
        "candidate_id": judgement.candidate_id,
        "judge": judgement.judge,
        "status": judgement.status.value,
        **{name + RATING: judgement.ratings.get(name) for name in principles},
        "reason": judgement.reason,
        "samples": len(judgement.samples),
        "valid_samples": len(valid),
        "scored_by": "mixed" if len(ways) > 1 else "".join(ways),
        **spreads,
    }


def _spread(ratings: Sequence[float]) -> float | None:
    if len(ratings) < 2:
        return None
    mean = math.fsum(ratings) / len(ratings)
    return math.sqrt(math.fsum((rating - mean) ** 2 for rating in ratings) / len(ratings))


def write_samples(writer: ArtifactWriter, judgements: Iterable[Judgement], principles: Sequence[str]) -> None:
    """Write every sample of every judgement; a failed one has nulls where its ratings would stand."""
    schema = pa.schema(
        [
            ("candidate_id", pa.string()),
            ("judge", pa.string()),
            ("sample_index", pa.int64()),
            ("status", pa.string()),
            *((principle + RATING, pa.float64()) for principle in principles),
            ("scored_by", pa.string()),
            ("reason", pa.string()),
        ]
    )
    rows = (
        {
            "candidate_id": judgement.candidate_id,
            "judge": sample.judge,
            "sample_index": sample.sample_index,
            "status": sample.status.value,
            **{principle + RATING: sample.ratings.get(principle) for principle in principles},
            "scored_by": sample.scored_by.value,
            "reason": sample.reason,
        }
        for judgement in judgements
        for sample in judgement.samples
    )
    write_table(writer, SAMPLES_FILE, rows, schema)


def read_samples(artifact: Artifact) -> list[StoredSample]:
    """Read the samples behind an artifact's judgements, in order; none where each is one reply's own."""
    if SAMPLES_FILE not in artifact.manifest["files"]:
        return []
    return [StoredSample(row["candidate_id"], _sample(row)) for row in read_table(artifact, SAMPLES_FILE)]


def _sample(row: Mapping[str, Any]) -> RatingSample:
    ratings = {
        column.removesuffix(RATING): value
        for column, value in row.items()
        if column.endswith(RATING) and value is not None
    }
    status, scored_by = ReplyStatus(row["status"]), Scoring(row["scored_by"])
    return RatingSample(row["judge"], row["sample_index"], status, ratings, row["reason"], scored_by)


def write_votes(writer: ArtifactWriter, verdicts: Iterable[OrderedComparison], criteria: Sequence[str]) -> None:
    """Write every vote of every verdict; a failed one has nulls where its winners would stand."""
    texts = ("speech_id", "order", "judge", "status", *(name + WINNER for name in criteria))
    schema = pa.schema([*((name, pa.string()) for name in texts), ("sample_index", pa.int64())])
    rows = (
        {
            "speech_id": verdict.speech_id,
            "order": order,
            "judge": vote.judge,
            "status": vote.status.value,
            **{name + WINNER: _told(vote.winners.get(name)) for name in criteria},
            "sample_index": vote.sample_index,
        }
        for verdict, order in verdicts
        for vote in verdict.votes
    )
    write_table(writer, VOTES_FILE, rows, schema)


def _told(winner: Winner | None) -> str | None:
    return None if winner is None else winner.value


SPEECHES_FILE = "speeches.parquet"
CANDIDATES_FILE = "candidates.parquet"
JUDGEMENTS_FILE = "judgements.parquet"
SCORES_FILE = "scores.parquet"
COMPARISONS_FILE = "comparisons.parquet"

_SPEECH_SCHEMA = pa.schema(
    [
        ("speech_id", pa.string()),
        ("text", pa.string()),
        ("topic", pa.string()),
        ("fine_topic", pa.string()),
        ("crisis", pa.bool_()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("cluster", pa.string()),
    ]
)
_CANDIDATE_SCHEMA = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("speech_id", pa.string()),
        ("author", pa.string()),
        ("text", pa.string()),
        ("finished", pa.bool_()),
    ]
)
_SCORE_SCHEMA = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("raw_reward", pa.float64()),
        ("reward", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


class SplitSpeech(NamedTuple):
    """A speech, the split it belongs to and the cluster of near-duplicates that decided it."""

    speech: Speech
    split: str
    cluster: str


class RewardScore(NamedTuple):
    """A candidate's reward, raw and normalised, and its length in tokens."""

    candidate_id: str
    raw_reward: float
    reward: float
    tokens: int


def write_speeches(writer: ArtifactWriter, speeches: Iterable[SplitSpeech]) -> None:
    """Write the speeches of a corpus with their splits."""
    rows = (
        {
            "speech_id": each.speech.id,
            "text": each.speech.text,
            "topic": each.speech.topic,
            "fine_topic": each.speech.fine_topic,
            "crisis": each.speech.crisis,
            "source": each.speech.source,
            "split": each.split,
            "cluster": each.cluster,
        }
        for each in speeches
    )
    write_table(writer, SPEECHES_FILE, rows, _SPEECH_SCHEMA)


def read_speeches(artifact: Artifact) -> list[SplitSpeech]:
    """Read every speech of a corpus, in its order."""
    return [
        SplitSpeech(
            Speech(row["text"], row["topic"], row["crisis"], row["source"], row["fine_topic"]),
            row["split"],
            row["cluster"],
        )
        for row in read_table(artifact, SPEECHES_FILE)
    ]


def _speech(row: Mapping[str, Any], text_column: str) -> Speech:
    return Speech(row[text_column], row["topic"], row["crisis"], row["source"], row["fine_topic"])


def write_candidates(writer: ArtifactWriter, candidates: Iterable[Candidate]) -> None:
    """Write candidate responses."""
    rows = (
        {
            "candidate_id": each.id,
            "speech_id": each.speech_id,
            "author": each.author,
            "text": each.text,
            "finished": each.finished,
        }
        for each in candidates
    )
    write_table(writer, CANDIDATES_FILE, rows, _CANDIDATE_SCHEMA)


def read_candidates(artifact: Artifact) -> list[Candidate]:
    """Read candidate responses, in their order."""
    return [
        Candidate(row["speech_id"], row["author"], row["text"], row["finished"])
        for row in read_table(artifact, CANDIDATES_FILE)
    ]


def write_judgements(writer: ArtifactWriter, judgements: Iterable[Judgement], principles: Sequence[str]) -> None:
    """Write judgements; a failed one has nulls where its ratings would stand.

    Where they are means of samples, these get a table of their own, and their numbers stand beside the means.
    """
    kept = list(judgements)
    if any(each.samples for each in kept):
        write_averaged(writer, JUDGEMENTS_FILE, kept, principles)
        write_samples(writer, kept, principles)
        return
    columns = [("candidate_id", pa.string()), ("judge", pa.string()), ("status", pa.string())]
    ratings = [(principle + RATING, pa.int64()) for principle in principles]
    schema = pa.schema([*columns, *ratings, ("reason", pa.string())])
    rows = (
        {
            "candidate_id": each.candidate_id,
            "judge": each.judge,
            "status": each.status.value,
            "reason": each.reason,
            **{principle + RATING: each.ratings.get(principle) for principle in principles},
        }
        for each in kept
    )
    write_table(writer, JUDGEMENTS_FILE, rows, schema)


def read_judgements(artifact: Artifact) -> list[Judgement]:
    """Read judgements, in their order."""
    return [
        Judgement(row["candidate_id"], row["judge"], ReplyStatus(row["status"]), _ratings(row, ""), row["reason"])
        for row in read_table(artifact, JUDGEMENTS_FILE)
    ]


def write_scores(writer: ArtifactWriter, scores: Iterable[RewardScore]) -> None:
    """Write rewards of candidates."""
    write_table(writer, SCORES_FILE, [each._asdict() for each in scores], _SCORE_SCHEMA)


def read_scores(artifact: Artifact) -> list[RewardScore]:
    """Read rewards of candidates, in their order."""
    return [RewardScore(**row) for row in read_table(artifact, SCORES_FILE)]


def write_comparisons(writer: ArtifactWriter, verdicts: Iterable[OrderedComparison], criteria: Sequence[str]) -> None:
    """Write verdicts of both orders; a failed one has nulls where its winners would stand.

    Where they are counted from votes, these get a table of their own.
    """
    verdicts = list(verdicts)
    if any(each.verdict.votes for each in verdicts):
        write_votes(writer, verdicts, criteria)
    names = [
        "speech_id",
        "order",
        "first_id",
        "second_id",
        "status",
        *(f"{name}_winner" for name in criteria),
    ]
    rows = (
        {
            "speech_id": verdict.speech_id,
            "order": order,
            "first_id": verdict.first_id,
            "second_id": verdict.second_id,
            "status": verdict.status.value,
            **{f"{name}_winner": _winner(verdict, name) for name in criteria},
        }
        for verdict, order in verdicts
    )
    write_table(writer, COMPARISONS_FILE, rows, pa.schema([(name, pa.string()) for name in names]))


def read_comparisons(artifact: Artifact) -> list[OrderedComparison]:
    """Read verdicts of both orders."""
    return [OrderedComparison(_verdict(row), row["order"]) for row in read_table(artifact, COMPARISONS_FILE)]


def _winner(verdict: Comparison, criterion: str) -> str | None:
    winner = verdict.winners.get(criterion)
    return None if winner is None else winner.value


def _verdict(row: Mapping[str, Any]) -> Comparison:
    winners = {
        column.removesuffix("_winner"): Winner(value)
        for column, value in row.items()
        if column.endswith("_winner") and value is not None
    }
    return Comparison(row["speech_id"], row["first_id"], row["second_id"], ReplyStatus(row["status"]), winners)


def pairs_schema(principles: Sequence[str], rating_type: pa.DataType | None = None) -> pa.Schema:
    """Return the released columns of a preference dataset followed by ours.

    The first columns are those of the released data set (arXiv 2502.19731), in which ratings are whole
    numbers; means of samples need another type.
    """
    released = [("ID", pa.string()), ("prefID", pa.int64())]
    texts = ["question", "chosen", "rejected", "chosen_model", "rejected_model"]
    ratings = [f"{side}_{principle}{RATING}" for side in ("chosen", "rejected") for principle in principles]
    ours = [
        ("pair_id", pa.string()),
        ("speech_id", pa.string()),
        ("topic", pa.string()),
        ("fine_topic", pa.string()),
        ("crisis", pa.bool_()),
        ("source", pa.string()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("chosen_finished", pa.bool_()),
        ("rejected_finished", pa.bool_()),
    ]
    return pa.schema(
        [
            *released,
            *((name, pa.string()) for name in texts),
            *((name, rating_type or pa.int64()) for name in ratings),
            *ours,
        ]
    )


def pairs_file(split: str) -> str:
    """Return the file of one split, named as the Hub's data set loader expects."""
    return f"data/{split}-00000-of-00001.parquet"


def write_pairs(writer: ArtifactWriter, split: str, pairs: Sequence[PreferencePair], principles: Sequence[str]) -> None:
    """Write one split of a preference dataset."""
    rows = (_pair_row(number, pair) for number, pair in enumerate(pairs))
    write_table(writer, pairs_file(split), rows, pairs_schema(principles, _rating_type(pairs)))


def _rating_type(pairs: Iterable[PreferencePair]) -> pa.DataType:
    ratings = (rating for pair in pairs for rating in pair.chosen.ratings.values())
    return pa.float64() if any(isinstance(rating, float) for rating in ratings) else pa.int64()


def _pair_row(number: int, pair: PreferencePair) -> dict[str, Any]:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    ratings = {
        f"{side}_{principle}{RATING}": rating
        for side, scored in sides.items()
        for principle, rating in scored.ratings.items()
    }
    return {
        "ID": pair.speech.id,
        "prefID": number,
        "question": pair.speech.text,
        "chosen": pair.chosen.candidate.text,
        "rejected": pair.rejected.candidate.text,
        "chosen_model": pair.chosen.candidate.author,
        "rejected_model": pair.rejected.candidate.author,
        **ratings,
        "pair_id": pair.id,
        "speech_id": pair.speech.id,
        "topic": pair.speech.topic,
        "fine_topic": pair.speech.fine_topic,
        "crisis": pair.speech.crisis,
        "source": pair.speech.source,
        "chosen_score": float(pair.chosen.score),
        "rejected_score": float(pair.rejected.score),
        "chosen_finished": pair.chosen.candidate.finished,
        "rejected_finished": pair.rejected.candidate.finished,
    }


def read_pairs(artifact: Artifact, split: str) -> list[PreferencePair]:
    """Read one split of a preference dataset; a split without a file has no pairs."""
    name = pairs_file(split)
    return [_pair(row) for row in read_table(artifact, name)] if name in artifact.manifest["files"] else []


def _pair(row: Mapping[str, Any]) -> PreferencePair:
    speech = _speech(row, "question")
    return PreferencePair(speech, _side(row, speech, "chosen"), _side(row, speech, "rejected"))


def _side(row: Mapping[str, Any], speech: Speech, side: str) -> ScoredCandidate:
    candidate = Candidate(speech.id, row[f"{side}_model"], row[side], row.get(f"{side}_finished", True))
    return ScoredCandidate(candidate, row[f"{side}_score"], _ratings(row, f"{side}_"))


def _ratings(row: Mapping[str, Any], prefix: str) -> dict[str, Rating]:
    return {
        column.removeprefix(prefix).removesuffix(RATING): value
        for column, value in row.items()
        if column.endswith(RATING) and column.startswith(prefix) and value is not None
    }


ROWS_FILE = "rows.parquet"
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "where", "key", "raw_digest", "text_id")),
        ("changed_by", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("dropped_by", "reason", "detail")),
    ]
)


class RowProvenance(NamedTuple):
    """One row of a source and what became of it.

    `text_id` is the id of the speech or candidate that it holds, kept or not; empty where it holds no text.
    `raw_digest` is a digest of the text as it stood in the source; `dropped_by` and `reason` are empty for a
    row that was kept.
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


def write_row_provenance(writer: ArtifactWriter, fates: Iterable[RowProvenance]) -> None:
    """Write what became of each row, in the order of the sources."""
    write_table(writer, ROWS_FILE, (each._asdict() for each in fates), _SCHEMA)


def read_row_provenance(artifact: Artifact) -> Iterator[RowProvenance]:
    """Yield what became of each row, in the order of the sources."""
    for row in read_table(artifact, ROWS_FILE):
        yield RowProvenance(**{**row, "changed_by": tuple(row["changed_by"])})


def hub_rows(name: str, split: str, config: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split of `owner/name@revision` through `datasets.load_dataset`.

    Args:
        name: the data set, with a revision or without.
        split: the split to read.
        config: the configuration to read; None for a data set that has one only.

    Raises:
        InputError: the data set, its revision or the network is not there, or was lost on the way.
    """
    from datasets import load_dataset  # heavy, both: loaded when a Hub source is read, not before
    from httpx import HTTPError

    repository, _, revision = name.partition("@")
    try:
        rows = load_dataset(repository, config, split=split, revision=revision or None, streaming=True)
        for row in rows:
            yield dict(row)
    except (OSError, ValueError, HTTPError) as fault:
        raise InputError(
            f"cannot be read: {fault}",
            where=f"hub:{name} split {split}",
            remedy="check name, revision, configuration, split and network, or download it and name the file",
        ) from fault
