"""Nouns <-> Parquet: every table of an artifact, and the only home of column names.

Schemas are explicit, so that equal rows give equal bytes and a column of nulls keeps its type.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from psychocounsel.domain import (
    Candidate,
    Judgement,
    PreferencePair,
    Rating,
    ReplyStatus,
    ScoredCandidate,
    Speech,
    Verdict,
    Winner,
)
from psychocounsel.store.artifacts import Artifact, Draft
from psychocounsel.store.tables.draws import RATING, OrderedVerdict, write_averaged, write_draws, write_votes
from psychocounsel.store.tables.parquet import read_table, write_table

SPEECHES_FILE = "speeches.parquet"
CANDIDATES_FILE = "candidates.parquet"
JUDGEMENTS_FILE = "judgements.parquet"
SCORES_FILE = "scores.parquet"
VERDICTS_FILE = "verdicts.parquet"

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


def write_speeches(draft: Draft, speeches: Iterable[SplitSpeech]) -> None:
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
    write_table(draft, SPEECHES_FILE, rows, _SPEECH_SCHEMA)


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


def write_candidates(draft: Draft, candidates: Iterable[Candidate]) -> None:
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
    write_table(draft, CANDIDATES_FILE, rows, _CANDIDATE_SCHEMA)


def read_candidates(artifact: Artifact) -> list[Candidate]:
    """Read candidate responses, in their order."""
    return [
        Candidate(row["speech_id"], row["author"], row["text"], row["finished"])
        for row in read_table(artifact, CANDIDATES_FILE)
    ]


def write_judgements(draft: Draft, judgements: Iterable[Judgement], principles: Sequence[str]) -> None:
    """Write judgements; a failed one has nulls where its ratings would stand.

    Where they are means of draws, these get a table of their own, and their numbers stand beside the means.
    """
    kept = list(judgements)
    if any(each.draws for each in kept):
        write_averaged(draft, JUDGEMENTS_FILE, kept, principles)
        write_draws(draft, kept, principles)
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
    write_table(draft, JUDGEMENTS_FILE, rows, schema)


def read_judgements(artifact: Artifact) -> list[Judgement]:
    """Read judgements, in their order."""
    return [
        Judgement(
            row["candidate_id"], row["judge"], ReplyStatus(row["status"]), _ratings(row, ""), row["reason"]
        )
        for row in read_table(artifact, JUDGEMENTS_FILE)
    ]


def write_scores(draft: Draft, scores: Iterable[RewardScore]) -> None:
    """Write rewards of candidates."""
    write_table(draft, SCORES_FILE, [each._asdict() for each in scores], _SCORE_SCHEMA)


def read_scores(artifact: Artifact) -> list[RewardScore]:
    """Read rewards of candidates, in their order."""
    return [RewardScore(**row) for row in read_table(artifact, SCORES_FILE)]


def write_verdicts(draft: Draft, verdicts: Iterable[OrderedVerdict], criteria: Sequence[str]) -> None:
    """Write verdicts of both orders; a failed one has nulls where its winners would stand.

    Where they are counted from votes, these get a table of their own.
    """
    verdicts = list(verdicts)
    if any(each.verdict.votes for each in verdicts):
        write_votes(draft, verdicts, criteria)
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
    write_table(draft, VERDICTS_FILE, rows, pa.schema([(name, pa.string()) for name in names]))


def read_verdicts(artifact: Artifact) -> list[OrderedVerdict]:
    """Read verdicts of both orders."""
    return [OrderedVerdict(_verdict(row), row["order"]) for row in read_table(artifact, VERDICTS_FILE)]


def _winner(verdict: Verdict, criterion: str) -> str | None:
    winner = verdict.winners.get(criterion)
    return None if winner is None else winner.value


def _verdict(row: Mapping[str, Any]) -> Verdict:
    winners = {
        column.removesuffix("_winner"): Winner(value)
        for column, value in row.items()
        if column.endswith("_winner") and value is not None
    }
    return Verdict(row["speech_id"], row["first_id"], row["second_id"], ReplyStatus(row["status"]), winners)


def pairs_schema(principles: Sequence[str], rating_type: pa.DataType | None = None) -> pa.Schema:
    """Return the released columns of a preference dataset followed by ours.

    The first columns are those of the released data set (arXiv 2502.19731), in which ratings are whole
    numbers; means of draws need another type.
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


def write_pairs(draft: Draft, split: str, pairs: Sequence[PreferencePair], principles: Sequence[str]) -> None:
    """Write one split of a preference dataset."""
    rows = (_pair_row(number, pair) for number, pair in enumerate(pairs))
    write_table(draft, pairs_file(split), rows, pairs_schema(principles, _rating_type(pairs)))


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
