"""words -> faults of form: repetition, word salad, copying, unfinished text.

A small model's answers break in these ways, and praise for feeling words must not be bought with them.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from psychocounsel.judging.lexicon import load_lexicon
from psychocounsel.judging.words import Sentence

_NGRAM = 3
_ECHO_GRAM = 5


class FormFaults(NamedTuple):
    """Each from 0 (none) to 1 (nothing else): what is wrong with a text as text."""

    repetition: float
    salad: float
    echo: float
    unfinished: float


def form_faults(sentences: Sequence[Sentence], speech_words: Sequence[str]) -> FormFaults:
    """Measure a response's faults of form.

    Args:
        sentences: of the response, at least one.
        speech_words: the client's words; long stretches copied from them are an echo.
    """
    words = [word for sentence in sentences for word in sentence.words]
    return FormFaults(
        repetition=_repeated_share(words),
        salad=max(_ungrammatical(sentences), _unstructured(sentences)),
        echo=ramp(_shared_grams(words, speech_words), 0.35, 0.8),
        unfinished=0.0 if sentences[-1].is_finished else 1.0,
    )


def ramp(value: float, low: float, high: float) -> float:
    """Return 0 at or below `low`, 1 at or above `high`, a straight line between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _repeated_share(words: Sequence[str]) -> float:
    """Largest of: words said twice running, trigrams said again, too few distinct words."""
    doubled = sum(first == second for first, second in pairwise(words))
    grams = Counter(_grams(words, _NGRAM))
    again = sum(count - 1 for count in grams.values())
    distinct = len(set(words)) / len(words)
    # A text of n ordinary words uses fewer distinct ones as it grows: about 0.9 at 20, 0.6 at 150. One or two
    # repeats mean nothing in a short text.
    expected = max(0.35, 0.92 - 0.0022 * len(words))
    return max(
        ramp(doubled / len(words), 0.01, 0.08),
        ramp(again / max(1, len(words) - _NGRAM + 1), 0.04, 0.25),
        ramp(expected - distinct - 1.5 / len(words), 0.08, 0.35),
    )


def _ungrammatical(sentences: Sequence[Sentence]) -> float:
    """Share of neighbouring words that no English sentence holds ("the of", "you is"), stretched."""
    bad = total = 0
    for sentence in sentences:
        for first, second in pairwise(sentence.words):
            total += 1
            bad += _never_together(first, second)
    return ramp(bad / max(1, total), 0.012, 0.08)


def _never_together(first: str, second: str) -> bool:
    lists = load_lexicon().salad
    if first in lists["determiners"] and second in lists["after_no_determiner"]:
        return True
    if first in lists["prepositions"] and second in lists["after_no_preposition"]:
        return True
    return f"{first} {second}" in lists["never_neighbours"]


def _unstructured(sentences: Sequence[Sentence]) -> float:
    """Share of words in sentences without the small words that make a sentence, stretched."""
    words = sum(len(sentence.words) for sentence in sentences)
    bare = sum(len(sentence.words) for sentence in sentences if not _has_structure(sentence.words))
    return ramp(bare / words, 0.45, 0.9)


def _has_structure(words: Sequence[str]) -> bool:
    small = sum(word in load_lexicon().functional for word in words)
    return small / len(words) >= 0.2 and len(set(words)) > len(words) / 2


def _shared_grams(words: Sequence[str], speech_words: Sequence[str]) -> float:
    grams = _grams(words, _ECHO_GRAM)
    known = set(_grams(speech_words, _ECHO_GRAM))
    return sum(gram in known for gram in grams) / max(1, len(grams))
