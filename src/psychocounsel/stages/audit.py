"""Judgements -> audit: what the judge is worth, by asking it a little more.

An audit is an artifact beside the dataset and no parent of it: a larger sample judges nothing again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from psychocounsel.config.schema import AuditConfig, BuildPreferencesConfig
from psychocounsel.evaluation.statistics import BootstrapSettings, bootstrap_rate
from psychocounsel.judging.audit import (
    agreement,
    agreement_by_principle,
    gain,
    gains,
    halo,
    halo_both_ways,
    is_within,
    mean_difference,
    spearman,
    ties,
)
from psychocounsel.judging.injection import CANARIES, sample_indices, with_canary
from psychocounsel.judging.judge import Judge, Resamplable, addressing_judge, missing_share, require_judged
from psychocounsel.judging.judges import ChatJudge, PanelJudge, judge_spending, judge_standing, open_judge
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.types import ChatRequest
from psychocounsel.reporting.console import progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.files import digest_of
from psychocounsel.store.schemas import read_candidates, read_judgements, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Judgement, Rating, ReplyStatus, Speech

VERSION = 2
STAGE = "build-preferences"

RETEST, ONE_PRINCIPLE, CANARY = "retest", "one principle", "canary"
"""Name the draws: each has a sample of its own."""

_BOOTSTRAP = BootstrapSettings(samples=2000)

Item = tuple[Speech, Candidate]


class Rated(NamedTuple):
    """A response with its valid judgement."""

    speech: Speech
    candidate: Candidate
    judgement: Judgement

    @property
    def item(self) -> Item:
        """What a judge is asked about."""
        return self.speech, self.candidate


class Samples(NamedTuple):
    """The responses that an audit asks about again: twice, one principle at a time, with a canary."""

    again: Sequence[Item]
    alone: Sequence[Item]
    planted: Sequence[Item]


def plan_audit(config: BuildPreferencesConfig, judgements: ArtifactSpec) -> ArtifactSpec:
    """Return what the audit of some judgements is."""
    settings = {"audit": config.audit.fingerprint(), "canaries": digest_of(list(CANARIES))}
    parents = (judgements.as_parent("judgements"), *judgements.parents)
    return ArtifactSpec("audits", config.name, STAGE, VERSION, settings, parents, judgements.warnings)


def audit_judge(config: BuildPreferencesConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    """Ask the judge again about a sample, and write what came of it.

    Raises:
        IncompleteError: an endpoint does not answer; what it answered is kept.
        EndpointError: it refuses.
        RunCancelledError: SIGINT or SIGTERM came.
    """
    judgements = store.open(writer.parent("judgements"))
    rated = read_rated(store, judgements)
    able = able_to_gain(rated, config)
    with open_judge(config.judge, store, cancel) as judge:
        _reckon_with(judge, judgements)
        asked = config.audit
        metrics: dict[str, Any] = {
            "judged": _counts(judgements),
            "ties": _ties(rated),
            "length": _plain(_length(rated)),
            "halo": halo([each.judgement.ratings for each in rated], judge.principles),
            "retest": _retest(judge, _drawn(rated, asked.retest, RETEST)),
            "one_principle": _one_by_one(judge, _drawn(rated, asked.one_principle, ONE_PRINCIPLE)),
            "canaries": _canaries(judge, _drawn(able, asked.canaries, CANARY)) if asked.canaries else None,
        }
        writer.notes["judge"] = judge.name
        writer.write_metrics({**metrics, **judge_spending(judge)})


def audit_requests(judge: ChatJudge, samples: Samples) -> list[ChatRequest]:
    """Return what an audit of these responses would have to ask at least once."""
    owed = judge.resampled().owed_ratings(samples.again)
    for principle in judge.principles if len(judge.principles) > 1 else ():
        owed += judge.for_principle(principle).owed_ratings(samples.alone)
    return owed + judge.owed_ratings([_planted(each) for each in samples.planted])


def samples_of(items: Sequence[Item], able: Sequence[Item], config: AuditConfig) -> Samples:
    """Draw the samples of an audit.

    Args:
        items: the responses that have a valid judgement, or will have one.
        able: those of them that could gain a point.
        config: how many are drawn.
    """
    return Samples(
        _drawn_items(items, config.retest, RETEST),
        _drawn_items(items, config.one_principle, ONE_PRINCIPLE),
        _drawn_items(able, config.canaries, CANARY),
    )


def _drawn_items(items: Sequence[Item], count: int, purpose: str) -> list[Item]:
    return [items[at] for at in sample_indices([candidate for _, candidate in items], count, purpose)]


def _drawn(rated: Sequence[Rated], count: int, purpose: str) -> list[Rated]:
    return [rated[at] for at in sample_indices([each.candidate for each in rated], count, purpose)]


def read_rated(store: Store, judgements: Artifact) -> list[Rated]:
    """Return every response with a valid judgement, in the order of the judgements.

    Raises:
        StoreError: a parent of the judgements is missing.
    """
    speeches = {each.speech.id: each.speech for each in read_speeches(_speeches(store, judgements))}
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


def _speeches(store: Store, judgements: Artifact) -> Artifact:
    parent: Parent = judgements.parent("speeches")
    return store.open(parent)


def able_to_gain(rated: Sequence[Rated], config: BuildPreferencesConfig) -> list[Rated]:
    """Return the responses that a canary could lift by a point: no other tells who obeys from who resists."""
    best = load_rubric(config.judge.rubric).maximum
    return [each for each in rated if each.judgement.total <= (best - 1) * len(each.judgement.ratings)]


def _reckon_with(judge: Judge, judgements: Artifact) -> None:
    """Count what the judgements cost towards the limit of each endpoint: rating and audit are one step."""
    spend = judgements.metrics.get("spend", {})
    if isinstance(judge, PanelJudge):
        for member, label in zip(judge.judges, judge.labels, strict=True):
            # Where nobody told whose the cost was, it counts for each: no limit may be passed.
            _reckon(member, spend["by_judge"].get(label, {}) if "by_judge" in spend else spend)
    elif isinstance(judge, ChatJudge):
        _reckon(judge, spend)


def _reckon(judge: ChatJudge, spend: Mapping[str, Any]) -> None:
    if judge.spending is not None:
        costs = (spend.get("cost_usd"), spend.get("possibly_billed", {}).get("cost_usd"))
        judge.spending.before = sum((Decimal(str(cost)) for cost in costs if cost is not None), Decimal(0))


def _counts(judgements: Artifact) -> dict[str, Any]:
    names = ("judged", "status", "missing_by_topic", "addresses_judge", "histograms")
    return {name: judgements.metrics[name] for name in names}


def _ties(rated: Sequence[Rated]) -> dict[str, float] | None:
    totals: dict[str, list[int | Fraction]] = defaultdict(list)
    for each in rated:
        totals[each.speech.id].append(each.judgement.total)
    tied = [(float(tie), speech) for speech, each in totals.items() for tie in ties(each)]
    return _rate([tie for tie, _ in tied], [speech for _, speech in tied])


def _rate(values: Sequence[float | None], speeches: Sequence[str]) -> dict[str, float] | None:
    """Return a rate with its interval over speeches; None where nothing is known."""
    if all(value is None for value in values):
        return None
    return bootstrap_rate(values, speeches, _BOOTSTRAP).as_dict()


def _length(rated: Sequence[Rated]) -> Any:
    totals = [float(each.judgement.total) for each in rated]
    return spearman(totals, [float(len(each.candidate.text)) for each in rated])


def _retest(judge: Judge, asked: Sequence[Rated]) -> dict[str, Any] | None:
    if not isinstance(judge, Resamplable) or not asked:
        return None
    again = _ask(judge.resampled(), [each.item for each in asked], "asking the judge again")
    first = [one.judgement.ratings for one, two in zip(asked, again, strict=True) if two.ratings]
    second = [two.ratings for two in again if two.ratings]
    pairs = [(one[name], two[name]) for one, two in zip(first, second, strict=True) for name in one]
    overall = agreement(pairs)
    return {
        "asked": len(asked),
        "missing": missing_share(again).missing,
        "equal": share_of_principles(asked, again, 0),
        "within_one": share_of_principles(asked, again, 1),
        "kappa": None if overall is None else overall.kappa,
        "by_principle": {
            name: _plain(each) for name, each in agreement_by_principle(first, second, judge.principles).items()
        },
        "change": _plain(gain(first, second)),
    }


def share_of_principles(asked: Sequence[Rated], again: Sequence[Judgement], points: int) -> dict[str, float] | None:
    """Return the rate of ratings that moved by no more than so many points; a failed one is missing."""
    shares: list[float | None] = []
    for one, two in zip(asked, again, strict=True):
        close = [
            is_within(points, own, two.ratings[name]) for name, own in one.judgement.ratings.items() if two.ratings
        ]
        shares.append(sum(close) / len(close) if close else None)
    return _rate(shares, [each.speech.id for each in asked])


def _one_by_one(judge: Judge, asked: Sequence[Rated]) -> dict[str, Any] | None:
    """Rate a sample on one principle per call, and compare with the ratings that came all in one."""
    if not isinstance(judge, Resamplable) or not asked or len(judge.principles) < 2:
        return None
    alone: list[dict[str, Rating]] = [{} for _ in asked]
    for principle in judge.principles:
        label = f"rating {principle} alone"
        for at, each in enumerate(_ask(judge.for_principle(principle), [each.item for each in asked], label)):
            alone[at].update(each.ratings)
    whole = [at for at, ratings in enumerate(alone) if len(ratings) == len(judge.principles)]
    together = [asked[at].judgement.ratings for at in whole]
    apart = [alone[at] for at in whole]
    return {
        "asked": len(asked),
        "missing": len(asked) - len(whole),
        "halo": _plain(halo_both_ways(together, apart, judge.principles)),
        "mean_difference": mean_difference(together, apart, judge.principles),
    }


def _canaries(judge: Judge, asked: Sequence[Rated]) -> dict[str, Any]:
    copies = _ask(judge, [_planted(each.item) for each in asked], "rating canaries")
    both = [(one, two) for one, two in zip(asked, copies, strict=True) if two.ratings]
    first, second = [one.judgement.ratings for one, _ in both], [two.ratings for _, two in both]
    rises = gains(first, second)
    won = [one.candidate.id for (one, _), rise in zip(both, rises, strict=True) if rise >= 1]
    return {
        "asked": len(asked),
        "missing": missing_share(copies).missing,
        "flagged": addressing_judge(copies),
        "gain": _plain(gain(first, second)),
        "gained_a_point": won,
        "lost_a_point": sum(rise <= -1 for rise in rises),
        "resists": not won if both else None,
    }


def _planted(item: Item) -> Item:
    speech, candidate = item
    return speech, with_canary(candidate)


def _ask(judge: Judge, items: Sequence[Item], label: str) -> list[Judgement]:
    """Return a judgement of each; what an endpoint left unanswered is owed, and no result of the audit."""
    with progress(label, len(items), lambda: judge_standing(judge)) as advance:
        judged = judge.rate(items, advance)
    require_judged(judged, "ratings of the judge's audit", max_missing_share=1.0)
    return judged


def _plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else value._asdict()
