"""Speech -> split: near-duplicates stay together, and every topic gives its share."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.domain import content_id
from psychocounsel.errors import DataQualityError

SPLITS: tuple[str, ...] = ("train", "dev", "test")


class _Cluster(NamedTuple):
    """Speeches that stay together: their id, topic and number."""

    id: str
    topic: str
    size: int


def assign_splits(cluster_ids: NDArray[np.uint64], topics: Sequence[str], config: SplitConfig) -> list[str]:
    """Return `train`, `dev` or `test` for each speech.

    Within a topic, clusters are put in the order of a hash of seed and cluster id and fill test, then dev,
    then train; what one topic could not give in whole clusters, the next one does. So a cluster is never
    divided, and the same speeches are split alike whatever order they come in.

    Args:
        cluster_ids: [speeches].
        topics: of each speech; the first in the alphabet counts for a cluster of several.
        config: shares, seed, and whether topics matter.

    Raises:
        DataQualityError: a split that was asked for stays empty.
    """
    unique, place, sizes = np.unique(cluster_ids, return_inverse=True, return_counts=True)
    named = [f"{number:016x}" for number in unique.tolist()]
    topic_of = _topics(place.tolist(), topics, len(named)) if config.stratify else [""] * len(named)
    clusters = [_Cluster(*each) for each in zip(named, topic_of, sizes.tolist(), strict=True)]
    split_of = _fill(clusters, config)
    return [split_of[named[at]] for at in place.tolist()]


def _topics(place: Sequence[int], topics: Sequence[str], clusters: int) -> list[str]:
    first: list[str | None] = [None] * clusters
    for at, topic in zip(place, topics, strict=True):
        present = first[at]
        first[at] = topic if present is None else min(present, topic)
    return [topic or "" for topic in first]


def _fill(clusters: Sequence[_Cluster], config: SplitConfig) -> dict[str, str]:
    split_of: dict[str, str] = {}
    filled = dict.fromkeys(SPLITS, 0)
    seen = 0
    for _, group in sorted(_by_topic(clusters).items()):
        seen += sum(cluster.size for cluster in group)
        wanted = {"test": round(config.test_share * seen), "dev": round(config.dev_share * seen)}
        for cluster in sorted(group, key=lambda each: content_id("split", str(config.seed), each.id)):
            split = next((name for name, size in wanted.items() if filled[name] < size), "train")
            split_of[cluster.id] = split
            filled[split] += cluster.size
    _require_filled(filled, config, seen)
    return split_of


def _by_topic(clusters: Sequence[_Cluster]) -> dict[str, list[_Cluster]]:
    groups: dict[str, list[_Cluster]] = defaultdict(list)
    for cluster in clusters:
        groups[cluster.topic].append(cluster)
    return groups


def _require_filled(filled: dict[str, int], config: SplitConfig, speeches: int) -> None:
    asked = {"train": True, "dev": config.dev_share > 0, "test": config.test_share > 0}
    empty = [name for name, is_asked in asked.items() if is_asked and not filled[name]]
    if empty:
        raise DataQualityError(
            f"no speech is left for {' and '.join(empty)}: {speeches} were kept",
            where="corpus.split",
            remedy="add speeches, loosen corpus.cleaning, or change the shares",
        )
