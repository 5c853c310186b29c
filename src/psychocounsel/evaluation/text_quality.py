"""Candidates -> TextQuality: does a policy still write whole, varied answers of a sane length?

Training can reach a perfect preference accuracy while the answers loop or run into the token cap; only the
generated text shows it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from psychocounsel.evaluation.statistics import BootstrapSettings, bootstrap_rate
from psychocounsel.types import Candidate, Rate

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def word_count(text: str) -> int:
    """Return the length of a text in words, the one that every report and card shows."""
    return len(words(text))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, punctuation left out.

    A text of punctuation alone (a model that loops on dots) is cut at white space instead. Scripts written
    without spaces give one long word per run, so lengths in words do not suit them.
    """
    return _WORD.findall(text.casefold()) or text.split()


NGRAM_WORDS = 4
LOOP_OCCURRENCES = 3


class LengthWords(NamedTuple):
    """How long texts are, in words."""

    mean: float
    median: float
    p95: float


@dataclass(frozen=True)
class TextQuality:
    """Signs of decay over a set of generated texts.

    Args:
        repetition_rate: share of texts in which some run of four words occurs three times or more.
        distinct_4gram_ratio: mean over texts of (different runs of four words / all of them); texts under
            four words are missing there, and it is None when all are.
        unfinished_rate: share of texts cut by the token limit before their end.
        empty_rate: share of texts with nothing but white space.
        length_words: length over all texts, empty ones included.
    """

    repetition_rate: Rate
    distinct_4gram_ratio: Rate | None
    unfinished_rate: Rate
    empty_rate: Rate
    length_words: LengthWords

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        ratio = self.distinct_4gram_ratio
        return {
            "repetition_rate": self.repetition_rate.as_dict(),
            "distinct_4gram_ratio": ratio.as_dict() if ratio else None,
            "unfinished_rate": self.unfinished_rate.as_dict(),
            "empty_rate": self.empty_rate.as_dict(),
            "length_words": self.length_words._asdict(),
        }


def measure_text_quality(candidates: Sequence[Candidate], settings: BootstrapSettings) -> TextQuality:
    """Return the signs of decay with intervals by bootstrap over speeches.

    Raises:
        DataQualityError: when there are no candidates.
    """
    speeches = [candidate.speech_id for candidate in candidates]
    ratios = [distinct_4gram_ratio(candidate.text) for candidate in candidates]

    def rate(flags: Sequence[bool]) -> Rate:
        return bootstrap_rate([float(flag) for flag in flags], speeches, settings)

    return TextQuality(
        repetition_rate=rate([repeats_itself(candidate.text) for candidate in candidates]),
        distinct_4gram_ratio=None if set(ratios) == {None} else bootstrap_rate(ratios, speeches, settings),
        unfinished_rate=rate([not candidate.finished for candidate in candidates]),
        empty_rate=rate([not candidate.text.strip() for candidate in candidates]),
        length_words=length_words([candidate.text for candidate in candidates]),
    )


def repeats_itself(text: str) -> bool:
    """Return whether some run of four words occurs three times or more (overlaps count)."""
    return max(_ngram_counts(text).values(), default=0) >= LOOP_OCCURRENCES


def distinct_4gram_ratio(text: str) -> float | None:
    """Return different runs of four words over all of them, in 0..1; None for a text under four words."""
    counts = _ngram_counts(text)
    return len(counts) / counts.total() if counts else None


def length_words(texts: Sequence[str]) -> LengthWords:
    """Return mean, median and 95th percentile (linear between ranks) of the lengths of at least one text."""
    lengths = np.array([word_count(text) for text in texts], dtype=np.float64)
    median, p95 = np.quantile(lengths, [0.5, 0.95])
    return LengthWords(float(lengths.mean()), float(median), float(p95))


def _ngram_counts(text: str) -> Counter[tuple[str, ...]]:
    tokens = words(text)
    return Counter(zip(*(tokens[start:] for start in range(NGRAM_WORDS)), strict=False))
