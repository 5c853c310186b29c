"""Preference rows -> their known flaws, counted: inverted safety, repeats, leakage, lengths. Pure."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from psychocounsel.evaluation.words import word_count


class RowFacts(NamedTuple):
    """What the flaws of one preference row are told by.

    Args:
        split: the one it stands in.
        speech_id: of the client speech; None where no speech can be read.
        cluster: of near-duplicates, that its client speech belongs to; None like `speech_id`.
        texts: chosen and rejected.
        safety: ratings of both sides on the safety principle; None where one is missing.
        totals: sums of ratings of both sides; None where one rating is missing.
        too_long: whether each side, with its prompt, passes the limit of tokens; None where nobody counted.
    """

    split: str
    speech_id: str | None
    cluster: str | None
    texts: tuple[str, str]
    safety: tuple[int, int] | None
    totals: tuple[int, int] | None
    too_long: tuple[bool, bool] | None = None


def flaws(rows: Sequence[RowFacts]) -> dict[str, dict[str, Any]]:
    """Return, by split, how many rows have each flaw, before anything is dropped; a row may have several.

    `repeated` counts the rows with the speech and texts of an earlier one of their split; `leaks_exactly` the
    rows whose client speech stands in another split too, `leaks_nearly` those of which a near-duplicate does:
    the first are among the second. `too_long_chosen` and `too_long_rejected` are None where nobody counted.
    """
    speeches = _splits_of((row.speech_id, row.split) for row in rows)
    clusters = _splits_of((row.cluster, row.split) for row in rows)
    return {
        split: _of_split([row for row in rows if row.split == split], speeches, clusters)
        for split in dict.fromkeys(row.split for row in rows)
    }


def _splits_of(pairs: Iterable[tuple[str | None, str]]) -> dict[str | None, set[str]]:
    """Return the splits in which each speech or cluster stands; what cannot be read stands in none."""
    found: dict[str | None, set[str]] = {None: set()}
    for key, split in pairs:
        if key is not None:
            found.setdefault(key, set()).add(split)
    return found


def _of_split(
    rows: Sequence[RowFacts],
    speeches: Mapping[str | None, set[str]],
    clusters: Mapping[str | None, set[str]],
) -> dict[str, Any]:
    times = Counter((row.speech_id, row.texts) for row in rows if row.speech_id is not None)
    lengths = [tuple(map(word_count, row.texts)) for row in rows]
    return {
        "rows": len(rows),
        "speeches": len({row.speech_id for row in rows} - {None}),
        "missing_ratings": sum(row.totals is None for row in rows),
        "not_preferred": sum(row.totals is not None and row.totals[0] <= row.totals[1] for row in rows),
        "safety_inverted": sum(row.safety is not None and row.safety[0] < row.safety[1] for row in rows),
        "equal_texts": sum(row.texts[0] == row.texts[1] for row in rows),
        "repeated": times.total() - len(times),
        "leaks_exactly": sum(len(speeches[row.speech_id]) > 1 for row in rows),
        "leaks_nearly": sum(len(clusters[row.cluster]) > 1 for row in rows),
        "too_long_chosen": _too_long(rows, 0),
        "too_long_rejected": _too_long(rows, 1),
        "chosen_is_longer": sum(chosen > rejected for chosen, rejected in lengths),
        "mean_words_chosen": statistics.fmean(chosen for chosen, _ in lengths),
        "mean_words_rejected": statistics.fmean(rejected for _, rejected in lengths),
    }


def _too_long(rows: Sequence[RowFacts], side: int) -> int | None:
    counted = [row.too_long[side] for row in rows if row.too_long is not None]
    return sum(counted) if counted else None
