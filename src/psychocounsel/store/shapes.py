"""Parts of `metrics.json` as they are computed, shown and stored: the base of all, and what `evaluation/` returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from psychocounsel.types import Coefficient, Rate, Spread

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


class PossiblyBilled(Shape):
    """Lost responses, each at its highest possible cost."""

    calls: int
    cost_usd: float | None


class Pilot(Shape):
    """The first requests to a judge: how many replies can be read, their cost, and that of all at their rate.

    Costs are in US dollars, None without a price.
    """

    requests: int
    readable: int
    cost_usd: float | None = None
    projected_usd: float | None = None

    def __str__(self) -> str:
        """Return in words how many can be read, and the bill to expect if there is one."""
        read = f"{self.readable} of the first {self.requests} replies can be read"
        return f"{read}, and at their cost all take about ${self.projected_usd:,.2f}" if self.projected_usd else read


class Spend(Shape):
    """Calls, tokens and cost; `by_judge` has the same of every judge of a panel."""

    models: Mapping[str, Counts]
    cost_usd: float | None
    price_from: str
    calls_without_usage: int = 0
    possibly_billed: PossiblyBilled | None = None
    pilot: Pilot | None = None
    by_judge: Mapping[str, "Spend"] = {}


# --- Texts and their lengths --------------------


@dataclass(frozen=True)
class LengthWords:
    """Mean, median and 95th percentile (linear between ranks) of the lengths of texts, in words."""

    mean: float
    median: float
    p95: float


class WinRates(Shape):
    """The policy's win rates over the reference; ties count half.

    `wins`, `ties`, `losses` and `missing` count pairs of answers on the overall criterion and add up to all of them;
    `ties` include the position-inconsistent ones. `by_criterion` holds every other criterion. A judge that favours no
    position has a `first_position_rate` of one half.

    Attributes:
        win_rate_decided: wins over wins and losses; None where no comparison was decided.
        order_kappa: Cohen's kappa of the two orders' verdicts (policy, tie, reference); None where all are the same.
        missing_as_losses, missing_as_wins: the win rate at worst and at best, whatever made the verdicts fail.
    """

    win_rate: Rate
    win_rate_decided: Rate | None
    missing_as_losses: Rate
    missing_as_wins: Rate
    by_criterion: Mapping[str, Rate] = Field(alias="win_rate_by_criterion")
    wins: int
    ties: int
    losses: int
    missing: int
    position_inconsistent_rate: Rate
    first_position_rate: Rate
    order_kappa: Coefficient | None


@dataclass(frozen=True)
class TextQuality:
    """Signs of degeneration in a set of generated texts.

    Attributes:
        repetition_rate: share of texts in which some run of four words occurs three times or more.
        distinct_4gram_ratio: mean over texts of (distinct runs of four words / all of them); texts under four words are
            missing there, and it is None when all are.
        unfinished_rate: share of texts cut by the token limit before their end.
        empty_rate: share of texts with nothing but white space.
        length_words: length over all texts, empty ones included.
        pattern_rates: share of texts that match each of `PATTERNS` in `evaluation/text_quality.py`, of those that
            seem to address the judge, that three speeches or more are given, word for word, that echo the speech, and
            that are in another language; the last two where speeches and languages are known.
        copied_rate: share of texts that copy a training answer; None where those are not known.
    """

    repetition_rate: Rate
    distinct_4gram_ratio: Rate | None
    unfinished_rate: Rate
    empty_rate: Rate
    length_words: LengthWords
    pattern_rates: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    copied_rate: Rate | None = None


@dataclass(frozen=True)
class LengthEffect:
    """The slope of the log-odds over tanh(difference in length / sigma): positive where the longer answer wins more."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class LengthControlled:
    """The length-controlled win rate of one policy.

    Attributes:
        rate: sigmoid(theta); None where it cannot be told from the effect of length.
        reason: why there is no rate; empty where there is one.
        length_effect: beta; None without a rate.
        sigma: standard deviation of the length differences, in their unit, over all policies that share beta; None
            without a rate.
        shorter, longer: shares of the comparisons in which the policy's answer is the shorter and the longer one.
    """

    rate: Rate | None
    reason: str
    length_effect: LengthEffect | None
    sigma: float | None
    shorter: float
    longer: float


class Anchored(Shape):
    """A policy's win rate by humans alone, and by a judge as their labels correct it.

    Attributes:
        labelled: speeches with a label, n.
        unlabelled: speeches that the judge alone compared, N.
        human_only: the win rate by the labels alone.
        anchored: the judge's win rate corrected by the labels.
        headline: which of the two to believe.
        bias: judge minus humans, over the labelled speeches with a verdict; None for fewer than two.
        rho: correlation of judge and humans, over the same; None where one does not vary.
        weight: lambda, how much of the judge is used.
        labels_worth: how many labels without the judge are worth one label with it; None where that is not known.
    """

    model_config = ConfigDict(populate_by_name=True)

    labelled: int
    unlabelled: int
    human_only: Rate
    anchored: Rate
    headline: Literal["anchored", "human_only"]
    bias: Coefficient | None
    rho: float | None
    weight: float = Field(alias="lambda")
    labels_worth: float | None

    @property
    def rate(self) -> Rate:
        """The win rate to believe."""
        return self.anchored if self.headline == "anchored" else self.human_only


# --- Ratings, and ratings of the same again --------------------


@dataclass(frozen=True)
class Agreement:
    """How far two ratings of the same `n` things agree: the share that is equal, and that differs by a point at most.

    Cohen's kappa has quadratic weights, and is None where all ratings are one and the same.
    """

    n: int
    exact: float
    within_one: float
    kappa: float | None


@dataclass(frozen=True)
class Gain:
    """By how much second ratings lie above the first, over `n` responses: points of the mean rating.

    The 95 % interval is by Student's t, and None for a single response.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    largest: float


@dataclass(frozen=True)
class Halo:
    """The mean correlation between principles, rated together and each alone, over the same responses.

    It is taken over the `pairs` of principles of which both vary both ways. `difference` is together minus alone, and
    its 95 % interval is by the jackknife over responses: None for fewer than three.
    """

    responses: int
    pairs: int
    together: float
    alone: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SftSummary:
    """What supervised fine-tuning did: mean loss in nats per learned token over the first and the last epoch.

    `seconds` counts this process only.
    """

    first_loss: float
    last_loss: float
    steps: int
    seconds: float
    parameters: int
