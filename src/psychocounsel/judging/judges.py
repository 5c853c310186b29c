"""Candidate -> Judgement, two Candidates -> Comparison, by a chat model that is asked with a rubric.

A judge is rubric, prompt and parser. A reply that cannot be read is a failed judgement with its reason,
never a number; on the next run it is asked again, while a valid one never is.
"""

import json
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.config.components import EndpointConfig, JudgeConfig
from psychocounsel.errors import ConfigError
from psychocounsel.judging.injection import ADDRESSES_JUDGE, addresses_judge
from psychocounsel.judging.judge import (
    BETWEEN_NAMES,
    PILOT_RESULTS,
    ComparisonTask,
    FailureLimit,
    Judge,
    Progress,
    averaged,
    grouped,
    in_parts,
    voted,
    with_sample,
    with_vote,
)
from psychocounsel.judging.offline import OfflineJudge
from psychocounsel.judging.parsing import ParsedRatings, ParsedWinners, ParseFailure
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.judging.scorers import (
    DecisionScorer,
    JudgeRequest,
    LogprobScorer,
    SamplingParams,
    Scorer,
    TextScorer,
    decision_digests,
    prompt_digests,
    require_expectable,
)
from psychocounsel.llm.batch.run import run_in_batches, run_live
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.cost import Budget, Spending, budget_of, spent_together
from psychocounsel.llm.endpoints import (
    endpoint_settings,
    log_spending,
    open_endpoint,
    open_journal,
    planned_journal,
    planned_model,
)
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, RunRequests, pending_indices, run_requests
from psychocounsel.llm.types import (
    JSON,
    ChatModel,
    ChatReply,
    ChatRequest,
    LazyModel,
)
from psychocounsel.store.references import POLICY_KINDS, resolve_model
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Comparison, Judgement, ReplyStatus, Speech

_Read = Callable[[JudgeRequest, ChatReply], ParsedRatings | ParsedWinners | ParseFailure]


def _acceptance(asked: Sequence[JudgeRequest], read: _Read) -> Callable[[int, ChatReply], bool]:
    """Return what ends an item: a finished reply that can be read."""

    def accept(index: int, reply: ChatReply) -> bool:
        return reply.status is ReplyStatus.VALID and not isinstance(read(asked[index], reply), ParseFailure)

    return accept


@dataclass(frozen=True)
class ChatJudgeSettings:
    """How the model is asked; only `sampling` shapes what it answers.

    Args:
        sampling: temperature and token limit of a reply.
        max_attempts: requests per item in one run.
        concurrency: requests in flight.
        cancel: once cancelled, nothing new is sent.
        budget: counts what the replies cost, and sets their limit.
        ask: the road to the model: live, or in batches.
        samples: how often each question is asked; ratings are means of the samples, verdicts their vote.
        scorer: how a rubric is put to the model, and how its replies are read.
        max_missing_share: the run ends as soon as a larger share has failed.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_attempts: int = 3
    concurrency: int = 8
    cancel: CancelToken = field(default_factory=CancelToken)
    budget: Budget | None = None
    ask: RunRequests = run_requests
    samples: int = 1
    scorer: Callable[[Rubric], Scorer] = TextScorer
    max_missing_share: float = 1.0


class ChatJudge:
    """Judges with a chat model; every reply that was paid for is in the journal before it is used."""

    warnings: tuple[str, ...] = ()

    def __init__(
        self, model: ChatModel, rubric: Rubric, journal: Journal, settings: ChatJudgeSettings | None = None
    ) -> None:
        self._model = model
        self._rubric = rubric
        self._journal = journal
        self._settings = settings or ChatJudgeSettings()
        self._scorer = self._settings.scorer(rubric)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._model.fingerprint["model"]

    @property
    def spending(self) -> Spending | None:
        """What the replies cost so far; None where nobody counts."""
        return None if self._settings.budget is None else self._settings.budget.spending

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the rubric."""
        return self._rubric.principle_ids

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """What shapes the ratings: model, address, rubric, prompts, sampling, parser."""
        sampling, samples = self._settings.sampling, self._settings.samples
        return {
            "backend": "endpoint",
            **self._model.fingerprint,
            "rubric": self._rubric.digest,
            **self._scorer.fingerprint,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            **({"samples": samples} if samples > 1 else {}),
        }

    def resampled(self) -> "ChatJudge":
        """Return this judge at its next samples: the same questions, asked anew."""
        sampling = self._settings.sampling
        after = sampling.sample_index + self._settings.samples
        return self._changed(self._rubric, replace(sampling, sample_index=after))

    def for_principle(self, principle: str) -> "ChatJudge":
        """Return this judge with one principle of its rubric."""
        return self._changed(self._rubric.only(principle), self._settings.sampling)

    def _changed(self, rubric: Rubric, sampling: SamplingParams) -> "ChatJudge":
        return ChatJudge(self._model, rubric, self._journal, replace(self._settings, sampling=sampling))

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response in a call of its own, or in `samples`; a failed one has its status and reason.

        Raises:
            EndpointError: the endpoint refuses for a reason that a retry does not mend.
            Preempted: `settings.cancel` is cancelled; what was answered is kept.
        """
        samples = self._settings.samples
        asked = self._rating_requests(items)
        replies = self._ask(asked, self._scorer.read_ratings, in_parts(progress, samples), "judgements")
        candidates = [candidate for _, candidate in items for _ in range(samples)]
        parts = [self._judgement(*each) for each in zip(candidates, asked, replies, strict=True)]
        return parts if samples == 1 else grouped(parts, samples, lambda samples: averaged(self.name, samples))

    def owed_ratings(self, items: Sequence[tuple[Speech, Candidate]]) -> list[ChatRequest]:
        """Return what `rate` would have to ask at least once; nothing is asked."""
        return self._owed(self._rating_requests(items), self._scorer.read_ratings)

    def owed_comparisons(self, items: Sequence[ComparisonTask]) -> list[ChatRequest]:
        """Return what `compare` would have to ask at least once; nothing is asked."""
        return self._owed(self._comparison_requests(items), self._scorer.read_winners)

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Compare in exactly the order given; errors as for `rate`."""
        samples = self._settings.samples
        asked = self._comparison_requests(items)
        replies = self._ask(asked, self._scorer.read_winners, in_parts(progress, samples), "comparisons")
        compared = [item for item in items for _ in range(samples)]
        parts = [self._verdict(*each) for each in zip(compared, asked, replies, strict=True)]
        return parts if samples == 1 else grouped(parts, samples, voted)

    def _rating_requests(self, items: Sequence[tuple[Speech, Candidate]]) -> list[JudgeRequest]:
        return [
            self._scorer.rating_request(speech, candidate, sampling)
            for speech, candidate in items
            for sampling in self._samplings()
        ]

    def _comparison_requests(self, items: Sequence[ComparisonTask]) -> list[JudgeRequest]:
        return [self._scorer.comparison_request(item, sampling) for item in items for sampling in self._samplings()]

    def _samplings(self) -> list[SamplingParams]:
        """Return how one question is asked, once for each sample: side by side, for they share a prompt."""
        sampling = self._settings.sampling
        indices = range(sampling.sample_index, sampling.sample_index + self._settings.samples)
        return [replace(sampling, sample_index=index) for index in indices]

    def _owed(self, asked: Sequence[JudgeRequest], read: _Read) -> list[ChatRequest]:
        requests = [item.request for item in asked]
        places = pending_indices(
            requests, self._model.fingerprint, self._journal, _acceptance(asked, read), self._scorer.reader
        )
        return [requests[place] for place in places]

    def _ask(self, asked: Sequence[JudgeRequest], read: _Read, progress: Progress, what: str) -> list[ChatReply]:
        settings = self._settings
        policy = RunPolicy(
            _acceptance(asked, read),
            settings.max_attempts,
            settings.concurrency,
            settings.cancel,
            progress,
            self._scorer.reader,
            settings.budget,
            lambda index, reply: self._scorer.check_server(asked[index], reply),
            on_finished=FailureLimit(
                what, len(asked) // settings.samples, settings.samples, settings.max_missing_share
            ).note,
            pilot=PILOT_RESULTS if settings.max_missing_share < 1 else 0,
        )
        return settings.ask(self._model, [item.request for item in asked], self._journal, policy)

    def _judgement(self, candidate: Candidate, asked: JudgeRequest, reply: ChatReply) -> Judgement:
        parsed = self._scorer.read_ratings(asked, reply) if reply.status is ReplyStatus.VALID else None
        if isinstance(parsed, ParsedRatings):
            flag = ADDRESSES_JUDGE if addresses_judge(candidate.text) else ""
            judgement = Judgement(candidate.id, self.name, ReplyStatus.VALID, parsed.ratings, reason=flag)
        elif isinstance(parsed, ParseFailure):
            judgement = Judgement(candidate.id, self.name, parsed.status, reason=parsed.reason)
        else:
            judgement = Judgement(candidate.id, self.name, reply.status, reason=reply.reason)
        if self._settings.samples == 1 and not self._scorer.keeps_samples:
            return judgement
        return with_sample(judgement, asked.request.sample_index, parsed)

    def _verdict(self, item: ComparisonTask, asked: JudgeRequest, reply: ChatReply) -> Comparison:
        verdict = self._verdict_alone(item, asked, reply)
        if self._settings.samples == 1:
            return verdict
        return with_vote(verdict, self.name, asked.request.sample_index)

    def _verdict_alone(self, item: ComparisonTask, asked: JudgeRequest, reply: ChatReply) -> Comparison:
        parsed = self._scorer.read_winners(asked, reply) if reply.status is ReplyStatus.VALID else None
        ids = (item.speech.id, item.first.id, item.second.id)
        if isinstance(parsed, ParsedWinners):
            return Comparison(*ids, ReplyStatus.VALID, parsed.winners)
        return Comparison(*ids, reply.status if parsed is None else parsed.status)


class PanelJudge:
    """Judges that rate and compare by one rubric, one after the other; what each says is kept as a sample.

    Attributes:
        judges: the members, at least two.
        labels: their names; of one that sits twice, the second is told by its number.
    """

    warnings: tuple[str, ...] = ()

    def __init__(self, judges: Sequence[ChatJudge]) -> None:
        self.judges = tuple(judges)
        self.labels = _labels([judge.name for judge in judges])

    @property
    def name(self) -> str:
        """The names of all members."""
        return BETWEEN_NAMES.join(self.labels)

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """What shapes the ratings: the members, in order."""
        return {"backend": "panel", "judges": [judge.fingerprint for judge in self.judges]}

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the rubric."""
        return self.judges[0].principles

    @property
    def spendings(self) -> list[Spending]:
        """What the replies to each member cost so far, where somebody counts."""
        return [judge.spending for judge in self.judges if judge.spending is not None]

    def resampled(self) -> "PanelJudge":
        """Return this panel with every member at its next samples."""
        return PanelJudge([judge.resampled() for judge in self.judges])

    def for_principle(self, principle: str) -> "PanelJudge":
        """Return this panel with one principle of its rubric."""
        return PanelJudge([judge.for_principle(principle) for judge in self.judges])

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Return the mean ratings of those who succeeded; errors are those of any member."""
        advance = in_parts(progress, len(self.judges))
        opinions = [
            [_labelled(each, label) for each in judge.rate(items, advance)]
            for judge, label in zip(self.judges, self.labels, strict=True)
        ]
        return [averaged(self.name, parts) for parts in zip(*opinions, strict=True)]

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Return the vote of those who succeeded; errors are those of any member."""
        advance = in_parts(progress, len(self.judges))
        opinions = [
            [_labelled_vote(each, label) for each in judge.compare(items, advance)]
            for judge, label in zip(self.judges, self.labels, strict=True)
        ]
        return [voted(parts) for parts in zip(*opinions, strict=True)]


def _labels(names: Sequence[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    labels: list[str] = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(labels)


def _labelled(judgement: Judgement, label: str) -> Judgement:
    told = judgement if judgement.samples else with_sample(judgement)
    return replace(told, samples=tuple(replace(sample, judge=label) for sample in told.samples))


def _labelled_vote(verdict: Comparison, label: str) -> Comparison:
    told = verdict if verdict.votes else with_vote(verdict, label)
    return replace(told, votes=tuple(replace(vote, judge=label) for vote in told.votes))


class JudgePlan(NamedTuple):
    """What decides a judge's ratings, and what must head everything made with it."""

    settings: dict[str, Any]
    notices: tuple[str, ...]


def judge_fingerprint(config: JudgeConfig, store: Store) -> JudgePlan:
    """Return what identifies the judge of a config, without connecting to it.

    Raises:
        ConfigError: offline, and its endpoint is not on this machine; or the rubric's scale has points whose
            tokens cannot be told apart, and the ratings are to be expected.
    """
    rubric = load_rubric(config.rubric)
    settings = {**config.fingerprint(), "rubric": rubric.digest}
    if config.panel:
        return JudgePlan(
            {**settings, "panel": [judge_fingerprint(each, store).settings for each in config.members]}, ()
        )
    if config.model is not None:
        settings["model"] = _weights(config.model, store)
        return JudgePlan({**settings, "prompts": prompt_digests()}, ())
    if config.endpoint is None:
        offline = OfflineJudge(rubric)
        return JudgePlan({**settings, "offline": dict(offline.fingerprint)}, offline.warnings)
    if config.score == "expected":
        require_expectable(rubric)
    endpoint = endpoint_settings(config.endpoint, store)
    prompts = decision_digests() if config.backend == "decisions" else prompt_digests()
    return JudgePlan({**settings, "endpoint": endpoint, "prompts": prompts}, ())


@contextmanager
def open_judge(
    config: JudgeConfig, store: Store, cancel: CancelToken, may_wait: bool = False, max_missing_share: float = 1.0
) -> Generator[Judge]:
    """Yield the judge of a config; its replies are journalled in the store.

    Args:
        config: of the judge.
        store: holds the journal.
        cancel: once cancelled, nothing new is sent.
        may_wait: the caller can wait for batches, a day if need be, where the config asks for them.
        max_missing_share: the run ends as soon as a larger share has failed.
    """
    if config.panel:
        with ExitStack() as members:
            opened = (_open_asked(each, store, cancel, may_wait, 0.999) for each in config.members)
            yield PanelJudge([members.enter_context(each) for each in opened])
    elif config.endpoint is None and config.model is None:
        yield OfflineJudge(load_rubric(config.rubric))
    else:
        with _open_asked(config, store, cancel, may_wait, max_missing_share) as judge:
            yield judge


@contextmanager
def _open_asked(
    config: JudgeConfig, store: Store, cancel: CancelToken, may_wait: bool, max_missing_share: float
) -> Generator[ChatJudge]:
    rubric = load_rubric(config.rubric)
    if config.model is not None:
        with open_journal(store) as journal:
            model = _open_local(config, config.model, store, journal)
            settings = replace(_local_settings(config, cancel), max_missing_share=max_missing_share)
            yield ChatJudge(model, rubric, journal, settings)
        return
    if config.endpoint is None:
        raise ConfigError("nobody is asked", where="judge", remedy="give an endpoint or a model")
    endpoint = config.endpoint
    model = open_endpoint(endpoint, store)
    settings = replace(_judge_settings(config, endpoint, cancel), max_missing_share=max_missing_share)
    if may_wait and config.batch.enabled:
        from psychocounsel.llm.batch.client import batch_transport  # the client takes a second to import

        road = batch_transport(model, endpoint, config.batch, store.offline)
        settings = replace(settings, ask=partial(run_in_batches, road))
    with open_journal(store) as journal:
        yield ChatJudge(model, rubric, journal, settings)


def _weights(ref: str, store: Store) -> dict[str, Any]:
    """Return what tells the weights of a reference from others."""
    model = resolve_model(store, ref, POLICY_KINDS)
    return model.fingerprint if model.parent is None else {"artifact": model.parent.id}


def _open_local(config: JudgeConfig, ref: str, store: Store, journal: Journal) -> ChatModel:
    """Return a model of this machine as a chat model; its weights are loaded when it is first asked."""
    policy = resolve_model(store, ref, POLICY_KINDS).policy(store)
    weights = json.dumps(_weights(ref, store), sort_keys=True)
    identity = {"model": Path(ref).name, "base_url": "local", "weights": weights}

    def kept(digest: str) -> int:
        return len(journal.replies(digest))

    def load() -> ChatModel:
        from psychocounsel.training.generate import (
            AnswerGenerator,
            LocalChatModel,  # torch: only when a model judges
        )

        generator = AnswerGenerator.load(policy)
        return LocalChatModel(generator, identity, config.batch_size, kept)

    return LazyModel(identity, load)


def _local_settings(config: JudgeConfig, cancel: CancelToken) -> ChatJudgeSettings:
    sampling = SamplingParams(config.temperature, config.max_tokens, config.top_p)
    # The likeliest tokens are the same at every try.
    max_attempts = 1 if config.temperature == 0 else ChatJudgeSettings().max_attempts
    return ChatJudgeSettings(sampling, max_attempts, config.batch_size, cancel, samples=config.samples)


@contextmanager
def plan_to_ask(config: JudgeConfig, endpoint: EndpointConfig, store: Store) -> Generator[ChatJudge]:
    """Yield the judge behind an endpoint, unconnected: it tells what it would ask, and asks nothing."""
    settings = _judge_settings(config, endpoint, CancelToken())
    with planned_journal(store) as journal:
        yield ChatJudge(planned_model(endpoint), load_rubric(config.rubric), journal, settings)


def _judge_settings(config: JudgeConfig, endpoint: EndpointConfig, cancel: CancelToken) -> ChatJudgeSettings:
    sampling = SamplingParams(config.temperature, config.max_tokens, config.top_p)
    return ChatJudgeSettings(
        sampling,
        endpoint.max_attempts,
        endpoint.concurrency,
        cancel,
        budget_of(endpoint),
        run_live,
        config.samples,
        _scorer(config),
    )


def _scorer(config: JudgeConfig) -> Callable[[Rubric], Scorer]:
    if config.backend == "decisions":
        return DecisionScorer
    return LogprobScorer if config.score == "expected" else TextScorer


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
        told = [log_spending(each.spending, each.name) for each in judge.judges]
        return {"spend": _panel_spend(judge)} if any(told) else {}
    spending = judge.spending if isinstance(judge, ChatJudge) else None
    return log_spending(spending, judge.name)


def _panel_spend(judge: PanelJudge) -> dict[str, Any]:
    # Each member has an endpoint of its own, with a limit of its own.
    members = zip(judge.labels, judge.judges, strict=True)
    by_judge = {label: each.spending.as_dict() for label, each in members if each.spending is not None}
    return {**spent_together(judge.spendings), "by_judge": by_judge}
