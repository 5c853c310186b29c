"""Policy + reference -> verdicts: who answers clients better, judged in both orders."""

from typing import Any, NamedTuple

from psychocounsel.config.components import EndpointConfig, ResponderConfig
from psychocounsel.config.schema import EvalWinrateConfig
from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.evaluation.winrate import BothOrders, Compared, Unanswered, sample_speeches, winrate_metrics
from psychocounsel.judging.audit import vote_metrics
from psychocounsel.judging.judge import ComparisonTasks, missing_share, require_judged, same_family
from psychocounsel.judging.judges import judge_fingerprint, judge_spending, judge_standing, open_judge
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_listed, require_usable
from psychocounsel.reporting.console import progress
from psychocounsel.stages.dry_run import PaidCalls, winrate_costs
from psychocounsel.stages.respond import NOT_IN_FILE, ResponseRequest, plan_responder, respond
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.references import labelling_judges, models_behind, resolve, resolve_parent
from psychocounsel.store.schemas import (
    OrderedComparison,
    read_candidates,
    read_speeches,
    write_candidates,
    write_comparisons,
)
from psychocounsel.store.store import Store, note_failed, retry_spec
from psychocounsel.types import OVERALL, Candidate, Speech

VERSION = 2
STAGE = "eval-winrate"
SIDES = ("policy", "reference")


class WinratePlans(NamedTuple):
    """What the stage makes, in order."""

    policy: ArtifactSpec
    reference: ArtifactSpec
    verdicts: ArtifactSpec


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
    judge = judge_fingerprint(config.judge, store)
    settings: dict[str, Any] = {
        "judge": judge.settings,
        "bootstrap_samples": config.bootstrap_samples,
        "confidence": config.confidence,
        "seed": config.seed,
    }
    if config.labelled_by is not None:
        settings["labelled_by"] = config.labelled_by
    parents = (policy.as_parent("policy answers"), reference.as_parent("reference answers"), speeches)
    verdicts = ArtifactSpec("comparisons", config.name, STAGE, VERSION, settings, parents, judge.notices)
    return WinratePlans(policy, reference, retry_spec(verdicts, store) if config.retry_failed else verdicts)


def _keep_restricted_text_here(config: EvalWinrateConfig, speeches: Artifact | ArtifactSpec) -> None:
    endpoints = (*config.judge.endpoints, config.policy.endpoint, config.reference.endpoint)
    settings = speeches.manifest["settings"] if isinstance(speeches, Artifact) else speeches.settings
    sources = enumerate(settings["speeches"], start=1)
    data_classes = {f"speeches {speeches.ref} source {at}": each["data_class"] for at, each in sources}
    keep_restricted_text_here(endpoints, data_classes)


def _plan_answers(
    config: EvalWinrateConfig, responder: ResponderConfig, role: str, speeches: Parent, store: Store
) -> ArtifactSpec:
    planned = plan_responder(responder, store, "model")
    settings = {
        "responder": planned.settings,
        "split": config.split,
        "max_speeches": config.max_speeches,
        "seed": config.seed,
    }
    name = f"{config.name}-{role}"
    answers = ArtifactSpec("candidates", name, STAGE, VERSION, settings, (speeches, *planned.parents))
    return retry_spec(answers, store) if config.retry_failed else answers


def eval_winrate(config: EvalWinrateConfig, store: Store) -> Artifact:
    """Measure the win rate of a config, or return it if it exists.

    Raises:
        ConfigError: the judge or a side cannot be asked.
        IncompleteError: an endpoint does not answer; what was answered is kept.
        DataQualityError: the split is empty, or too many answers or verdicts failed.
        RunCancelledError: SIGINT or SIGTERM came; what was answered is kept.
    """
    plans = plan(config, store)
    _require_usable(config, plans, store)
    with cancelled_by_signals() as cancel:
        store.make(plans.policy, lambda writer: _answer(config, config.policy, store, writer, cancel))
        cancel.raise_if_cancelled(plans.policy.ref)
        store.make(plans.reference, lambda writer: _answer(config, config.reference, store, writer, cancel))
        cancel.raise_if_cancelled(plans.reference.ref)
        return store.make(plans.verdicts, lambda writer: _compare(config, store, writer, cancel))


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
    writer: ArtifactWriter,
    cancel: CancelToken,
) -> None:
    speeches = held_out_speeches(config, store.open(writer.parent("speeches")))
    if not speeches:
        raise DataQualityError(
            f"the split {config.split} has no speeches", where=config.speeches, remedy="choose another split"
        )
    responded = respond(responder, ResponseRequest(speeches, config.seed), store, cancel)
    write_candidates(writer, responded.candidates)
    writer.write_metrics({"speeches": len(speeches), "failed": responded.failed, **responded.spend})
    note_failed(writer, sum(count for why, count in responded.failed.items() if why != NOT_IN_FILE))


def _compare(config: EvalWinrateConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    speeches = {each.id: each for each in held_out_speeches(config, store.open(writer.parent("speeches")))}
    policy = _by_speech(store, writer, "policy")
    reference = _by_speech(store, writer, "reference")
    compared = ComparisonTasks.of(speeches, policy, reference)
    both = len(compared.forward)
    with open_judge(
        config.judge, store, cancel, may_wait=True, max_missing_share=config.judge.max_missing_share
    ) as judge:
        with progress("comparing answers, both orders", 2 * both, lambda: judge_standing(judge)) as advance:
            verdicts = judge.compare([*compared.forward, *compared.backward], advance)
        criteria, spend = (OVERALL, *judge.principles), judge_spending(judge)
        writer.notes["judge"] = judge.name
    require_judged(verdicts, "comparisons", config.judge.max_missing_share)
    note_failed(writer, missing_share(verdicts).missing)
    rounds = [BothOrders(*pair) for pair in zip(verdicts[:both], verdicts[both:], strict=True)]
    ordered = [OrderedComparison(each.forward, "forward") for each in rounds]
    ordered += [OrderedComparison(each.backward, "backward") for each in rounds]
    write_comparisons(writer, ordered, criteria)
    unanswered = [Unanswered(each) for each in speeches if each not in policy or each not in reference]
    every: list[Compared] = [*rounds, *unanswered]
    writer.write_metrics(
        {
            **winrate_metrics(every, speeches, policy, reference, _bootstrap(config)),
            "judges": _judges(config, store, writer),
            "answered_by_both": both,
            **vote_metrics(verdicts),
            **spend,
            "missing_answers": {side: _answers(store, writer, side).metrics["failed"] for side in SIDES},
        }
    )


def _answers(store: Store, writer: ArtifactWriter, side: str) -> Artifact:
    return store.open(writer.parent(f"{side} answers"))


def held_out_speeches(config: EvalWinrateConfig, speeches: Artifact) -> list[Speech]:
    """Return the speeches of the config's split on which the win rate is measured."""
    of_split = [row.speech for row in read_speeches(speeches) if row.split == config.split]
    return sample_speeches(of_split, config.max_speeches, config.seed)


def _by_speech(store: Store, writer: ArtifactWriter, side: str) -> dict[str, Candidate]:
    return {each.speech_id: each for each in read_candidates(_answers(store, writer, side))}


def _bootstrap(config: EvalWinrateConfig) -> BootstrapSettings:
    return BootstrapSettings(config.bootstrap_samples, config.confidence, config.seed)


def _judges(config: EvalWinrateConfig, store: Store, writer: ArtifactWriter) -> dict[str, Any]:
    """Name the judges of labels and of this result, the models judged, and who of them is of one family."""
    answers = {side: _answers(store, writer, side) for side in SIDES}
    told = () if config.labelled_by is None else (config.labelled_by,)
    labelled = tuple(dict.fromkeys((*labelling_judges(store, answers["policy"]), *told)))
    evaluating = str(writer.notes["judge"])
    judged = {side: models_behind(store, answers[side]) for side in SIDES}
    return {
        "labels": list(labelled),
        "evaluation": evaluating,
        "same_family": any(same_family(evaluating, each) for each in labelled),
        "judged": {side: list(names) for side, names in judged.items()},
        "own_family": [side for side, names in judged.items() if any(same_family(evaluating, each) for each in names)],
    }
