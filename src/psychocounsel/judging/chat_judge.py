"""Candidate -> Judgement, two Candidates -> Verdict, by a chat model that is asked with a rubric.

A judge is rubric, prompt and parser. A reply that cannot be read is a failed judgement with its reason,
never a number; on the next run it is asked again, while a valid one never is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from psychocounsel.domain import Candidate, Judgement, ReplyStatus, Speech, Verdict
from psychocounsel.judging.averaging import averaged, grouped, in_parts, voted, with_draw, with_vote
from psychocounsel.judging.forms import Form, WrittenForm
from psychocounsel.judging.judge import ADDRESSES_JUDGE, Comparison, Progress
from psychocounsel.judging.lexicon import addresses_judge
from psychocounsel.judging.parsing import ParsedRatings, ParsedWinners, ParseFailure
from psychocounsel.judging.prompting import Asking, JudgeRequest
from psychocounsel.judging.rubric import Rubric
from psychocounsel.llm.chat import JSON, ChatModel, ChatReply, ChatRequest
from psychocounsel.llm.engine import AskAll, AskPolicy, ask_all, never_stop, owed_places
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.spending import Budget, Spending

_Read = Callable[[JudgeRequest, ChatReply], ParsedRatings | ParsedWinners | ParseFailure]


def _acceptance(asked: Sequence[JudgeRequest], read: _Read) -> Callable[[int, ChatReply], bool]:
    """Return what ends an item: a finished reply that can be read."""

    def accept(index: int, reply: ChatReply) -> bool:
        return reply.status is ReplyStatus.VALID and not isinstance(read(asked[index], reply), ParseFailure)

    return accept


@dataclass(frozen=True)
class ChatJudgeSettings:
    """How the model is asked; only `asking` shapes what it answers.

    Args:
        asking: temperature and token limit of a reply.
        max_attempts: requests per item in one run.
        concurrency: requests in flight.
        stop: asked before each request; once true, nothing new is asked.
        budget: counts what the replies cost, and sets their limit.
        ask: the road to the model: live, or in batches.
        samples: how often each question is asked; ratings are means of the draws, verdicts their vote.
        form: how a rubric is put to the model, and how its replies are read.
    """

    asking: Asking = field(default_factory=Asking)
    max_attempts: int = 3
    concurrency: int = 8
    stop: Callable[[], bool] = never_stop
    budget: Budget | None = None
    ask: AskAll = ask_all
    samples: int = 1
    form: Callable[[Rubric], Form] = WrittenForm


class ChatJudge:
    """Judges with a chat model; every reply that was paid for is in the journal before it is used."""

    notice = ""

    def __init__(
        self, model: ChatModel, rubric: Rubric, journal: Journal, settings: ChatJudgeSettings | None = None
    ) -> None:
        self._model = model
        self._rubric = rubric
        self._journal = journal
        self._settings = settings or ChatJudgeSettings()
        self._form = self._settings.form(rubric)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._model.identity["model"]

    @property
    def spending(self) -> Spending | None:
        """What the replies cost so far; None where nobody counts."""
        return None if self._settings.budget is None else self._settings.budget.spending

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the rubric."""
        return self._rubric.principle_ids

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings: model, address, rubric, prompts, sampling, parser."""
        asking, samples = self._settings.asking, self._settings.samples
        return {
            "backend": "endpoint",
            **self._model.identity,
            "rubric": self._rubric.digest,
            **self._form.identity,
            "temperature": asking.temperature,
            "top_p": asking.top_p,
            "max_tokens": asking.max_tokens,
            **({"samples": samples} if samples > 1 else {}),
        }

    def redrawn(self) -> "ChatJudge":
        """Return this judge at its next draws: the same questions, asked anew."""
        asking = self._settings.asking
        after = asking.sample_index + self._settings.samples
        return self._changed(self._rubric, replace(asking, sample_index=after))

    def of_one(self, principle: str) -> "ChatJudge":
        """Return this judge with one principle of its rubric."""
        return self._changed(self._rubric.only(principle), self._settings.asking)

    def _changed(self, rubric: Rubric, asking: Asking) -> "ChatJudge":
        return ChatJudge(self._model, rubric, self._journal, replace(self._settings, asking=asking))

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response in a call of its own, or in `samples`; a failed one has its status and reason.

        Raises:
            EndpointError: the endpoint refuses for a reason that a retry does not mend.
            Preempted: `settings.stop` turned true; what was answered is kept.
        """
        samples = self._settings.samples
        asked = self._rating_requests(items)
        replies = self._ask(asked, self._form.read_ratings, in_parts(progress, samples))
        candidates = [candidate for _, candidate in items for _ in range(samples)]
        parts = [self._judgement(*each) for each in zip(candidates, asked, replies, strict=True)]
        return parts if samples == 1 else grouped(parts, samples, lambda draws: averaged(self.name, draws))

    def owed_ratings(self, items: Sequence[tuple[Speech, Candidate]]) -> list[ChatRequest]:
        """Return what `rate` would have to ask at least once; nothing is asked."""
        return self._owed(self._rating_requests(items), self._form.read_ratings)

    def owed_comparisons(self, items: Sequence[Comparison]) -> list[ChatRequest]:
        """Return what `compare` would have to ask at least once; nothing is asked."""
        return self._owed(self._comparison_requests(items), self._form.read_winners)

    def compare(self, items: Sequence[Comparison], progress: Progress) -> list[Verdict]:
        """Compare in exactly the order given; errors as for `rate`."""
        samples = self._settings.samples
        asked = self._comparison_requests(items)
        replies = self._ask(asked, self._form.read_winners, in_parts(progress, samples))
        compared = [item for item in items for _ in range(samples)]
        parts = [self._verdict(*each) for each in zip(compared, asked, replies, strict=True)]
        return parts if samples == 1 else grouped(parts, samples, voted)

    def _rating_requests(self, items: Sequence[tuple[Speech, Candidate]]) -> list[JudgeRequest]:
        return [
            self._form.rating(speech, candidate, asking)
            for speech, candidate in items
            for asking in self._askings()
        ]

    def _comparison_requests(self, items: Sequence[Comparison]) -> list[JudgeRequest]:
        return [self._form.comparison(item, asking) for item in items for asking in self._askings()]

    def _askings(self) -> list[Asking]:
        """Return how one question is asked, once for each draw: side by side, for they share a prompt."""
        asking = self._settings.asking
        indices = range(asking.sample_index, asking.sample_index + self._settings.samples)
        return [replace(asking, sample_index=index) for index in indices]

    def _owed(self, asked: Sequence[JudgeRequest], read: _Read) -> list[ChatRequest]:
        requests = [item.request for item in asked]
        places = owed_places(
            requests, self._model.identity, self._journal, _acceptance(asked, read), self._form.reader
        )
        return [requests[place] for place in places]

    def _ask(self, asked: Sequence[JudgeRequest], read: _Read, progress: Progress) -> list[ChatReply]:
        settings = self._settings
        policy = AskPolicy(
            _acceptance(asked, read),
            settings.max_attempts,
            settings.concurrency,
            settings.stop,
            progress,
            self._form.reader,
            settings.budget,
            lambda index, reply: self._form.heed(asked[index], reply),
        )
        return settings.ask(self._model, [item.request for item in asked], self._journal, policy)

    def _judgement(self, candidate: Candidate, asked: JudgeRequest, reply: ChatReply) -> Judgement:
        parsed = self._form.read_ratings(asked, reply) if reply.status is ReplyStatus.VALID else None
        if isinstance(parsed, ParsedRatings):
            flag = ADDRESSES_JUDGE if addresses_judge(candidate.text) else ""
            judgement = Judgement(candidate.id, self.name, ReplyStatus.VALID, parsed.ratings, reason=flag)
        elif isinstance(parsed, ParseFailure):
            judgement = Judgement(candidate.id, self.name, parsed.status, reason=parsed.reason)
        else:
            judgement = Judgement(candidate.id, self.name, reply.status, reason=reply.reason)
        if self._settings.samples == 1 and not self._form.keeps_draws:
            return judgement
        return with_draw(judgement, asked.request.sample_index, parsed)

    def _verdict(self, item: Comparison, asked: JudgeRequest, reply: ChatReply) -> Verdict:
        verdict = self._verdict_alone(item, asked, reply)
        if self._settings.samples == 1:
            return verdict
        return with_vote(verdict, self.name, asked.request.sample_index)

    def _verdict_alone(self, item: Comparison, asked: JudgeRequest, reply: ChatReply) -> Verdict:
        parsed = self._form.read_winners(asked, reply) if reply.status is ReplyStatus.VALID else None
        ids = (item.speech.id, item.first.id, item.second.id)
        if isinstance(parsed, ParsedWinners):
            return Verdict(*ids, ReplyStatus.VALID, parsed.winners)
        return Verdict(*ids, reply.status if parsed is None else parsed.status)
