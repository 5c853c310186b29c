"""Near-duplicates, splits and leaked spans: copies are found, nothing else is joined, clusters stay whole."""

import json
import random
import re
import string
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counsel_chat import counsel_chat
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.corpus.deduplicate import ExclusionIndex, assign_splits, cluster_ids, letters, runs, sketch
from psychocounsel.corpus.text import normalise
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.types import Speech

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data" / "samples" / "speeches.jsonl"
SIMILARITY = SplitConfig().near_duplicate_similarity

TIRED = (
    "(Looks away) I have been so tired since the funeral, and my sister keeps calling every evening to ask "
    "whether I have eaten, so I say yes and then I sit in the dark kitchen until the news is over."
)
SHIFT = (
    "They moved me to nights in March. I sleep when the children are awake and I am awake when they sleep, "
    "and last week the little one asked my mother who the man on the sofa was."
)


def speech_ids(texts: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([int(Speech(text).id, 16) for text in texts], dtype=np.uint64)


def found_clusters(texts: Sequence[str], similarity: float = SIMILARITY) -> list[int]:
    return cluster_ids(speech_ids(texts), texts, similarity).tolist()


def same_cluster(left: str, right: str, similarity: float = SIMILARITY) -> bool:
    return len(set(found_clusters([left, right], similarity))) == 1


def sentences(text: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence]


def typos(text: str, rng: random.Random) -> str:
    words = text.split()
    for at in rng.sample(range(len(words)), max(1, round(0.05 * len(words)))):
        cut = rng.randrange(len(words[at]))
        words[at] = words[at][:cut] + rng.choice(["", *string.ascii_lowercase]) + words[at][cut + 1 :]
    return " ".join(words)


def sentence_moved(text: str, rng: random.Random) -> str:
    own = sentences(text)
    own.insert(rng.randrange(len(own)), own.pop(rng.randrange(len(own))))
    return " ".join(own)


def near_copy(text: str, number: int, rng: random.Random) -> str:
    """Return a copy that differs; where the change finds nothing to change, it has typos."""
    copy = [typos, sentence_moved][number % 2](text, rng)
    return copy if copy != text else typos(text, rng)


@cache
def samples() -> list[str]:
    return [json.loads(line)["text"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]


def questions() -> list[str]:
    texts = dict.fromkeys(normalise(row.question) for row in counsel_chat())
    return [text for text in texts if 100 <= len(text) <= 1000]


def made_up(count: int, rng: random.Random) -> list[str]:
    """Return speeches whose words, each for itself, come from the samples."""
    words = " ".join(samples()).split()
    return [" ".join(rng.choices(words, k=rng.randrange(25, 120))) for _ in range(count)]


@pytest.mark.parametrize("source", [samples, questions])
@pytest.mark.parametrize("seed", range(3))
def test_near_copies_are_found(source: Callable[[], list[str]], seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    texts = source()
    chosen = rng.sample(range(len(texts)), 50)
    copies = [near_copy(texts[at], number, rng) for number, at in enumerate(chosen)]
    found = found_clusters([*texts, *copies])
    together = [found[at] == found[len(texts) + number] for number, at in enumerate(chosen)]
    assert sum(together) >= 48
    assert len(set(found)) == len(texts) + 50 - sum(together)  # nothing else was joined


def test_unrelated_speeches_are_not_joined() -> None:
    texts = [*questions(), *samples()]
    texts += made_up(1000 - len(texts), random.Random(0))  # noqa: S311
    assert len(set(found_clusters(texts))) == len(texts) == 1000


@pytest.mark.parametrize(
    "variant",
    [
        TIRED.upper(), TIRED.replace(",", " -").replace(".", "!"), TIRED + " Is that normal?", "Hello. " + TIRED,
        TIRED.replace("sister", "brother"), TIRED.replace(" ", "\n"),
        TIRED.replace("I have", "I\u2019ve").replace("tired", "ti\u00adred"),
    ],
)  # fmt: skip
def test_near_duplicates_share_a_cluster(variant: str) -> None:
    assert variant != TIRED
    assert same_cluster(TIRED, variant)


def test_the_threshold_is_the_jaccard_similarity_of_runs_of_five_letters() -> None:
    # Sixteen letters have 12 runs; with the last letter changed 11 are shared of 13 in all.
    left, right = "abcd efgh ijkl mnop", "abcd efgh ijkl mnoz"
    assert runs("ab c-D-efg") == {"abcde", "bcdef", "cdefg"}
    assert same_cluster(left, right, 11 / 13)
    assert not same_cluster(left, right, 11 / 13 + 1e-6)


def test_a_chain_of_near_duplicates_is_one_cluster() -> None:
    words = made_up(1, random.Random(3))[0].split() * 2  # noqa: S311
    words = [f"{word}{at}" for at, word in enumerate(words)]
    chain = [" ".join(words[at : at + 24]) for at in range(0, 26, 2)]
    assert not same_cluster(chain[0], chain[-1])
    assert len(set(found_clusters(chain))) == 1


@pytest.mark.parametrize(
    "text", ["a", "...", "abcd", "\U0001f62d", "\u4f60\u597d", SHIFT, " ".join(reversed(TIRED.split()))]
)
def test_a_speech_shares_no_cluster_with_other_words(text: str) -> None:
    assert same_cluster(text, text + "\n")
    assert not same_cluster(text, TIRED)


def test_a_similarity_at_which_too_many_pairs_would_be_missed_is_refused() -> None:
    with pytest.raises(ValidationError, match="near_duplicate_similarity"):
        SplitConfig(near_duplicate_similarity=0.45)
    assert found_clusters([]) == []


@st.composite
def families(draw: st.DrawFn) -> list[str]:
    """Generate texts of which many are alike to some degree: stretches of one long text, with changes."""
    source = random.Random(draw(st.integers(0, 99)))  # noqa: S311
    words = made_up(1, source)[0].split() * 2
    starts = st.tuples(st.integers(0, 12), st.integers(6, 20), st.sampled_from(["", " And you?", " So."]))
    stretches = draw(st.lists(starts, min_size=1, max_size=10))
    return [" ".join(words[start : start + length]) + ending for start, length, ending in stretches]


def true_clusters(texts: Sequence[str], similarity: float) -> list[int]:
    """Return a root for each text, from every pair."""
    root = list(range(len(texts)))
    for left, right in combinations(range(len(texts)), 2):
        one, other = runs(texts[left]), runs(texts[right])
        if len(one & other) / len(one | other) >= similarity:
            root = [root[left] if each == root[right] else each for each in root]
    return root


similarities = st.sampled_from([0.5, 0.6, 0.8, 1.0])


@settings(max_examples=40)
@given(families(), similarities)
def test_only_near_duplicates_are_joined(texts: list[str], similarity: float) -> None:
    found, true = found_clusters(texts, similarity), true_clusters(texts, similarity)
    for left, right in combinations(range(len(texts)), 2):
        if found[left] == found[right]:
            assert true[left] == true[right]
        if letters(texts[left]) == letters(texts[right]):
            assert found[left] == found[right]


@settings(max_examples=40)
@given(families(), similarities, st.randoms(use_true_random=False))
def test_a_cluster_is_named_by_its_smallest_speech(texts: list[str], similarity: float, shuffle: random.Random) -> None:
    ids, found = speech_ids(texts).tolist(), found_clusters(texts, similarity)
    for cluster in set(found):
        assert cluster == min(own for own, at in zip(ids, found, strict=True) if at == cluster)
    order = list(range(len(texts)))
    shuffle.shuffle(order)
    assert found_clusters([texts[at] for at in order], similarity) == [found[at] for at in order]


class CountedTexts(list[str]):
    """Texts that count how often one is read at random."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


def one_opening(count: int, words: range) -> list[str]:
    """Return speeches that begin alike and go on in so many words of their own."""
    rng, known = random.Random(0), " ".join(samples()).split()  # noqa: S311
    return [f"{TIRED} {' '.join(rng.choices(known, k=rng.choice(words)))}" for _ in range(count)]


@pytest.mark.parametrize(
    ("texts", "clusters", "reads"),
    [
        ([TIRED.upper(), TIRED.lower(), TIRED.replace(" ", "  "), SHIFT] * 2500, 2, range(1)),
        ([f"{TIRED} That was call number {at}." for at in range(1000)], 1, range(1000, 3001)),
        (one_opening(600, range(30, 40)), 600, range(600 * 4)),
    ],
    ids=["copies", "variants", "just below the similarity"],
)
def test_few_speeches_are_compared(texts: list[str], clusters: int, reads: range) -> None:
    counted = CountedTexts(texts)
    assert len(np.unique(cluster_ids(speech_ids(texts), counted, SIMILARITY))) == clusters
    assert counted.reads in reads


def test_order_makes_no_difference_where_not_all_pairs_are_compared() -> None:
    texts = one_opening(300, range(20, 26))
    found = dict(zip(texts, found_clusters(texts), strict=True))
    assert 100 < len(set(found.values())) < 280
    for seed in range(2):
        random.Random(seed).shuffle(texts)  # noqa: S311
        assert dict(zip(texts, found_clusters(texts), strict=True)) == found


def test_few_pairs_of_middling_similarity_are_missed() -> None:
    """Each two of 400 speeches share 40 words."""
    rng, known = random.Random(0), " ".join(samples()).split()  # noqa: S311
    texts: list[str] = []
    for _ in range(200):
        same, *others = (" ".join(rng.choices(known, k=count)) for count in (40, 12, 12))
        texts += [f"{same} {other}" for other in others]
    own = [runs(text) for text in texts]
    true = [len(own[at] & own[at + 1]) / len(own[at] | own[at + 1]) for at in range(0, 400, 2)]
    assert 0.55 < np.mean(true) < 0.65
    found = found_clusters(texts)
    assert 200 <= len(set(found)) <= 210
    assert sum(found[at] == found[at + 1] for at in range(0, 400, 2)) == 400 - len(set(found))


def test_sketches_are_the_same_everywhere() -> None:
    """Other numbers than these mean other clusters: raise the version of the corpus."""
    made = sketch([TIRED, SHIFT])
    checks = np.bitwise_xor.reduce(made.sketches.view("<u8"), axis=1)
    assert made.sketches[:, :4].tolist() == [[36, 136, 162, 227], [33, 22, 73, 56]]
    assert checks.tolist() == [5322201018212562715, 16713583255721148047]
    assert made.digests.tolist() == [2381409141947832534, 10721321489376423808]


TOPICS = ("grief", "sleep", "work")


def clustered(seed: int, count: int) -> NDArray[np.uint64]:
    """Return cluster ids of speeches, about a third of which share one with another."""
    rng = random.Random(seed)  # noqa: S311
    ids: list[int] = []
    while len(ids) < count:
        ids.append(rng.choice(ids) if ids and rng.random() < 0.33 else rng.getrandbits(64))
    return np.array(ids, dtype=np.uint64)


def alone(count: int) -> NDArray[np.uint64]:
    return np.arange(count, dtype=np.uint64)


shares = st.floats(0.05, 0.4)


@given(st.integers(0, 2**32 - 1), st.integers(40, 80), shares, shares, st.booleans())
def test_splits_hold_whole_clusters(seed: int, count: int, test_share: float, dev_share: float, stratify: bool) -> None:
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


def test_a_cluster_of_most_speeches_is_trained_on() -> None:
    ids = np.array([*range(20), *[20] * 80], dtype=np.uint64)
    for seed in range(20):
        splits = assign_splits(ids, ["grief"] * 100, SplitConfig(test_share=0.1, dev_share=0.05, seed=seed))
        assert Counter(splits) == {"train": 85, "test": 10, "dev": 5}
    # Nothing else could be tested on.
    assert set(assign_splits(ids[15:], [""] * 85, SplitConfig(test_share=0.1, dev_share=0))) == {"train", "test"}


def test_every_topic_gives_its_share() -> None:
    topics = ["grief"] * 10 + ["sleep"] * 20 + ["work"] * 70
    splits = assign_splits(alone(100), topics, SplitConfig(test_share=0.2, dev_share=0.1))
    by_topic = Counter(zip(topics, splits, strict=True))
    assert [by_topic[topic, "test"] for topic in TOPICS] == [2, 4, 14]
    assert [by_topic[topic, "dev"] for topic in TOPICS] == [1, 2, 7]

    # Topics too small for a share of their own share one.
    splits = assign_splits(alone(40), [f"topic {at}" for at in range(40)], SplitConfig(test_share=0.25, dev_share=0.1))
    assert (splits.count("test"), splits.count("dev")) == (10, 4)


def test_a_corpus_that_only_measures_answers_leaves_nothing_to_train_on() -> None:
    config = SplitConfig(test_share=1, dev_share=0)
    assert set(assign_splits(alone(60), ["a", "b", "c"] * 20, config)) == {"test"}
    with pytest.raises(ValidationError, match="more than all speeches"):
        SplitConfig(test_share=1, dev_share=0.1)


def test_without_strata_topics_do_not_matter() -> None:
    config = SplitConfig(stratify=False)
    splits = assign_splits(alone(60), [""] * 60, config)
    assert assign_splits(alone(60), ["a", "b"] * 30, config) == splits
    assert assign_splits(alone(60), [""] * 60, SplitConfig(stratify=False, seed=1)) != splits


@pytest.mark.parametrize(
    ("count", "test_share", "dev_share", "missing"),
    [
        (0, 0.1, 0.1, "train and dev and test"),
        (2, 0.1, 0.1, "dev and test"),
        (8, 0.0, 0.05, "dev"),
        (1, 0.6, 0.0, "train"),
    ],
)
def test_an_empty_split_is_an_error(count: int, test_share: float, dev_share: float, missing: str) -> None:
    with pytest.raises(DataQualityError, match=f"no speech is left for {missing}: {count} were"):
        assign_splits(alone(count), [""] * count, SplitConfig(test_share=test_share, dev_share=dev_share))


def test_texts_that_are_all_alike_are_told_where_they_leave_a_split_empty() -> None:
    with pytest.raises(DataQualityError, match="60 were kept, in 1 clusters of near-duplicates"):
        assign_splits(np.zeros(60, dtype=np.uint64), [""] * 60, SplitConfig())


def test_a_split_with_a_share_of_0_may_be_empty() -> None:
    assert assign_splits(alone(5), [""] * 5, SplitConfig(test_share=0.0, dev_share=0.0)) == ["train"] * 5


TWELVE = "Since the move I do not sleep and nobody here knows me."
LONGER = f"Well. {TWELVE} What should I do about it, and when?"


def index_of(*texts: str, span_words: int = 12) -> ExclusionIndex:
    return ExclusionIndex([("other", texts)], span_words)


DOG = "I miss my old dog"
CHINESE = "最近总是失眠。工作压力很大。不知道该怎么办。每天晚上都会想很多事情。"
CONTRACTED = "I don't know what I'd say if she'd ask why we aren't talking"


@pytest.mark.parametrize(
    ("excluded", "text", "shared"),
    [
        (LONGER, TWELVE, True),
        (LONGER, f"Hello there, {TWELVE}", True),
        (LONGER, "SINCE the move, I do not sleep -- and nobody here knows me! Since then...", True),
        (LONGER, "since\nthe\u00a0move i do not sleep and nobody here knows me", True),
        (LONGER, "Since the move I do not sleep and nobody here knows", False),
        (LONGER, "Well, since the move I do not sleep and nobody here knew me.", False),
        (LONGER, "Me knows here nobody and sleep not do I move the since.", False),
        (LONGER, "the since move I do not sleep and nobody here knows me", False),
        (LONGER, "", False),
        (CONTRACTED, "Look: " + CONTRACTED.replace("'", "\u2019"), True),
        (DOG, "I MISS my old dog!", True),
        ("I miss my dog", "I miss my dog", False),
        (DOG, f"{DOG} so", False),
        (f"{DOG}. {TWELVE}", DOG, False),
        (DOG, f"{DOG}. {TWELVE}", False),
        (CHINESE, CHINESE[:24], True),
        (CHINESE, f"老师好。{CHINESE[3:20]}", True),
        (CHINESE, f"我{CHINESE[2:12]}没有", False),
    ],
)
def test_shared_spans_are_found_in_any_spelling(excluded: str, text: str, shared: bool) -> None:
    assert index_of(excluded, "and one more text of five").shares_span(text) == ("other" if shared else None)


def test_the_first_source_that_shares_is_named() -> None:
    sources = [("a.csv", ["nothing of this is ever said again by anybody"]), ("b.csv", [LONGER]), ("c.csv", [TWELVE])]
    index = ExclusionIndex(sources, 12)
    assert index.shares_span(TWELVE) == "b.csv"
    assert index.shares_span("Nothing of this is ever said again by anybody.") == "a.csv"


def spans(text: str, span_words: int) -> set[tuple[str, ...]]:
    words = text.split()
    if len(words) < span_words:
        return {tuple(words)} if len(words) >= 5 else set()
    return {tuple(words[at : at + span_words]) for at in range(len(words) - span_words + 1)}


few_words = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@given(st.lists(few_words, min_size=1, max_size=5), few_words, st.integers(1, 8))
def test_it_agrees_with_sets_of_spans(excluded: list[str], text: str, span_words: int) -> None:
    known = set[tuple[str, ...]]().union(*(spans(each, span_words) for each in excluded))
    if known:
        found = index_of(*excluded, span_words=span_words).shares_span(text)
        assert (found is not None) == bool(known & spans(text, span_words))


def test_many_spans_are_all_found_and_no_other() -> None:
    words = [f"{number * 7919 % 100003:x}" for number in range(3000)]
    index = index_of(" ".join(words))
    assert all(index.shares_span(" ".join(words[at : at + 12])) == "other" for at in range(0, 2988, 13))
    assert not any(index.shares_span(" ".join(words[at + 12 : at : -1])) for at in range(0, 2988, 13))


def test_an_index_takes_about_ten_bytes_a_word_and_texts_are_not_kept() -> None:
    texts = (" ".join(f"w{(start * 31 + step * step) % 499}" for step in range(200)) for start in range(500))
    tracemalloc.start()
    kept = ExclusionIndex([("other", texts)], 12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.shares_span(TWELVE) is None
    # 100,000 words of 8 bytes, with room to grow; also one text and 500 known words.
    assert peak < 100_000 * 12 + 800_000


def test_a_source_without_a_text_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match=r"b\.csv: it has no text of 5 words or more; check the columns"):
        ExclusionIndex([("a.csv", [TWELVE]), ("b.csv", ["too short", ""])], 12)
