"""Config -> Judge, answers of a responder: the one place that puts together what asks a model.

Crafts receive what is opened here, so that a test hands them a fake and patches nothing.
"""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel import console
from psychocounsel.config.corpus import TopicsConfig
from psychocounsel.config.models import EndpointConfig, JudgeConfig, ResponderConfig
from psychocounsel.console import progress, step_progress
from psychocounsel.domain import Candidate, ReplyStatus, Speech
from psychocounsel.endpoints import (
    open_endpoint,
    open_journal,
    planned_identity,
    planned_journal,
    planned_model,
)
from psychocounsel.errors import ConfigError, DataQualityError, IncompleteError, counted
from psychocounsel.interrupts import stoppable
from psychocounsel.judging.chat_judge import ChatJudge, ChatJudgeSettings
from psychocounsel.judging.decision_form import DecisionForm, decision_digests
from psychocounsel.judging.forms import ExpectedForm, Form, WrittenForm, require_expectable
from psychocounsel.judging.judge import Judge
from psychocounsel.judging.offline import OfflineJudge
from psychocounsel.judging.panel import PanelJudge
from psychocounsel.judging.prompting import Asking, prompt_digests
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.llm.addresses import (
    LazyModel,
    resolved_base_url,
)
from psychocounsel.llm.batches.asking import ask_in_batches, ask_live
from psychocounsel.llm.chat import ChatModel
from psychocounsel.llm.engine import AskPolicy, never_stop
from psychocounsel.llm.spending import Spending, budget_of, spent_together
from psychocounsel.responses.asking import Answers, Asked, ask_responder, draw_number
from psychocounsel.responses.ready import ready_responses
from psychocounsel.speeches.normalising import clean_text
from psychocounsel.speeches.taxonomy import load_taxonomy
from psychocounsel.speeches.topic_chat import ChatTopicAssigner, ChatTopicSettings
from psychocounsel.speeches.topic_cues import OfflineTopicAssigner
from psychocounsel.speeches.topics import TopicAssigner
from psychocounsel.store.artifacts import Kind, Parent
from psychocounsel.store.references import resolve_model
from psychocounsel.store.store import Store
from psychocounsel.store.tables.sources import read_rows, source_identity

NOT_IN_FILE = "not_in_file"
POLICY_KINDS: tuple[Kind, ...] = ("policies", "base-models")


class JudgePlan(NamedTuple):
    """What decides a judge's ratings, and what must head everything made with it."""

    settings: dict[str, Any]
    notices: tuple[str, ...]


def plan_judge(config: JudgeConfig, store: Store) -> JudgePlan:
    """Return what identifies the judge of a config, without connecting to it.

    Raises:
        ConfigError: offline, and its endpoint is not on this machine; or the rubric's scale has points whose
            tokens cannot be told apart, and the ratings are to be expected.
    """
    rubric = load_rubric(config.rubric)
    settings = {**config.identity(), "rubric": rubric.digest}
    if config.panel:
        return JudgePlan(
            {**settings, "panel": [plan_judge(each, store).settings for each in config.members]}, ()
        )
    if config.model is not None:
        settings["model"] = _weights(config.model, store)
        return JudgePlan({**settings, "prompts": prompt_digests()}, ())
    if config.endpoint is None:
        offline = OfflineJudge(rubric)
        return JudgePlan({**settings, "offline": dict(offline.identity)}, (offline.notice,))
    if config.score == "expected":
        require_expectable(rubric)
    endpoint = planned_identity(config.endpoint, store)
    prompts = decision_digests() if config.backend == "decisions" else prompt_digests()
    return JudgePlan({**settings, "endpoint": endpoint, "prompts": prompts}, ())


def plan_topics(config: TopicsConfig, store: Store) -> dict[str, Any]:
    """Return what decides the topics of speeches, without connecting to anybody.

    Raises:
        ConfigError: the taxonomy is faulty; or offline, and the endpoint is not on this machine.
    """
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        return {**config.identity(), "taxonomy": dict(OfflineTopicAssigner(taxonomy).identity)}
    endpoint = planned_identity(config.endpoint, store)
    with plan_to_name_topics(config, config.endpoint, store) as assigner:
        return {**config.identity(), "endpoint": endpoint, "taxonomy": dict(assigner.identity)}


@contextmanager
def plan_to_name_topics(
    config: TopicsConfig, endpoint: EndpointConfig, store: Store
) -> Generator[ChatTopicAssigner]:
    """Yield who would name topics, unconnected: it tells what it would ask, and asks nothing."""
    with planned_journal(store) as journal:
        yield ChatTopicAssigner(planned_model(endpoint), load_taxonomy(config.taxonomy), journal)


@contextmanager
def open_topics(config: TopicsConfig, store: Store, stop: Callable[[], bool]) -> Generator[TopicAssigner]:
    """Yield who gives speeches their topics; replies are journalled in the store."""
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        yield OfflineTopicAssigner(taxonomy)
        return
    endpoint = config.endpoint
    settings = ChatTopicSettings(
        max_attempts=endpoint.max_attempts,
        concurrency=endpoint.concurrency,
        stop=stop,
        budget=budget_of(endpoint),
    )
    with open_journal(store) as journal:
        yield ChatTopicAssigner(open_endpoint(endpoint, store), taxonomy, journal, settings)


@contextmanager
def open_judge(
    config: JudgeConfig, store: Store, stop: Callable[[], bool], may_wait: bool = False
) -> Generator[Judge]:
    """Yield the judge of a config; its replies are journalled in the store.

    Args:
        config: of the judge.
        store: holds the journal.
        stop: asked before each request.
        may_wait: the caller can wait for batches, a day if need be, where the config asks for them.
    """
    if config.panel:
        with ExitStack() as members:
            opened = (_open_asked(each, store, stop, may_wait) for each in config.members)
            yield PanelJudge([members.enter_context(each) for each in opened])
    elif config.endpoint is None and config.model is None:
        yield OfflineJudge(load_rubric(config.rubric))
    else:
        with _open_asked(config, store, stop, may_wait) as judge:
            yield judge


@contextmanager
def _open_asked(
    config: JudgeConfig, store: Store, stop: Callable[[], bool], may_wait: bool
) -> Generator[ChatJudge]:
    rubric = load_rubric(config.rubric)
    if config.model is not None:
        with open_journal(store) as journal:
            model = _open_local(config, config.model, store)
            yield ChatJudge(model, rubric, journal, _local_settings(config, stop))
        return
    if config.endpoint is None:
        raise ConfigError("nobody is asked", where="judge", remedy="give an endpoint or a model")
    endpoint = config.endpoint
    model = open_endpoint(endpoint, store)
    settings = _judge_settings(config, endpoint, stop)
    if may_wait and config.batch.enabled:
        from psychocounsel.llm.batches.client import batch_road  # the client takes a second to import

        road = batch_road(model, endpoint, config.batch, store.offline)
        settings = replace(settings, ask=partial(ask_in_batches, road))
    with open_journal(store) as journal:
        yield ChatJudge(model, rubric, journal, settings)


def _weights(ref: str, store: Store) -> dict[str, Any]:
    """Return what tells the weights of a reference from others."""
    model = resolve_model(store, ref, POLICY_KINDS)
    return model.identity if model.parent is None else {"artifact": model.parent.id}


def _open_local(config: JudgeConfig, ref: str, store: Store) -> ChatModel:
    """Return a model of this machine as a chat model; its weights are loaded when it is first asked."""
    policy = resolve_model(store, ref, POLICY_KINDS).policy(store)
    weights = json.dumps(_weights(ref, store), sort_keys=True)
    identity = {"model": Path(ref).name, "base_url": "local", "weights": weights}

    def load() -> ChatModel:
        from psychocounsel.llm.local_chat import LocalChatModel  # torch: only when a model judges
        from psychocounsel.llm.local_model import AnswerGenerator

        return LocalChatModel(AnswerGenerator.load(policy), identity, config.batch_size)

    return LazyModel(identity, load)


def _local_settings(config: JudgeConfig, stop: Callable[[], bool]) -> ChatJudgeSettings:
    asking = Asking(config.temperature, config.max_tokens, config.top_p)
    # The likeliest tokens are the same at every try.
    max_attempts = 1 if config.temperature == 0 else ChatJudgeSettings().max_attempts
    return ChatJudgeSettings(asking, max_attempts, config.batch_size, stop, samples=config.samples)


@contextmanager
def plan_to_ask(config: JudgeConfig, endpoint: EndpointConfig, store: Store) -> Generator[ChatJudge]:
    """Yield the judge behind an endpoint, unconnected: it tells what it would ask, and asks nothing."""
    settings = _judge_settings(config, endpoint, never_stop)
    with planned_journal(store) as journal:
        yield ChatJudge(planned_model(endpoint), load_rubric(config.rubric), journal, settings)


def _judge_settings(
    config: JudgeConfig, endpoint: EndpointConfig, stop: Callable[[], bool]
) -> ChatJudgeSettings:
    asking = Asking(config.temperature, config.max_tokens, config.top_p)
    return ChatJudgeSettings(
        asking,
        endpoint.max_attempts,
        endpoint.concurrency,
        stop,
        budget_of(endpoint),
        ask_live,
        config.samples,
        _form(config),
    )


def _form(config: JudgeConfig) -> Callable[[Rubric], Form]:
    if config.backend == "decisions":
        return DecisionForm
    return ExpectedForm if config.score == "expected" else WrittenForm


def judge_standing(judge: Judge) -> str:
    """Return in few words what failed and what was spent so far; empty for a judge that asks nobody."""
    if isinstance(judge, PanelJudge):
        told = ((each.name, judge_standing(each)) for each in judge.judges)
        return "; ".join(f"{name}: {standing}" for name, standing in told if standing)
    spending = judge.spending if isinstance(judge, ChatJudge) else None
    return "" if spending is None else spending.standing


def judge_spending(judge: Judge) -> dict[str, Any]:
    """Tell what the judge's replies cost and return it for `metrics.json`; empty for one that asks nobody."""
    if isinstance(judge, PanelJudge):
        told = [_told(each.spending, each.name) for each in judge.judges]
        return {"spend": _panel_spend(judge)} if any(told) else {}
    spending = judge.spending if isinstance(judge, ChatJudge) else None
    return _told(spending, judge.name)


def _panel_spend(judge: PanelJudge) -> dict[str, Any]:
    # Each member has an endpoint of its own, with a limit of its own.
    members = zip(judge.labels, judge.judges, strict=True)
    by_judge = {label: each.spending.as_dict() for label, each in members if each.spending is not None}
    return {**spent_together(judge.spendings), "by_judge": by_judge}


def _told(spending: Spending | None, whose: str) -> dict[str, Any]:
    if spending is None or not spending.told:
        return {}
    console.note(f"spent on {whose}: {spending.told}")
    return {"spend": spending.as_dict()}


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
    return Responded(answers.candidates, answers.failed, _told(budget.spending, responder.author))


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
