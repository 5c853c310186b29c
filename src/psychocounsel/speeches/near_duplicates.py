"""Speech -> cluster of near-duplicates, with 250 bytes of memory a speech.

Texts with equal runs of letters are one from the start. Of the others, two are compared where four bytes in
a row of their sketches are equal, and joined where the Jaccard similarity of their runs of five letters,
counted on the texts themselves, reaches the one asked for; clusters are the connected components. So no two
are joined that are less alike, but a pair may be missed: at a similarity of 0.5 one in nine is, at 0.6 one in
a hundred, at 0.7 one in six thousand. Speeches that say the same in other words are not found.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from psychocounsel.speeches.sketches import Hashes, SketchArray, runs, similarity_estimates, sketch

_NEIGHBOURS = 8  # bounds the pairs of each band by 8 n
_MARGIN = 0.15  # four standard deviations of an estimate
_REFUSALS = 8
_BLOCK = 1 << 15
_CACHED_TEXTS = 256
_NOBODY = np.full(_NEIGHBOURS, 1 << 63, dtype=np.uint64)

Positions = NDArray[np.intp]


def cluster_ids(ids: Hashes, texts: Sequence[str], similarity: float) -> Hashes:
    """Return for each text the smallest id in its cluster; the order of the input makes no difference.

    Args:
        ids: [texts], numbers made of their content: equal ids, equal texts.
        texts: iterated once, then read at random, two for every pair that is counted.
        similarity: the least Jaccard similarity of two near-duplicates, 0.5 to 1.
    """
    if not len(ids):
        return ids
    by_id = np.argsort(ids, kind="stable")
    sketches, digests = sketch(texts)
    leaders = _first_equals(digests[by_id])
    distinct = np.unique(leaders)
    roots = _Comparison(texts, sketches, by_id[distinct], similarity).roots()
    smallest = distinct[roots][np.searchsorted(distinct, leaders)]
    found = np.empty_like(ids)
    found[by_id] = ids[by_id[smallest]]
    return found


def _first_equals(digests: Hashes) -> Positions:
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    return first[group]


class _Comparison:
    """Finds who of the distinct texts belongs together; `rows` says where they stand, smallest id first."""

    def __init__(
        self, texts: Sequence[str], sketches: SketchArray, rows: Positions, similarity: float
    ) -> None:
        def runs_of(text: int) -> set[str]:
            return runs(texts[int(rows[text])])

        self._runs = lru_cache(_CACHED_TEXTS)(runs_of)
        self._sketches, self._rows, self._similarity = sketches, rows, similarity
        self._forest = _Forest(len(rows))
        self._refusals = np.zeros(len(rows), dtype=np.int32)

    def roots(self) -> Positions:
        """Return for each text the first in its cluster."""
        for left, right in neighbours(self._sketches, self._rows):
            for start in range(0, len(left), _BLOCK):
                self._join(left[start : start + _BLOCK], right[start : start + _BLOCK])
        return self._forest.roots()

    def _join(self, left: Positions, right: Positions) -> None:
        roots = self._forest.roots()
        apart = roots[left] != roots[right]
        left, right = left[apart], right[apart]
        estimates = similarity_estimates(self._sketches, self._rows[left], self._rows[right])
        # Where whole families of texts lie just below the similarity, counting every pair would take hours.
        tired = np.minimum(self._refusals[left], self._refusals[right]) >= _REFUSALS
        worth = estimates >= self._similarity + np.where(tired, _MARGIN, -_MARGIN)
        for pair in zip(left[worth].tolist(), right[worth].tolist(), strict=True):
            self._join_if_alike(*pair)

    def _join_if_alike(self, left: int, right: int) -> None:
        if self._forest.root(left) == self._forest.root(right):
            return
        if _jaccard(self._runs(left), self._runs(right)) >= self._similarity:
            self._forest.join(left, right)
        else:
            self._refusals[[left, right]] += 1


def neighbours(sketches: SketchArray, rows: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Yield pairs of texts that share a band of their sketches, one band in memory at a time.

    A band that n texts share, as where one phrase opens them all, does not give n² pairs: they are put in the
    order of the band that follows, and each is paired with the next few only.
    """
    bands = sketches.view("<u4")  # [texts, bands] of four bytes
    count = bands.shape[1]
    for band in range(count):
        keys = bands[rows, band].astype(np.uint64) << np.uint64(32) | bands[rows, (band + 1) % count]
        order = np.argsort(keys, kind="stable")
        shared = np.append(keys[order] >> np.uint64(32), _NOBODY)
        following = sliding_window_view(shared, _NEIGHBOURS + 1)  # [texts, itself and the next few]
        for start in range(0, len(rows), _BLOCK):
            part = following[start : start + _BLOCK]
            at, step = np.nonzero(part[:, 1:] == part[:, :1])
            yield order[start + at], order[start + at + step + 1]


def _jaccard(left: set[str], right: set[str]) -> float:
    both = len(left & right)
    return both / (len(left) + len(right) - both)


class _Forest:
    """Disjoint sets of texts; the root of each is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)

    def root(self, at: int) -> int:
        parents = self._parents
        while (parent := parents[at]) != at:
            parents[at] = parents[parent]
            at = int(parents[at])
        return at

    def join(self, left: int, right: int) -> None:
        first, second = sorted((self.root(left), self.root(right)))
        self._parents[second] = first

    def roots(self) -> Positions:
        """Return the root of every text, and shorten every way there to one step."""
        while not np.array_equal(above := self._parents[self._parents], self._parents):
            self._parents = above
        return self._parents
