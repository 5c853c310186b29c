"""Author identity, length and tiers on pairs small enough to check by eye."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.reward_metrics import (
    author_identity,
    author_means,
    longer_wins,
    measure_baselines,
    same_tier,
)
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.types import Candidate, PreferencePair, ScoredCandidate, Speech

FAST = BootstrapSettings(samples=200)


def side(speech: Speech, author: str, ratings: tuple[int, ...], text: str = "") -> ScoredCandidate:
    named = {f"principle-{index}": rating for index, rating in enumerate(ratings)}
    reply = Candidate(speech.id, author, text or f"reply of {author} {ratings}")
    return ScoredCandidate(reply, float(sum(ratings)), named)


def pair(
    speech: str,
    chosen: tuple[str, tuple[int, ...]],
    rejected: tuple[str, tuple[int, ...]],
    texts: tuple[str, str] = ("", ""),
) -> PreferencePair:
    said = Speech(speech)
    return PreferencePair(said, side(said, *chosen, texts[0]), side(said, *rejected, texts[1]))


TRAIN = [
    pair("one", ("good", (5, 5)), ("bad", (1, 2))),
    pair("one", ("good", (5, 5)), ("fair", (4, 4))),  # the same candidate of "good" again
    pair("two", ("fair", (5, 4)), ("good", (4, 4))),
]


def test_author_means_count_each_candidate_once() -> None:
    # good: (5 + 4) / 2, where counting pairs would give (5 + 5 + 4) / 3; fair: (4 + 4.5) / 2; bad: 1.5.
    assert author_means(TRAIN) == {"good": Fraction(9, 2), "fair": Fraction(17, 4), "bad": Fraction(3, 2)}


def test_a_candidate_without_ratings_tells_nothing() -> None:
    said = Speech("online")
    rewards = PreferencePair(
        said,
        ScoredCandidate(Candidate(said.id, "policy", "warm"), 2.5),
        ScoredCandidate(Candidate(said.id, "policy", "cold"), -1.0),
    )
    assert author_means([rewards]) == {}


def test_author_identity_by_hand() -> None:
    test = [
        pair("t1", ("good", (3, 3)), ("bad", (1, 1))),
        pair("t2", ("bad", (3, 3)), ("good", (1, 1))),
        pair("t3", ("good", (3, 3)), ("good", (1, 1))),
        pair("t4", ("stranger", (3, 3)), ("bad", (1, 1))),
        pair("t5", ("good", (3, 3)), ("stranger", (1, 1))),
    ]
    assert author_identity(TRAIN, test) == [1.0, 0.0, 0.5, 0.5, 0.5]


def test_the_tier_is_strictly_under_a_quarter_and_exact() -> None:
    test = [
        pair("t1", ("good", (3, 3)), ("fair", (1, 1))),  # 4.5 - 4.25 is a quarter: apart
        pair("t2", ("good", (3, 3)), ("good", (1, 1))),
        pair("t3", ("good", (3, 3)), ("bad", (1, 1))),
        pair("t4", ("stranger", (3, 3)), ("stranger", (1, 1))),
    ]
    assert same_tier(TRAIN, test) == [False, True, False, False]
    nearer = [*TRAIN, pair("three", ("fair", (5, 5)), ("bad", (1, 1)))]  # fair rises to 4.5
    assert same_tier(nearer, test)[0] is True


def test_the_tier_is_a_share_of_the_scale() -> None:
    wider = [pair("one", ("good", (7,)), ("fair", (2,))), pair("two", ("fair", (10,)), ("good", (5,)))]
    level = pair("t", ("good", (3,)), ("fair", (1,)))
    assert same_tier(wider, [level], (0, 10)) == [True]  # 6 and 6
    # 6 and 5.5, then 6 and 5: a sixteenth of ten points is 0.625.
    for fair, is_near in ((9, True), (8, False)):
        train = [wider[0], pair("two", ("fair", (fair,)), ("good", (5,)))]
        assert same_tier(train, [level], (0, 10)) == [is_near]
        assert same_tier(train, [level]) == [False]
        found = measure_baselines(train, [level], [1.0], FAST, (0, 10))
        assert (found.same_tier is not None) == is_near


def test_longer_wins_counts_words_and_not_letters() -> None:
    test = [
        pair("t1", ("x", (3,)), ("y", (1,)), ("I hear you, friend.", "Incomprehensibilities!")),
        pair("t2", ("x", (3,)), ("y", (1,)), ("Yes.", "No, not now.")),
        pair("t3", ("x", (3,)), ("y", (1,)), ("That's hard.", "How so?")),
    ]
    assert longer_wins(test) == [1.0, 0.0, 0.5]


def test_the_three_figures_stand_on_the_test_pairs() -> None:
    test = [
        pair("t1", ("good", (3, 3)), ("bad", (1, 1)), ("a b c", "a b")),
        pair("t2", ("good", (3, 3)), ("good", (1, 1)), ("a", "a b")),
        pair("t3", ("bad", (3, 3)), ("bad", (1, 1)), ("a", "c")),
        pair("t4", ("fair", (3, 3)), ("fair", (1, 1)), ("a", "d")),
    ]
    found = measure_baselines(TRAIN, test, [-9.0, 1.0, -1.0, None], FAST)
    assert found.author_identity.estimate == pytest.approx((1 + 3 * 0.5) / 4)
    assert found.longer_wins.estimate == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert found.same_tier is not None
    # The wrong margin of the cross-tier pair is not looked at; the unscored one is missing.
    assert (found.same_tier.estimate, found.same_tier.n, found.same_tier.missing) == (0.5, 2, 1)
    assert found.as_dict()["same_tier"] == found.same_tier.as_dict()


def test_no_pair_of_one_tier_is_none_and_not_a_number() -> None:
    test = [pair("t1", ("good", (3, 3)), ("bad", (1, 1)))]
    found = measure_baselines(TRAIN, test, [1.0], FAST)
    assert found.same_tier is None
    assert found.as_dict()["same_tier"] is None
    unscored = measure_baselines(TRAIN, [pair("t", ("good", (3,)), ("good", (1,)))], [None], FAST)
    assert unscored.same_tier is None


def test_misuse_is_refused() -> None:
    test = [pair("t1", ("good", (3, 3)), ("bad", (1, 1)))]
    with pytest.raises(ValueError, match="zip"):
        measure_baselines(TRAIN, test, [], FAST)
    with pytest.raises(DataQualityError):
        measure_baselines(TRAIN, [], [], FAST)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=8))
def test_exchanging_authors_mirrors_author_identity(authors: list[tuple[str, str]]) -> None:
    train = [pair("x", ("a", (5, 4)), ("b", (3, 3))), pair("y", ("b", (3, 3)), ("c", (2, 2)))]
    one = [pair(f"t{i}", (x, (5,)), (y, (1,))) for i, (x, y) in enumerate(authors)]
    two = [pair(f"t{i}", (y, (5,)), (x, (1,))) for i, (x, y) in enumerate(authors)]
    assert author_identity(train, one) == [1 - credit for credit in author_identity(train, two)]
    assert same_tier(train, one) == same_tier(train, two)
