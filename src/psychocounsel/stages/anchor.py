"""anchor: a judge's win rate, corrected by human labels of a random sample of the same comparison."""

import shlex
from collections import Counter, defaultdict

import numpy as np

from psychocounsel.config.schema import AnchorConfig
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.evaluation.agreement import coefficient, weighted_kappa
from psychocounsel.evaluation.anchor import ENOUGH_LABELS, FEWEST_LABELS, Draw, anchor, more_speeches, units_of
from psychocounsel.evaluation.statistics import clustered_rate
from psychocounsel.evaluation.winrate import POINTS, in_both_orders
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.evaluation_metrics import AnnotationMetrics
from psychocounsel.store.metrics import metrics_of
from psychocounsel.store.references import resolve
from psychocounsel.store.schemas import Annotation, read_comparisons, read_records
from psychocounsel.store.store import Store
from psychocounsel.types import OVERALL

VERSION = 1
STAGE = "anchor"
COMPARISONS, LABELS = "comparisons", "labels"


def specs(config: AnchorConfig, store: Store) -> ArtifactSpec:
    """Return what the stage would create.

    Raises:
        ConfigError: a reference matches nothing.
    """
    comparisons = resolve(store, config.comparisons, "comparisons")
    labels = resolve(store, config.labels, "annotations")
    parents = (comparisons.as_parent(COMPARISONS), labels.as_parent(LABELS))
    return ArtifactSpec("anchors", config.name, STAGE, VERSION, {}, parents)


def correct(config: AnchorConfig, store: Store) -> Artifact:
    """Correct the win rate of a comparison by the labels of a config, or return the result if it exists.

    Raises:
        InputError: the labels are of another comparison, or by a model.
        DataQualityError: they are no random sample, or of too few speeches.
    """
    return store.make(specs(config, store), lambda writer: _build(store, writer))


def _build(store: Store, writer: ArtifactWriter) -> None:
    comparisons, labels = store.open(writer.parent(COMPARISONS)), store.open(writer.parent(LABELS))
    given = metrics_of(labels)
    if not isinstance(given, AnnotationMetrics) or given.win_rate is None:
        raise InputError(
            "these labels rate answers one by one", where=labels.ref, remedy="export and label the comparison itself"
        )
    annotations = read_records(labels, Annotation)
    outcomes = {draw: POINTS[both.outcome()] for draw, both in in_both_orders(read_comparisons(comparisons)).items()}
    there = len({speech for speech, _ in outcomes})
    _require_sample_of(comparisons, labels, {each.comparison_id for each in annotations}, given, there)
    judge_only = clustered_rate(list(outcomes.values()), [speech for speech, _ in outcomes])
    points: dict[Draw, list[float]] = defaultdict(list)
    raters = Counter[str]()
    for each in annotations:
        if each.points is not None:
            points[each.speech_id, each.draw].append(each.points)
            raters[each.rater] += 1
    units = units_of(outcomes, points)
    found = anchor(units)
    pairs = np.stack([units.labels, units.judged], axis=1)
    judged = np.flatnonzero(units.has_verdict).tolist()
    kappa = coefficient(lambda kept: weighted_kappa(pairs[list(kept)]), judged, [units.speeches[at] for at in judged])
    writer.write_metrics(
        {
            **found.model_dump(by_alias=True),
            "judge": comparisons.manifest["notes"]["judge"],
            "skipped": given.skipped,
            "unanswered": comparisons.metrics.get("missing", judge_only.missing) - judge_only.missing,
            "judge_only": judge_only,
            "judge_holds": judge_only.low <= found.rate.estimate <= judge_only.high,
            "kappa": kappa,
            "raters": dict(sorted(raters.items())),
            "agreement": given.agreement[OVERALL],
        }
    )


def can_correct(labels: Artifact) -> bool:
    """Return whether labels of a comparison can correct its win rate: by people, at random, of enough speeches."""
    given = metrics_of(labels)
    if not isinstance(given, AnnotationMetrics) or given.win_rate is None:
        return False
    speeches = {each.speech_id for each in read_records(labels, Annotation) if each.points is not None}
    return given.labeller == "human" and given.sampled == "random" and len(speeches) >= FEWEST_LABELS


def _require_sample_of(
    comparisons: Artifact, labels: Artifact, labelled: set[str], given: AnnotationMetrics, there: int
) -> None:
    if labelled != {comparisons.id}:
        raise InputError(
            f"these labels are not of comparisons {comparisons.ref}; a judge's errors in one comparison say nothing "
            "about another",
            where=labels.ref,
            remedy=more_speeches(there)
            if there < FEWEST_LABELS
            else f"label a sample of it: psychocounsel annotate export comparisons/{comparisons.ref} "
            f"--sample {min(there, ENOUGH_LABELS)} --store {shlex.quote(str(comparisons.folder.parents[1]))}",
        )
    if given.labeller != "human":
        raise InputError(
            "these labels were given by a model: they correct nothing", where=labels.ref, remedy="let people label"
        )
    if given.sampled != "random":
        raise DataQualityError(
            "what was labelled is no random sample of the comparison",
            where=labels.ref,
            remedy="label, or skip, the items in the order of the export, without gaps",
        )
