"""Judgements and verdicts that rest on several replies <-> Parquet: the means, and every draw behind them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from psychocounsel.domain import Draw, Judgement, ReplyStatus, Scoring, Verdict, Winner
from psychocounsel.store.artifacts import Artifact, Draft
from psychocounsel.store.tables.parquet import read_table, write_table

DRAWS_FILE = "draws.parquet"
VOTES_FILE = "votes.parquet"
RATING = "_rating"
WINNER = "_winner"

_SPREAD = "_spread"


class OrderedVerdict(NamedTuple):
    """A verdict and which order the judge saw: `forward` puts the policy first."""

    verdict: Verdict
    order: str


class KeptDraw(NamedTuple):
    """A draw and the response that it is about."""

    candidate_id: str
    draw: Draw


def write_averaged(
    draft: Draft, name: str, judgements: Iterable[Judgement], principles: Sequence[str]
) -> None:
    """Write judgements that are means of draws.

    `draws` were asked for, `valid_draws` stand behind the means; `PRINCIPLE_spread` is the standard deviation
    of these (over their number, not one less), null where there is only one. `scored_by` says how ratings
    were had from replies; `mixed` where not all of a judgement's were had in the same way.
    """
    texts = [(column, pa.string()) for column in ("candidate_id", "judge", "status")]
    ratings = [(principle + RATING, pa.float64()) for principle in principles]
    counts = [("reason", pa.string()), ("draws", pa.int64()), ("valid_draws", pa.int64())]
    spreads = [(principle + _SPREAD, pa.float64()) for principle in principles]
    schema = pa.schema([*texts, *ratings, *counts, ("scored_by", pa.string()), *spreads])
    write_table(draft, name, (_averaged_row(each, principles) for each in judgements), schema)


def _averaged_row(judgement: Judgement, principles: Sequence[str]) -> dict[str, Any]:
    valid = [draw for draw in judgement.draws if draw.status is ReplyStatus.VALID]
    ways = {draw.scored_by.value for draw in valid}
    spreads = {name + _SPREAD: _spread([draw.ratings[name] for draw in valid]) for name in principles}
    return {
        "candidate_id": judgement.candidate_id,
        "judge": judgement.judge,
        "status": judgement.status.value,
        **{name + RATING: judgement.ratings.get(name) for name in principles},
        "reason": judgement.reason,
        "draws": len(judgement.draws),
        "valid_draws": len(valid),
        "scored_by": "mixed" if len(ways) > 1 else "".join(ways),
        **spreads,
    }


def _spread(ratings: Sequence[float]) -> float | None:
    if len(ratings) < 2:
        return None
    mean = math.fsum(ratings) / len(ratings)
    return math.sqrt(math.fsum((rating - mean) ** 2 for rating in ratings) / len(ratings))


def write_draws(draft: Draft, judgements: Iterable[Judgement], principles: Sequence[str]) -> None:
    """Write every draw of every judgement; a failed one has nulls where its ratings would stand."""
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
            "judge": draw.judge,
            "sample_index": draw.sample_index,
            "status": draw.status.value,
            **{principle + RATING: draw.ratings.get(principle) for principle in principles},
            "scored_by": draw.scored_by.value,
            "reason": draw.reason,
        }
        for judgement in judgements
        for draw in judgement.draws
    )
    write_table(draft, DRAWS_FILE, rows, schema)


def read_draws(artifact: Artifact) -> list[KeptDraw]:
    """Read the draws behind an artifact's judgements, in order; none where each is one reply's own."""
    if DRAWS_FILE not in artifact.manifest["files"]:
        return []
    return [KeptDraw(row["candidate_id"], _draw(row)) for row in read_table(artifact, DRAWS_FILE)]


def _draw(row: Mapping[str, Any]) -> Draw:
    ratings = {
        column.removesuffix(RATING): value
        for column, value in row.items()
        if column.endswith(RATING) and value is not None
    }
    status, scored_by = ReplyStatus(row["status"]), Scoring(row["scored_by"])
    return Draw(row["judge"], row["sample_index"], status, ratings, row["reason"], scored_by)


def write_votes(draft: Draft, verdicts: Iterable[OrderedVerdict], criteria: Sequence[str]) -> None:
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
    write_table(draft, VOTES_FILE, rows, schema)


def _told(winner: Winner | None) -> str | None:
    return None if winner is None else winner.value
