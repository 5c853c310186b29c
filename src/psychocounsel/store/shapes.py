"""Shapes of parts of `metrics.json`: the base of all of them, and how a reward model ranks pairs and responses."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from psychocounsel.types import Rate, Spread

Counts = Mapping[str, int]
"""Numbers by reason, status, topic or rating, whichever occur in the data."""


class Shape(BaseModel):
    """A part of the metrics: every key is known and nothing changes after it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibration(Shape):
    """The calibration of a reward model's probabilities.

    Attributes:
        ece: expected calibration error over ten bins of equal width. It has no percentile interval: resampling adds
            its own error, and the interval of a calibrated model would never hold its true error of 0.
        calibrated_ece: mean of the same over outcomes drawn with the model's own probabilities, which is what a
            calibrated model with these margins gets.
        calibrated_ece_p95: what 95 % of those stay below.
        slope: of the truth on the margin in a logistic regression; 1 where calibrated, below where too certain. None
            where all margins have one sign.
    """

    ece: float
    calibrated_ece: float
    calibrated_ece_p95: float
    slope: Spread | None


class RewardMetrics(Shape):
    """The quality of a reward model on preference pairs.

    Attributes:
        accuracy: share of pairs with a positive margin; equal rewards count half.
        auc: probability that a margin with truth 1 exceeds one with truth 0; equal ones count half.
        brier: mean squared distance of the probability from the truth.
        calibration: how far the probability is from the share of truths.
        ties: number of pairs with equal rewards.
    """

    accuracy: Rate
    auc: Rate
    brier: Rate
    calibration: Calibration
    ties: int


class Baselines(Shape):
    """Figures to compare an accuracy with, on the same test pairs.

    Attributes:
        author_identity: accuracy of preferring the author with the better mean in train; None where no author of a
            test pair is known there.
        longer_wins: accuracy of preferring the answer with more words.
        same_tier: the reward model's own accuracy where both authors are of one tier; None without such a pair.
        over_author_identity, over_longer_wins: by how much the reward model is right more often than that baseline, a
            paired difference over speeches.
    """

    author_identity: Rate | None
    longer_wins: Rate
    same_tier: Rate | None
    over_author_identity: Spread | None
    over_longer_wins: Spread | None


class Slice(Shape):
    """A part of the pairs; the accuracy is unknown where few of them were scored."""

    label: str
    n: int
    accuracy: Rate | None


class PrincipleAccuracy(Shape):
    """The `n` pairs whose ratings differ on a principle: how often the better rated side gets the higher reward.

    Attributes:
        reward: of the overall reward.
        head: of the principle's own head; None for a model that has none.
    """

    n: int
    reward: Rate | None
    head: Rate | None


class ReliabilityBin(Shape):
    """Pairs by the model's probability of the side that it prefers, from `low` to `high`.

    Attributes:
        confidence: mean of these probabilities.
        right: how often that side is the chosen one.
    """

    low: float
    high: float
    n: int
    confidence: float
    right: Rate | None


class RankedPairs(Shape):
    """How a reward model ranks pairs: whole, by slice (of `source`, `topic`, `gap` and `length`) and by principle."""

    test: RewardMetrics
    test_margins: tuple[float | None, ...]
    slices: Mapping[str, tuple[Slice, ...]] = {}
    principles: Mapping[str, PrincipleAccuracy] = {}
    reliability: tuple[ReliabilityBin, ...] = ()


class PairSource(Shape):
    """A set of training pairs: how many it has, how many were trained on, and rows that gave none."""

    source: str
    pairs: int
    used: int
    dropped: Counts


class TiesScore(Shape):
    """How a model treats several correct answers as equal, and better than any wrong one.

    Attributes:
        score: the weighted sum of the other figures, as RewardBench 2 weighs them.
        reference_accuracy: share of prompts with one correct answer where it has the highest reward.
        tied_accuracy: share of prompts with several where all of them beat every wrong one.
        correctness_preferred: share of the latter where the lead over wrong answers exceeds the spread of the correct.
        correctness_preferred_hard: the same, with the smaller of the leads in both prompts.
    """

    score: float
    reference_accuracy: float
    tied_accuracy: float
    correctness_preferred: float
    correctness_preferred_hard: float
    prompts: int


class BestOfKFigures(Shape):
    """Accuracy over all subsets but Ties, by subset, and the score of Ties; `mean` is RewardBench 2's final score.

    `mean` weighs every subset alike, Ties included.
    """

    accuracy: Rate | None
    mean: float
    by_subset: tuple[Slice, ...]
    ties: TiesScore | None
    prompts: int
    responses: int


class Coefficient(Shape):
    """A coefficient of agreement or correlation with its 95 % interval, over `n` items."""

    estimate: float
    low: float
    high: float
    n: int


class PossiblyBilled(Shape):
    """Lost responses, each at its highest possible cost."""

    calls: int
    cost_usd: float | None


class Pilot(Shape):
    """The first requests to a judge: how many replies can be read, their cost, and that of all at their rate."""

    requests: int
    readable: int
    cost_usd: float | None
    projected_usd: float | None


class Spend(Shape):
    """Calls, tokens and cost; `by_judge` has the same of every judge of a panel."""

    models: Mapping[str, Counts]
    cost_usd: float | None
    price_from: str
    calls_without_usage: int = 0
    possibly_billed: PossiblyBilled | None = None
    pilot: Pilot | None = None
    by_judge: Mapping[str, "Spend"] = {}
