"""What `metrics.json` holds, one model for each kind of artifact. docs/metrics.md explains every number.

`ArtifactWriter.write_metrics` checks what a stage writes against the model of its kind; everything that shows numbers
(terminal, report, cards) reads them through `metrics_of`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from psychocounsel.errors import StoreError
from psychocounsel.store.evaluation_metrics import (
    AnchorMetrics,
    AnnotationMetrics,
    AnnotationTaskMetrics,
    CrisisMetrics,
    JudgeCalibrationMetrics,
)
from psychocounsel.store.shapes import (
    Agreement,
    Baselines,
    BestOfKFigures,
    Counts,
    Gain,
    Halo,
    LengthControlled,
    PairSource,
    RankedPairs,
    RewardMetrics,
    SftSummary,
    Shape,
    Spend,
    TextQuality,
    WinRates,
)
from psychocounsel.types import Coefficient, Rate

if TYPE_CHECKING:
    from psychocounsel.store.artifacts import Artifact


class FunnelStep(Shape):
    """One step of reading and cleaning."""

    model_config = ConfigDict(extra="ignore")  # older ones list `examples`

    step: str
    rows_in: int
    rows_out: int
    changed: int
    dropped: Counts


class Funnel(Shape):
    """Rows that came in; kept and dropped add up to them."""

    rows_in: int
    kept: int
    dropped: Counts
    steps: tuple[FunnelStep, ...] = ()


class Pairing(Shape):
    """Combinations of two responses; kept and dropped add up to them."""

    combinations: int
    kept: int
    dropped: Counts


class MissingShare(Shape):
    """How many of a group failed."""

    missing: int
    total: int


class PiiCounts(Shape):
    """How an engine does on marked identifiers: `found` of `marked`, and `false` ones of all `finds`."""

    marked: int
    found: int
    finds: int
    false: int


class Deidentification(Shape):
    """Identities that were replaced, by type, and how the engine does on the PII evaluation set and on planted ones.

    Those in the turns before a speech count with each speech that they stand before.
    """

    engine: str
    found: Counts
    pii_evaluation: Mapping[str, PiiCounts]
    pii_evaluation_overall: PiiCounts
    planted: Mapping[str, PiiCounts] = {}
    planted_overall: PiiCounts | None = None
    planted_language: str = ""


class Source(Shape):
    """A source of client speeches and how many of them were kept."""

    name: str
    licence: str
    data_class: str
    speeches: int


class SpeechMetrics(Shape):
    """Of `speeches`: read from a corpus or from a released dataset."""

    funnel: Funnel
    sources: tuple[Source, ...]
    splits: Counts
    clusters: int
    near_duplicates: int
    crisis: int
    clusters_across_splits: int = 0
    topics: Mapping[str, int] = {}
    fine_topics: Mapping[str, int] = {}
    without_topic: Mapping[str, int] = {}
    topics_by_split: Mapping[str, Counts] = {}
    deidentification: Deidentification | None = None


class ReadyCandidateMetrics(Shape):
    """Of `candidates` that were read from files."""

    funnel: Funnel
    deidentification: Deidentification | None = None


class PoolCandidateMetrics(Shape):
    """Of `candidates` that a pool of models generated; `failed` and `spend` are by author."""

    kept: int
    repeated_text: int
    failed: Mapping[str, Counts]
    spend: Mapping[str, Spend] = {}


class AnswerMetrics(Shape):
    """Of `candidates` that are one side of a comparison: `draws` answers to each speech, `failed` ones included."""

    speeches: int
    draws: int
    failed: Counts
    spend: Spend | None = None


class RoundCandidateMetrics(Shape):
    """Of `candidates` that the policy sampled in an online round."""

    speeches: int
    text_quality: TextQuality


class Replies(Shape):
    """The replies behind mean ratings (`scored_by`) or behind votes (`unanimous` of `comparisons`)."""

    asked: int
    status: Mapping[str, Counts]
    scored_by: Mapping[str, int] = {}
    valid_per_judgement: Mapping[str, int] = {}
    comparisons: int = 0
    unanimous: int = 0


class JudgePair(Shape):
    """The agreement of two judges by principle."""

    judges: tuple[str, str]
    by_principle: Mapping[str, Agreement | None]


class Disagreement(Shape):
    """How far several ratings of one response lie apart, by principle."""

    responses: int
    spread: Mapping[str, float | None]
    alpha: Mapping[str, float | None]
    mean_rating: Mapping[str, Mapping[str, float]]
    pairs: tuple[JudgePair, ...]


class JudgedCounts(Shape):
    """How the rating of responses ended."""

    judged: int
    status: Counts
    missing_by_topic: Mapping[str, MissingShare]
    addresses_judge: int
    histograms: Mapping[str, Counts]

    @property
    def valid(self) -> int:
        """Responses with a valid judgement."""
        return self.status.get("valid", 0)


def rating_points(histograms: Mapping[str, Counts]) -> list[str]:
    """Return the points of the rating scale that histograms have, the lowest first."""
    return sorted({point for by in histograms.values() for point in by}, key=float)


class JudgementMetrics(JudgedCounts):
    """Of `judgements`; `rating_rows` counts the rows of a table of ratings, `junk` answers by author and kind."""

    left_out: Counts
    junk: Mapping[str, Counts] = {}
    rating_rows: Counts | None = None
    samples: Replies | None = None
    disagreement: Disagreement | None = None
    spend: Spend | None = None


class Retest(Shape):
    """A sample that was rated a second time."""

    asked: int
    missing: int
    equal: Rate | None
    within_one: Rate | None
    kappa: float | None
    by_principle: Mapping[str, Agreement | None]
    change: Gain | None


class OnePrinciple(Shape):
    """A sample that was rated on one principle per call."""

    asked: int
    missing: int
    halo: Halo | None
    mean_difference: float | None


class Canaries(Shape):
    """Copies of responses with words that address the judge; `gained_a_point` has ids of responses."""

    asked: int
    missing: int
    flagged: int
    gain: Gain | None
    gained_a_point: tuple[str, ...]
    lost_a_point: int
    resists: bool | None


class AuditMetrics(Shape):
    """Of `audits`: how reliable a judge is; a part that was left out is None."""

    judged: JudgedCounts
    ties: Rate | None
    halo: float | None
    length: Coefficient | None
    retest: Retest | None
    one_principle: OnePrinciple | None
    canaries: Canaries | None
    spend: Spend | None = None


class SideWords(Shape):
    """Mean number of words of the two sides of a pair."""

    chosen: float
    rejected: float


class Flaws(Shape):
    """Rows of a released split with each flaw; a row may have several."""

    rows: int
    speeches: int
    missing_ratings: int
    not_preferred: int
    safety_inverted: int
    equal_texts: int
    repeated: int
    leaks_exactly: int
    leaks_nearly: int
    too_long_chosen: int | None
    too_long_rejected: int | None
    chosen_is_longer: int
    mean_words_chosen: float
    mean_words_rejected: float


class PreferenceMetrics(Shape):
    """Of `preferences` with splits, built here or imported."""

    pairing: Mapping[str, Pairing]
    words: Mapping[str, SideWords] = {}
    flaws: Mapping[str, Flaws] = {}


class RoundPairMetrics(Shape):
    """Of `preferences` of an online round."""

    pairing: Pairing
    left_out: Counts


class BaseModelMetrics(Shape):
    """Of `base-models`."""

    sft: SftSummary
    training_speeches: int


class Normalisation(Shape):
    """Scale of raw rewards on a split."""

    mean: float
    std: float
    split: str


class Training(Shape):
    """What a trainer did; `history` has one entry per logged step."""

    steps: int
    seconds: float
    lengths: Counts
    history: tuple[Mapping[str, float], ...]


class Leakage(Shape):
    """Of the evaluated speeches, how many were trained on, they themselves or near-duplicates of them."""

    speeches: int
    leaked: int


class RewardModelMetrics(RankedPairs):
    """Of `reward-models`."""

    dev: RewardMetrics | None
    baselines: Baselines
    pairs: Counts
    sources: tuple[PairSource, ...] = ()
    normalisation: Normalisation
    training: Training
    leakage: Leakage


class PairEvaluationMetrics(RankedPairs):
    """Of `reward-evaluations` on pairs; what a model from elsewhere was trained on is not known, nor is leakage."""

    model: str
    on: str
    baselines: Baselines
    dropped: Counts
    leakage: Leakage | None


class BestOfKMetrics(BestOfKFigures):
    """Of `reward-evaluations` on best-of-k rows."""

    model: str
    on: str


class RewardSpread(Shape):
    """Mean and standard deviation of normalised rewards."""

    mean: float
    std: float
    n: int


class ScoreMetrics(Shape):
    """Of `scores`."""

    scored: int
    reward: RewardSpread


class ReferenceMetrics(Shape):
    """Of `reference-logps`: log-probabilities of the kept pairs' answers per token, in nats."""

    lengths: Counts
    tokens: int
    chosen_per_token: float
    rejected_per_token: float


class KlDivergence(Shape):
    """Estimates of the divergence of a policy from the initial one, in nats."""

    per_answer: float
    per_token: float
    k3_per_token: float


class CrisisProbe(Shape):
    """The part of a probe that answers speeches about crisis."""

    answers: int
    reward: float
    unfinished_rate: Rate
    win_rate: Rate | None


class ProbeMetrics(Shape):
    """Of `probes`: a policy's answers to the probe speeches of an online run; `agreement` is that of reward and judge.

    What needs a judge is None without one, `win_rate` also for the initial policy.
    """

    reward: RewardSpread
    text_quality: TextQuality
    questions_per_answer: float
    kl: KlDivergence
    entropy: float
    win_rate: Rate | None
    agreement: Rate | None
    crisis: CrisisProbe | None
    spend: Spend | None = None


class RoundMetrics(Shape):
    """One round of an online run; log-probabilities are those of the last logged step, `stop` is why the run ended."""

    probe: ProbeMetrics
    pairs: int
    trained_on: int
    logps_chosen: float
    logps_rejected: float
    stop: str = ""


class PolicyMetrics(Shape):
    """Of `policies`; the result of an online run knows its `rounds`, the `best` one and the probe before the first."""

    training: Training
    pairs: int
    rounds: tuple[RoundMetrics, ...] = ()
    initial: ProbeMetrics | None = None
    best: int | None = None


class Judges(Shape):
    """Who judged the labels and the comparison, and which models share a family with the latter."""

    labels: tuple[str, ...]
    evaluation: str
    same_family: bool
    judged: Mapping[str, Sequence[str]]
    own_family: tuple[str, ...]


class Constraint(Shape):
    """What the models of some sides were told besides, such as a limit of length."""

    line: str
    sides: tuple[str, ...]


class ComparisonMetrics(WinRates):
    """Of `comparisons`: how often the policy is preferred to the reference, over `draws` answers to each speech.

    `leakage` is None where the policy is not of this store: what it was trained on is not known.
    """

    speeches: int
    draws: int
    constraint: Constraint | None = None
    identical: int = 0
    length_controlled: LengthControlled
    missing_by_topic: Mapping[str, MissingShare]
    crisis: Rate | None
    by_topic: Mapping[str, Rate | None]
    by_speech_length: Mapping[str, Rate | None]
    policy_text_quality: TextQuality
    reference_text_quality: TextQuality
    kl: KlDivergence | None = None
    judges: Judges
    answered_by_both: int
    missing_answers: Mapping[str, Counts]
    leakage: Leakage | None
    votes: Replies | None = None
    spend: Spend | None = None


class ComparisonFigure(Shape):
    """The main figure of a comparison."""

    model_config = ConfigDict(extra="ignore")  # older ones have more of its figures

    win_rate: Rate


class RewardFigure(Shape):
    """The main figure of a reward model, on test pairs."""

    model_config = ConfigDict(extra="ignore")  # older ones have the baselines too

    accuracy: Rate


class ReportMetrics(Shape):
    """Of `reports`: the main figures of what it shows, by `name@id8`; `pairs` by split as well."""

    model_config = ConfigDict(extra="ignore")  # older ones have `audits`

    win_rates: Mapping[str, ComparisonFigure]
    reward_models: Mapping[str, RewardFigure]
    pairs: Mapping[str, Counts]


CandidateMetrics = ReadyCandidateMetrics | PoolCandidateMetrics | AnswerMetrics | RoundCandidateMetrics
PairMetrics = PreferenceMetrics | RoundPairMetrics
ModelMetrics = BaseModelMetrics | RewardModelMetrics | PolicyMetrics
EvaluationMetrics = PairEvaluationMetrics | BestOfKMetrics
JudgeMetrics = JudgementMetrics | AuditMetrics | ComparisonMetrics
Metrics = (
    SpeechMetrics
    | CandidateMetrics
    | PairMetrics
    | ModelMetrics
    | JudgeMetrics
    | ScoreMetrics
    | ReferenceMetrics
    | ProbeMetrics
    | EvaluationMetrics
    | AnnotationTaskMetrics
    | AnnotationMetrics
    | AnchorMetrics
    | CrisisMetrics
    | JudgeCalibrationMetrics
    | ReportMetrics
)

METRICS: dict[str, Any] = {
    "speeches": SpeechMetrics,
    "candidates": CandidateMetrics,
    "judgements": JudgementMetrics,
    "audits": AuditMetrics,
    "preferences": PairMetrics,
    "base-models": BaseModelMetrics,
    "reward-models": RewardModelMetrics,
    "reward-evaluations": EvaluationMetrics,
    "scores": ScoreMetrics,
    "reference-logps": ReferenceMetrics,
    "policies": PolicyMetrics,
    "probes": ProbeMetrics,
    "comparisons": ComparisonMetrics,
    "annotation-tasks": AnnotationTaskMetrics,
    "annotations": AnnotationMetrics,
    "anchors": AnchorMetrics,
    "crisis-evaluations": CrisisMetrics,
    "judge-calibrations": JudgeCalibrationMetrics,
    "reports": ReportMetrics,
}
"""The model of each kind, or a union of models."""
_BY_KIND = {kind: TypeAdapter[Any](model) for kind, model in METRICS.items()}


def parse_metrics(kind: str, metrics: Any) -> Metrics:
    """Return the content of a `metrics.json` as the model of its kind.

    Raises:
        ValueError: it is not what artifacts of this kind hold; the message names every key at fault.
    """
    return _BY_KIND[kind].validate_python(metrics)


def metrics_of(artifact: "Artifact") -> Metrics:
    """Return the numbers of an artifact.

    Raises:
        StoreError: another version has written them.
    """
    try:
        return parse_metrics(artifact.kind, artifact.metrics)
    except ValidationError as error:
        raise StoreError(
            "metrics.json was written by another version of psychocounsel",
            where=str(artifact.folder),
            remedy="run the stage again; it creates an artifact that this version can read",
        ) from error
