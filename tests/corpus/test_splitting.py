"""Speech -> split: clusters stay whole, and every topic gives its share."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from psychocounsel.config.schema import SplitConfig
from psychocounsel.corpus.deduplicate import assign_splits
from psychocounsel.errors import DataQualityError, ExitCode

TOPICS = ("grief", "sleep", "work")


def clustered(seed: int, count: int) -> NDArray[np.uint64]:
    """Return cluster ids of speeches, about a third of which share one with another."""
    draw = random.Random(seed)  # noqa: S311
    ids: list[int] = []
    while len(ids) < count:
        ids.append(draw.choice(ids) if ids and draw.random() < 0.33 else draw.getrandbits(64))
    return np.array(ids, dtype=np.uint64)


def alone(count: int) -> NDArray[np.uint64]:
    return np.arange(count, dtype=np.uint64)


shares = st.floats(0.05, 0.4)


@given(st.integers(0, 2**32 - 1), st.integers(40, 80), shares, shares, st.booleans())
def test_splits_hold_whole_clusters_near_their_shares_in_any_order(
    seed: int, count: int, test_share: float, dev_share: float, stratify: bool
) -> None:
    ids = clustered(seed, count)
    topics = [TOPICS[int(each) % 3] for each in ids]
    config = SplitConfig(test_share=test_share, dev_share=dev_share, seed=seed, stratify=stratify)
    try:
        splits = assign_splits(ids, topics, config)
    except DataQualityError:
        return
    assert len(set(zip(ids.tolist(), splits, strict=True))) == len(set(ids.tolist()))
    largest = max(Counter(ids.tolist()).values())
    for split, share in (("test", test_share), ("dev", dev_share)):
        assert abs(splits.count(split) - round(share * count)) < largest

    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311
    again = assign_splits(ids[order], [topics[at] for at in order], config)
    assert again == [splits[at] for at in order]


def test_every_topic_gives_its_share() -> None:
    topics = ["grief"] * 10 + ["sleep"] * 20 + ["work"] * 70
    splits = assign_splits(alone(100), topics, SplitConfig(test_share=0.2, dev_share=0.1))
    by_topic = Counter(zip(topics, splits, strict=True))
    assert [by_topic[topic, "test"] for topic in TOPICS] == [2, 4, 14]
    assert [by_topic[topic, "dev"] for topic in TOPICS] == [1, 2, 7]


def test_without_strata_topics_do_not_matter() -> None:
    config = SplitConfig(stratify=False)
    assert assign_splits(alone(60), ["a", "b"] * 30, config) == assign_splits(alone(60), [""] * 60, config)


def test_topics_too_small_for_a_share_of_their_own_share_one() -> None:
    topics = [f"topic {at}" for at in range(40)]
    splits = assign_splits(alone(40), topics, SplitConfig(test_share=0.25, dev_share=0.1))
    assert (splits.count("test"), splits.count("dev")) == (10, 4)


def test_another_seed_splits_otherwise() -> None:
    one, two = (assign_splits(alone(60), [""] * 60, SplitConfig(seed=seed)) for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize(
    ("count", "shares", "missing"),
    [
        (0, {}, "train and dev and test"),
        (2, {}, "dev and test"),
        (8, {"test_share": 0.0, "dev_share": 0.05}, "dev"),
        (1, {"test_share": 0.6, "dev_share": 0.0}, "train"),
    ],
)
def test_an_empty_split_ends_with_data_quality(count: int, shares: dict[str, float], missing: str) -> None:
    with pytest.raises(DataQualityError, match=f"no speech is left for {missing}: {count} were") as fault:
        assign_splits(alone(count), [""] * count, SplitConfig.model_validate(shares))
    assert fault.value.exit_code == ExitCode.DATA_QUALITY == 4


def test_a_split_that_nobody_asked_for_may_be_empty() -> None:
    config = SplitConfig(test_share=0.0, dev_share=0.0)
    assert assign_splits(alone(5), [""] * 5, config) == ["train"] * 5
