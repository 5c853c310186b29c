"""Rubric -> how a model is asked and its reply is read: as written, or by the probabilities of its tokens."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from psychocounsel.domain import Candidate, ReplyStatus, Scoring, Speech
from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.judging.expected import Unexpected, expected_ratings, points_are_told_apart
from psychocounsel.judging.judge import Comparison
from psychocounsel.judging.parsing import (
    PARSER_VERSION,
    ParsedRatings,
    ParsedWinners,
    ParseFailure,
    parse_ratings,
    parse_winners,
)
from psychocounsel.judging.prompting import (
    Asking,
    JudgeRequest,
    comparison_request,
    prompt_digests,
    rating_request,
)
from psychocounsel.judging.rubric import Rubric
from psychocounsel.llm.chat import JSON, ChatReply
from psychocounsel.llm.token_choices import MOST_ALTERNATIVES, read_choices


class Form(Protocol):
    """How one rubric is put to a model, and how replies are read.

    Attributes:
        reader: names the rule by which a reply counts as read.
        keeps_draws: whether a rating may be more than the number that a reply has written.
    """

    @property
    def reader(self) -> str: ...  # noqa: D102
    @property
    def keeps_draws(self) -> bool: ...  # noqa: D102
    @property
    def identity(self) -> Mapping[str, JSON]: ...  # noqa: D102

    def rating(self, speech: Speech, candidate: Candidate, asking: Asking) -> JudgeRequest:
        """Return what is asked to rate a response."""
        ...

    def comparison(self, item: Comparison, asking: Asking) -> JudgeRequest:
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


class WrittenForm:
    """The ratings are the whole numbers that the reply has written."""

    keeps_draws = False

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

    def rating(self, speech: Speech, candidate: Candidate, asking: Asking) -> JudgeRequest:
        """Ask for one JSON object with a whole number for every principle."""
        return rating_request(speech, candidate, self.rubric, asking)

    def comparison(self, item: Comparison, asking: Asking) -> JudgeRequest:
        """Ask for one JSON object with a winner for every criterion."""
        return comparison_request(item, self.rubric, asking)

    def read_ratings(self, asked: JudgeRequest, reply: ChatReply) -> ParsedRatings | ParseFailure:
        """Read the whole numbers."""
        return parse_ratings(reply.text, self.rubric, asked.item_id)

    def read_winners(self, asked: JudgeRequest, reply: ChatReply) -> ParsedWinners | ParseFailure:
        """Read the winners."""
        return parse_winners(reply.text, self.rubric, asked.item_id)

    def heed(self, asked: JudgeRequest, reply: ChatReply) -> None:
        """Any server will do."""


class ExpectedForm(WrittenForm):
    """The ratings are expectations over the scale, by the log-probabilities of the tokens that write them.

    A reply whose tokens do not tell keeps its written numbers, and says so. Verdicts are read as written.
    """

    keeps_draws = True

    def __init__(self, rubric: Rubric) -> None:
        super().__init__(rubric)
        self._tells_choices = False

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings beside the model and its sampling."""
        return {**super().identity, "score": Scoring.EXPECTED.value}

    def rating(self, speech: Speech, candidate: Candidate, asking: Asking) -> JudgeRequest:
        """Ask for the same, and for the alternatives of every token."""
        item_id, request = super().rating(speech, candidate, asking)
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
                remedy="leave score out, name a model that gives them, or ask for the mean of several draws "
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
