"""What `metrics.json` holds for people's labels and what is made of them, and for the crisis suite."""

from collections.abc import Mapping
from typing import Literal

from psychocounsel.store.shapes import Anchored, Counts, Shape, Spend
from psychocounsel.types import Coefficient, Rate, Rating

# --- Labels by experts --------------------


class AnnotationTaskMetrics(Shape):
    """Of `annotation-tasks`: `items` sampled `of` so many that could be; whether two answers are compared or one rated.

    `speeches` counts those of the items; None in exports that did not. `scale` has every rating that may be
    given, the lowest first; None where answers are compared.
    """

    kind: Literal["comparisons", "ratings"]
    items: int
    of: int
    speeches: int | None = None
    questions: tuple[str, ...]
    scale: tuple[Rating, ...] | None


class RaterLabels(Shape):
    """What became of the items in one rater's hands.

    `left` is the share that went to the left answer, ties half; `always` the one answer that they gave to every
    question of every item, None where they gave several.
    """

    labelled: int
    skipped: int
    pending: int
    left: Rate | None = None
    always: str | None = None


class InterRater(Shape):
    """Agreement of raters over the items that at least two of them labelled, about labels as they were shown.

    `raw` is the share of pairs of labels that are equal, `kappa` Cohen's, averaged over pairs of raters (Light 1971),
    `alpha` Krippendorff's. Comparisons are nominal (left, tie, right); ratings have quadratic weights.
    """

    items: int
    raw: Rate | None
    kappa: Coefficient | None
    alpha: Coefficient | None


class RaterPair(Shape):
    """The agreement of two raters by question."""

    raters: tuple[str, str]
    by_question: Mapping[str, InterRater]


class AnnotationMetrics(Shape):
    """Of `annotations`; questions are `overall` or principles.

    `sampled` is `random` if the items that were labelled or skipped come first in the random order of the export.
    `labelled` counts the items with a label, `skipped` those that every rater who saw them left out. `win_rate` is the
    policy's by the mean label of each item, None for ratings, and `mean_rating` the mean score by principle.
    """

    labeller: Literal["human", "model"]
    sampled: Literal["random", "other"]
    items: int
    labelled: int
    skipped: int
    raters: Mapping[str, RaterLabels]
    win_rate: Rate | None
    mean_rating: Mapping[str, float] = {}
    agreement: Mapping[str, InterRater]
    pairs: tuple[RaterPair, ...] = ()


# --- Win rates that labels correct --------------------


class AnchorMetrics(Anchored):
    """Of `anchors`: the policy's win rate by the judge alone as well, and what it rests on.

    `skipped` counts draws of speeches that every rater who saw them left out, `unanswered` draws that a side gave no
    answer to. `kappa` is the agreement of judge and humans. `raters` has the labels of each, `agreement` how far raters
    agree. `judge_holds` says whether the judge's interval holds the rate to believe.
    """

    judge: str
    skipped: int
    unanswered: int = 0
    judge_only: Rate
    judge_holds: bool
    kappa: Coefficient | None
    raters: Mapping[str, int]
    agreement: InterRater


# --- Judges that ratings measure --------------------


class PrincipleCalibration(Shape):
    """Judge and humans on one principle, over `n` responses; `bias` is judge minus humans, in points.

    `icc` is ICC(A,1), `kappa` Cohen's with quadratic weights on the points of the scale, `human_alpha` Krippendorff's
    of people among themselves, where several rated one response. None where too little is known.
    """

    n: int
    human_mean: float | None
    judge_mean: float | None
    bias: Coefficient | None
    icc: Coefficient | None
    kappa: Coefficient | None
    spearman: Coefficient | None
    human_alpha: Coefficient | None


class AuthorBias(Shape):
    """By how many points of the mean rating the judge rates an author's `n` responses higher than people do."""

    n: int
    bias: Coefficient | None


class PairCalibration(Shape):
    """How often the judge prefers the response that people prefer by `gap` points of the mean rating or more.

    `ties` of the judge count half in `accuracy`. `author_identity` is the accuracy of a rule that reads no text: the
    author whom people rated higher on average over these pairs.
    """

    gap: float
    speeches: int
    accuracy: Rate
    ties: Rate
    author_identity: Rate | None


class UnsafeCalibration(Shape):
    """Responses that people rate `at_most` so high on the `principle`: the share that the judge does, `seen`.

    `false_alarms` is the same share of the other responses.
    """

    principle: str
    at_most: float
    seen: Rate | None
    false_alarms: Rate | None


class JudgeCalibrationMetrics(Shape):
    """Of `judge-calibrations`: `judge` and human `raters` (their ratings) on the same `items`.

    `unmatched` counts the items that only one side rated, on any principle; `different_texts` names the speeches (or
    items) that have another text on either side, of which `differing` items were `kept` or not.
    """

    judge: str
    raters: Counts
    items: int
    unmatched: Counts
    different_texts: tuple[str, ...]
    differing: int
    kept: bool
    principles: Mapping[str, PrincipleCalibration]
    authors: Mapping[str, AuthorBias]
    pairs: PairCalibration | None
    unsafe: UnsafeCalibration | None


# --- Answers to people at risk --------------------


class CrisisSide(Shape):
    """One author: rates over items, the worst draw of each, with one-sided 95 % bounds; `harmful` has keys of items."""

    harm: Rate
    severe: Rate
    over_refusal: Rate
    care: Mapping[str, Rate]
    by_question: Mapping[str, Rate]
    by_kind: Mapping[str, Rate]
    harmful: tuple[str, ...]


class HarmRise(Shape):
    """The policy's rate of harm minus the base's, and its one-sided 95 % upper bound."""

    difference: float
    high: float


class PlantedAnswers(Shape):
    """Harmful answers that were planted for the judge to find; `missed` has their keys."""

    planted: int
    found: int
    missed: tuple[str, ...]


class HumanReview(Shape):
    """What people read, `read` of `to_read` by two of them; `cleared` of the flagged ones, `found` among the others."""

    to_read: int
    flagged: int
    read: int
    readers: tuple[str, ...]
    disagreed: int
    cleared: int
    found: int


class CrisisMetrics(Shape):
    """Of `crisis-evaluations`."""

    items: int
    lookalikes: int
    draws: int
    judge: str
    release_ready: Literal["yes", "no"]
    reasons: tuple[str, ...]
    policy: CrisisSide
    base: CrisisSide
    rise: HarmRise
    planted: PlantedAnswers
    review: HumanReview
    missing_answers: Mapping[str, Counts]
    status: Counts
    spend: Spend | None = None
