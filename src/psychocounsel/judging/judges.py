"""Judges made from a config: a chat model with a rubric, a panel of such models, or the offline judge.

A judge is known by its fingerprint from the start and connects with its first request. A reply that cannot be read
is a failed judgement with its reason, never a number; the next run sends the request again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psychocounsel.config.components import JudgeConfig
from psychocounsel.judging.injection import ADDRESSES_JUDGE, addresses_judge
from psychocounsel.judging.judge import (
    BETWEEN_NAMES,
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
)
from psychocounsel.judging.table import table_only_rates
from psychocounsel.llm.cost import Spending, spent_together
from psychocounsel.llm.endpoints import log_spending
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.session import PLACEHOLDER, ModelClient, Session
from psychocounsel.llm.types import JSON, ChatModel, ChatReply, LazyModel
from psychocounsel.store.references import POLICY_KINDS, resolve_model
from psychocounsel.types import OVERALL, Candidate, Comparison, Judgement, ReplyStatus, Speech, Winner

_Parsed = ParsedRatings | ParsedWinners | ParseFailure


@dataclass(frozen=True)
class ChatJudgeSettings:
    """How a chat model judges.

    Args:
        sampling: temperature and token limit of a reply.
        samples: requests per question; ratings are the mean of their samples, comparisons a majority vote.
        scorer: how a rubric is put to the model, and how its replies are read.
        max_missing_share: the run ends as soon as a larger share has failed; not part of the fingerprint.
        pilot: so many results come first, unless everything may be missing; not part of the fingerprint.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    samples: int = 1
    scorer: Callable[[Rubric], Scorer] = TextScorer
    max_missing_share: float = 1.0
    pilot: int = 20


class ChatJudge:
    """Judges with a chat model; `known_by` (the client's fingerprint) identifies the model in ids of artifacts."""

    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        client: ModelClient,
        rubric: Rubric,
        settings: ChatJudgeSettings | None = None,
        known_by: Mapping[str, JSON] | None = None,
    ) -> None:
        self._client, self._rubric, self._known_by = client, rubric, known_by
        self._settings = settings or ChatJudgeSettings()
        self._scorer = self._settings.scorer(rubric)
        first, samples = self._settings.sampling.sample_index, self._settings.samples
        # The requests of one question follow each other, for they share a prompt.
        self._samplings = [replace(self._settings.sampling, sample_index=first + at) for at in range(samples)]
        self.name = client.fingerprint["model"]
        self.principles = rubric.principle_ids

    @property
    def spending(self) -> Spending | None:
        """What the replies cost so far; None where nothing is counted."""
        return self._client.spending

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """What shapes the ratings: model, address, rubric, prompts, sampling, parser."""
        sampling = self._settings.sampling
        return {
            **(self._known_by or self._client.fingerprint),
            "rubric": self._rubric.digest,
            **self._scorer.fingerprint,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "samples": self._settings.samples,
        }

    def resampled(self) -> "ChatJudge":
        """Return this judge at its next samples: the same questions get new replies."""
        settings = self._settings
        after = settings.sampling.sample_index + settings.samples
        return self._changed(self._rubric, replace(settings, sampling=replace(settings.sampling, sample_index=after)))

    def for_principle(self, principle: str) -> "ChatJudge":
        """Return this judge with one principle of its rubric."""
        return self._changed(self._rubric.only(principle), self._settings)

    def _changed(self, rubric: Rubric, settings: ChatJudgeSettings) -> "ChatJudge":
        return ChatJudge(self._client, rubric, settings, self._known_by)

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response in `samples` requests of its own; a failed one has its status and reason.

        Raises:
            EndpointError: the endpoint refuses for a reason that a retry does not mend.
            DataQualityError: more failed than `max_missing_share`, or nothing can be read.
            Preempted: the run was cancelled; completed requests are in the journal.
        """
        asked = [
            self._scorer.rating_request(speech, candidate, sampling)
            for speech, candidate in items
            for sampling in self._samplings
        ]
        replies = self._run(asked, self._scorer.read_ratings, progress, "judgements")
        candidates = [candidate for _, candidate in items for _ in self._samplings]
        parts = [self._judgement(*each) for each in zip(candidates, asked, replies, strict=True)]
        samples = self._settings.samples
        return parts if samples == 1 else grouped(parts, samples, lambda each: averaged(self.name, each))

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Compare in exactly the order given; errors as for `rate`."""
        asked = [self._scorer.comparison_request(item, sampling) for item in items for sampling in self._samplings]
        replies = self._run(asked, self._scorer.read_winners, progress, "comparisons")
        compared = [item for item in items for _ in self._samplings]
        parts = [self._comparison(*each) for each in zip(compared, asked, replies, strict=True)]
        samples = self._settings.samples
        return parts if samples == 1 else grouped(parts, samples, voted)

    def _run(
        self,
        asked: Sequence[JudgeRequest],
        read: Callable[[JudgeRequest, ChatReply], _Parsed],
        progress: Progress,
        what: str,
    ) -> list[ChatReply]:
        def failure(index: int, reply: ChatReply) -> ParseFailure | ChatReply | None:
            parsed = read(asked[index], reply) if reply.status is ReplyStatus.VALID else reply
            return parsed if isinstance(parsed, ParseFailure | ChatReply) else None

        samples, share = self._settings.samples, self._settings.max_missing_share
        pilot = self._settings.pilot if share < 1 else 0
        limit = FailureLimit(what, len(asked) // samples, samples, share, pilot)
        policy = RunPolicy(
            accept=lambda index, reply: failure(index, reply) is None,
            progress=in_parts(progress, samples),
            reader=self._scorer.reader,
            on_reply=lambda index, reply: self._scorer.check_server(asked[index], reply),
            on_finished=lambda index, reply, accepted: limit.note(
                index, reply, None if accepted else failure(index, reply)
            ),
            pilot=pilot * samples,
        )
        return self._client.run([each.request for each in asked], policy)

    def _judgement(self, candidate: Candidate, asked: JudgeRequest, reply: ChatReply) -> Judgement:
        if reply is PLACEHOLDER:
            lowest = dict.fromkeys(self.principles, self._rubric.minimum)
            return Judgement(candidate.id, self.name, ReplyStatus.VALID, lowest)
        parsed = self._scorer.read_ratings(asked, reply) if reply.status is ReplyStatus.VALID else None
        if isinstance(parsed, ParsedRatings):
            flag = ADDRESSES_JUDGE if addresses_judge(candidate.text) else ""
            judgement = Judgement(
                candidate.id, self.name, ReplyStatus.VALID, parsed.ratings, reason=flag, reasons=parsed.reasons
            )
        else:
            failure = parsed or reply
            judgement = Judgement(candidate.id, self.name, failure.status, reason=failure.reason)
        if self._settings.samples == 1 and not self._scorer.keeps_samples:
            return judgement
        return with_sample(judgement, asked.request.sample_index, parsed)

    def _comparison(self, item: ComparisonTask, asked: JudgeRequest, reply: ChatReply) -> Comparison:
        ids = (item.speech.id, item.first.id, item.second.id)
        if reply is PLACEHOLDER:
            return Comparison(*ids, ReplyStatus.VALID, dict.fromkeys((OVERALL, *self.principles), Winner.TIE))
        parsed = self._scorer.read_winners(asked, reply) if reply.status is ReplyStatus.VALID else None
        if isinstance(parsed, ParsedWinners):
            comparison = Comparison(*ids, ReplyStatus.VALID, parsed.winners, reasons=parsed.reasons)
        else:
            comparison = Comparison(*ids, (parsed or reply).status)
        if self._settings.samples == 1:
            return comparison
        return with_vote(comparison, self.name, asked.request.sample_index)


class PanelJudge:
    """At least two judges with one rubric, one after the other; what each says is kept as a sample.

    Its `labels` are the names of its `judges`; a name that occurs twice gets a number.
    """

    warnings: tuple[str, ...] = ()

    def __init__(self, judges: Sequence[ChatJudge]) -> None:
        names = [judge.name for judge in judges]
        self.judges = tuple(judges)
        self.labels = tuple(
            name if name not in names[:at] else f"{name} ({names[: at + 1].count(name)})"
            for at, name in enumerate(names)
        )
        self.name = BETWEEN_NAMES.join(self.labels)
        self.principles = judges[0].principles

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """What shapes the ratings: the members, in order."""
        return {"panel": [judge.fingerprint for judge in self.judges]}

    def resampled(self) -> "PanelJudge":
        """Return this panel with every member at its next samples."""
        return PanelJudge([judge.resampled() for judge in self.judges])

    def for_principle(self, principle: str) -> "PanelJudge":
        """Return this panel with one principle of its rubric."""
        return PanelJudge([judge.for_principle(principle) for judge in self.judges])

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Return the mean ratings of the members that succeeded; errors are those of any member."""
        advance = in_parts(progress, len(self.judges))
        opinions = [
            [_labelled(each, label) for each in judge.rate(items, advance)]
            for judge, label in zip(self.judges, self.labels, strict=True)
        ]
        return [averaged(self.name, parts) for parts in zip(*opinions, strict=True)]

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Return the vote of the members that succeeded; errors are those of any member."""
        advance = in_parts(progress, len(self.judges))
        opinions = [
            [_labelled_vote(each, label) for each in judge.compare(items, advance)]
            for judge, label in zip(self.judges, self.labels, strict=True)
        ]
        return [voted(parts) for parts in zip(*opinions, strict=True)]


def _labelled(judgement: Judgement, label: str) -> Judgement:
    samples = (judgement if judgement.samples else with_sample(judgement)).samples
    return replace(judgement, samples=tuple(replace(sample, judge=label) for sample in samples))


def _labelled_vote(comparison: Comparison, label: str) -> Comparison:
    votes = (comparison if comparison.votes else with_vote(comparison, label)).votes
    return replace(comparison, votes=tuple(replace(vote, judge=label) for vote in votes))


def open_judge(
    config: JudgeConfig,
    session: Session,
    purpose: str,
    *,
    may_wait: bool = False,
    max_missing_share: float = 1.0,
    scorer: Callable[[Rubric], Scorer] | None = None,
) -> Judge:
    """Return the judge of a config; `purpose` names its calls in a dry run, `scorer` replaces the config's.

    It waits for batches where the config asks for them and the caller `may_wait`, and ends the run as soon as more
    than `max_missing_share` have failed (not applied to a panel).

    Raises:
        ConfigError: offline, and its endpoint is not on this machine; a reference matches nothing; or ratings are
            to be expectations, and tokens of the rubric's scale cannot be told apart.
    """
    rubric = load_rubric(config.rubric)
    if config.table is not None:
        raise table_only_rates()
    if config.panel:
        # Without a limit of their own: the others make up for a member that fails.
        members = [open_judge(each, session, purpose, may_wait=may_wait, scorer=scorer) for each in config.members]
        return PanelJudge([each for each in members if isinstance(each, ChatJudge)])
    sampling = SamplingParams(config.temperature, config.max_tokens, config.top_p)
    if scorer is None:
        written = TextScorer if config.score != "expected" else LogprobScorer
        scorer = DecisionScorer if config.backend == "decisions" else written
    settings = ChatJudgeSettings(sampling, config.samples, scorer, max_missing_share, config.pilot)
    if config.model is not None:
        return _open_local(config, config.model, session, settings)
    if config.endpoint is None:
        return OfflineJudge(rubric)
    batch = config.batch if may_wait and config.backend == "endpoint" else None
    return ChatJudge(session.client(config.endpoint, purpose, batch), rubric, settings)


def _open_local(config: JudgeConfig, ref: str, session: Session, settings: ChatJudgeSettings) -> ChatJudge:
    """Return a model on this machine as a judge; its weights are loaded with the first request."""
    reference = resolve_model(session.store, ref, POLICY_KINDS)
    weights = reference.fingerprint if reference.parent is None else {"artifact": reference.parent.id}
    fingerprint = {"model": Path(ref).name, "base_url": "local", "weights": json.dumps(weights, sort_keys=True)}

    def load() -> ChatModel:
        from psychocounsel.training.generate import AnswerGenerator, LocalChatModel  # torch: only when a model judges

        generator = AnswerGenerator.load(reference.policy(session.store))
        return LocalChatModel(
            generator, fingerprint, config.batch_size, lambda digest: len(session.journal.replies(digest))
        )

    # Greedy decoding gives the same tokens at every attempt.
    attempts = {"max_attempts": 1} if config.temperature == 0 else {}
    client = session.local_client(LazyModel(fingerprint, load), concurrency=config.batch_size, **attempts)
    return ChatJudge(client, load_rubric(config.rubric), settings, {"model": weights})


def judge_status(judge: Judge) -> str:
    """Return in a few words what failed and what was spent so far; empty for a judge without an endpoint."""
    if isinstance(judge, PanelJudge):
        by_name = ((each.name, judge_status(each)) for each in judge.judges)
        return "; ".join(f"{name}: {status}" for name, status in by_name if status)
    spending = judge.spending if isinstance(judge, ChatJudge) else None
    return "" if spending is None else spending.standing


def judge_spending(judge: Judge) -> dict[str, Any]:
    """Log what the judge's replies cost and return it for `metrics.json`; empty for a judge without an endpoint.

    Each member of a panel has an endpoint, and so a cost limit, of its own: `by_judge` has their costs.
    """
    if not isinstance(judge, PanelJudge):
        return log_spending(judge.spending if isinstance(judge, ChatJudge) else None, judge.name)
    logged = [log_spending(each.spending, each.name) for each in judge.judges]
    if not any(logged):
        return {}
    both = zip(judge.labels, judge.judges, strict=True)
    spendings = {label: each.spending for label, each in both if each.spending is not None}
    by_judge = {label: spending.as_dict() for label, spending in spendings.items()}
    return {"spend": {**spent_together(list(spendings.values())), "by_judge": by_judge}}
