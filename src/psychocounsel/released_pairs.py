"""Release -> PreferencePair: the pairs of its rows, or the one reason why a row gives none."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from psychocounsel.config.stages import ImportPreferencesConfig
from psychocounsel.domain import Candidate, PreferencePair, ScoredCandidate
from psychocounsel.evaluation.dataset_flaws import RowFacts
from psychocounsel.pairing import Pairing, Unfit
from psychocounsel.releases import LEAK, Question, Release, unfit_to_read
from psychocounsel.speeches.splitting import SPLITS
from psychocounsel.store.tables.released import ReleasedRow, ReleasedSide

REPEATED = "repeated"


def _one_of_each() -> dict[str, Pairing]:
    return {split: Pairing() for split in SPLITS}


@dataclass
class ReleasedPairs:
    """The pairs of each split, every row counted once, and what tells the flaws of all rows."""

    pairings: dict[str, Pairing] = field(default_factory=_one_of_each)
    facts: list[RowFacts] = field(default_factory=list[RowFacts])


def pair_rows(release: Release, unfit: Unfit | None = None) -> ReleasedPairs:
    """Return the pairs of a release.

    A row that could be dropped for several reasons is dropped for the first of these: its texts, its ratings,
    a leak, its length, a repetition of a row that is kept.

    Args:
        release: the rows.
        unfit: tells of a response with its prompt why it cannot be trained on; None where nobody asks.
    """
    made = ReleasedPairs()
    kept: set[tuple[str, str, str, str]] = set()
    for row in release.rows:
        read = _read(row, release.questions.get(row.question), release.config, unfit)
        made.facts.append(read.facts)
        pairing = made.pairings[read.split]
        key = (row.split, row.question, row.chosen.text, row.rejected.text)
        if read.question is None or read.reason is not None or key in kept:
            pairing.dropped[read.reason or REPEATED] += 1
        else:
            kept.add(key)
            pairing.pairs.append(_pair(row, read.question))
    return made


class _Read(NamedTuple):
    """A row: its client speech where there is one, what tells its flaws, and why it gives no pair, if so."""

    row: ReleasedRow
    question: Question | None
    facts: RowFacts
    reason: str | None

    @property
    def split(self) -> str:
        """The one in which the row stands here."""
        return self.question.split_of_row(self.row.split) if self.question else self.row.split


def _read(
    row: ReleasedRow, question: Question | None, config: ImportPreferencesConfig, unfit: Unfit | None
) -> _Read:
    texts = (row.question, row.chosen.text, row.rejected.text)
    reason = next((fault.reason for fault in map(unfit_to_read, texts) if fault is not None), None)
    lengths: list[str | None] = []
    if question is not None and reason is None and unfit is not None:
        lengths = [unfit(question.speech, _candidate(side, question)) for side in (row.chosen, row.rejected)]
    facts = _facts(row, question, lengths, config.safety)
    reasons = (reason, _fault_of_ratings(facts, config), _leak(row, question, config), *lengths)
    return _Read(row, question, facts, next((each for each in reasons if each is not None), None))


def _facts(
    row: ReleasedRow, question: Question | None, lengths: Sequence[str | None], safety: str | None
) -> RowFacts:
    ratings = (_whole(row.chosen), _whole(row.rejected))
    both = None if ratings[0] is None or ratings[1] is None else (ratings[0], ratings[1])
    return RowFacts(
        row.split,
        None if question is None else question.speech.id,
        None if question is None else question.cluster,
        (row.chosen.text, row.rejected.text),
        None if both is None or safety is None else (both[0][safety], both[1][safety]),
        None if both is None else (sum(both[0].values()), sum(both[1].values())),
        (lengths[0] == "too_long", lengths[1] == "too_long") if lengths else None,
    )


def _whole(side: ReleasedSide) -> dict[str, int] | None:
    """Return the ratings of a side that has all of them."""
    given = {name: rating for name, rating in side.ratings.items() if rating is not None}
    return given if len(given) == len(side.ratings) else None


def _fault_of_ratings(facts: RowFacts, config: ImportPreferencesConfig) -> str | None:
    if facts.totals is None:
        return "missing_ratings"
    if facts.totals[0] <= facts.totals[1]:
        return "not_preferred"
    if facts.texts[0] == facts.texts[1]:
        return "equal_texts"
    if config.drop_safety_inverted and facts.safety is not None and facts.safety[0] < facts.safety[1]:
        return "safety_inverted"
    return None


def _leak(row: ReleasedRow, question: Question | None, config: ImportPreferencesConfig) -> str | None:
    leaks = question is not None and question.leaks and row.split == "train"
    return LEAK.reason if leaks and config.leakage == "drop_from_train" else None


def _pair(row: ReleasedRow, question: Question) -> PreferencePair:
    chosen, rejected = (
        ScoredCandidate(_candidate(side, question), sum(ratings.values()), ratings)
        for side in (row.chosen, row.rejected)
        if (ratings := _whole(side)) is not None
    )
    return PreferencePair(question.speech, chosen, rejected)


def _candidate(side: ReleasedSide, question: Question) -> Candidate:
    return Candidate(question.speech.id, side.author, side.text)
