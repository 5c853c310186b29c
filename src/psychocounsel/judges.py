"""Config -> Judge: the one place that puts together who rates and compares.

Crafts receive what is opened here, so that a test hands them a fake and patches nothing.
"""

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.config.models import EndpointConfig, JudgeConfig
from psychocounsel.endpoints import (
    open_endpoint,
    open_journal,
    planned_identity,
    planned_journal,
    planned_model,
    tell_spending,
)
from psychocounsel.errors import ConfigError
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
)
from psychocounsel.llm.batches.asking import ask_in_batches, ask_live
from psychocounsel.llm.chat import ChatModel
from psychocounsel.llm.engine import never_stop
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.spending import budget_of, spent_together
from psychocounsel.store.references import POLICY_KINDS, resolve_model
from psychocounsel.store.store import Store


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
            model = _open_local(config, config.model, store, journal)
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


def _open_local(config: JudgeConfig, ref: str, store: Store, journal: Journal) -> ChatModel:
    """Return a model of this machine as a chat model; its weights are loaded when it is first asked."""
    policy = resolve_model(store, ref, POLICY_KINDS).policy(store)
    weights = json.dumps(_weights(ref, store), sort_keys=True)
    identity = {"model": Path(ref).name, "base_url": "local", "weights": weights}

    def kept(digest: str) -> int:
        return len(journal.replies(digest))

    def load() -> ChatModel:
        from psychocounsel.llm.local_chat import LocalChatModel  # torch: only when a model judges
        from psychocounsel.llm.local_model import AnswerGenerator

        generator = AnswerGenerator.load(policy)
        return LocalChatModel(generator, identity, config.batch_size, kept)

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
        told = [tell_spending(each.spending, each.name) for each in judge.judges]
        return {"spend": _panel_spend(judge)} if any(told) else {}
    spending = judge.spending if isinstance(judge, ChatJudge) else None
    return tell_spending(spending, judge.name)


def _panel_spend(judge: PanelJudge) -> dict[str, Any]:
    # Each member has an endpoint of its own, with a limit of its own.
    members = zip(judge.labels, judge.judges, strict=True)
    by_judge = {label: each.spending.as_dict() for label, each in members if each.spending is not None}
    return {**spent_together(judge.spendings), "by_judge": by_judge}
