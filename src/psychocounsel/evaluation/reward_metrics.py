"""Accuracy, AUC, calibration error and Brier score of a reward model, whole and by slice, and baselines beside them.

A pair has no natural order, so each is counted in both: "is the first response preferred?" with the chosen response
first (margin m, truth 1) and with the rejected first (margin -m, truth 0). The model's answer is p = sigmoid(m), its
Bradley-Terry probability (arXiv 2502.19731), where m is r(chosen) - r(rejected) on the raw scale.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from psychocounsel.evaluation.ranking import paired_difference
from psychocounsel.evaluation.statistics import (
    MIN_SLICE,
    BootstrapSettings,
    FloatArray,
    bootstrap_statistic,
    clustered_rate,
    present,
    sigmoid,
    student_t,
)
from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.store.shapes import Baselines, Calibration, PrincipleAccuracy, ReliabilityBin, RewardMetrics, Slice
from psychocounsel.types import PreferencePair, Rate, RatingScale, Spread, exact_mean

CALIBRATION_BINS = 10
_CALIBRATION_DRAWS = 1000
_NEGLIGIBLE = 1e-9
"""Margins of one side that are smaller than this share of the largest have no say in the slope."""


def reward_metrics(
    margins: Sequence[float | None], speech_ids: Sequence[str], settings: BootstrapSettings
) -> RewardMetrics:
    """Return the figures from r(chosen) - r(rejected) of each pair, None where it could not be scored.

    Raises:
        ValueError: a margin is not finite.
        DataQualityError: no pair was scored.
    """
    values, speeches, missing = present(margins, speech_ids)
    order: list[int] = np.argsort(values, kind="stable").tolist()
    # In the other order the squared error is (0 - (1 - p))², the same, so one order per pair is enough.
    squared_errors = sigmoid(-values) ** 2
    return RewardMetrics(
        accuracy=clustered_rate(correctness(margins), speech_ids),
        auc=bootstrap_statistic(values[order], [speeches[i] for i in order], _weighted_auc, settings, missing),
        brier=bootstrap_statistic(squared_errors, speeches, _weighted_mean, settings, missing),
        calibration=_calibration(values, speeches, settings),
        ties=int(np.count_nonzero(values == 0)),
    )


def _calibration(margins: FloatArray, speech_ids: Sequence[str], settings: BootstrapSettings) -> Calibration:
    """Return the calibration of margins; pairs of one speech are drawn independently for `calibrated_ece`."""
    right, wrong = _residuals_by_bin(np.abs(margins)), _residuals_by_bin(-np.abs(margins))  # [n, bins]
    chance, rng = sigmoid(np.abs(margins)), np.random.default_rng(settings.seed)
    draws = (rng.random(len(chance)) < chance for _ in range(_CALIBRATION_DRAWS))
    errors = [_calibration_error(drawn @ (right - wrong) + wrong.sum(axis=0), len(chance)) for drawn in draws]
    ece = _calibration_error(_residuals_by_bin(margins).sum(axis=0), len(chance))
    expected, p95 = float(np.mean(errors)), float(np.quantile(errors, 0.95))
    slope = calibration_slope(margins, speech_ids)
    return Calibration(ece=ece, calibrated_ece=expected, calibrated_ece_p95=p95, slope=slope)


def calibration_slope(margins: FloatArray, speech_ids: Sequence[str]) -> Spread | None:
    """Return b of `P(truth 1) = sigmoid(b * margin)`, fitted to both orders of each pair.

    None for margins of one sign, or of one speech.

    b solves g(b) = Σ m sigmoid(-b m) = 0. The interval is b ± t sqrt(V) with the sandwich V = Σ_c g_c² / H² · C/(C - 1)
    over the sums g_c by speech and H = Σ m² sigmoid(b m) sigmoid(-b m) (Liang and Zeger 1986). Source of the slope: Cox
    1958, Biometrika 45, 562-565.
    """
    if len(set(speech_ids)) < 2:
        return None
    if min(-margins.min(), margins.max()) <= _NEGLIGIBLE * max(_NEGLIGIBLE, float(np.abs(margins).max())):
        return None
    sign = 1.0 if margins.sum() >= 0 else -1.0

    def gradients(slope: float) -> FloatArray:
        return margins * sigmoid(-sign * slope * margins)

    low, high = 0.0, 1 / float(np.abs(margins).mean())
    while sign * gradients(high).sum() > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * gradients(middle).sum() > 0 else (low, middle)
    chance = sigmoid(low * margins)
    by_speech = np.bincount(np.unique(np.array(speech_ids), return_inverse=True)[1], weights=gradients(low))
    speeches = len(by_speech)
    variance = (by_speech**2).sum() / (margins**2 * chance * (1 - chance)).sum() ** 2 * speeches / (speeches - 1)
    reach = student_t(speeches - 1) * float(variance) ** 0.5
    return Spread(sign * low, sign * low - reach, sign * low + reach, speeches)


RELIABILITY_BINS = 5
"""Over the probabilities from a half to 1, so that they are the upper half of the bins of the calibration error."""

LENGTH_EDGES = (-50, -10, 11, 51)
LENGTH_LABELS = (
    "rejected longer by more than 50 words",
    "rejected longer by 11 to 50",
    "within 10 words",
    "chosen longer by 11 to 50",
    "chosen longer by more than 50",
)
GAP_BINS = 4


def slices(
    pairs: Sequence[PreferencePair],
    margins: Sequence[float | None],
    scale: RatingScale,
) -> dict[str, list[Slice]]:
    """Return the accuracy by `source`, `topic`, `gap` of the mean ratings and `length` difference.

    A gap on an edge belongs to the upper bin. Pairs without ratings have no gap.
    """
    credits, gaps = correctness(margins), _gap_labels(scale)
    members: dict[str, dict[str, list[int]]] = {
        "source": {},
        "topic": {},
        "gap": {label: [] for label in gaps},
        "length": {label: [] for label in LENGTH_LABELS},
    }
    for at, pair in enumerate(pairs):
        members["source"].setdefault(pair.speech.source, []).append(at)
        members["topic"].setdefault(pair.speech.topic, []).append(at)
        gap = scale.gap(pair)
        if gap is not None:
            place = min(int(gap * GAP_BINS / scale.width), GAP_BINS - 1)
            members["gap"][gaps[place]].append(at)
        place = bisect_right(LENGTH_EDGES, _word_difference(pair))
        members["length"][LENGTH_LABELS[place]].append(at)
    for name in ("source", "topic"):
        members[name] = dict(sorted(members[name].items(), key=lambda item: (-len(item[1]), item[0])))
    return {
        name: [
            _slice(label, [credits[at] for at in rows], [pairs[at].speech.id for at in rows])
            for label, rows in by_label.items()
            if rows
        ]
        for name, by_label in members.items()
    }


def _gap_labels(scale: RatingScale) -> list[str]:
    edges = [at * scale.width / GAP_BINS for at in range(GAP_BINS + 1)]
    return [f"{low:g} to {high:g} points" for low, high in pairwise(edges)]


def _word_difference(pair: PreferencePair) -> int:
    return word_count(pair.chosen.candidate.text) - word_count(pair.rejected.candidate.text)


def _slice(label: str, credits: Sequence[float | None], speech_ids: Sequence[str]) -> Slice:
    n, accuracy = _rate_of_slice(credits, speech_ids)
    return Slice(label=label, n=n, accuracy=accuracy)


def _rate_of_slice(credits: Sequence[float | None], speech_ids: Sequence[str]) -> tuple[int, Rate | None]:
    scored = sum(credit is not None for credit in credits)
    return scored, clustered_rate(credits, speech_ids) if scored >= MIN_SLICE else None


def by_principle(
    pairs: Sequence[PreferencePair],
    margins: Sequence[float],
    heads: Mapping[str, Sequence[float]],
    scale: RatingScale,
) -> dict[str, PrincipleAccuracy]:
    """Return for each rated principle how the rewards agree with its ratings.

    `heads` are the margins of each principle's own head, empty where the model has none.
    """
    signs = [scale.signs(pair) for pair in pairs]
    found: dict[str, PrincipleAccuracy] = {}
    for place, name in enumerate(scale.weights):
        differing = [at for at in range(len(pairs)) if signs[at][place]]
        speeches = [pairs[at].speech.id for at in differing]

        def rate(of: Sequence[float], place: int = place, rows: Sequence[int] = differing) -> Rate | None:
            credits = correctness([signs[at][place] * of[at] for at in rows])
            return _rate_of_slice(credits, speeches)[1]  # noqa: B023 - called in this round of the loop

        head = rate(heads[name]) if name in heads else None
        found[name] = PrincipleAccuracy(n=len(differing), reward=rate(margins), head=head)
    return found


def reliability(margins: Sequence[float], speech_ids: Sequence[str]) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram that hold a pair, with `sigmoid(|margin|)` as the confidence."""
    confidence = sigmoid(np.abs(np.array(margins, dtype=np.float64)))
    places = np.minimum(((confidence - 0.5) * 2 * RELIABILITY_BINS).astype(np.intp), RELIABILITY_BINS - 1)
    credits = correctness(margins)
    bins: list[ReliabilityBin] = []
    for place in range(RELIABILITY_BINS):
        rows: list[int] = np.flatnonzero(places == place).tolist()
        if rows:
            n, right = _rate_of_slice([credits[at] for at in rows], [speech_ids[at] for at in rows])
            low, high = (0.5 + at / (2 * RELIABILITY_BINS) for at in (place, place + 1))
            mean = float(confidence[rows].mean())
            bins.append(ReliabilityBin(low=low, high=high, n=n, confidence=mean, right=right))
    return bins


def correctness(margins: Sequence[float | None]) -> list[float | None]:
    """Return 1 for a positive margin, a half for zero, 0 for a negative one, None for a missing one."""
    return [None if margin is None else 0.5 + 0.5 * float(np.sign(margin)) for margin in margins]


def _weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    return np.clip(weights @ values / weights.sum(axis=1), 0.0, 1.0)


def _weighted_auc(margins: FloatArray, weights: FloatArray) -> FloatArray:
    """Return P(m_i > -m_j) + P(m_i = -m_j) / 2 over all i, j, for `margins` in ascending order.

    For each i the weight of the j with m_j > -m_i is a tail of the running sum of weights, so a resample costs n, not
    n².
    """
    running = np.zeros((len(weights), len(margins) + 1))
    np.cumsum(weights, axis=1, out=running[:, 1:])
    below = running[:, np.searchsorted(margins, -margins, side="left")]  # weight with m_j < -m_i
    below += running[:, np.searchsorted(margins, -margins, side="right")]
    total = running[:, -1]
    won = total**2 - 0.5 * np.einsum("rn,rn->r", weights, below)
    return won / total**2


def _residuals_by_bin(margins: FloatArray) -> FloatArray:
    """Return `[n, bins]`: truth minus probability of both orders of a pair, in the bins of the latter.

    Bins are closed on the left; the last one contains 1 as well.
    """
    residuals = np.zeros((len(margins), CALIBRATION_BINS))
    pair = np.arange(len(margins))
    for truth, chance in ((1.0, sigmoid(margins)), (0.0, sigmoid(-margins))):
        bins = np.minimum((chance * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
        residuals[pair, bins] += truth - chance
    return residuals


def _calibration_error(residuals: FloatArray, pairs: int) -> float:
    """Return the sum over bins of (share of the bin) · |mean truth - mean probability| from the sums `[bins]`."""
    return float(np.abs(residuals).sum()) / (2 * pairs)


SAME_TIER_SHARE = Fraction(1, 16)
"""Authors whose mean ratings in train differ by less than this share of the rating scale are of one tier."""

DEFAULT_SCALE = (1, 5)
"""Lowest and highest rating of released datasets, and of those that do not name their scale."""


def measure_baselines(
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    margins: Sequence[float | None],
    scale: tuple[int, int] = DEFAULT_SCALE,
) -> Baselines:
    """Return the baselines of a reward model with these margins on the test pairs, None where it could not score.

    Raises:
        DataQualityError: there are no test pairs.
    """
    speeches = [pair.speech.id for pair in test]
    own, longer = correctness(margins), longer_wins(test)
    authors = author_identity(train, test) if any(gap is not None for gap in _author_gaps(train, test)) else None
    scored = zip(own, speeches, same_tier(train, test, scale), strict=True)
    close = [(credit, speech) for credit, speech, is_same in scored if is_same]
    any_scored = any(credit is not None for credit, _ in close)

    def above(baseline: Sequence[float]) -> Spread | None:
        """Compare on the pairs that were scored."""
        sides: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        for speech, credit, other in zip(speeches, own, baseline, strict=True):
            if credit is not None:
                sides[0].setdefault(speech, []).append(credit)
                sides[1].setdefault(speech, []).append(other)
        return paired_difference(*sides)

    return Baselines(
        author_identity=None if authors is None else clustered_rate(authors, speeches),
        longer_wins=clustered_rate(longer, speeches),
        same_tier=clustered_rate([c for c, _ in close], [s for _, s in close]) if any_scored else None,
        over_author_identity=None if authors is None else above(authors),
        over_longer_wins=above(longer),
    )


def author_means(pairs: Sequence[PreferencePair]) -> Mapping[str, Fraction]:
    """Return each author's mean rating over the unique candidates of `pairs`.

    A candidate's score is the mean of its ratings; one without ratings is left out. The means are fractions, because a
    floating mean puts gaps that lie on a threshold on either side of it.
    """
    rated = {side.candidate.id: side for pair in pairs for side in (pair.chosen, pair.rejected) if side.ratings}
    by_author: dict[str, list[Fraction]] = {}
    for side in rated.values():
        by_author.setdefault(side.candidate.author, []).append(exact_mean(side.ratings.values()))
    return {author: sum(scores, Fraction(0)) / len(scores) for author, scores in by_author.items()}


def author_identity(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the author with the better mean in train.

    Equal means, or an author who is not in train, give a half.
    """
    return [_credit(gap or 0) for gap in _author_gaps(train, test)]


def longer_wins(test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the longer answer; equal word counts give a half."""
    return [_credit(_word_difference(pair)) for pair in test]


def same_tier(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], scale: tuple[int, int] = DEFAULT_SCALE
) -> list[bool]:
    """Return per test pair whether its authors' means in train differ by less than `SAME_TIER_SHARE` of the scale.

    An author who is not in train has no tier, so such a pair is not of one.
    """
    largest_gap = SAME_TIER_SHARE * (scale[1] - scale[0])
    return [gap is not None and abs(gap) < largest_gap for gap in _author_gaps(train, test)]


def _author_gaps(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[Fraction | None]:
    """Return per test pair the chosen author's mean minus the other's; None if either is unknown."""
    means = author_means(train)
    authors = [(pair.chosen.candidate.author, pair.rejected.candidate.author) for pair in test]
    return [
        means[chosen] - means[rejected] if {chosen, rejected} <= means.keys() else None for chosen, rejected in authors
    ]


def _credit(gap: Fraction | int) -> float:
    return 0.5 if gap == 0 else float(gap > 0)
