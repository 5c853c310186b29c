"""Speech -> split: near-duplicates stay together, whatever their order and number."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.domain import Speech
from psychocounsel.errors import DataQualityError, ExitCode
from psychocounsel.speeches.splitting import assign_splits, clusters

TIRED = (
    "(Looks away) I have been so tired since the funeral, and my sister keeps calling every evening to ask "
    "whether I have eaten, so I say yes and then I sit in the dark kitchen until the news is over."
)
SHIFT = (
    "They moved me to nights in March. I sleep when the children are awake and I am awake when they sleep, "
    "and last week the little one asked my mother who the man on the sofa was."
)


def same_cluster(left: str, right: str, similarity: float = 0.7) -> bool:
    ids = clusters([Speech(left), Speech(right)], similarity)
    return ids[0] == ids[1]


@pytest.mark.parametrize(
    "variant",
    [
        TIRED.upper(),
        TIRED.replace(",", " -").replace(".", "!"),
        TIRED + " Is that normal?",
        "Hello. " + TIRED,
        TIRED.replace("sister", "brother"),
        TIRED.replace(" ", "\n"),
    ],
)
def test_near_duplicates_share_a_cluster(variant: str) -> None:
    assert variant != TIRED
    assert same_cluster(TIRED, variant)


def test_unrelated_speeches_do_not() -> None:
    assert not same_cluster(TIRED, SHIFT)
    assert not same_cluster(TIRED, " ".join(reversed(TIRED.split())))


def test_the_threshold_is_the_jaccard_similarity_of_three_word_shingles() -> None:
    # a..j has 8 shingles; with the last word changed 7 are shared of 9 in all.
    left, right = "a b c d e f g h i j", "a b c d e f g h i k"
    assert same_cluster(left, right, 7 / 9)
    assert not same_cluster(left, right, 7 / 9 + 1e-6)


def test_a_threshold_whose_product_floats_above_a_whole_number_loses_no_pair() -> None:
    assert 0.28 * 25 > 7
    whole = [f"w{at}" for at in range(27)]  # 25 shingles, the first 7 of them in the excerpt
    assert same_cluster(" ".join(whole), " ".join(whole[:9]), 0.28)


def test_a_chain_of_near_duplicates_is_one_cluster() -> None:
    words = [f"w{at}" for at in range(40)]
    chain = [Speech(" ".join(words[at : at + 30])) for at in range(0, 11, 2)]
    assert not same_cluster(chain[0].text, chain[-1].text)
    assert len(set(clusters(chain, 0.7))) == 1


def test_a_cluster_is_named_by_its_smallest_speech() -> None:
    speeches = [Speech(TIRED), Speech(TIRED.upper()), Speech(SHIFT)]
    smallest = min(speeches[0].id, speeches[1].id)
    assert clusters(speeches, 0.7) == [smallest, smallest, speeches[2].id]


def test_no_number_of_copies_parts_them() -> None:
    upper = [TIRED[:at].upper() + TIRED[at:] for at in range(0, 180)]
    ending = [f"{TIRED} And that is number {at}." for at in range(120)]
    ids = clusters([Speech(text) for text in dict.fromkeys([*upper, *ending])], 0.7)
    assert len(set(ids)) == 1


words = st.sampled_from(["a", "b", "c", "d"])
short_texts = st.lists(
    st.lists(words, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=12, unique=True
)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))}


def brute_force_clusters(texts: list[str], similarity: float) -> set[frozenset[str]]:
    groups = [{text} for text in texts]
    for left in texts:
        for right in texts:
            both, either = shingles(left) & shingles(right), shingles(left) | shingles(right)
            if len(both) / len(either) >= similarity:
                joined = [group for group in groups if left in group or right in group]
                groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return {frozenset(group) for group in groups}


@given(short_texts, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_no_pair_of_near_duplicates_is_missed(texts: list[str], similarity: float) -> None:
    found: dict[str, set[str]] = {}
    for text, cluster in zip(texts, clusters([Speech(text) for text in texts], similarity), strict=True):
        found.setdefault(cluster, set()).add(text)
    assert {frozenset(group) for group in found.values()} == brute_force_clusters(texts, similarity)


def corpus(seed: int, count: int) -> list[Speech]:
    """Return distinct speeches, of which about a third are near-duplicates of another."""
    draw = random.Random(seed)  # noqa: S311
    texts: list[str] = []
    while len(texts) < count:
        if texts and draw.random() < 0.33:
            texts.append(f"{draw.choice(texts)} {draw.random()}")
        else:
            texts.append(" ".join(str(draw.randrange(500)) for _ in range(30)))
    return [Speech(text) for text in texts]


shares = st.floats(0.05, 0.4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(40, 80), shares, shares)
def test_splits_hold_whole_clusters_near_their_shares_in_any_order(
    seed: int, count: int, test_share: float, dev_share: float
) -> None:
    speeches = corpus(seed, count)
    config = SplitConfig(test_share=test_share, dev_share=dev_share, seed=seed)
    cluster_ids = clusters(speeches, config.near_duplicate_similarity)
    try:
        splits = assign_splits(speeches, cluster_ids, config)
    except DataQualityError:
        return
    assert len(set(zip(cluster_ids, splits, strict=True))) == len(set(cluster_ids))
    largest = max(Counter(cluster_ids).values())
    for split, share in (("test", test_share), ("dev", dev_share)):
        assert 0 <= splits.count(split) - round(share * count) < largest

    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311
    shuffled = [speeches[at] for at in order]
    ids_again = clusters(shuffled, config.near_duplicate_similarity)
    assert ids_again == [cluster_ids[at] for at in order]
    assert assign_splits(shuffled, ids_again, config) == [splits[at] for at in order]


def test_another_seed_splits_otherwise() -> None:
    speeches = corpus(1, 60)
    ids = clusters(speeches, 0.7)
    one, two = (assign_splits(speeches, ids, SplitConfig(seed=seed)) for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize(
    ("count", "shares", "missing"),
    [
        (0, {}, "test and dev and train"),
        (2, {}, "test and dev"),
        (8, {"test_share": 0.0, "dev_share": 0.05}, "dev"),
        (1, {"test_share": 0.6, "dev_share": 0.0}, "train"),
    ],
)
def test_an_empty_split_ends_with_data_quality(count: int, shares: dict[str, float], missing: str) -> None:
    speeches = [Speech(f"number {at}") for at in range(count)]
    with pytest.raises(
        DataQualityError, match=f"the split {missing} would be empty: {count} speeches"
    ) as fault:
        assign_splits(speeches, [speech.id for speech in speeches], SplitConfig.model_validate(shares))
    assert fault.value.exit_code == ExitCode.DATA_QUALITY == 4


def test_a_split_that_nobody_asked_for_may_be_empty() -> None:
    speeches = [Speech(f"number {at}") for at in range(5)]
    config = SplitConfig(test_share=0.0, dev_share=0.0)
    assert assign_splits(speeches, [speech.id for speech in speeches], config) == ["train"] * 5
