"""Judgements -> audit: what the judge is worth, by asking it a little more.

An audit is an artifact beside the dataset and no parent of it: a larger sample judges nothing again.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from psychocounsel.config.stages import AuditConfig, BuildPreferencesConfig
from psychocounsel.connect import judge_spending, open_judge
from psychocounsel.console import progress
from psychocounsel.domain import Candidate, Judgement, Rating, ReplyStatus, Speech
from psychocounsel.judging.canaries import CANARIES, drawn, with_canary
from psychocounsel.judging.chat_judge import ChatJudge
from psychocounsel.judging.judge import Judge, missing_share
from psychocounsel.judging.panel import PanelJudge
from psychocounsel.judging.quality import (
    Agreement,
    agreement,
    agreement_by_principle,
    gain,
    halo,
    mean_difference,
    spearman,
    tied_share,
)
from psychocounsel.llm.chat import ChatRequest
from psychocounsel.store.artifacts import Draft, Plan
from psychocounsel.store.digests import digest_of
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import read_candidates, read_judgements, read_speeches

VERSION = 1
STAGE = "build-preferences"

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


def plan_audit(config: BuildPreferencesConfig, judgements: Plan) -> Plan:
    """Return what the audit of some judgements is."""
    settings = {"audit": config.audit.identity(), "canaries": digest_of(list(CANARIES))}
    parents = (judgements.as_parent("judgements"), *judgements.parents)
    return Plan("audits", config.name, STAGE, VERSION, settings, parents, judgements.notices)


def audit_judge(config: BuildPreferencesConfig, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    """Ask the judge again about a sample, and write what came of it.

    Raises:
        IncompleteError: an endpoint does not answer; what it answered is kept.
        Preempted: a signal asked to stop.
    """
    rated = _rated(store, draft)
    with open_judge(config.judge, store, stop) as judge:
        principles = judge.principles
        metrics: dict[str, Any] = {
            "judged": _counts(store, draft),
            "tied_share": tied_share(_totals(rated)),
            "length": _plain(_length(rated)),
            "halo": halo([each.judgement.ratings for each in rated], principles),
            "retest": _retest(judge, rated, config.audit.retest),
            "one_principle": _one_by_one(judge, rated, config.audit.one_principle),
            "canaries": _canaries(judge, rated, config.audit.canaries),
        }
        draft.notes["judge"] = judge.name
        draft.write_metrics({**metrics, **judge_spending(judge)})


def audit_requests(judge: ChatJudge, items: Sequence[Item], config: AuditConfig) -> list[ChatRequest]:
    """Return what an audit of these responses would have to ask at least once."""
    candidates = [candidate for _, candidate in items]
    again = [items[at] for at in drawn(candidates, config.retest, "retest")]
    alone = [items[at] for at in drawn(candidates, config.one_principle, "one principle")]
    planted = [_planted(*items[at]) for at in drawn(candidates, config.canaries, "canary")]
    owed = judge.redrawn().owed_ratings(again)
    for principle in judge.principles:
        owed += judge.of_one(principle).owed_ratings(alone)
    return owed + judge.owed_ratings(planted)


def _rated(store: Store, draft: Draft) -> list[Rated]:
    speeches = {each.speech.id: each.speech for each in read_speeches(store.open(draft.parent("speeches")))}
    candidates: dict[str, Candidate] = {}
    for parent in draft.plan.parents:
        if parent.kind == "candidates":
            candidates |= {each.id: each for each in read_candidates(store.open(parent))}
    judged = read_judgements(store.open(draft.parent("judgements")))
    return [
        Rated(speeches[candidates[each.candidate_id].speech_id], candidates[each.candidate_id], each)
        for each in judged
        if each.status is ReplyStatus.VALID
    ]


def _counts(store: Store, draft: Draft) -> dict[str, Any]:
    told = store.open(draft.parent("judgements")).metrics
    return {
        name: told[name] for name in ("judged", "status", "missing_by_topic", "addresses_judge", "histograms")
    }


def _totals(rated: Sequence[Rated]) -> list[list[int | Fraction]]:
    by_speech: dict[str, list[int | Fraction]] = defaultdict(list)
    for each in rated:
        by_speech[each.speech.id].append(each.judgement.total)
    return list(by_speech.values())


def _length(rated: Sequence[Rated]) -> Any:
    totals = [float(each.judgement.total) for each in rated]
    return spearman(totals, [float(len(each.candidate.text)) for each in rated])


def _retest(judge: Judge, rated: Sequence[Rated], count: int) -> dict[str, Any] | None:
    if not isinstance(judge, ChatJudge | PanelJudge) or not count:
        return None
    asked = [rated[at] for at in drawn([each.candidate for each in rated], count, "retest")]
    again = _ask(judge.redrawn(), [each.item for each in asked], "asking the judge again")
    both = [
        (one.judgement.ratings, two.ratings) for one, two in zip(asked, again, strict=True) if two.ratings
    ]
    first, second = [one for one, _ in both], [two for _, two in both]
    overall = agreement([(one[name], two[name]) for one, two in both for name in judge.principles])
    by_principle = agreement_by_principle(first, second, judge.principles)
    return {
        "responses": len(both),
        "missing": missing_share(again).missing,
        "overall": _plain(overall),
        "by_principle": {name: _plain(each) for name, each in by_principle.items()},
    }


def _one_by_one(judge: Judge, rated: Sequence[Rated], count: int) -> dict[str, Any] | None:
    """Rate a sample on one principle per call, and compare with the ratings that came all in one."""
    if not isinstance(judge, ChatJudge | PanelJudge) or not count or len(judge.principles) < 2:
        return None
    asked = [rated[at] for at in drawn([each.candidate for each in rated], count, "one principle")]
    alone: list[dict[str, Rating]] = [{} for _ in asked]
    for principle in judge.principles:
        label = f"rating {principle} alone"
        for at, each in enumerate(_ask(judge.of_one(principle), [each.item for each in asked], label)):
            alone[at].update(each.ratings)
    whole = [at for at, ratings in enumerate(alone) if len(ratings) == len(judge.principles)]
    together = [asked[at].judgement.ratings for at in whole]
    apart = [alone[at] for at in whole]
    return {
        "responses": len(whole),
        "missing": len(asked) - len(whole),
        "halo_together": halo(together, judge.principles),
        "halo_alone": halo(apart, judge.principles),
        "mean_difference": mean_difference(together, apart, judge.principles),
    }


def _canaries(judge: Judge, rated: Sequence[Rated], count: int) -> dict[str, Any] | None:
    if not count:
        return None
    asked = [rated[at] for at in drawn([each.candidate for each in rated], count, "canary")]
    copies = _ask(judge, [_planted(*each.item) for each in asked], "rating canaries")
    both = [
        (one.judgement.ratings, two.ratings) for one, two in zip(asked, copies, strict=True) if two.ratings
    ]
    found = gain([one for one, _ in both], [two for _, two in both])
    return {
        "missing": missing_share(copies).missing,
        "gain": _plain(found),
        "resists": None if found is None else found.largest < 1,
    }


def _planted(speech: Speech, candidate: Candidate) -> Item:
    return speech, with_canary(candidate)


def _ask(judge: Judge, items: Sequence[Item], label: str) -> list[Judgement]:
    with progress(label, len(items)) as advance:
        return judge.rate(items, advance)


def _plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else value._asdict()


def audit_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return the table that a person reads, line by line."""
    judged, length = metrics["judged"], metrics["length"]
    status = ", ".join(f"{count} {name}" for name, count in judged["status"].items())
    suspects = f"{judged['addresses_judge']} seem to address the judge"
    lines = [f"judgements: {judged['judged']} ({status}); {suspects}"]
    for topic, share in judged["missing_by_topic"].items():
        if share["missing"]:
            lines.append(f"  missing in {topic or 'no topic'}: {share['missing']} of {share['total']}")
    lines += [f"  {name}: {_histogram(counts)}" for name, counts in judged["histograms"].items()]
    ties = _percent(metrics["tied_share"])
    lines.append(f"ties between responses to one speech: {ties}; halo {_number(metrics['halo'])}")
    if length is not None:
        lines.append(f"rank correlation of rating and length: {length['estimate']:.2f} {_bounds(length)}")
    for name, told in (("retest", _retested), ("one_principle", _alone), ("canaries", _resistance)):
        if metrics[name] is not None:
            lines.append(told(metrics[name]))
    return lines


def _retested(retest: Mapping[str, Any]) -> str:
    missing = f"{retest['missing']} missing"
    if retest["overall"] is None:
        return f"asked again: {missing}"
    told = Agreement(**retest["overall"])
    return (
        f"asked again, {retest['responses']} responses: equal {_percent(told.exact)}, within one point "
        f"{_percent(told.within_one)}, weighted kappa {_number(told.kappa)}; {missing}"
    )


def _alone(alone: Mapping[str, Any]) -> str:
    return (
        f"one principle per call, {alone['responses']} responses: halo {_number(alone['halo_alone'])}, "
        f"all in one {_number(alone['halo_together'])}, "
        f"mean difference {_number(alone['mean_difference'])} points; {alone['missing']} missing"
    )


def _resistance(canaries: Mapping[str, Any]) -> str:
    won = canaries["gain"]
    if won is None:
        return f"canaries: {canaries['missing']} missing"
    verdict = "resists" if canaries["resists"] else "OBEYS: do not trust its ratings of texts that address it"
    return (
        f"canaries, {won['n']} copies: gain {won['mean']:+.2f} {_bounds(won)}, "
        f"at most {won['largest']:+.2f} points; the judge {verdict}"
    )


def _bounds(told: Mapping[str, float]) -> str:
    return f"[{told['low']:.2f}, {told['high']:.2f}]"


def _histogram(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {rating}" for rating, count in counts.items())


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
