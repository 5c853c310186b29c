"""The audit of a judge: what its ratings rest on, measured by asking it a little more.

An audit is no parent of the dataset: a larger sample leaves the judgements and the pairs as they are.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from psychocounsel.config.schema import BuildPreferencesConfig
from psychocounsel.evaluation.agreement import agreement, agreement_by_principle, is_within, spearman
from psychocounsel.evaluation.judge_audit import gain, gains, halo, halo_both_ways, mean_difference, ties
from psychocounsel.evaluation.statistics import rate_if_known
from psychocounsel.judging.injection import CANARIES, sample_indices, with_canary
from psychocounsel.judging.judge import Judge, Resamplable, addressing_judge, count_failed, require_judged
from psychocounsel.judging.judges import ChatJudge, PanelJudge, judge_spending, judge_status
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.judging.table import TableJudge
from psychocounsel.reporting.console import progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.files import digest_of
from psychocounsel.store.schemas import read_candidates, read_judgements, speeches_by_id
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Judgement, Rate, Rating, ReplyStatus, Speech

VERSION = 4
STAGE = "build-preferences"


class Rated(NamedTuple):
    """A response with its valid judgement."""

    speech: Speech
    candidate: Candidate
    judgement: Judgement


def audit_spec(config: BuildPreferencesConfig, judgements: ArtifactSpec) -> ArtifactSpec:
    """Return what the audit of some judgements is."""
    settings = {"audit": config.audit.fingerprint(), "canaries": digest_of(list(CANARIES))}
    parents = (judgements.as_parent("judgements"), *judgements.parents)
    return ArtifactSpec("audits", config.name, STAGE, VERSION, settings, parents, judgements.warnings)


def audit_judge(config: BuildPreferencesConfig, store: Store, writer: ArtifactWriter, judge: Judge) -> None:
    """Ask the judge again about samples of the judged responses, and write what that shows.

    Raises:
        IncompleteError: an endpoint does not answer; completed requests are in the journal.
        EndpointError: it refuses.
        Preempted: the run was cancelled.
    """
    judgements = store.open(writer.parent("judgements"))
    rated = read_rated(store, judgements)
    _count_earlier_costs(judge, judgements.metrics.get("spend", {}))
    # Only a response that is a point below the best shows whether the judge obeys a canary.
    best = load_rubric(config.judge.rubric).maximum
    able = [each for each in rated if each.judgement.total <= (best - 1) * len(each.judgement.ratings)]
    names = ("judged", "status", "missing_by_topic", "addresses_judge", "histograms")
    size = config.audit
    totals = [float(each.judgement.total) for each in rated]
    reads = not isinstance(judge, TableJudge)  # a table looks at no text
    metrics: dict[str, Any] = {
        "judged": {name: judgements.metrics[name] for name in names},
        "ties": _ties(rated),
        "length": spearman(totals, [float(len(each.candidate.text)) for each in rated]),
        "halo": halo([each.judgement.ratings for each in rated], judge.principles),
        "retest": _retest(judge, _sample(rated, size.retest, "retest")),
        "one_principle": _one_by_one(judge, _sample(rated, size.one_principle, "one principle")),
        "canaries": _canaries(judge, _sample(able, size.canaries, "canary")) if reads and size.canaries else None,
    }
    writer.notes["judge"] = judge.name
    writer.write_metrics({**metrics, **judge_spending(judge)})


def _sample(rated: Sequence[Rated], count: int, purpose: str) -> list[Rated]:
    """Return a sample of its own for each purpose."""
    return [rated[at] for at in sample_indices([each.candidate for each in rated], count, purpose)]


def read_rated(store: Store, judgements: Artifact) -> list[Rated]:
    """Return every response with a valid judgement, in the order of the judgements.

    Raises:
        StoreError: a parent of the judgements is missing.
    """
    speeches = speeches_by_id(store.open(judgements.parent("speeches")))
    candidates = {
        each.id: each
        for parent in judgements.parents
        if parent.kind == "candidates"
        for each in read_candidates(store.open(parent))
    }
    return [
        Rated(speeches[candidates[each.candidate_id].speech_id], candidates[each.candidate_id], each)
        for each in read_judgements(judgements)
        if each.status is ReplyStatus.VALID
    ]


def _count_earlier_costs(judge: Judge, spend: Mapping[str, Any]) -> None:
    """Count what the judgements cost towards the limit of each endpoint: rating and audit are one stage."""
    if isinstance(judge, PanelJudge):
        for member, label in zip(judge.judges, judge.labels, strict=True):
            _count_earlier_cost(member, spend["by_judge"].get(label, {}) if spend else {})
    elif isinstance(judge, ChatJudge):
        _count_earlier_cost(judge, spend)


def _count_earlier_cost(judge: ChatJudge, spend: Mapping[str, Any]) -> None:
    if judge.spending is not None:
        costs = (spend.get("cost_usd"), spend.get("possibly_billed", {}).get("cost_usd"))
        judge.spending.before = sum((Decimal(str(cost)) for cost in costs if cost is not None), Decimal(0))


def _ties(rated: Sequence[Rated]) -> Rate | None:
    totals: dict[str, list[int | Fraction]] = defaultdict(list)
    for each in rated:
        totals[each.speech.id].append(each.judgement.total)
    tied = [(float(tie), speech) for speech, each in totals.items() for tie in ties(each)]
    return rate_if_known([tie for tie, _ in tied], [speech for _, speech in tied])


def _retest(judge: Judge, asked: Sequence[Rated]) -> dict[str, Any] | None:
    if not isinstance(judge, Resamplable) or not asked:
        return None
    again = _ask(judge.resampled(), asked, "asking the judge again")
    first = [one.judgement.ratings for one, two in zip(asked, again, strict=True) if two.ratings]
    second = [two.ratings for two in again if two.ratings]
    pairs = [(one[name], two[name]) for one, two in zip(first, second, strict=True) for name in one]
    overall = agreement(pairs)
    return {
        "asked": len(asked),
        "missing": count_failed(again),
        "equal": share_of_principles(asked, again, 0),
        "within_one": share_of_principles(asked, again, 1),
        "kappa": None if overall is None else overall.kappa,
        "by_principle": agreement_by_principle(first, second, judge.principles),
        "change": gain(first, second),
    }


def share_of_principles(asked: Sequence[Rated], again: Sequence[Judgement], points: int) -> Rate | None:
    """Return the rate of ratings that moved by no more than so many points; a failed one is missing."""
    shares: list[float | None] = []
    for one, two in zip(asked, again, strict=True):
        close = [
            is_within(points, own, two.ratings[name]) for name, own in one.judgement.ratings.items() if two.ratings
        ]
        shares.append(sum(close) / len(close) if close else None)
    return rate_if_known(shares, [each.speech.id for each in asked])


def _one_by_one(judge: Judge, asked: Sequence[Rated]) -> dict[str, Any] | None:
    """Rate a sample on one principle per call, and compare with the ratings that came all in one."""
    if not isinstance(judge, Resamplable) or not asked or len(judge.principles) < 2:
        return None
    alone: list[dict[str, Rating]] = [{} for _ in asked]
    for principle in judge.principles:
        label = f"rating {principle} alone"
        for at, each in enumerate(_ask(judge.for_principle(principle), asked, label)):
            alone[at].update(each.ratings)
    whole = [at for at, ratings in enumerate(alone) if len(ratings) == len(judge.principles)]
    together = [asked[at].judgement.ratings for at in whole]
    apart = [alone[at] for at in whole]
    return {
        "asked": len(asked),
        "missing": len(asked) - len(whole),
        "halo": halo_both_ways(together, apart, judge.principles),
        "mean_difference": mean_difference(together, apart, judge.principles),
    }


def _canaries(judge: Judge, asked: Sequence[Rated]) -> dict[str, Any]:
    copies = _ask(judge, [each._replace(candidate=with_canary(each.candidate)) for each in asked], "rating canaries")
    both = [(one, two) for one, two in zip(asked, copies, strict=True) if two.ratings]
    first, second = [one.judgement.ratings for one, _ in both], [two.ratings for _, two in both]
    rises = gains(first, second)
    won = [one.candidate.id for (one, _), rise in zip(both, rises, strict=True) if rise >= 1]
    return {
        "asked": len(asked),
        "missing": count_failed(copies),
        "flagged": addressing_judge(copies),
        "gain": gain(first, second),
        "gained_a_point": won,
        "lost_a_point": sum(rise <= -1 for rise in rises),
        "resists": not won if both else None,
    }


def _ask(judge: Judge, asked: Sequence[Rated], label: str) -> list[Judgement]:
    """Return a new judgement of each; requests without a reply leave the audit pending."""
    items = [(each.speech, each.candidate) for each in asked]
    with progress(label, len(items), lambda: judge_status(judge)) as advance:
        judged = judge.rate(items, advance)
    require_judged(judged, "ratings of the judge's audit", max_missing_share=1.0)
    return judged
