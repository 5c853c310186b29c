"""What every judge can do, how failed results are counted, and how several replies become one result."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.judging.injection import ADDRESSES_JUDGE
from psychocounsel.judging.parsing import ParsedRatings, ParseFailure
from psychocounsel.llm.types import ENDLESS_BLANKS, JSON, ChatReply
from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    RatingSample,
    ReplyStatus,
    Scoring,
    Speech,
    Vote,
    Winner,
    mean_ratings,
)

Progress = Callable[[int], None]
"""Called with the number of items newly done."""


class ComparisonTask(NamedTuple):
    """Two responses to one speech, in the order in which the judge sees them."""

    speech: Speech
    first: Candidate
    second: Candidate


class Judge(Protocol):
    """Rates responses on the principles of a rubric and compares two of them.

    Attributes:
        warnings: sentences that head every artifact and report made with this judge.
        fingerprint: everything that shapes its ratings, for ids and caches.
        principles: ids of the rated principles, in the order of the rubric.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def warnings(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def fingerprint(self) -> Mapping[str, JSON]: ...  # noqa: D102
    @property
    def principles(self) -> tuple[str, ...]: ...  # noqa: D102

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response on its own; results stand in the order of `items`."""
        ...

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Compare in exactly the order given; to cancel position bias the caller sends both orders."""
        ...


def compare_in_both_orders(
    judge: Judge, tasks: Sequence[ComparisonTask], progress: Progress
) -> tuple[list[Comparison], list[Comparison]]:
    """Return what a judge says of some comparisons as they are, and of the same with their answers exchanged."""
    exchanged = [ComparisonTask(each.speech, each.second, each.first) for each in tasks]
    found = judge.compare([*tasks, *exchanged], progress)
    return found[: len(tasks)], found[len(tasks) :]


@runtime_checkable
class Resamplable(Protocol):
    """A judge that need not give the same answer to the same question."""

    def resampled(self) -> Judge:
        """Return this judge at its next samples: the same questions, asked anew."""
        ...

    def for_principle(self, principle: str) -> Judge:
        """Return this judge with one principle of its rubric."""
        ...


# --- Failed results --------------------------------------------------------------------------------------------------


def count_failed(results: Iterable[Judgement | Comparison]) -> int:
    """Count the judgements (or comparisons) that carry no result."""
    return sum(each.status is not ReplyStatus.VALID for each in results)


def missing_by_topic(
    speeches: Sequence[Speech], results: Sequence[Judgement | Comparison]
) -> dict[str, dict[str, int]]:
    """Count failed results by the topic of their speeches, for refusals are not missing at random."""
    by_topic: dict[str, list[Judgement | Comparison]] = {}
    for speech, result in zip(speeches, results, strict=True):
        by_topic.setdefault(speech.topic, []).append(result)
    return {topic: {"missing": count_failed(own), "total": len(own)} for topic, own in sorted(by_topic.items())}


def addressing_judge(judgements: Sequence[Judgement]) -> int:
    """Count the valid judgements of texts that look like an attempt on the judge."""
    return sum(each.reason == ADDRESSES_JUDGE for each in judgements)


_LOOK = (
    "look at the replies (`psychocounsel journal export FILE --store STORE`), try another judge, or allow a larger "
    "share; "
    "the same command requests the failed ones again"
)
_REMEDIES = {
    ReplyStatus.CUT.value: "raise judge.max_tokens, then run the same command; with the same limit the same replies "
    "would be cut again",
    ReplyStatus.INVALID.value: f"a model that keeps to no schema may need endpoint.response_format; {_LOOK}",
}


def require_judged(
    results: Sequence[Judgement | Comparison], what: str, max_missing_share: float, remedy: str = ""
) -> None:
    """Refuse results (`what` names them) of which too many failed; `remedy` is that of a judge which is no model.

    Raises:
        IncompleteError: an endpoint left some unanswered, which says nothing of the text to be judged.
        DataQualityError: more failed than may.
    """
    failed = Counter(each.status.value for each in results if each.status is not ReplyStatus.VALID)
    if lost := failed[ReplyStatus.ERROR.value]:
        raise IncompleteError(
            f"{lost} of {len(results)} {what} got no answer from the judge",
            where="judge.endpoint",
            remedy="check the endpoint, then run the same command again; only pending requests are sent",
        )
    if failed.total() > max_missing_share * len(results):
        commonest = failed.most_common(1)[0][0]
        reasons = (each.reason for each in results if isinstance(each, Judgement) and each.status == commonest)
        reason = next(filter(None, reasons), "")
        raise DataQualityError(
            f"{failed.total()} of {len(results)} {what} failed ({counted(failed)}){_first(commonest, reason)}",
            where="judge.max_missing_share",
            remedy=remedy or _remedy(commonest, reason),
        )


def _remedy(status: str, reason: str) -> str:
    if ENDLESS_BLANKS in reason:
        return (
            "have the server allow no blanks between JSON fields, or set endpoint.response_format: text; then run the "
            "same command"
        )
    return _REMEDIES.get(status, _LOOK)


def _first(status: str, reason: str) -> str:
    return f", the first {status}: {reason}" if reason else ""


class FailureLimit:
    """Ends a run of a judge as soon as `max_missing_share` (1: no limit) of its results cannot be met any more.

    `results` are wanted, with `samples` requests each, of which at least half have to succeed. A judge of which none
    of the first `pilot` results can be read is given up, too.
    """

    def __init__(self, what: str, results: int, samples: int, max_missing_share: float, pilot: int) -> None:
        self._what, self._results, self._samples, self._share = what, results, samples, max_missing_share
        self._pilot = pilot or results
        self._ended: dict[int, bool] = {}
        self._failures: Counter[int] = Counter()
        self._statuses: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._readable = self._failed = 0

    def note(self, place: int, reply: ChatReply, failure: ParseFailure | ChatReply | None) -> None:
        """Note how a request ended, with what says why it failed; one that got no reply says nothing of the judge.

        Raises:
            DataQualityError: too many failed, or none of the pilot can be read.
        """
        if place in self._ended or not reply.answered:
            return
        self._ended[place] = failure is None
        self._readable += failure is None
        if failure is not None:
            self._statuses[failure.status.value] += 1
            self._reasons.setdefault(failure.status.value, failure.reason)
            self._failures[place // self._samples] += 1
            self._failed += self._failures[place // self._samples] == self._samples // 2 + 1
            self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        is_pilot_lost = not self._readable and len(self._failures) >= self._pilot < self._results
        if self._share < 1 and (self._failed > self._share * self._results or is_pilot_lost):
            ended = len({place // self._samples for place in self._ended})
            found = f"{self._failed} of the first {ended} {self._what} failed ({counted(self._statuses)})"
            limit = f"of {self._results} no more than {self._share:.0%} may"
            commonest = self._statuses.most_common(1)[0][0]
            raise DataQualityError(
                (f"{found}, and none can be read" if not self._readable else f"{found}; {limit}")
                + _first(commonest, self._reasons[commonest]),
                where="judge.max_missing_share",
                remedy=_remedy(commonest, self._reasons[commonest]),
            )


# --- Several replies, one result -------------------------------------------------------------------------------------

_Part = TypeVar("_Part")
_POINTS = {Winner.FIRST: 1, Winner.TIE: 0, Winner.SECOND: -1}


def averaged(judge: str, parts: Sequence[Judgement]) -> Judgement:
    """Return the mean of several judgements of one candidate, with every sample behind it.

    The parts are repeated samples of one judge, or the judgements of a panel (named `judge`); each holds its samples.
    """
    valid = [part for part in parts if part.status is ReplyStatus.VALID]
    samples = tuple(sample for part in parts for sample in part.samples)
    failure = _failure([part.status for part in parts])
    candidate_id = parts[0].candidate_id
    if failure is not None:
        why = next(part.reason for part in parts if part.status is failure)
        reason = f"{len(valid)} of {len(parts)} succeeded: {why}"
        return Judgement(candidate_id, judge, failure, reason=reason, samples=samples)
    remark = next((part.reason for part in valid if part.reason), "")
    ratings = mean_ratings([part.ratings for part in valid])
    return Judgement(candidate_id, judge, ReplyStatus.VALID, ratings, remark, samples, _all_reasons(valid))


def voted(parts: Sequence[Comparison]) -> Comparison:
    """Return the majority of several comparisons in one order, with every vote behind it.

    By criterion each comparison gives its winner one point; more points win, as many are a tie.
    """
    valid = [part for part in parts if part.status is ReplyStatus.VALID]
    votes = tuple(vote for part in parts for vote in part.votes)
    failure = _failure([part.status for part in parts])
    ids = (parts[0].speech_id, parts[0].first_id, parts[0].second_id)
    if failure is not None:
        return Comparison(*ids, failure, votes=votes)
    winners: dict[str, Winner] = {}
    for name in valid[0].winners:
        balance = sum(_POINTS[part.winners[name]] for part in valid)
        winners[name] = Winner.TIE if not balance else Winner.FIRST if balance > 0 else Winner.SECOND
    return Comparison(*ids, ReplyStatus.VALID, winners, votes, _all_reasons(valid))


def _all_reasons(parts: Sequence[Judgement] | Sequence[Comparison]) -> str:
    return "\n".join(part.reasons for part in parts if part.reasons)


def _failure(statuses: Sequence[ReplyStatus]) -> ReplyStatus | None:
    """Return the status of the whole where fewer than half succeeded, or one is pending; else None."""
    if ReplyStatus.ERROR in statuses:
        return ReplyStatus.ERROR
    failed = Counter(status for status in statuses if status is not ReplyStatus.VALID)
    return failed.most_common(1)[0][0] if 2 * failed.total() > len(statuses) else None


def with_sample(
    judgement: Judgement, sample_index: int = 0, parsed: ParsedRatings | ParseFailure | None = None
) -> Judgement:
    """Return a judgement that one reply gave, with that reply as the sample it rests on."""
    scored_by, reason = Scoring.WRITTEN, judgement.reason
    if isinstance(parsed, ParsedRatings):
        scored_by, reason = parsed.scored_by, parsed.remark or reason
    sample = RatingSample(judgement.judge, sample_index, judgement.status, judgement.ratings, reason, scored_by)
    return replace(judgement, samples=(sample,))


def with_vote(comparison: Comparison, judge: str, sample_index: int = 0) -> Comparison:
    """Return a comparison that one reply gave, with that reply as its vote."""
    return replace(comparison, votes=(Vote(judge, sample_index, comparison.status, comparison.winners),))


def in_parts(progress: Progress, parts: int) -> Progress:
    """Return a progress that is called with parts and reports whole items, of `parts` parts each."""
    done = 0

    def advance(newly_done: int) -> None:
        nonlocal done
        before, done = done, done + newly_done
        if whole := done // parts - before // parts:
            progress(whole)

    return progress if parts == 1 else advance


def grouped(parts: Sequence[_Part], size: int, join: Callable[[Sequence[_Part]], _Part]) -> list[_Part]:
    """Join each run of `size` parts into one."""
    return [join(parts[start : start + size]) for start in range(0, len(parts), size)]


# --- Families of models ----------------------------------------------------------------------------------------------

BETWEEN_NAMES = " + "
"""Joins the names of several judges into one."""

_SEPARATORS = re.compile(r"[-_:.@/\s]+")
_MAKERS = {
    "openai": r"(chat)?gpt\w*|o\d+|davinci|codex",
    "meta": r"\w*llama\d*",
    "anthropic": r"claude\w*",
    "google": r"gemini|gemma\d*|palm\d*|bison",
    "mistral": r"\w*(mistral|mixtral|ministral|magistral|codestral|devstral|pixtral)\w*",
    "alibaba": r"qwen\d*|qwq|qvq",
    "deepseek": r"deepseek\w*",
    "microsoft": r"phi\d*|wizardlm\d*",
    "cohere": r"command|aya|c4ai",
    "xai": r"grok\d*",
    "moonshot": r"kimi",
    "zhipu": r"\w*glm\d*",
}
"""By maker, the words in the names of its models."""


def same_family(left: str, right: str) -> bool:
    """Return whether two judge or model names share a maker, read from the words of the name.

    `gpt-4o`, `chatgpt-4o-latest`, `o3-mini` and `ft:gpt-4o-mini:org::id` are of one family, and so are
    `Llama-3.1-8B` and `meta-llama/Meta-Llama-3.1-8B`; `gpt-4o` and `claude-sonnet-4` are not. A model made
    from another one's weights or answers that says so is of both families: `DeepSeek-R1-Distill-Llama-8B`. Of
    an unknown maker, a name counts by its first word without the owner. A panel is of each member's family.
    """
    return not _families(left).isdisjoint(_families(right))


def _families(names: str) -> set[str]:
    families: set[str] = set()
    for name in names.casefold().split(BETWEEN_NAMES):
        model = name.strip()
        if model.startswith("ft:"):
            model = model.removeprefix("ft:").partition(":")[0]
        words = [word for word in _SEPARATORS.split(model.rsplit("/", maxsplit=1)[-1]) if word]
        makers = {maker for maker, spelling in _MAKERS.items() if any(re.fullmatch(spelling, word) for word in words)}
        families |= makers or {re.sub(r"\d+$", "", words[0]) if words else ""}
    return families
