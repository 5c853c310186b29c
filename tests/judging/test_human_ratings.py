"""Pairs from human ratings of a thousand contexts: the paper's rule and its baseline on real judgements.

The ratings are those of MentalBench-Align (github.com/abeerbadawi/MentalBench-Align, MIT): ten responders and
seven attributes from 1 to 5. The responses are not public, so each cell gets a text of its own.
"""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.config.schema import PairingConfig
from psychocounsel.evaluation.reward_metrics import author_identity
from psychocounsel.judging.pairing import Pairing, ScoredSpeech, pair_by_gap, resolve_rule
from psychocounsel.judging.rubric import Principle, Rubric
from psychocounsel.types import Candidate, ScoredCandidate, Speech

RATINGS = Path(__file__).parents[3] / "shared" / "data" / "mentalalign" / "Human_judge.xlsx"
ATTRIBUTES = ("Guidance", "Informativeness", "Relevance", "Safety", "Empathy", "Helpfulness", "Understanding")
RUBRIC = Rubric("1", "en", 1, 5, tuple(Principle(name, name, name, {}) for name in ATTRIBUTES), safety="Safety")


@pytest.fixture(scope="module")
def judged() -> list[ScoredSpeech]:
    if not RATINGS.is_file():
        pytest.skip(f"the human ratings are not there: {RATINGS}")
    from python_calamine import load_workbook

    head, *rows = load_workbook(RATINGS).get_sheet_by_index(0).to_python()
    speeches: list[ScoredSpeech] = []
    for number, context, *cells in rows:
        speech = Speech(f"{number:.0f}: {context}")  # seven contexts occur twice
        sides: list[ScoredCandidate] = []
        for author, cell in zip(head[2:], cells, strict=True):
            ratings = json.loads(str(cell)) if cell else {}
            if set(ratings) == set(ATTRIBUTES) and all(rating in RUBRIC.scale for rating in ratings.values()):
                candidate = Candidate(speech.id, str(author).strip(), f"What {author} answers to {speech.id}.")
                sides.append(ScoredCandidate(candidate, sum(ratings.values()), ratings))
        speeches.append((speech, sides))
    return speeches


def paired(judged: list[ScoredSpeech], **changes: Any) -> Pairing:
    return pair_by_gap(judged, resolve_rule(PairingConfig(**changes), RUBRIC))


def test_the_papers_rule_gives_these_pairs(judged: list[ScoredSpeech]) -> None:
    assert sum(len(sides) for _, sides in judged) == 9900  # 100 cells hold no rating
    every, safe = paired(judged, drop_safety_inverted=False), paired(judged)
    assert (len(every.pairs), len({pair.speech.id for pair in every.pairs})) == (11_742, 976)
    assert every.dropped == {"gap_too_small": 27_881, "equal_scores": 4_480}
    assert safe.dropped == {**every.dropped, "safety_inverted": 56}
    assert len(safe.pairs) == 11_742 - 56
    credits = author_identity(every.pairs, every.pairs)
    assert round(100 * sum(credits) / len(credits), 1) == 95.0, "the author alone predicts most pairs"
    # Floating means would lose a twelfth of them.
    means = [[side.score / 7 for side in sides] for _, sides in judged]
    far = sum(abs(left - right) >= 1.0 for own in means for left, right in combinations(own, 2))
    assert 11_742 - far == 936


def test_a_veto_and_a_limit_on_real_ratings(judged: list[ScoredSpeech]) -> None:
    pairing = paired(judged, vetoes={"Safety": 4}, max_pairs_per_speech=5)
    assert min(pair.chosen.ratings["Safety"] for pair in pairing.pairs) == 4
    assert max(Counter(pair.speech.id for pair in pairing.pairs).values()) == 5
    assert len(pairing.pairs) + pairing.dropped.total() == 11_742 + 27_881 + 4_480
