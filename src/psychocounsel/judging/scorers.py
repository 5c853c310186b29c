"""Rubric -> how a model is asked and its reply is read: as written, or by the probabilities of its tokens."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple, Protocol, cast

from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.judging.injection import one_line
from psychocounsel.judging.judge import ComparisonTask
from psychocounsel.judging.parsing import (
    PARSER_VERSION,
    WINNERS,
    ParsedRatings,
    ParsedWinners,
    ParseFailure,
    Unexpected,
    expected_ratings,
    parse_ratings,
    parse_winners,
    points_are_told_apart,
)
from psychocounsel.judging.prompts import (
    JudgeRequest,
    SamplingParams,
    comparison_request,
    prompt_digests,
    rating_request,
)
from psychocounsel.judging.rubric import Principle, Rubric
from psychocounsel.llm.replies import MOST_ALTERNATIVES, mapping_of, read_choices
from psychocounsel.llm.types import JSON, ChatReply, ChatRequest, Message
from psychocounsel.types import OVERALL, Candidate, ReplyStatus, Scoring, Speech, content_id


class Scorer(Protocol):
    """How one rubric is put to a model, and how replies are read.

    Attributes:
        reader: names the rule by which a reply counts as read.
        keeps_samples: whether a rating may be more than the number that a reply has written.
    """

    @property
    def reader(self) -> str: ...  # noqa: D102
    @property
    def keeps_samples(self) -> bool: ...  # noqa: D102
    @property
    def identity(self) -> Mapping[str, JSON]: ...  # noqa: D102

    def rating(self, speech: Speech, candidate: Candidate, sampling: SamplingParams) -> JudgeRequest:
        """Return what is asked to rate a response."""
        ...

    def comparison(self, item: ComparisonTask, sampling: SamplingParams) -> JudgeRequest:
        """Return what is asked to compare two."""
        ...

    def read_ratings(self, asked: JudgeRequest, reply: ChatReply) -> ParsedRatings | ParseFailure:
        """Read a finished reply to `rating`."""
        ...

    def read_winners(self, asked: JudgeRequest, reply: ChatReply) -> ParsedWinners | ParseFailure:
        """Read a finished reply to `comparison`."""
        ...

    def heed(self, asked: JudgeRequest, reply: ChatReply) -> None:
        """Take from a new reply what it tells of its server.

        Raises:
            EndpointError: the server cannot do what the form needs.
        """
        ...


class TextScorer:
    """The ratings are the whole numbers that the reply has written."""

    keeps_samples = False

    def __init__(self, rubric: Rubric) -> None:
        self.rubric = rubric

    @property
    def reader(self) -> str:
        """Parser and rubric."""
        return f"judge {PARSER_VERSION} {self.rubric.digest}"

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings beside the model and its sampling."""
        return {"prompts": {**prompt_digests()}, "parser": PARSER_VERSION}

    def rating(self, speech: Speech, candidate: Candidate, sampling: SamplingParams) -> JudgeRequest:
        """Ask for one JSON object with a whole number for every principle."""
        return rating_request(speech, candidate, self.rubric, sampling)

    def comparison(self, item: ComparisonTask, sampling: SamplingParams) -> JudgeRequest:
        """Ask for one JSON object with a winner for every criterion."""
        return comparison_request(item, self.rubric, sampling)

    def read_ratings(self, asked: JudgeRequest, reply: ChatReply) -> ParsedRatings | ParseFailure:
        """Read the whole numbers."""
        return parse_ratings(reply.text, self.rubric, asked.item_id)

    def read_winners(self, asked: JudgeRequest, reply: ChatReply) -> ParsedWinners | ParseFailure:
        """Read the winners."""
        return parse_winners(reply.text, self.rubric, asked.item_id)

    def heed(self, asked: JudgeRequest, reply: ChatReply) -> None:
        """Any server will do."""


class LogprobScorer(TextScorer):
    """The ratings are expectations over the scale, by the log-probabilities of the tokens that write them.

    A reply whose tokens do not tell keeps its written numbers, and says so. Verdicts are read as written.
    """

    keeps_samples = True

    def __init__(self, rubric: Rubric) -> None:
        super().__init__(rubric)
        self._tells_choices = False

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings beside the model and its sampling."""
        return {**super().identity, "score": Scoring.EXPECTED.value}

    def rating(self, speech: Speech, candidate: Candidate, sampling: SamplingParams) -> JudgeRequest:
        """Ask for the same, and for the alternatives of every token."""
        item_id, request = super().rating(speech, candidate, sampling)
        return JudgeRequest(item_id, replace(request, top_logprobs=MOST_ALTERNATIVES))

    def read_ratings(self, asked: JudgeRequest, reply: ChatReply) -> ParsedRatings | ParseFailure:
        """Read the expected ratings, or the written ones with a remark.

        A reply without log-probabilities is not read before another one had some: it may come from a time
        when the server gave none, and is asked for anew.
        """
        written = super().read_ratings(asked, reply)
        if isinstance(written, ParseFailure):
            return written
        self._tells_choices = self._tells_choices or bool(reply.choices)
        if not self._tells_choices:
            return ParseFailure("the reply has no log-probabilities")
        expected = expected_ratings(reply.text, read_choices(reply.choices), self.rubric)
        if isinstance(expected, Unexpected):
            return written._replace(remark=expected.reason)
        return written._replace(ratings=expected, scored_by=Scoring.EXPECTED)

    def heed(self, asked: JudgeRequest, reply: ChatReply) -> None:
        """Refuse a server whose first reply that can be read comes without log-probabilities.

        Raises:
            EndpointError: with the remedy.
        """
        is_silent = asked.request.top_logprobs and not self._tells_choices and not reply.choices
        if not is_silent or reply.status is not ReplyStatus.VALID:
            return
        if isinstance(super().read_ratings(asked, reply), ParsedRatings):
            raise EndpointError(
                f"{reply.model} answers without log-probabilities, so no rating can be expected from them",
                where="judge.score",
                remedy="leave score out, name a model that gives them, or ask for the mean of several samples "
                "(samples: 5, temperature: 1.0)",
            )


def require_expectable(rubric: Rubric) -> None:
    """Refuse a scale whose points one token cannot tell.

    Raises:
        ConfigError: a point begins as another does.
    """
    if not points_are_told_apart(rubric.scale):
        raise ConfigError(
            f"the scale {rubric.minimum} to {rubric.maximum} has points that begin alike (1 and 10), and the "
            "probability of a token does not tell them apart",
            where="judge.score",
            remedy="leave score out, or rate on a scale of one figure, such as 1 to 5",
        )


DECISION_VERSION = 1
"""Raised by hand whenever a decision may be read differently than before."""

_PROMPT = files("psychocounsel.judging") / "prompts" / "decide.txt"
_CHOICES: Sequence[Mapping[str, JSON]] = (
    {"value": "A", "description": "response_A is better"},
    {"value": "B", "description": "response_B is better"},
    {"value": "tie", "description": "neither is clearly better"},
)
_LARGEST_ERROR = 0.02
_DECIMALS = 6


class _Prompts(NamedTuple):
    item: Template
    rate: Template
    compare: Template
    overall: str


class _UnreadableError(ValueError):
    """Answers that are not what was asked for; `status` is what the judgement ends as."""

    def __init__(self, reason: str, status: ReplyStatus = ReplyStatus.INVALID) -> None:
        super().__init__(reason)
        self.status = status


def decision_digests() -> dict[str, str]:
    """SHA-256 of the prompt's text, by name."""
    return {"decide": hashlib.sha256(_PROMPT.read_bytes()).hexdigest()}


class DecisionScorer:
    """Every principle is one question with the points of the scale as its levels."""

    keeps_samples = True

    def __init__(self, rubric: Rubric) -> None:
        self.rubric = rubric

    @property
    def reader(self) -> str:
        """Reader and rubric."""
        return f"decision {DECISION_VERSION} {self.rubric.digest}"

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings beside the model."""
        return {"prompts": {**decision_digests()}, "parser": f"decision {DECISION_VERSION}"}

    def rating(self, speech: Speech, candidate: Candidate, sampling: SamplingParams) -> JudgeRequest:
        """Ask for a distribution over the scale on every principle."""
        item_id = content_id("decide", speech.text, candidate.text)
        shown = {"client": speech.text, "response": candidate.text}
        questions = tuple(_score_question(each, self.rubric.scale) for each in self.rubric.principles)
        return JudgeRequest(item_id, _request(shown, questions, sampling))

    def comparison(self, item: ComparisonTask, sampling: SamplingParams) -> JudgeRequest:
        """Ask for a choice on every criterion; A is the first."""
        texts = (item.speech.text, item.first.text, item.second.text)
        shown: dict[str, str] = dict(zip(("client", "response_A", "response_B"), texts, strict=True))
        whole = Principle(OVERALL, _prompts().overall, "", {})
        questions = tuple(map(_choice_question, (whole, *self.rubric.principles)))
        return JudgeRequest(content_id("decide", *texts), _request(shown, questions, sampling))

    def read_ratings(self, asked: JudgeRequest, reply: ChatReply) -> ParsedRatings | ParseFailure:
        """Read the expectation of every distribution."""
        del asked
        try:
            answers = _answers(reply.text, self.rubric.principle_ids)
            ratings = {name: _expectation(answers[name], self.rubric.scale) for name in answers}
        except _UnreadableError as fault:
            return ParseFailure(str(fault), fault.status)
        return ParsedRatings(ratings, "", Scoring.EXPECTED)

    def read_winners(self, asked: JudgeRequest, reply: ChatReply) -> ParsedWinners | ParseFailure:
        """Read the choices."""
        del asked
        try:
            answers = _answers(reply.text, (OVERALL, *self.rubric.principle_ids))
            sides = {name: _side(answer) for name, answer in answers.items()}
        except _UnreadableError as fault:
            return ParseFailure(str(fault), fault.status)
        return ParsedWinners({name: WINNERS[side] for name, side in sides.items()}, "")

    def heed(self, asked: JudgeRequest, reply: ChatReply) -> None:
        """Any server of that endpoint will do."""


@cache
def _prompts() -> _Prompts:
    item, _, rest = _PROMPT.read_text(encoding="utf-8").partition("=== RATE ===\n")
    rate, _, rest = rest.partition("\n=== COMPARE ===\n")
    compare, _, overall = rest.partition("\n=== OVERALL ===\n")
    return _Prompts(Template(item), Template(rate), Template(compare), overall.strip())


def _score_question(principle: Principle, scale: Sequence[int]) -> dict[str, JSON]:
    levels = [{"label": str(point), "description": principle.anchors[point]} for point in scale]
    told = _prompts().rate.substitute(name=principle.name, description=principle.description)
    return {"type": "score", "name": principle.id, "instructions": told, "levels": levels}


def _choice_question(principle: Principle) -> dict[str, JSON]:
    told = _prompts().compare.substitute(name=principle.name, description=principle.description)
    return {"type": "choice", "name": principle.id, "instructions": told, "choices": _CHOICES}


def _request(
    shown: Mapping[str, str], questions: tuple[Mapping[str, JSON], ...], sampling: SamplingParams
) -> ChatRequest:
    data = one_line(shown)
    marker = f"<<{content_id('marker', data)}>>"
    return ChatRequest(
        messages=(Message("user", _prompts().item.substitute(marker=marker, data=data)),),
        temperature=None,
        top_p=None,
        max_tokens=1,
        schema_name="decide",
        sample_index=sampling.sample_index,
        questions=questions,
    )


def _answers(text: str, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return each question's answer by its name: exactly those that were asked, and none declined."""
    told = list(map(mapping_of, cast("list[Any]", json.loads(text))))
    by_name = {str(answer.get("name")): answer for answer in told}
    if len(told) != len(names) or set(by_name) != set(names):
        raise _UnreadableError("the answers are not those to the questions that were asked")
    declined = [name for name in names if by_name[name].get("type") == "refusal"]
    if declined:
        raise _UnreadableError(f"the model declined {', '.join(declined)}", ReplyStatus.REFUSAL)
    return {name: by_name[name] for name in names}


def _expectation(answer: Mapping[str, Any], scale: Sequence[int]) -> float:
    entries = answer.get("probabilities") if answer.get("type") == "score" else None
    if not isinstance(entries, list):
        raise _UnreadableError("an answer has no distribution over the levels")
    points = {str(point): point for point in scale}
    masses = dict.fromkeys(scale, 0.0)
    for entry in cast("list[Any]", entries):
        label, mass = _level(entry)
        if label not in points:
            raise _UnreadableError(f"a level {label!r} was not asked for")
        masses[points[label]] += mass
    whole = math.fsum(masses.values())
    if abs(whole - 1) > _LARGEST_ERROR:
        raise _UnreadableError(f"the probabilities of an answer add up to {whole:.3g}")
    return round(math.fsum(point * mass for point, mass in masses.items()) / whole, _DECIMALS)


def _level(entry: object) -> tuple[str, float]:
    told = mapping_of(entry)
    mass = told.get("probability")
    if isinstance(mass, bool) or not isinstance(mass, int | float) or not 0 <= mass <= 1:
        raise _UnreadableError("a level has no probability")
    return str(told.get("label")), float(mass)


def _side(answer: Mapping[str, Any]) -> str:
    side = answer.get("choice") if answer.get("type") == "choice" else None
    if not isinstance(side, str) or side not in WINNERS:
        raise _UnreadableError("an answer is neither A nor B nor tie")
    return side
