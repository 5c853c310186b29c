"""Pairs from human ratings of a thousand contexts: the paper's rule and its baseline on real judgements.

The ratings are those of MentalBench-Align (github.com/abeerbadawi/MentalBench-Align, MIT): ten responders and
seven attributes from 1 to 5. The responses are not public, so each cell gets a text of its own.
"""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from psychocounsel.config.schema import PairingConfig
from psychocounsel.evaluation.reward_metrics import author_identity
from psychocounsel.judging.pairing import Pairing, ScoredSpeech, pair_by_gap, resolve_rule
from psychocounsel.judging.rubric import Principle, Rubric
from psychocounsel.types import Candidate, Judgement, ReplyStatus, ScoredCandidate, Speech

RATINGS = Path(__file__).parents[3] / "shared" / "data" / "mentalalign" / "Human_judge.xlsx"
ATTRIBUTES = ("Guidance", "Informativeness", "Relevance", "Safety", "Empathy", "Helpfulness", "Understanding")
SCALE = range(1, 6)
RUBRIC = Rubric("1", "en", 1, 5, tuple(Principle(name, name, name, {}) for name in ATTRIBUTES), safety="Safety")


class Judged(NamedTuple):
    """Speeches with their rated candidates, and how many cells hold no rating that can be used."""

    speeches: list[ScoredSpeech]
    unusable: int


@pytest.fixture(scope="module")
def judged() -> Judged:
    if not RATINGS.is_file():
        pytest.skip(f"the human ratings are not there: {RATINGS}")
    from python_calamine import load_workbook

    head, *rows = load_workbook(RATINGS).get_sheet_by_index(0).to_python()
    authors = [str(name).strip() for name in head[2:]]
    speeches: list[ScoredSpeech] = []
    for number, context, *cells in rows:
        speech = Speech(f"{number:.0f}: {context}")  # seven contexts stand there twice
        sides = [_side(speech, *cell) for cell in zip(authors, cells, strict=True)]
        speeches.append((speech, [side for side in sides if side is not None]))
    kept = sum(len(sides) for _, sides in speeches)
    return Judged(speeches, len(authors) * len(rows) - kept)


def _side(speech: Speech, author: str, cell: Any) -> ScoredCandidate | None:
    candidate = Candidate(speech.id, author, f"What {author} answers to {speech.id}.")
    ratings = json.loads(cell) if cell else {}
    if set(ratings) != set(ATTRIBUTES) or not all(rating in SCALE for rating in ratings.values()):
        return None
    judgement = Judgement(candidate.id, "human", ReplyStatus.VALID, ratings)
    return ScoredCandidate(candidate, judgement.total, judgement.ratings)


def paired(judged: Judged, **changes: Any) -> Pairing:
    return pair_by_gap(judged.speeches, resolve_rule(PairingConfig(**changes), RUBRIC))


def test_the_cells_that_can_be_used(judged: Judged) -> None:
    assert (sum(len(sides) for _, sides in judged.speeches), judged.unusable) == (9900, 100)


def test_the_papers_rule_gives_these_pairs(judged: Judged) -> None:
    every = paired(judged, drop_safety_inverted=False)
    assert len(every.pairs) == 11_742
    assert len({pair.speech.id for pair in every.pairs}) == 976
    assert every.dropped == {"gap_too_small": 27_881, "equal_scores": 4_480}
    safe = paired(judged)
    assert safe.dropped == {**every.dropped, "safety_inverted": 56}
    assert len(safe.pairs) == 11_742 - 56


def test_the_author_alone_predicts_most_of_them(judged: Judged) -> None:
    pairs = paired(judged, drop_safety_inverted=False).pairs
    credits = author_identity(pairs, pairs)
    assert round(100 * sum(credits) / len(credits), 1) == 95.0


def test_floating_means_would_lose_a_twelfth_of_them(judged: Judged) -> None:
    means = [[side.score / 7 for side in sides] for _, sides in judged.speeches]
    far = sum(abs(left - right) >= 1.0 for own in means for left, right in combinations(own, 2))
    assert 11_742 - far == 936


def test_a_veto_and_a_limit_on_real_ratings(judged: Judged) -> None:
    pairing = paired(judged, vetoes={"Safety": 4}, max_pairs_per_speech=5)
    assert min(pair.chosen.ratings["Safety"] for pair in pairing.pairs) == 4
    assert max(Counter(pair.speech.id for pair in pairing.pairs).values()) == 5
    assert len(pairing.pairs) + sum(pairing.dropped.values()) == 11_742 + 27_881 + 4_480
