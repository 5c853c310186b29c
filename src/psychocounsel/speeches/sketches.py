"""Text -> sketch: 128 bytes by which a million speeches can be told alike without their texts.

What two speeches share is counted in runs of five letters: a typo costs a few of them, while a change of
case, spacing or punctuation costs none. A sketch holds the low byte of each of 128 min-wise hashes over these
runs. The bytes of two sketches at one place are equal with a chance of J + (1 - J) / 256, where J is the
Jaccard similarity of the two sets of runs (b-bit min-wise hashing, Li and König 2010).
"""

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # pyright: ignore[reportMissingTypeStubs, reportAttributeAccessIssue, reportUnknownVariableType]

from psychocounsel.speeches.words import plain_words

RUN_LETTERS = 5
SKETCH_BYTES = 128

_SEED = 20231
_BATCH = 256  # its hashes stay in the processor's cache
_CHANCE = 1 / 256  # that bytes of unlike texts are equal
_LOWER = bytes(range(256)).lower()
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalnum())
_FACTORS = [np.uint64(pow(0x9E3779B97F4A7C15, place, 1 << 64)) for place in range(RUN_LETTERS)]

Hashes = NDArray[np.uint64]
SketchArray = NDArray[np.uint8]


class Sketches(NamedTuple):
    """What is kept of texts, in their order.

    Attributes:
        sketches: [texts, SKETCH_BYTES].
        digests: [texts]; equal where two texts have the same runs, each as often.
    """

    sketches: SketchArray
    digests: Hashes


class _DigestMatrix(Protocol):
    def to_rows(self) -> list[list[int]]: ...


_min_hashes = cast(
    "Callable[[Hashes, Hashes, int, int], _DigestMatrix]",
    RMinHash.digest_matrix_from_flat_token_hashes,  # pyright: ignore[reportUnknownMemberType]
)


def sketch(texts: Collection[str]) -> Sketches:
    """Sketch texts one batch at a time; 136 bytes of each stay in memory."""
    whole = Sketches(np.empty((len(texts), SKETCH_BYTES), np.uint8), np.empty(len(texts), np.uint64))
    stream = iter(texts)
    start = 0
    while batch := list(islice(stream, _BATCH)):
        place = slice(start, start := start + len(batch))
        whole.sketches[place], whole.digests[place] = _sketch_batch(batch)
    return whole


def letters(text: str) -> str:
    """Return the letters and digits of a text in lower case, without what stands between them.

    A text of signs alone, such as emoji, is left as it is but for white space.
    """
    if text.isascii():
        bare = text.encode("ascii").translate(_LOWER, _NO_LETTERS).decode("ascii")
    else:
        bare = "".join(plain_words(text))
    return bare or "".join(text.split())


def runs(text: str) -> set[str]:
    """Return the set of runs of five letters in a text; a shorter text is one run."""
    bare = letters(text)
    return {bare[at : at + RUN_LETTERS] for at in range(max(1, len(bare) - RUN_LETTERS + 1))}


def similarity_estimates(
    sketches: SketchArray, left: NDArray[np.intp], right: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity of each pair of rows; standard deviation below 0.045."""
    equal = (sketches[left] == sketches[right]).mean(axis=1)
    return (equal - _CHANCE) / (1 - _CHANCE)


def _sketch_batch(texts: Sequence[str]) -> Sketches:
    hashes, offsets = _run_hashes(texts)
    rows = _min_hashes(hashes, offsets, SKETCH_BYTES, _SEED).to_rows()
    low_bytes = (np.array(rows, dtype=np.uint32) & 0xFF).astype(np.uint8)
    return Sketches(low_bytes, np.add.reduceat(hashes, offsets[:-1].astype(np.intp)))


def _run_hashes(texts: Sequence[str]) -> tuple[Hashes, Hashes]:
    """Return a 64-bit hash of every run of every text, and where each text's hashes start and end.

    The hash depends on nothing but the letters, so sketches agree between runs and machines.
    """
    padded = [letters(text).ljust(RUN_LETTERS, "\0") for text in texts]
    ends = np.cumsum([len(bare) for bare in padded])
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    hashes = np.zeros(codes.size - RUN_LETTERS + 1, dtype=np.uint64)
    for place, factor in enumerate(_FACTORS):
        hashes += codes[place : place + hashes.size] * factor
    in_one_text = np.ones(hashes.size, dtype=np.bool_)
    in_one_text[np.subtract.outer(ends[:-1], np.arange(1, RUN_LETTERS))] = False
    offsets = np.zeros(ends.size + 1, dtype=np.uint64)
    offsets[1:] = ends - np.arange(1, ends.size + 1) * (RUN_LETTERS - 1)
    return _mixed(hashes[in_one_text]), offsets


def _mixed(hashes: Hashes) -> Hashes:
    """Spread every bit over all 64, in place (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes
