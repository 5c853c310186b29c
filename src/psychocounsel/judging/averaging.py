"""Judgements of one candidate -> their mean, verdicts on one comparison -> their vote.

A mean over too few says little: where fewer than half of the parts succeeded, the whole is missing. One that
nobody answered is owed, and so is the whole, or the line's luck would decide what a rating rests on.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from psychocounsel.domain import (
    Draw,
    Judgement,
    Rating,
    ReplyStatus,
    Scoring,
    Verdict,
    Vote,
    Winner,
)
from psychocounsel.judging.judge import Progress
from psychocounsel.judging.parsing import ParsedRatings, ParseFailure

_Part = TypeVar("_Part")
_POINTS = {Winner.FIRST: 1, Winner.TIE: 0, Winner.SECOND: -1}


def averaged(judge: str, parts: Sequence[Judgement]) -> Judgement:
    """Return the mean of several judgements of one candidate, with every draw behind it.

    Args:
        judge: the name of whoever judged, all together.
        parts: repeated draws of one judge, or what each judge of a panel says; each knows its own draws.
    """
    valid = [part for part in parts if part.status is ReplyStatus.VALID]
    draws = tuple(draw for part in parts for draw in part.draws)
    failure = _failure([part.status for part in parts])
    candidate_id = parts[0].candidate_id
    if failure is not None:
        why = next((part.reason for part in parts if part.status is failure), "")
        reason = f"{len(valid)} of {len(parts)} succeeded: {why}"
        return Judgement(candidate_id, judge, failure, reason=reason, draws=draws)
    remark = next((part.reason for part in valid if part.reason), "")
    ratings = mean_ratings([part.ratings for part in valid])
    return Judgement(candidate_id, judge, ReplyStatus.VALID, ratings, remark, draws)


def voted(parts: Sequence[Verdict]) -> Verdict:
    """Return the vote of several verdicts on one comparison in one order, with every vote behind it.

    By criterion each verdict gives its winner one point; more points win, as many are a tie.
    """
    valid = [part for part in parts if part.status is ReplyStatus.VALID]
    votes = tuple(vote for part in parts for vote in part.votes)
    failure = _failure([part.status for part in parts])
    ids = (parts[0].speech_id, parts[0].first_id, parts[0].second_id)
    if failure is not None:
        return Verdict(*ids, failure, votes=votes)
    winners = {name: _favourite([part.winners[name] for part in valid]) for name in valid[0].winners}
    return Verdict(*ids, ReplyStatus.VALID, winners, votes)


def with_draw(
    judgement: Judgement, sample_index: int = 0, parsed: ParsedRatings | ParseFailure | None = None
) -> Judgement:
    """Return a judgement that one reply gave, with that reply as the draw it rests on."""
    scored_by, reason = Scoring.WRITTEN, judgement.reason
    if isinstance(parsed, ParsedRatings):
        scored_by, reason = parsed.scored_by, parsed.remark or reason
    told = (judgement.judge, sample_index, judgement.status, judgement.ratings, reason, scored_by)
    return replace(judgement, draws=(Draw(*told),))


def with_vote(verdict: Verdict, judge: str, sample_index: int = 0) -> Verdict:
    """Return a verdict that one reply gave, with that reply as its vote."""
    return replace(verdict, votes=(Vote(judge, sample_index, verdict.status, verdict.winners),))


def mean_ratings(several: Sequence[Mapping[str, Rating]]) -> dict[str, Rating]:
    """Return the mean by principle, always a float; `exact_rating` tells which fraction it stands for."""
    return {name: math.fsum(ratings[name] for ratings in several) / len(several) for name in several[0]}


def in_parts(progress: Progress, parts: int) -> Progress:
    """Return a progress that is told of parts and tells of whole items, of `parts` parts each."""
    done = 0

    def advance(newly_done: int) -> None:
        nonlocal done
        before, done = done, done + newly_done
        if whole := done // parts - before // parts:
            progress(whole)

    return progress if parts == 1 else advance


def grouped(parts: Sequence[_Part], size: int, join: Callable[[Sequence[_Part]], _Part]) -> list[_Part]:
    """Return what each run of `size` parts comes to."""
    return [join(parts[start : start + size]) for start in range(0, len(parts), size)]


def _failure(statuses: Sequence[ReplyStatus]) -> ReplyStatus | None:
    """Return what the whole ends as where too few parts succeeded, or one is owed; else None."""
    if ReplyStatus.ERROR in statuses:
        return ReplyStatus.ERROR
    failed = Counter(status for status in statuses if status is not ReplyStatus.VALID)
    if 2 * failed.total() <= len(statuses):
        return None
    return failed.most_common(1)[0][0]


def _favourite(winners: Sequence[Winner]) -> Winner:
    balance = sum(_POINTS[winner] for winner in winners)
    if not balance:
        return Winner.TIE
    return Winner.FIRST if balance > 0 else Winner.SECOND
