"""Lengths in words are one count, whichever table or card shows them."""

from collections import Counter

from psychocounsel.evaluation.text_quality import length_words
from psychocounsel.judging.pairing import Pairing
from psychocounsel.stages.build_preferences import words_by_side
from psychocounsel.types import Candidate, PreferencePair, ScoredCandidate, Speech

DASHED = "Well - hear me. It's late."
"""Five words and a dash."""


def test_tables_and_cards_count_the_same_words() -> None:
    speech = Speech("I cannot sleep.")
    chosen, rejected = (
        ScoredCandidate(Candidate(speech.id, "someone", text), score) for text, score in ((DASHED, 2), ("No.", 1))
    )
    pairs = [PreferencePair(speech, chosen, rejected)]
    expected = {"chosen": length_words([DASHED]).mean, "rejected": 1.0}
    assert expected["chosen"] == 5
    assert words_by_side({"train": Pairing(pairs, Counter())}) == {"train": expected}
