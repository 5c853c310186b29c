"""Speech -> split: near-duplicates stay together, and nothing is split by row."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import ceil

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.domain import Speech, content_id
from psychocounsel.errors import DataQualityError

_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 3

Shingle = tuple[str, ...]


def clusters(speeches: Sequence[Speech], similarity: float) -> list[str]:
    """Return for each speech the id of its cluster: the smallest speech id in it.

    Two speeches are near-duplicates when the Jaccard similarity of their sets of three-word shingles
    reaches `similarity`; clusters are the connected components. No pair of near-duplicates is missed, however
    often a text is repeated.
    """
    own = [_shingles(speech.text) for speech in speeches]
    distinct = list(dict.fromkeys(own))  # texts that differ in case or punctuation only are one from here on
    roots = list(range(len(distinct)))
    for left, right in _proposed(distinct, similarity):
        first, second = _root(roots, left), _root(roots, right)
        if first != second and _jaccard(distinct[left], distinct[right]) >= similarity:
            roots[first] = second
    position = {shingles: at for at, shingles in enumerate(distinct)}
    component = [_root(roots, position[shingles]) for shingles in own]
    members: dict[int, list[str]] = defaultdict(list)
    for root, speech in zip(component, speeches, strict=True):
        members[root].append(speech.id)
    smallest = {root: min(ids) for root, ids in members.items()}
    return [smallest[root] for root in component]


def _shingles(text: str) -> frozenset[Shingle]:
    words = _WORD.findall(text.casefold())
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    return frozenset(tuple(words[at : at + _SHINGLE_WORDS]) for at in range(count))


def _proposed(texts: Sequence[frozenset[Shingle]], similarity: float) -> Iterator[tuple[int, int]]:
    """Yield every pair that may reach the similarity, some twice, and few that do not.

    Where the Jaccard similarity reaches s, each side shares at least ceil(s n) of its own n shingles. So with
    one order for all, rarest first, the first n - ceil(s n) + 1 of both sides have one in common (the prefix
    filter of Chaudhuri, Ganti and Kaushik 2006). Rare ones are held by few texts, so few pairs are compared.
    """
    counts = Counter(shingle for own in texts for shingle in own)
    holders: dict[Shingle, list[int]] = defaultdict(list)
    for at, own in enumerate(texts):
        rarest_first = sorted(own, key=lambda shingle: (counts[shingle], shingle))
        for shingle in rarest_first[: len(own) - _ceil(similarity * len(own)) + 1]:
            yield from ((other, at) for other in holders[shingle])
            holders[shingle].append(at)


def _ceil(product: float) -> int:
    """Round up, forgiving a product of floats that lies a hair above a whole number."""
    return ceil(product - 1e-9)


def _jaccard(left: frozenset[Shingle], right: frozenset[Shingle]) -> float:
    return len(left & right) / len(left | right)


def _root(roots: list[int], at: int) -> int:
    while roots[at] != at:
        roots[at] = roots[roots[at]]
        at = roots[at]
    return at


def assign_splits(speeches: Sequence[Speech], cluster_ids: Sequence[str], config: SplitConfig) -> list[str]:
    """Return `train`, `dev` or `test` for each speech.

    Clusters are put in the order of a hash of seed and cluster id and fill test, then dev, then train, so
    a cluster is never divided, and the same speeches are split alike whatever order they come in.

    Raises:
        DataQualityError: a split that was asked for stays empty.
    """
    sizes: dict[str, int] = defaultdict(int)
    for cluster in cluster_ids:
        sizes[cluster] += 1
    order = sorted(sizes, key=lambda cluster: content_id("split", str(config.seed), cluster))
    wanted = {
        "test": round(config.test_share * len(speeches)),
        "dev": round(config.dev_share * len(speeches)),
        "train": len(speeches),
    }
    split_of: dict[str, str] = {}
    filled: dict[str, int] = defaultdict(int)
    for cluster in order:
        split = next(name for name, size in wanted.items() if filled[name] < size or name == "train")
        split_of[cluster] = split
        filled[split] += sizes[cluster]
    _check_filled(filled, config, len(speeches))
    return [split_of[cluster] for cluster in cluster_ids]


def _check_filled(filled: dict[str, int], config: SplitConfig, speeches: int) -> None:
    asked = {"test": config.test_share > 0, "dev": config.dev_share > 0, "train": True}
    empty = [name for name, is_asked in asked.items() if is_asked and not filled[name]]
    if empty:
        raise DataQualityError(
            f"the split {' and '.join(empty)} would be empty: {speeches} speeches were kept",
            where="corpus.split",
            remedy="add speeches, loosen corpus.cleaning, or change the shares",
        )
