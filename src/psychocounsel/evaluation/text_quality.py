"""Signs of degeneration in generated texts: loops, unfinished and empty answers, unusual lengths.

Training can reach a perfect preference accuracy while the answers loop or run into the token limit; only the generated
text shows it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psychocounsel.evaluation.statistics import BootstrapSettings, bootstrap_rate
from psychocounsel.types import Candidate, Rate

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
NGRAM_WORDS = 4
LOOP_OCCURRENCES = 3


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, punctuation left out.

    A text of punctuation alone (a model that loops on dots) is split at white space instead. Scripts written without
    spaces give one long word per run, so lengths in words do not suit them.
    """
    return _WORD.findall(text.casefold()) or text.split()


def word_count(text: str) -> int:
    """Return the length of a text in words, as every report and card shows it."""
    return len(words(text))


@dataclass(frozen=True)
class LengthWords:
    """Mean, median and 95th percentile (linear between ranks) of the lengths of texts, in words."""

    mean: float
    median: float
    p95: float


@dataclass(frozen=True)
class TextQuality:
    """Signs of degeneration in a set of generated texts.

    Attributes:
        repetition_rate: share of texts in which some run of four words occurs three times or more.
        distinct_4gram_ratio: mean over texts of (distinct runs of four words / all of them); texts under four words are
            missing there, and it is None when all are.
        unfinished_rate: share of texts cut by the token limit before their end.
        empty_rate: share of texts with nothing but white space.
        length_words: length over all texts, empty ones included.
    """

    repetition_rate: Rate
    distinct_4gram_ratio: Rate | None
    unfinished_rate: Rate
    empty_rate: Rate
    length_words: LengthWords


def measure_text_quality(candidates: Sequence[Candidate], settings: BootstrapSettings) -> TextQuality:
    """Return the signs of degeneration with intervals by bootstrap over speeches.

    Raises:
        DataQualityError: there are no candidates.
    """
    speeches = [candidate.speech_id for candidate in candidates]
    ratios = [distinct_4gram_ratio(candidate.text) for candidate in candidates]

    def rate(flags: Sequence[bool]) -> Rate:
        return bootstrap_rate([float(flag) for flag in flags], speeches, settings)

    return TextQuality(
        repetition_rate=rate([has_loop(candidate.text) for candidate in candidates]),
        distinct_4gram_ratio=None if set(ratios) == {None} else bootstrap_rate(ratios, speeches, settings),
        unfinished_rate=rate([not candidate.finished for candidate in candidates]),
        empty_rate=rate([not candidate.text.strip() for candidate in candidates]),
        length_words=length_words([candidate.text for candidate in candidates]),
    )


def has_loop(text: str) -> bool:
    """Return whether some run of four words occurs three times or more (overlaps count)."""
    return max(_ngram_counts(text).values(), default=0) >= LOOP_OCCURRENCES


def distinct_4gram_ratio(text: str) -> float | None:
    """Return distinct runs of four words over all of them, in 0..1; None for a text under four words."""
    counts = _ngram_counts(text)
    return len(counts) / counts.total() if counts else None


def length_words(texts: Sequence[str]) -> LengthWords:
    """Return the lengths of at least one text, summarised."""
    lengths = np.array([word_count(text) for text in texts], dtype=np.float64)
    median, p95 = np.quantile(lengths, [0.5, 0.95])
    return LengthWords(float(lengths.mean()), float(median), float(p95))


def _ngram_counts(text: str) -> Counter[tuple[str, ...]]:
    tokens = words(text)
    return Counter(zip(*(tokens[start:] for start in range(NGRAM_WORDS)), strict=False))
