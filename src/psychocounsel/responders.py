"""ResponderConfig, speeches -> Responded: one answer to each speech, whatever stands behind its author."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psychocounsel.config.models import EndpointConfig, ResponderConfig
from psychocounsel.console import progress, step_progress
from psychocounsel.domain import Candidate, ReplyStatus, Speech
from psychocounsel.endpoints import (
    open_endpoint,
    open_journal,
    planned_identity,
    tell_spending,
)
from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.interrupts import stoppable
from psychocounsel.llm.addresses import (
    resolved_base_url,
)
from psychocounsel.llm.engine import AskPolicy
from psychocounsel.llm.spending import budget_of
from psychocounsel.responses.asking import Answers, Asked, ask_responder, draw_number
from psychocounsel.responses.ready import ready_responses
from psychocounsel.speeches.normalising import clean_text
from psychocounsel.store.artifacts import Parent
from psychocounsel.store.references import POLICY_KINDS, resolve_model
from psychocounsel.store.store import Store
from psychocounsel.store.tables.sources import read_rows, source_identity

NOT_IN_FILE = "not_in_file"


class ResponderPlan(NamedTuple):
    """What identifies a responder: settings, and the artifact that it is, if it is one."""

    settings: dict[str, Any]
    parents: tuple[Parent, ...]


def plan_responder(responder: ResponderConfig, store: Store, role: str) -> ResponderPlan:
    """Return what decides a responder's answers.

    Raises:
        ConfigError: offline, and its endpoint is not on this machine; or nothing answers to its reference.
    """
    settings = responder.identity()
    if responder.endpoint is not None:
        return ResponderPlan({**settings, "endpoint": planned_identity(responder.endpoint, store)}, ())
    if responder.file is not None:
        # Neither sampling nor a chat format shapes what stands in a file.
        return ResponderPlan(
            {"author": responder.author, "file": source_identity(responder.file, "train")}, ()
        )
    model = resolve_model(store, responder.model or "", POLICY_KINDS)
    return ResponderPlan({**settings, "model": model.identity}, model.parents(role))


class Respondents(NamedTuple):
    """The speeches that one responder answers, and the seed of its draws."""

    speeches: Sequence[Speech]
    seed: int


class Responded(NamedTuple):
    """Candidates, requests that ended without one, by status, and what they cost, for `metrics.json`."""

    candidates: list[Candidate]
    failed: dict[str, int]
    spend: dict[str, Any]


def respond(
    responder: ResponderConfig, asked: Respondents, store: Store, stop: Callable[[], bool]
) -> Responded:
    """Return one answer of a responder to each speech, whatever stands behind it.

    Raises:
        IncompleteError: its endpoint left requests unanswered: they are owed, and so is the rest.
        DataQualityError: more speeches than `max_missing_share` got no answer otherwise.
        Preempted: a signal asked to stop.
    """
    if responder.endpoint is not None:
        responded = _ask_endpoint(responder, responder.endpoint, asked, store, stop)
    elif responder.file is not None:
        rows = read_rows(responder.file)
        answered = ready_responses(rows, responder.author, asked.speeches, clean_text)
        responded = Responded(answered, _unanswered(len(asked.speeches) - len(answered)), {})
    else:
        responded = _sample(responder, asked, store, stop)
    _require_answered(responder, responded, len(asked.speeches))
    return responded


def _unanswered(count: int) -> dict[str, int]:
    return {NOT_IN_FILE: count} if count else {}


def _require_answered(responder: ResponderConfig, responded: Responded, asked: int) -> None:
    missing = sum(responded.failed.values())
    if missing > responder.max_missing_share * asked:
        again = "add them to the file" if responder.file else "run the same command to ask those again"
        raise DataQualityError(
            f"{missing} of {asked} speeches got no answer ({counted(responded.failed)})",
            where=f"responder {responder.author}",
            remedy=f"{again}, or raise its max_missing_share ({responder.max_missing_share:g})",
        )


def _ask_endpoint(
    responder: ResponderConfig,
    endpoint: EndpointConfig,
    asked: Respondents,
    store: Store,
    stop: Callable[[], bool],
) -> Responded:
    model, budget = open_endpoint(endpoint, store), budget_of(endpoint)
    with (
        open_journal(store) as journal,
        progress(
            f"asking {responder.author}", len(asked.speeches), lambda: budget.spending.standing
        ) as advance,
    ):
        policy = AskPolicy(
            max_attempts=endpoint.max_attempts,
            concurrency=endpoint.concurrency,
            stop=stop,
            progress=advance,
            budget=budget,
        )
        answers = ask_responder(model, Asked(responder, *asked), journal, policy)
    _require_replies(responder, endpoint, answers)
    return Responded(answers.candidates, answers.failed, tell_spending(budget.spending, responder.author))


def _require_replies(responder: ResponderConfig, endpoint: EndpointConfig, answers: Answers) -> None:
    if lost := answers.failed.get(ReplyStatus.ERROR.value, 0):
        asked = len(answers.candidates) + sum(answers.failed.values())
        raise IncompleteError(
            f"{lost} of {asked} requests to {responder.author} were not answered: {answers.lost_because}",
            where=resolved_base_url(endpoint),
            remedy="see to the endpoint, then run the same command again; only what is owed is asked",
        )


def _sample(
    responder: ResponderConfig, asked: Respondents, store: Store, stop: Callable[[], bool]
) -> Responded:
    from psychocounsel.llm.local_model import AnswerGenerator  # torch: only when a model answers
    from psychocounsel.training.sampling import SampleRequest, sample_candidates

    policy = resolve_model(store, responder.model or "", POLICY_KINDS).policy(store)
    generator = AnswerGenerator.load(policy)
    seed = draw_number(responder.author, asked.seed)
    request = SampleRequest(responder.author, 1, responder.sampling, responder.chat, seed)
    label = f"answers of {responder.author}"
    with step_progress(label) as report:
        watch = stoppable(report, stop, label)
        candidates = sample_candidates(generator, generator.tokenizer, asked.speeches, request, watch)
    return Responded(candidates, {}, {})
