"""Texts of other benchmarks -> ExclusionIndex -> which of them a speech shares a span of words with.

A model that is trained on texts of a benchmark cannot be measured with it. Spans are compared by 64-bit
hashes, without a look at the texts behind them: an index of ten million spans that is asked about a million
speeches of 80 words gives a false hit with a chance of 4 in 100,000, and its price is one speech dropped.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.corpus.sources import Row, cell
from psychocounsel.corpus.text import plain_words
from psychocounsel.errors import InputError

MIN_WHOLE_WORDS = 5
"""A text shorter than a span counts, as a whole, from this many words on: "thank you so much" is no leak."""

_HASH_BYTES = 8
_MAX_CACHED_WORDS = 200_000
_CHUNK = 1 << 14
_THREE, _SEVEN = np.uint64(3), np.uint64(7)
_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)

Hashes = NDArray[np.uint64]


class ExcludedTexts(NamedTuple):
    """The texts of one benchmark under the name that reports show."""

    name: str
    texts: Iterable[str]


def texts_in(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    """Yield the text in each of the named columns of each row; a null is skipped.

    Raises:
        InputError: a column is missing, or a cell holds something other than text.
    """
    for row in rows:
        for column in columns:
            value = cell(row, column)
            if value is None:
                continue
            if not isinstance(value, str):
                raise InputError(
                    f"{column!r} is {type(value).__name__}, not text",
                    where=row.where,
                    remedy="name columns of text only",
                )
            yield value


class ExclusionIndex:
    """Hashes of all spans of all excluded texts: 8 bytes a word, whatever the length of a span.

    Args:
        sources: read once, source by source.
        span_words: how many words in a row make a leak.

    Raises:
        InputError: a source has no text that is long enough to compare.
    """

    def __init__(self, sources: Iterable[ExcludedTexts], span_words: int) -> None:
        self._hashes = _SpanHashes(span_words)
        self._known = [_Known(source.name, self._all_hashes(source)) for source in sources]

    def shares_span(self, text: str) -> str | None:
        """Return the name of the first source with which a text shares a span, None when there is none.

        A text shorter than a span is compared as a whole.
        """
        spans = self._hashes.of(text)
        if not spans.size:
            return None
        return next((known.name for known in self._known if known.holds_any(spans)), None)

    def _all_hashes(self, source: ExcludedTexts) -> Hashes:
        # An array grows in place; joining a list of small ones would need the memory twice.
        grown = array("Q")
        for text in source.texts:
            grown.frombytes(self._hashes.of(text).tobytes())
        if not grown:
            raise InputError(
                f"it has no text of {MIN_WHOLE_WORDS} words or more",
                where=source.name,
                remedy="check the columns of exclude, or take the source out",
            )
        return np.frombuffer(grown, dtype=np.uint64)


class _Known:
    """The hashes of one source, sorted in place, behind a sieve.

    A binary search through 80 MB waits for memory at each step. The sieve has a bit, 16 times as many as
    hashes, for each value of their leading bits; 15 of 16 unknown hashes end there.
    """

    def __init__(self, name: str, hashes: Hashes) -> None:
        self.name = name
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


class _SpanHashes:
    """Text -> hashes of its spans: the sum of each word's hash times a fixed number for its place.

    Python's own hash differs from run to run; this one is the same everywhere.
    """

    def __init__(self, span_words: int) -> None:
        self._words = _WordHashes()
        places = (_hash_of(f"place {place}") | 1 for place in range(span_words))
        self._places = np.fromiter(places, dtype=np.uint64, count=span_words)

    def of(self, text: str) -> Hashes:
        """Return the hash of each span, or of the whole where the text is shorter than a span."""
        known = self._words
        written = plain_words(text)
        hashes = np.frombuffer(b"".join([known[word] for word in written]), dtype="<u8").astype(np.uint64)
        if hashes.size >= self._places.size:
            return np.correlate(hashes, self._places, mode="valid")
        if hashes.size < MIN_WHOLE_WORDS:
            return hashes[:0]
        return np.correlate(hashes, self._places[: hashes.size], mode="valid")


class _WordHashes(dict[str, bytes]):
    """Word -> 8 bytes, little-endian; forgets all when full, for names and typing errors have no end."""

    def __missing__(self, word: str) -> bytes:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        self[word] = hashed = _digest(word)
        return hashed


def _hash_of(word: str) -> int:
    return int.from_bytes(_digest(word), "little")


def _digest(word: str) -> bytes:
    return blake2b(word.encode("utf-8"), digest_size=_HASH_BYTES).digest()
