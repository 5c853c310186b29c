"""Counts of the flaws in a released preference dataset, before any row is dropped."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from psychocounsel.evaluation.text_quality import word_count


class RowFacts(NamedTuple):
    """What the flaws of one preference row are counted from.

    Attributes:
        split: the row's.
        speech_id: of the client speech; None where no speech can be read.
        cluster: of near-duplicates, to which the client speech belongs; None where `speech_id` is.
        texts: chosen and rejected.
        safety: ratings of both sides on the safety principle; None where one is missing.
        totals: sums of ratings of both sides; None where one rating is missing.
        too_long: whether each side, with its prompt, exceeds the token limit; None where tokens were not counted.
    """

    split: str
    speech_id: str | None
    cluster: str | None
    texts: tuple[str, str]
    safety: tuple[int, int] | None
    totals: tuple[int, int] | None
    too_long: tuple[bool, bool] | None = None


def flaws(rows: Sequence[RowFacts]) -> dict[str, dict[str, Any]]:
    """Return, by split, how many rows have each flaw; a row may have several.

    `repeated` counts rows with the speech and texts of an earlier one of their split; `leaks_exactly` rows whose client
    speech is in another split too; `leaks_nearly` those of which a near-duplicate is, which includes the former.
    `too_long_chosen` and `too_long_rejected` are None where tokens were not counted.
    """
    speeches = _splits_of((row.speech_id, row.split) for row in rows)
    clusters = _splits_of((row.cluster, row.split) for row in rows)
    return {
        split: _flaws_of_split([row for row in rows if row.split == split], speeches, clusters)
        for split in dict.fromkeys(row.split for row in rows)
    }


def _splits_of(pairs: Iterable[tuple[str | None, str]]) -> dict[str | None, set[str]]:
    """Return the splits that contain each speech or cluster; one that cannot be read (None) is in none."""
    found: dict[str | None, set[str]] = {None: set()}
    for key, split in pairs:
        if key is not None:
            found.setdefault(key, set()).add(split)
    return found


def _flaws_of_split(
    rows: Sequence[RowFacts], speeches: Mapping[str | None, set[str]], clusters: Mapping[str | None, set[str]]
) -> dict[str, Any]:
    times = Counter((row.speech_id, row.texts) for row in rows if row.speech_id is not None)
    lengths = [tuple(map(word_count, row.texts)) for row in rows]
    too_long = [row.too_long for row in rows if row.too_long is not None]
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
        "too_long_chosen": sum(chosen for chosen, _ in too_long) if too_long else None,
        "too_long_rejected": sum(rejected for _, rejected in too_long) if too_long else None,
        "chosen_is_longer": sum(chosen > rejected for chosen, rejected in lengths),
        "mean_words_chosen": statistics.fmean(chosen for chosen, _ in lengths),
        "mean_words_rejected": statistics.fmean(rejected for _, rejected in lengths),
    }
