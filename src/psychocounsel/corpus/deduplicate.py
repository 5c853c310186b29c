"""Clusters of near-duplicate speeches, splits that keep clusters whole, and spans shared with a benchmark.

Near-duplicates take 250 bytes of memory per speech. Texts with equal runs of letters are one from the start. Of
the others, two are compared where four bytes in a row of their sketches are equal, and joined where the Jaccard
similarity of their runs of five letters, counted on the texts themselves, reaches the threshold; clusters are the
connected components. So no two are joined that are less alike, but a pair may be missed: at a similarity of 0.5 one
in nine is, at 0.6 one in a hundred, at 0.7 one in six thousand. Speeches that say the same in other words are not
found.
"""

import math
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, repeat
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rensa import RMinHash  # pyrefly: ignore[missing-module-attribute]

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.corpus.text import plain_words
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.types import SPLITS, Speech, content_id

# --- Sketches --------------------

RUN_LETTERS = 5
SKETCH_BYTES = 128

_SEED = 20231
_BATCH = 256  # its hashes stay in the processor's cache
_CHANCE = 1 / 256  # that bytes of unlike texts are equal
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, place, 1 << 64) for place in range(RUN_LETTERS)], np.uint64)

Hashes = NDArray[np.uint64]
SketchArray = NDArray[np.uint8]
Positions = NDArray[np.intp]


class Texts(Protocol):
    """Texts in memory or on disk."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, at: int, /) -> str: ...


class Sketches(NamedTuple):
    """[texts, SKETCH_BYTES] sketches, and [texts] digests: equal where texts have the same runs, each as often."""

    sketches: SketchArray
    digests: Hashes


_min_hashes = cast("Callable[[Hashes, Hashes, int, int], Any]", RMinHash.digest_matrix_from_flat_token_hashes)


def sketch(texts: Texts) -> Sketches:
    """Sketch texts one batch at a time; 136 bytes of each stay in memory."""
    whole = Sketches(np.empty((len(texts), SKETCH_BYTES), np.uint8), np.empty(len(texts), np.uint64))
    stream = iter(texts)
    start = 0
    while batch := list(islice(stream, _BATCH)):
        hashes, offsets = _run_hashes(batch)
        rows = _min_hashes(hashes, offsets, SKETCH_BYTES, _SEED).to_rows()
        place = slice(start, start := start + len(batch))
        whole.sketches[place] = (np.array(rows, dtype=np.uint32) & 0xFF).astype(np.uint8)
        whole.digests[place] = np.add.reduceat(hashes, offsets[:-1].astype(np.intp))
    return whole


def letters(text: str) -> str:
    """Return the letters and digits of a text in lower case; one without any, such as emoji, without white space."""
    return "".join(plain_words(text)) or "".join(text.split())


def runs(text: str) -> set[str]:
    """Return the set of runs of five letters in a text; a shorter text is one run."""
    bare = letters(text)
    return {bare[at : at + RUN_LETTERS] for at in range(max(1, len(bare) - RUN_LETTERS + 1))}


def _run_hashes(texts: Sequence[str]) -> tuple[Hashes, Hashes]:
    """Return a 64-bit hash of every run of every text, and where each text's hashes start and end.

    The hash depends only on the letters, so sketches agree between runs and machines.
    """
    padded = [letters(text).ljust(RUN_LETTERS, "\0") for text in texts]
    ends = np.cumsum([len(bare) for bare in padded])
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    hashes = np.correlate(codes.astype(np.uint64), _FACTORS, mode="valid")
    in_one_text = np.ones(hashes.size, dtype=np.bool_)
    in_one_text[np.subtract.outer(ends[:-1], np.arange(1, RUN_LETTERS))] = False
    offsets = np.zeros(ends.size + 1, dtype=np.uint64)
    offsets[1:] = ends - np.arange(1, ends.size + 1) * (RUN_LETTERS - 1)
    hashes = hashes[in_one_text]
    # Spread every bit over all 64 (the finaliser of SplitMix64, Steele, Lea and Flood 2014).
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    return hashes, offsets


# --- Clusters --------------------

_NEIGHBOURS = 8  # bounds the pairs of each band by 8 n
_MARGIN = 0.15  # four standard deviations of an estimate
_MAX_REFUSALS = 8
_BLOCK = 1 << 15
_CACHED_TEXTS = 256
_PAST_THE_END = np.full(_NEIGHBOURS, 1 << 63, dtype=np.uint64)


def cluster_ids(ids: Hashes, texts: Texts, similarity: float) -> Hashes:
    """Return for each text the smallest id in its cluster; the order of the input makes no difference.

    `ids`, [texts], are numbers made of their content. `texts` are iterated once, then read at random, two for every
    pair that is counted. `similarity` is the least Jaccard similarity of two near-duplicates, 0.5 to 1.
    """
    if not len(ids):
        return ids
    by_id = np.argsort(ids, kind="stable")
    sketches, digests = sketch(texts)
    _, firsts, group = np.unique(digests[by_id], return_index=True, return_inverse=True)
    leaders, distinct = firsts[group], np.sort(firsts)
    roots = _cluster_roots(texts, sketches, by_id[distinct], similarity)
    smallest = distinct[roots][np.searchsorted(distinct, leaders)]
    found = np.empty_like(ids)
    found[by_id] = ids[by_id[smallest]]
    return found


def _cluster_roots(texts: Texts, sketches: SketchArray, rows: Positions, similarity: float) -> Positions:
    """Return for each of the distinct texts in `rows`, smallest id first, the first in its cluster."""

    @lru_cache(_CACHED_TEXTS)
    def runs_of(text: int) -> set[str]:
        return runs(texts[int(rows[text])])

    forest = _Forest(len(rows))
    refusals = np.zeros(len(rows), dtype=np.int32)
    for left, right in neighbours(sketches, rows):
        roots = forest.roots()
        apart = roots[left] != roots[right]
        left, right = left[apart], right[apart]
        equal = (sketches[rows[left]] == sketches[rows[right]]).mean(axis=1)
        estimates = (equal - _CHANCE) / (1 - _CHANCE)  # of the similarity; their standard deviation is below 0.045
        # Where many texts lie just below the threshold, counting every pair would take hours.
        refused = np.minimum(refusals[left], refusals[right]) >= _MAX_REFUSALS
        likely = estimates >= similarity + np.where(refused, _MARGIN, -_MARGIN)
        for one, other in zip(left[likely].tolist(), right[likely].tolist(), strict=True):
            if forest.root(one) == forest.root(other):
                continue
            one_runs, other_runs = runs_of(one), runs_of(other)
            both = len(one_runs & other_runs)
            if both / (len(one_runs) + len(other_runs) - both) >= similarity:
                forest.join(one, other)
            else:
                refusals[[one, other]] += 1
    return forest.roots()


def neighbours(sketches: SketchArray, rows: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Yield blocks of pairs of texts that share a band of their sketches, one band in memory at a time.

    A band that n texts share, as where one phrase opens them all, does not give n² pairs: they are sorted by
    the band that follows, and each is paired with the next few only.
    """
    bands = sketches.view("<u4")  # [texts, bands] of four bytes
    count = bands.shape[1]
    for band in range(count):
        keys = bands[rows, band].astype(np.uint64) << np.uint64(32) | bands[rows, (band + 1) % count]
        order = np.argsort(keys, kind="stable")
        shared = np.append(keys[order] >> np.uint64(32), _PAST_THE_END)
        following = sliding_window_view(shared, _NEIGHBOURS + 1)  # [texts, itself and the next few]
        for start in range(0, len(rows), _BLOCK):
            part = following[start : start + _BLOCK]
            at, step = np.nonzero(part[:, 1:] == part[:, :1])
            left, right = order[start + at], order[start + at + step + 1]
            for block in range(0, len(left), _BLOCK):
                yield left[block : block + _BLOCK], right[block : block + _BLOCK]


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
        """Return the root of every text, and shorten every path to one step."""
        while not np.array_equal(above := self._parents[self._parents], self._parents):
            self._parents = above
        return self._parents


def with_conversations(clusters: Hashes, speeches: Iterable[Speech], conversations: Sequence[str] = ()) -> Hashes:
    """Return the clusters, joined where they hold turns of one conversation.

    Two speeches are turns of one if their `conversations` have one name, or if the client says one of them, word for
    word, in the history of the other. `clusters`, [speeches], are ids of near-duplicates; `speeches` are iterated
    twice.
    """
    unique, places = np.unique(clusters, return_inverse=True)
    forest = _Forest(len(unique))
    named: dict[str, int] = {}
    said: dict[bytes, int] = {}
    for place, speech, name in zip(places.tolist(), speeches, conversations or repeat(""), strict=False):
        said[_digest(speech.text)] = place
        if name:
            forest.join(named.setdefault(name, place), place)
    for place, speech in zip(places.tolist(), speeches, strict=True):
        for turn in speech.history:
            if turn.role == "user":
                forest.join(said.get(_digest(turn.content), place), place)
    return unique[forest.roots()[places]]


# --- Splits --------------------

_MOST_OF_A_SHARE = 2


def assign_splits(
    cluster_ids: Hashes, topics: Sequence[str], config: SplitConfig, given: Sequence[str] = ()
) -> list[str]:
    """Return `train`, `dev` or `test` for each speech; clusters stay whole.

    Within a topic, clusters are sorted by a hash of seed and cluster id and fill test, then dev, then train;
    what one topic lacks in whole clusters, the next one adds. A cluster with several topics counts for the first in the
    alphabet. One of more than twice a split's share is trained on, unless the split would be empty. The order of the
    speeches makes no difference.

    `given` are the splits that sources name, empty for none; a cluster with several belongs to test before dev, and to
    dev before train. Where none is given as dev, or as test, those of train may fill it.

    Raises:
        DataQualityError: a split with a share is empty.
    """
    unique, first, place, sizes = np.unique(cluster_ids, return_index=True, return_inverse=True, return_counts=True)
    topic_of = [topics[at] if config.stratify else "" for at in first]
    for at, topic in zip(place, topics, strict=True):
        topic_of[at] = min(topic_of[at], topic)
    given_to: dict[int, str] = {}
    for at, split in zip(place, given, strict=False):
        if split:
            given_to[at] = max(given_to.get(at, split), split, key=SPLITS.index)
    fillable = {"": SPLITS, "train": [split for split in SPLITS if split not in given]}
    by_topic: dict[str, list[int]] = defaultdict(list)
    for at, topic in enumerate(topic_of):
        by_topic[topic].append(at)
    order = {at: content_id("split", str(config.seed), f"{each:016x}") for at, each in enumerate(unique)}
    is_trained_on = config.test_share + config.dev_share < 1
    required = {"train": is_trained_on, "dev": config.dev_share > 0, "test": config.test_share > 0}
    shares = {"test": config.test_share, "dev": config.dev_share}
    empty: list[str] = []
    for most in (_MOST_OF_A_SHARE, math.inf) if is_trained_on else (math.inf,):
        largest = {name: most * share * len(topics) for name, share in shares.items()}
        split_of = [""] * len(unique)
        filled = dict.fromkeys(SPLITS, 0)
        seen = 0
        for topic in sorted(by_topic):
            seen += int(sizes[by_topic[topic]].sum())
            wanted = {name: round(share * seen) for name, share in shares.items()}
            for at in sorted(by_topic[topic], key=order.__getitem__):
                own = given_to.get(at, "")
                open_to = (name for name in wanted if name in fillable.get(own, ()) and sizes[at] <= largest[name])
                split_of[at] = next((name for name in open_to if filled[name] < wanted[name]), own or "train")
                filled[split_of[at]] += int(sizes[at])
        empty = [name for name in SPLITS if required[name] and not filled[name]]
        if not empty:
            return [split_of[at] for at in place]
    raise DataQualityError(
        f"no speech is left for {' and '.join(empty)}: {len(topics)} were kept, in {len(unique)} clusters of "
        "near-duplicates or conversations, which stay whole",
        where="corpus.split",
        remedy="add speeches, loosen cleaning, or change the shares or split.near_duplicate_similarity",
    )


# --- Spans shared with a benchmark --------------------

# A model that is trained on texts of a benchmark cannot be measured with it. Spans are compared by 64-bit hashes only:
# with an index of ten million spans and a million speeches of 80 words, the chance of one false hit, which drops one
# speech, is 4 in 100,000.

MIN_WHOLE_WORDS = 5
"""A text shorter than a span counts as a whole, from this many words on: "thank you so much" is no leak."""

_MAX_CACHED_WORDS = 20_000
# Thai and Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class ExclusionIndex:
    """Hashes of all spans of all excluded texts: 8 bytes per word, whatever the length of a span.

    `sources` are name and texts of each benchmark, read once; `span_words` equal words in a row count as a leak. In
    scripts without spaces, such as Chinese, each letter is a word.
    Raises InputError if a source has no text that is long enough to compare.
    """

    def __init__(self, sources: Iterable[tuple[str, Iterable[str]]], span_words: int) -> None:
        # Names and typing errors have no end.
        self._hash = lru_cache(_MAX_CACHED_WORDS)(_digest)
        factors = (int.from_bytes(_digest(f"place {place}"), "little") | 1 for place in range(span_words))
        self._factors = np.fromiter(factors, dtype=np.uint64, count=span_words)
        self._known = [(name, self._all_spans(name, texts)) for name, texts in sources]

    def shares_span(self, text: str) -> str | None:
        """Return the first source with which a text, or all of a short one, shares a span; None if there is none."""
        spans = self._spans(text)
        if not spans.size:
            return None
        nearest = ((name, known.take(known.searchsorted(spans), mode="clip")) for name, known in self._known)
        return next((name for name, near in nearest if (near == spans).any()), None)

    def _all_spans(self, name: str, texts: Iterable[str]) -> Hashes:
        grown = array("Q")  # grows in place; joining small arrays would need the memory twice
        for text in texts:
            grown.frombytes(self._spans(text).tobytes())
        if not grown:
            raise InputError(
                f"it has no text of {MIN_WHOLE_WORDS} words or more",
                where=name,
                remedy="check the columns of exclude, or remove the source",
            )
        hashes = np.frombuffer(grown, dtype=np.uint64)
        hashes.sort()
        return hashes

    def _spans(self, text: str) -> Hashes:
        """Return a hash of each span, the sum of each word's hash times a factor for its place in the span."""
        spaced = text if text.isascii() else _UNSPACED.sub(r" \g<0> ", text)
        words = b"".join(map(self._hash, plain_words(spaced)))
        hashes = np.frombuffer(words, dtype="<u8").astype(np.uint64)
        if hashes.size < min(MIN_WHOLE_WORDS, self._factors.size):
            return hashes[:0]
        return np.correlate(hashes, self._factors[: hashes.size], mode="valid")


def _digest(word: str) -> bytes:
    # Python's own hash differs from run to run.
    return blake2b(word.encode("utf-8"), digest_size=8).digest()
