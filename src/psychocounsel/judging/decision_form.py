"""Rubric -> questions that a provider scores directly: one call, a distribution over the scale for each.

Nothing is written out and nothing is parsed but numbers: the rating is the expectation over the scale.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple, cast

from psychocounsel.domain import OVERALL, Candidate, ReplyStatus, Scoring, Speech, content_id
from psychocounsel.judging.judge import Comparison
from psychocounsel.judging.parsing import WINNERS, ParsedRatings, ParsedWinners, ParseFailure
from psychocounsel.judging.prompting import Asking, JudgeRequest
from psychocounsel.judging.rubric import Principle, Rubric
from psychocounsel.llm.chat import JSON, ChatReply, ChatRequest, Message
from psychocounsel.llm.completion import mapping_of
from psychocounsel.llm.item_line import one_line

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


class DecisionForm:
    """Every principle is one question with the points of the scale as its levels."""

    keeps_draws = True

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

    def rating(self, speech: Speech, candidate: Candidate, asking: Asking) -> JudgeRequest:
        """Ask for a distribution over the scale on every principle."""
        item_id = content_id("decide", speech.text, candidate.text)
        shown = {"client": speech.text, "response": candidate.text}
        questions = tuple(_score_question(each, self.rubric.scale) for each in self.rubric.principles)
        return JudgeRequest(item_id, _request(shown, questions, asking))

    def comparison(self, item: Comparison, asking: Asking) -> JudgeRequest:
        """Ask for a choice on every criterion; A is the first."""
        texts = (item.speech.text, item.first.text, item.second.text)
        shown: dict[str, str] = dict(zip(("client", "response_A", "response_B"), texts, strict=True))
        whole = Principle(OVERALL, _prompts().overall, "", {})
        questions = tuple(map(_choice_question, (whole, *self.rubric.principles)))
        return JudgeRequest(content_id("decide", *texts), _request(shown, questions, asking))

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
    shown: Mapping[str, str], questions: tuple[Mapping[str, JSON], ...], asking: Asking
) -> ChatRequest:
    data = one_line(shown)
    marker = f"<<{content_id('marker', data)}>>"
    return ChatRequest(
        messages=(Message("user", _prompts().item.substitute(marker=marker, data=data)),),
        temperature=None,
        top_p=None,
        max_tokens=1,
        schema_name="decide",
        sample_index=asking.sample_index,
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
