"""Verdicts in both orders -> WinRates: how often the policy is preferred to the reference.

A judge leans towards a place on the page, so every comparison is made twice with the places exchanged, and
only a win in both orders is a win.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from psychocounsel.domain import OVERALL, Rate, ReplyStatus, Verdict, Winner
from psychocounsel.evaluation.intervals import BootstrapSettings, bootstrap_rate

_FIRST_POINTS = {Winner.FIRST: 1.0, Winner.TIE: 0.5, Winner.SECOND: 0.0}


class Outcome(StrEnum):
    """What two orders together say of the policy; a FLIP is a disagreement and counts as a tie."""

    WIN = "win"
    TIE = "tie"
    FLIP = "flip"
    LOSS = "loss"
    MISSING = "missing"

    @property
    def points(self) -> float | None:
        """The policy's share of the win: 1, a half or 0; None where a verdict failed."""
        return _POINTS[self]


_POINTS: Mapping[Outcome, float | None] = {
    Outcome.WIN: 1.0,
    Outcome.TIE: 0.5,
    Outcome.FLIP: 0.5,
    Outcome.LOSS: 0.0,
    Outcome.MISSING: None,
}
_AGREED = {Winner.FIRST: Outcome.WIN, Winner.TIE: Outcome.TIE, Winner.SECOND: Outcome.LOSS}


@dataclass(frozen=True)
class BothOrders:
    """One comparison judged twice: the policy's response first in `forward`, second in `backward`."""

    forward: Verdict
    backward: Verdict

    def __post_init__(self) -> None:
        if self.forward.speech_id != self.backward.speech_id:
            raise ValueError("both orders answer one speech")
        shown_swapped = (self.backward.second_id, self.backward.first_id)
        if (self.forward.first_id, self.forward.second_id) != shown_swapped:
            raise ValueError("the second order shows the same two responses in exchanged places")

    @property
    def speech_id(self) -> str:
        """The speech that both responses answer."""
        return self.forward.speech_id

    @property
    def valid(self) -> bool:
        """Whether both verdicts succeeded."""
        return self.forward.status is self.backward.status is ReplyStatus.VALID

    def swap(self) -> "BothOrders":
        """Return the same comparison told from the reference's side."""
        return BothOrders(forward=self.backward, backward=self.forward)

    def outcome(self, criterion: str = OVERALL) -> Outcome:
        """Return what the two verdicts together say on one criterion; one failed verdict makes it missing."""
        forward = self.forward.winners.get(criterion)
        backward = self.backward.winners.get(criterion)
        if forward is None or backward is None:
            return Outcome.MISSING
        return _AGREED[forward] if forward is backward.swap() else Outcome.FLIP

    def first_position_points(self, criterion: str = OVERALL) -> float | None:
        """Return the share of the two verdicts that went to the first place, ties half; None if one failed.

        A failed partner leaves the other verdict out as well: only the two together cancel the responses'
        merit.
        """
        forward = self.forward.winners.get(criterion)
        backward = self.backward.winners.get(criterion)
        if forward is None or backward is None:
            return None
        return (_FIRST_POINTS[forward] + _FIRST_POINTS[backward]) / 2


@dataclass(frozen=True)
class Unanswered:
    """A speech that a side left without an answer: there is nothing to compare, and it is missing."""

    speech_id: str

    def swap(self) -> "Unanswered":
        """Return the same: it is missing from either side."""
        return self

    def outcome(self, criterion: str = OVERALL) -> Outcome:
        """Return that the outcome is missing, whatever the criterion."""
        del criterion
        return Outcome.MISSING

    def first_position_points(self, criterion: str = OVERALL) -> None:
        """Return that nobody was shown first."""
        del criterion


Asked = BothOrders | Unanswered
"""What became of a speech that both sides were asked to answer."""


@dataclass(frozen=True)
class WinRates:
    """The policy's win rates over the reference, ties half, with what they rest on.

    `wins`, `ties`, `losses` and `missing` count speeches on the overall criterion and add up to all that were
    asked; `ties` holds the flips too. `by_criterion` holds every criterion but the overall one. A judge
    without a favourite place has a `first_position_rate` of one half.
    """

    overall: Rate
    by_criterion: Mapping[str, Rate]
    wins: int
    ties: int
    losses: int
    missing: int
    flip_rate: Rate
    first_position_rate: Rate

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        return {
            "win_rate": self.overall.as_dict(),
            "win_rate_by_criterion": {name: rate.as_dict() for name, rate in self.by_criterion.items()},
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "missing": self.missing,
            "flip_rate": self.flip_rate.as_dict(),
            "first_position_rate": self.first_position_rate.as_dict(),
        }


def win_rates(rounds: Sequence[Asked], settings: BootstrapSettings) -> WinRates:
    """Return win rates, overall and by criterion, with intervals by bootstrap over speeches.

    Args:
        rounds: the comparisons (a speech may have several), and the speeches that could not be compared.
        settings: how the intervals are drawn.

    Raises:
        DataQualityError: when no comparison has two valid verdicts.
    """
    speeches = [both.speech_id for both in rounds]
    outcomes = [both.outcome() for both in rounds]
    flips = [None if outcome is Outcome.MISSING else float(outcome is Outcome.FLIP) for outcome in outcomes]
    first_places = [both.first_position_points() for both in rounds]
    return WinRates(
        overall=_rate(rounds, OVERALL, settings),
        by_criterion={name: _rate(rounds, name, settings) for name in _criteria(rounds)},
        wins=outcomes.count(Outcome.WIN),
        ties=outcomes.count(Outcome.TIE) + outcomes.count(Outcome.FLIP),
        losses=outcomes.count(Outcome.LOSS),
        missing=outcomes.count(Outcome.MISSING),
        flip_rate=bootstrap_rate(flips, speeches, settings),
        first_position_rate=bootstrap_rate(first_places, speeches, settings),
    )


def _rate(rounds: Sequence[Asked], criterion: str, settings: BootstrapSettings) -> Rate:
    points = [both.outcome(criterion).points for both in rounds]
    return bootstrap_rate(points, [both.speech_id for both in rounds], settings)


def _criteria(rounds: Sequence[Asked]) -> list[str]:
    """Return the criteria of the valid comparisons but the overall one, in the order of the judge."""
    judged = [both for both in rounds if isinstance(both, BothOrders) and both.valid]
    named = dict.fromkeys(name for both in judged for name in both.forward.winners)
    return [name for name in named if name != OVERALL]
