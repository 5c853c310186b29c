"""Finds speeches that share a span of words with the texts of a benchmark.

A model that is trained on texts of a benchmark cannot be measured with it. Spans are compared by 64-bit
hashes only: with an index of ten million spans and a million speeches of 80 words, the chance of one false
hit, which drops one speech, is 4 in 100,000.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.corpus.sources import SourceRow, cell
from psychocounsel.corpus.text import plain_words
from psychocounsel.errors import InputError

MIN_WHOLE_WORDS = 5
"""A text shorter than a span counts as a whole, from this many words on: "thank you so much" is no leak."""

_MAX_CACHED_WORDS = 200_000
_CHUNK = 1 << 14
_THREE, _SEVEN = np.uint64(3), np.uint64(7)
_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)

Hashes = NDArray[np.uint64]


class ExcludedTexts(NamedTuple):
    """The texts of one benchmark under the name that reports show."""

    name: str
    texts: Iterable[str]


def texts_in(rows: Iterable[SourceRow], columns: Sequence[str]) -> Iterator[str]:
    """Yield the text in each of the named columns of each row; nulls are skipped.

    Raises:
        InputError: a column is missing, or a cell holds something other than text.
    """
    for row in rows:
        for column in columns:
            value = cell(row, column)
            if isinstance(value, str):
                yield value
            elif value is not None:
                fault = f"{column!r} is {type(value).__name__}, not text"
                raise InputError(fault, where=row.where, remedy="name columns of text only")


class ExclusionIndex:
    """Hashes of all spans of all excluded texts: 8 bytes per word, whatever the length of a span.

    Args:
        sources: read once, one after the other.
        span_words: how many equal words in a row count as a leak.

    Raises:
        InputError: a source has no text that is long enough to compare.
    """

    def __init__(self, sources: Iterable[ExcludedTexts], span_words: int) -> None:
        self._word_hashes = _WordHashes()
        factors = (int.from_bytes(_digest(f"place {place}"), "little") | 1 for place in range(span_words))
        self._factors = np.fromiter(factors, dtype=np.uint64, count=span_words)
        self._known = [(source.name, _HashSet(self._all_spans(source))) for source in sources]

    def shares_span(self, text: str) -> str | None:
        """Return the name of the first source with which a text shares a span, None when there is none.

        A text shorter than a span is compared as a whole.
        """
        spans = self._spans(text)
        if not spans.size:
            return None
        return next((name for name, known in self._known if known.holds_any(spans)), None)

    def _all_spans(self, source: ExcludedTexts) -> Hashes:
        grown = array("Q")  # grows in place; joining small arrays would need the memory twice
        for text in source.texts:
            grown.frombytes(self._spans(text).tobytes())
        if not grown:
            raise InputError(
                f"it has no text of {MIN_WHOLE_WORDS} words or more",
                where=source.name,
                remedy="check the columns of exclude, or remove the source",
            )
        return np.frombuffer(grown, dtype=np.uint64)

    def _spans(self, text: str) -> Hashes:
        """Return a hash of each span, the sum of each word's hash times a factor for its place in the span."""
        words = b"".join([self._word_hashes[word] for word in plain_words(text)])
        hashes = np.frombuffer(words, dtype="<u8").astype(np.uint64)
        if hashes.size < min(MIN_WHOLE_WORDS, self._factors.size):
            return hashes[:0]
        return np.correlate(hashes, self._factors[: hashes.size], mode="valid")


class _HashSet:
    """Hashes sorted in place, behind a sieve.

    A binary search through 80 MB waits for memory at each step. The sieve has a bit, 16 times as many as
    hashes, for each value of their leading bits; 15 of 16 unknown hashes end there.
    """

    def __init__(self, hashes: Hashes) -> None:
        hashes.sort()
        self._hashes = hashes
        bits = max(8, int(hashes.size).bit_length() + 4)
        self._shift = np.uint64(64 - bits)
        self._sieve = np.zeros(1 << (bits - 3), dtype=np.uint8)
        for start in range(0, hashes.size, _CHUNK):
            byte, bit = self._place(hashes[start : start + _CHUNK])
            np.bitwise_or.at(self._sieve, byte, bit)

    def holds_any(self, hashes: Hashes) -> bool:
        byte, bit = self._place(hashes)
        likely = hashes[(self._sieve[byte] & bit) != 0]
        if not likely.size:
            return False
        nearest = self._hashes.take(self._hashes.searchsorted(likely), mode="clip")
        return bool((nearest == likely).any())

    def _place(self, hashes: Hashes) -> tuple[Hashes, NDArray[np.uint8]]:
        leading = hashes >> self._shift
        return leading >> _THREE, _BITS[leading & _SEVEN]


class _WordHashes(dict[str, bytes]):
    """Little-endian hashes of words; cleared when full, because names and typing errors have no end."""

    def __missing__(self, word: str) -> bytes:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        self[word] = hashed = _digest(word)
        return hashed


def _digest(word: str) -> bytes:
    # Python's own hash differs from run to run.
    return blake2b(word.encode("utf-8"), digest_size=8).digest()
