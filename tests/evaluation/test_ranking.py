"""Differences between policies and their ranking, against other ways to compute them and against planted truths."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from psychocounsel.evaluation.ranking import Game, bradley_terry, fit_bradley_terry, paired_difference

Points = dict[str, list[float]]


def by_speech(points: list[float]) -> Points:
    return {str(at): [each] for at, each in enumerate(points)}


class TestPairedDifference:
    def test_by_hand(self) -> None:
        # d = 1, 0.5, 0, 0 and pseudo-speeches: mean* 1.5 / 6, V = (1.25 + 1 - 6 / 16) / 36, t(3) = 3.182446
        found = paired_difference(by_speech([1, 1, 0, 0.5]), by_speech([0, 0.5, 0, 0.5]))
        assert found is not None
        reach = 3.182446 * (2.25 - 0.375) ** 0.5 / 6
        assert (found.estimate, found.speeches) == (0.375, 4)
        assert (found.low, found.high) == pytest.approx((0.25 - reach, 0.25 + reach), abs=1e-6)

    def test_only_common_speeches_count_each_with_the_mean_of_its_draws(self) -> None:
        first: Points = {"a": [1, 0, 1, 1], "b": [0], "only first": [1]}
        second: Points = {"b": [1, 1], "a": [0, 0, 0], "only second": [0]}
        found = paired_difference(first, second)
        assert found is not None
        assert (found.estimate, found.speeches) == ((0.75 - 1) / 2, 2)
        assert paired_difference(first, {"c": [1.0]}) is None

    def test_exchanging_the_sides_changes_the_sign(self) -> None:
        first, second = by_speech([1, 0.5, 1, 0, 1]), by_speech([0, 0.5, 1, 0, 0.5])
        there, back = paired_difference(first, second), paired_difference(second, first)
        assert there is not None
        assert back is not None
        assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))

    def test_equal_policies_are_not_certain_to_be_equal(self) -> None:
        found = paired_difference(by_speech([1.0] * 48), by_speech([1.0] * 48))
        assert found is not None
        assert found.low < -0.02 < 0.02 < found.high
        assert not found.is_distinct

    def test_draws_that_repeat_one_another_say_no_more_than_one(self) -> None:
        first, second = [1, 1, 0, 0.5], [0, 0.5, 0, 0.5]
        once = paired_difference(by_speech(first), by_speech(second))
        often = [{str(at): [each] * 6 for at, each in enumerate(side)} for side in (first, second)]
        assert paired_difference(*often) == once

    @pytest.mark.parametrize(
        ("speeches", "draws", "lift", "ties"), [(48, 1, 0.3, 0.4), (200, 1, 0, 0), (19, 12, 0.2, 0)]
    )
    def test_intervals_hold_the_true_difference(self, speeches: int, draws: int, lift: float, ties: float) -> None:
        rng = np.random.default_rng(7)
        held = 0
        for _ in range(400):
            chance = 0.3 + 0.4 * rng.random(speeches)[:, None]  # how good the reference's answer is moves both
            sides: list[Points] = []
            for mean in (chance + lift, chance):
                points = (rng.random((speeches, draws)) < mean).astype(float)
                points[rng.random((speeches, draws)) < ties] = 0.5
                sides.append({str(at): list(each) for at, each in enumerate(points)})
            found = paired_difference(*sides)
            assert found is not None
            held += found.low <= lift * (1 - ties) <= found.high
        assert 0.92 <= held / 400 <= 0.985


def random_games(seed: int, players: str) -> Iterator[Game]:
    rng = np.random.default_rng(seed)
    for first, second in combinations(players, 2):
        for speech in range(60):
            yield Game(str(speech), first, second, float(rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5])))


def minorise_maximise(wins: np.ndarray) -> np.ndarray:
    """Return the strengths by the algorithm of Hunter (2004), which shares nothing with Newton's method."""
    weights = np.ones(len(wins))
    played = wins + wins.T
    for _ in range(20_000):
        weights = wins.sum(axis=1) / (played / (weights[:, None] + weights[None, :])).sum(axis=1)
        weights /= weights[0]
    return np.log(weights)


class TestBradleyTerry:
    @pytest.mark.parametrize("players", [2, 3, 6])
    def test_strengths_are_those_of_another_algorithm(self, players: int) -> None:
        rng = np.random.default_rng(players)
        for _ in range(5):
            wins = rng.integers(0, 60, (players, players)) / 2 + 0.5
            np.fill_diagonal(wins, 0)
            assert fit_bradley_terry(wins) == pytest.approx(minorise_maximise(wins), abs=1e-9)

    def test_strengths_are_those_of_choix(self) -> None:
        wins = np.array([[0, 12.5, 7], [3.5, 0, 9], [6, 8, 0]])
        # choix 0.4.1: ilsr_pairwise_dense(wins, tol=1e-14), minus its first
        assert fit_bradley_terry(wins) == pytest.approx([0, -0.816703182864, -0.603327188856], abs=1e-9)

    def test_against_one_reference_it_is_the_log_odds_of_each_win_rate(self) -> None:
        games = [Game(str(at), "a", "base", points) for at, points in enumerate([1, 1, 1, 0.5, 0, 0, 1, 1])]
        games += [Game(str(at), "base", "b", points) for at, points in enumerate([1, 1, 0.5, 0.5, 0, 1, 1, 0])]
        ranked = bradley_terry(games, "base")
        assert ranked is not None
        assert [each.player for each in ranked] == ["a", "base", "b"]
        assert [each.games for each in ranked] == [8, 16, 8]
        assert ranked[0].estimate == pytest.approx(np.log(5.5 / 2.5), abs=1e-9)
        assert ranked[2].estimate == pytest.approx(np.log(3 / 5), abs=1e-9)
        assert (ranked[1].low, ranked[1].estimate, ranked[1].high) == (0, 0, 0)

    def test_an_unbeaten_player_has_an_interval_and_no_estimate(self) -> None:
        games = [Game(str(at), "a", "base", 1.0) for at in range(20)]
        games += [Game(str(at), "b", "base", at % 2) for at in range(20)]
        ranked = bradley_terry(games, "base")
        assert ranked is not None
        assert ranked[0].player == "a"
        assert ranked[0].estimate is None
        assert [each.estimate for each in ranked[1:]] == pytest.approx([0, 0])  # b is known all the same
        assert 0 < ranked[0].low < ranked[0].high < 10

    def test_players_that_never_met_are_not_ranked(self) -> None:
        games = [*random_games(1, "ab"), *random_games(2, "cd")]
        assert bradley_terry(games, "a") is None

    def test_draws_of_one_speech_are_no_further_evidence(self) -> None:
        once = bradley_terry(list(random_games(3, "abc")), "a")
        often = bradley_terry([game for game in random_games(3, "abc") for _ in range(9)], "a")
        assert once is not None
        assert often is not None
        for single, repeated in zip(once, often, strict=True):
            assert repeated.estimate == pytest.approx(single.estimate, abs=1e-9)
            assert repeated.high - repeated.low == pytest.approx(single.high - single.low, rel=0.05)

    def test_intervals_hold_the_true_strengths(self) -> None:
        rng = np.random.default_rng(11)
        truth = {"base": 0.0, "a": 1.0, "b": 2.9}  # b wins 95 of 100
        held = dict.fromkeys(truth, 0)
        for _ in range(300):
            games = [
                Game(str(speech), first, second, float(rng.random() < 1 / (1 + np.exp(truth[second] - truth[first]))))
                for first, second in (("a", "base"), ("b", "base"))
                for speech in range(48)
            ]
            for each in bradley_terry(games, "base") or []:
                held[each.player] += each.low <= truth[each.player] <= each.high
        assert held["base"] == 300
        assert all(0.92 <= held[name] / 300 <= 0.995 for name in "ab")
