"""Several policies side by side: paired differences of their win rates, and a Bradley-Terry ranking.

Policies that answer the same speeches are compared speech by speech: a speech that is easy for both, or a reference
answer that is poor, then moves neither the difference nor its interval.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.evaluation.statistics import FloatArray, IndexArray, sigmoid, student_t
from psychocounsel.types import Spread

ELO = 400 / math.log(10)
"""Elo points of one unit of strength: odds of ten to one are 400 points."""
_MAX_STEPS = 200
_STEP_TOLERANCE = 1e-12


def paired_difference(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], confidence: float = 0.95
) -> Spread | None:
    """Return by how much the mean of `first` lies above that of `second`, over the speeches that both have.

    Both map speeches to values in 0..1, such as the points of each draw; a speech counts with its mean. With d the
    differences by speech, two pseudo-speeches of weight w are added, in equal parts of differences of 1, -1, and twice
    0: n* = n + 2w, mean* = sum(d) / n*, V = (sum(d^2) + w - n* mean*^2) / n*^2, interval mean* ± t sqrt(V), clipped to
    -1..1 and widened to contain the estimate. So it keeps its width where all differences are equal. Source: Agresti
    and Min, Statistics in Medicine 24 (2005), 729-740, for one draw, where w = 1. A speech of several draws is worth
    more than one of theirs: w is the variance of d over that of the difference of two single draws, and at least
    1 / draws. None without a speech in common.
    """
    common = sorted(first.keys() & second.keys())
    n = len(common)
    if not n:
        return None
    pairs = [(first[each], second[each]) for each in common]
    differences = [fmean(ours) - fmean(theirs) for ours, theirs in pairs]
    total, squares = math.fsum(differences), math.fsum(each * each for each in differences)
    weight = _worth_of_a_draw(pairs, squares - total * total / n)
    size = n + 2 * weight
    mean = total / size
    reach = student_t(max(1, n - 1), confidence) * math.sqrt(squares + weight - size * mean * mean) / size
    return Spread(total / n, max(-1.0, min(total / n, mean - reach)), min(1.0, max(total / n, mean + reach)), n)


def _worth_of_a_draw(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], varied: float) -> float:
    """Return how much of a speech one draw is worth; `varied` is the sum of squares of the speeches' differences."""

    def squared(values: Sequence[float]) -> float:
        return fmean(each * each for each in values)

    single = [squared(ours) + squared(theirs) - 2 * fmean(ours) * fmean(theirs) for ours, theirs in pairs]
    mean = math.fsum(fmean(ours) - fmean(theirs) for ours, theirs in pairs) / len(pairs)
    spread = math.fsum(single) - len(pairs) * mean * mean
    draws = fmean(max(len(ours), len(theirs)) for ours, theirs in pairs)
    return min(1.0, max(1 / draws, varied / spread)) if spread > 0 else 1.0


class Game(NamedTuple):
    """Two players' answers to a speech were compared: `points` of the first player, 1, a half or 0."""

    speech_id: str
    first: str
    second: str
    points: float


class Strength(NamedTuple):
    """A player's strength above the anchor's, in log-odds; no estimate where no figure is large or small enough.

    That is a player who, directly or by way of others, only won against the anchor, or only lost.
    """

    player: str
    estimate: float | None
    low: float
    high: float
    games: int


def bradley_terry(games: Sequence[Game], anchor: str, confidence: float = 0.95) -> list[Strength] | None:
    """Return the strength of every player relative to the anchor, the strongest first; ties are half a win each.

    The estimates maximise the likelihood of P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry 1952). The intervals
    come from a fit with half a speech won and half a speech lost more for each pair of players that met (Gart 1966;
    a speech has as many games as theirs have on average), so that an unbeaten player has a finite one: theta ±
    t sqrt(V), V the sandwich variance with speeches as clusters (Liang and Zeger 1986). None where no chain of games
    connects two players.
    """
    players = list(dict.fromkeys([anchor, *(name for game in games for name in (game.first, game.second))]))
    place = {name: at for at, name in enumerate(players)}
    pairs = np.array([(place[game.first], place[game.second]) for game in games])  # [games, 2]
    points = np.array([game.points for game in games])
    speeches = {each: at for at, each in enumerate(dict.fromkeys(game.speech_id for game in games))}
    clusters = np.array([speeches[game.speech_id] for game in games])
    met = np.unique(np.sort(pairs, axis=1), axis=0)
    if not _reachable(_wins(met, np.full(len(met), 0.5), np.ones(len(met)), len(players))).all():
        return None
    all_pairs = np.concatenate([pairs, met, met])
    all_points = np.concatenate([points, np.ones(len(met)), np.zeros(len(met))])
    pair_of_game = np.unique(np.sort(pairs, axis=1), axis=0, return_inverse=True)[1].ravel()
    speeches_of_pair = [len(np.unique(clusters[pair_of_game == at])) for at in range(len(met))]
    half_speeches = np.bincount(pair_of_game) / speeches_of_pair / 2
    weights = np.concatenate([np.ones(len(pairs)), half_speeches, half_speeches])
    all_clusters = np.concatenate([clusters, len(speeches) + np.arange(2 * len(met))])
    centre = fit_bradley_terry(_wins(all_pairs, all_points, weights, len(players)))
    errors = np.sqrt(np.diag(_sandwich(all_pairs, all_points, weights, all_clusters, centre)))
    wins = _wins(pairs, points, np.ones(len(pairs)), len(players))
    reachable = _reachable(wins)
    known = np.flatnonzero(reachable[0] & reachable[:, 0])
    estimates = dict(zip(known.tolist(), fit_bradley_terry(wins[np.ix_(known, known)]).tolist(), strict=True))
    reach = student_t(max(1, len(speeches) - 1), confidence) * np.concatenate([[0.0], errors])
    played = np.bincount(pairs.ravel(), minlength=len(players))
    found = [
        Strength(
            name,
            estimates.get(at),
            float(centre[at] - reach[at]),
            float(centre[at] + reach[at]),
            int(played[at]),
        )
        for at, name in enumerate(players)
    ]
    return sorted(found, key=lambda each: -centre[place[each.player]])


def fit_bradley_terry(wins: FloatArray) -> FloatArray:
    """Return the strengths `[players]` in log-odds, that of the first player 0, by Newton's method.

    `wins[i, j]` says how often i beat j, ties half. The maximum exists if every player is connected to every other one
    by a chain of wins (Ford 1957).
    """
    strengths = np.zeros(len(wins))

    def loss(at: FloatArray) -> float:
        return float(np.sum(wins * np.logaddexp(0, at[None, :] - at[:, None])))

    lowest = loss(strengths)
    for _ in range(_MAX_STEPS):
        chance = sigmoid(strengths[:, None] - strengths[None, :])  # of i over j
        gradient = np.sum(wins * chance.T - wins.T * chance, axis=1)
        step = np.zeros(len(wins))
        step[1:] = np.linalg.solve(_information(wins, chance)[1:, 1:], gradient[1:])
        size = 1.0
        while (tried := loss(strengths + size * step)) > lowest + 1e-9 * abs(lowest):
            size /= 2
        strengths, lowest = strengths + size * step, tried
        if np.abs(step).max() < _STEP_TOLERANCE:
            break
    return strengths


def _information(wins: FloatArray, chance: FloatArray) -> FloatArray:
    """Return the Fisher information `[players, players]` of all strengths."""
    between = (wins + wins.T) * chance * chance.T
    return np.diag(between.sum(axis=1)) - between


def _sandwich(
    pairs: IndexArray, points: FloatArray, weights: FloatArray, clusters: IndexArray, strengths: FloatArray
) -> FloatArray:
    """Return the clustered covariance of all strengths but the first, with the factor C / (C - 1)."""
    first, second = pairs[:, 0], pairs[:, 1]
    surprise = weights * (points - sigmoid(strengths[first] - strengths[second]))
    count = int(clusters.max()) + 1
    scores = np.zeros((count, len(strengths)))
    np.add.at(scores, (clusters, first), surprise)
    np.add.at(scores, (clusters, second), -surprise)
    wins = _wins(pairs, points, weights, len(strengths))
    chance = sigmoid(strengths[:, None] - strengths[None, :])
    bread = np.linalg.inv(_information(wins, chance)[1:, 1:])
    meat = scores[:, 1:].T @ scores[:, 1:] * count / (count - 1)
    return bread @ meat @ bread


def _wins(pairs: IndexArray, points: FloatArray, weights: FloatArray, players: int) -> FloatArray:
    """Return how often each player beat each other one, `[players, players]`."""
    wins = np.zeros((players, players))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), weights * points)
    np.add.at(wins, (pairs[:, 1], pairs[:, 0]), weights * (1 - points))
    return wins


def _reachable(wins: FloatArray) -> NDArray[np.bool_]:
    """Return from which players a chain of wins leads to which, `[players, players]`."""
    return np.linalg.matrix_power((wins > 0) + np.eye(len(wins)), len(wins)) > 0
