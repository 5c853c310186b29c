"""Policy + reference -> verdicts: who answers clients better, judged in both orders."""

from collections.abc import Callable
from typing import Any, NamedTuple

from psychocounsel.config.models import EndpointConfig, ResponderConfig
from psychocounsel.config.stages import EvalWinrateConfig
from psychocounsel.console import progress
from psychocounsel.costs import PaidCalls, winrate_costs
from psychocounsel.domain import OVERALL, Candidate
from psychocounsel.endpoints import keep_restricted_text_here, require_listed, require_usable
from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.comparison import Answers, measure
from psychocounsel.evaluation.held_out import held_out_speeches
from psychocounsel.evaluation.intervals import BootstrapSettings
from psychocounsel.evaluation.win_rate import Asked, BothOrders, Unanswered
from psychocounsel.interrupts import go_on, stop_requests
from psychocounsel.judges import judge_spending, judge_standing, open_judge, plan_judge
from psychocounsel.judging.draws import vote_metrics
from psychocounsel.judging.families import same_family
from psychocounsel.judging.judge import Compared, missing_share, require_judged
from psychocounsel.responders import NOT_IN_FILE, Respondents, plan_responder, respond
from psychocounsel.store.artifacts import Artifact, Draft, Parent, Plan
from psychocounsel.store.lineage import labelling_judges, models_behind
from psychocounsel.store.references import resolve, resolve_parent
from psychocounsel.store.retrying import asked_again, note_failed
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import (
    OrderedVerdict,
    read_candidates,
    read_speeches,
    write_candidates,
    write_verdicts,
)

VERSION = 2
STAGE = "eval-winrate"
SIDES = ("policy", "reference")


class WinratePlans(NamedTuple):
    """What the stage makes, in order."""

    policy: Plan
    reference: Plan
    verdicts: Plan


def plan(config: EvalWinrateConfig, store: Store) -> WinratePlans:
    """Return what a config means, without making it.

    Raises:
        ConfigError: restricted text would reach a remote judge or responder, or one is remote and the run
            offline.
    """
    _keep_restricted_text_here(config, resolve(store, config.speeches, "speeches"))
    speeches = resolve_parent(store, config.speeches, "speeches", "speeches")
    policy = _plan_answers(config, config.policy, "policy", speeches, store)
    reference = _plan_answers(config, config.reference, "reference", speeches, store)
    judge = plan_judge(config.judge, store)
    settings: dict[str, Any] = {
        "judge": judge.settings,
        "bootstrap_samples": config.bootstrap_samples,
        "confidence": config.confidence,
        "seed": config.seed,
    }
    if config.labelled_by is not None:
        settings["labelled_by"] = config.labelled_by
    parents = (policy.as_parent("policy answers"), reference.as_parent("reference answers"), speeches)
    verdicts = Plan("verdicts", config.name, STAGE, VERSION, settings, parents, judge.notices)
    return WinratePlans(policy, reference, asked_again(verdicts, store) if config.retry_failed else verdicts)


def _keep_restricted_text_here(config: EvalWinrateConfig, speeches: Artifact | Plan) -> None:
    endpoints = (*config.judge.endpoints, config.policy.endpoint, config.reference.endpoint)
    settings = speeches.manifest["settings"] if isinstance(speeches, Artifact) else speeches.settings
    sources = enumerate(settings["speeches"], start=1)
    data_classes = {f"speeches {speeches.ref} source {at}": each["data_class"] for at, each in sources}
    keep_restricted_text_here(endpoints, data_classes)


def _plan_answers(
    config: EvalWinrateConfig, responder: ResponderConfig, role: str, speeches: Parent, store: Store
) -> Plan:
    planned = plan_responder(responder, store, "model")
    settings = {
        "responder": planned.settings,
        "split": config.split,
        "max_speeches": config.max_speeches,
        "seed": config.seed,
    }
    name = f"{config.name}-{role}"
    answers = Plan("candidates", name, STAGE, VERSION, settings, (speeches, *planned.parents))
    return asked_again(answers, store) if config.retry_failed else answers


def eval_winrate(config: EvalWinrateConfig, store: Store) -> Artifact:
    """Measure the win rate of a config, or return it if it exists.

    Raises:
        ConfigError: the judge or a side cannot be asked.
        IncompleteError: an endpoint does not answer; what was answered is kept.
        DataQualityError: the split is empty, or too many answers or verdicts failed.
        Preempted: a signal asked to stop; what was answered is kept.
    """
    plans = plan(config, store)
    _require_usable(config, plans, store)
    with stop_requests() as stop:
        store.make(plans.policy, lambda draft: _answer(config, config.policy, store, draft, stop))
        go_on(stop, plans.policy.ref)
        store.make(plans.reference, lambda draft: _answer(config, config.reference, store, draft, stop))
        go_on(stop, plans.reference.ref)
        return store.make(plans.verdicts, lambda draft: _compare(config, store, draft, stop))


def _require_usable(config: EvalWinrateConfig, plans: WinratePlans, store: Store) -> None:
    """Check the endpoints of whatever is still to be made, before the first of them is paid."""
    judges = config.judge.named_endpoints
    wanted = (
        ("policy", config.policy.endpoint, plans.policy),
        ("reference", config.reference.endpoint, plans.reference),
        *((whose, endpoint, plans.verdicts) for whose, endpoint in judges.items()),
    )
    endpoints: dict[str, EndpointConfig | None] = {
        whose: endpoint for whose, endpoint, planned in wanted if store.find(planned) is None
    }
    require_usable(endpoints, store)
    if endpoints.keys() - judges.keys() and endpoints.keys() & judges.keys():
        require_listed(judges.values(), store)


def costs(config: EvalWinrateConfig, store: Store) -> list[PaidCalls]:
    """Return the paid calls that are still owed; nothing is asked and nothing written."""
    plans = plan(config, store)
    return [] if store.find(plans.verdicts) else winrate_costs(config, plans.policy, plans.reference, store)


def _answer(
    config: EvalWinrateConfig,
    responder: ResponderConfig,
    store: Store,
    draft: Draft,
    stop: Callable[[], bool],
) -> None:
    speeches = held_out_speeches(read_speeches(store.open(draft.parent("speeches"))), config)
    if not speeches:
        raise DataQualityError(
            f"the split {config.split} has no speeches", where=config.speeches, remedy="choose another split"
        )
    responded = respond(responder, Respondents(speeches, config.seed), store, stop)
    write_candidates(draft, responded.candidates)
    draft.write_metrics({"speeches": len(speeches), "failed": responded.failed, **responded.spend})
    note_failed(draft, sum(count for why, count in responded.failed.items() if why != NOT_IN_FILE))


def _compare(config: EvalWinrateConfig, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    asked = held_out_speeches(read_speeches(store.open(draft.parent("speeches"))), config)
    speeches = {each.id: each for each in asked}
    policy = _by_speech(store, draft, "policy")
    reference = _by_speech(store, draft, "reference")
    compared = Compared.of(speeches, policy, reference)
    both = len(compared.forward)
    with open_judge(config.judge, store, stop, may_wait=True) as judge:
        with progress("comparing answers, both orders", 2 * both, lambda: judge_standing(judge)) as advance:
            verdicts = judge.compare([*compared.forward, *compared.backward], advance)
        criteria, spend = (OVERALL, *judge.principles), judge_spending(judge)
        draft.notes["judge"] = judge.name
    require_judged(verdicts, "verdicts", config.judge.max_missing_share)
    note_failed(draft, missing_share(verdicts).missing)
    rounds = [BothOrders(*pair) for pair in zip(verdicts[:both], verdicts[both:], strict=True)]
    ordered = [OrderedVerdict(each.forward, "forward") for each in rounds]
    ordered += [OrderedVerdict(each.backward, "backward") for each in rounds]
    write_verdicts(draft, ordered, criteria)
    unanswered = [Unanswered(each) for each in speeches if each not in policy or each not in reference]
    every: list[Asked] = [*rounds, *unanswered]
    draft.write_metrics(
        {
            **measure(every, Answers(speeches, policy, reference), _bootstrap(config)),
            "judges": _judges(config, store, draft),
            "answered_by_both": both,
            **vote_metrics(verdicts),
            **spend,
            "missing_answers": {side: _answers(store, draft, side).metrics["failed"] for side in SIDES},
        }
    )


def _answers(store: Store, draft: Draft, side: str) -> Artifact:
    return store.open(draft.parent(f"{side} answers"))


def _by_speech(store: Store, draft: Draft, side: str) -> dict[str, Candidate]:
    return {each.speech_id: each for each in read_candidates(_answers(store, draft, side))}


def _bootstrap(config: EvalWinrateConfig) -> BootstrapSettings:
    return BootstrapSettings(config.bootstrap_samples, config.confidence, config.seed)


def _judges(config: EvalWinrateConfig, store: Store, draft: Draft) -> dict[str, Any]:
    """Name the judges of labels and of this result, the models judged, and who of them is of one family."""
    answers = {side: _answers(store, draft, side) for side in SIDES}
    told = () if config.labelled_by is None else (config.labelled_by,)
    labelled = tuple(dict.fromkeys((*labelling_judges(store, answers["policy"]), *told)))
    evaluating = str(draft.notes["judge"])
    judged = {side: models_behind(store, answers[side]) for side in SIDES}
    return {
        "labels": list(labelled),
        "evaluation": evaluating,
        "same_family": any(same_family(evaluating, each) for each in labelled),
        "judged": {side: list(names) for side, names in judged.items()},
        "own_family": [
            side for side, names in judged.items() if any(same_family(evaluating, each) for each in names)
        ],
    }
