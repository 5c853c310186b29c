"""Speech -> split: near-duplicates stay together, and nothing is split by row."""

import re
from collections import defaultdict
from collections.abc import Sequence

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.domain import Speech, content_id
from psychocounsel.errors import DataQualityError

_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 3
_COMMON_SHINGLE = 50


def clusters(speeches: Sequence[Speech], similarity: float) -> list[str]:
    """Return for each speech the id of its cluster: the smallest speech id in it.

    Two speeches are near-duplicates when the Jaccard similarity of their sets of three-word shingles
    reaches `similarity`; clusters are the connected components. Shingles that stand in more than 50 speeches
    do not propose a comparison, which keeps the work near linear.
    """
    shingles = [_shingles(speech.text) for speech in speeches]
    roots = list(range(len(speeches)))
    for left, right in _proposed(shingles):
        if _jaccard(shingles[left], shingles[right]) >= similarity:
            roots[_root(roots, left)] = _root(roots, right)
    members: dict[int, list[str]] = defaultdict(list)
    for at, speech in enumerate(speeches):
        members[_root(roots, at)].append(speech.id)
    return [min(members[_root(roots, at)]) for at in range(len(speeches))]


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    return frozenset(tuple(words[at : at + _SHINGLE_WORDS]) for at in range(count))


def _proposed(shingles: Sequence[frozenset[tuple[str, ...]]]) -> set[tuple[int, int]]:
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, own in enumerate(shingles):
        for shingle in own:
            holders[shingle].append(at)
    return {
        (left, right)
        for sharing in holders.values()
        if 1 < len(sharing) <= _COMMON_SHINGLE
        for position, left in enumerate(sharing)
        for right in sharing[position + 1 :]
    }


def _jaccard(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
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
