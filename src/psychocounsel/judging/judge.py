"""Candidate -> Judgement, two Candidates -> Comparison: what every judge can do, whoever it is."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.judging.audit import agreement, squared_deviations
from psychocounsel.judging.parsing import ParsedRatings, ParseFailure
from psychocounsel.llm.types import JSON, ChatReply
from psychocounsel.types import (
    OVERALL,
    Candidate,
    Comparison,
    Judgement,
    Rating,
    RatingSample,
    ReplyStatus,
    Scoring,
    Speech,
    Vote,
    Winner,
)

ADDRESSES_JUDGE = "the response seems to address the judge"
"""Reason that a valid judgement carries when its text looks like an attempt on the judge."""

Progress = Callable[[int], None]
"""Called with the number of items newly done."""


class ComparisonTask(NamedTuple):
    """Two responses to one speech, in the order in which the judge meets them."""

    speech: Speech
    first: Candidate
    second: Candidate


class ComparisonTasks(NamedTuple):
    """The comparisons of all speeches that both sides answered, the policy first and the reference first."""

    forward: list[ComparisonTask]
    backward: list[ComparisonTask]

    @classmethod
    def of(
        cls,
        speeches: Mapping[str, Speech],
        policy: Mapping[str, Candidate],
        reference: Mapping[str, Candidate],
    ) -> "ComparisonTasks":
        """Pair the answers of the two sides by speech."""
        both = [each for each in policy if each in reference]
        forward = [ComparisonTask(speeches[each], policy[each], reference[each]) for each in both]
        return cls(forward, [ComparisonTask(each.speech, each.second, each.first) for each in forward])


class Judge(Protocol):
    """Rates responses on the principles of a rubric and compares two of them.

    Attributes:
        name: names the judge in judgements and reports.
        notice: a sentence that heads every artifact and report made with this judge; often empty.
        identity: everything that shapes its ratings, for ids and caches.
        principles: ids of the rated principles, in the order of the rubric.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def notice(self) -> str: ...  # noqa: D102
    @property
    def identity(self) -> Mapping[str, JSON]: ...  # noqa: D102
    @property
    def principles(self) -> tuple[str, ...]: ...  # noqa: D102

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response on its own; results stand in the order of `items`."""
        ...

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Compare in exactly the order given; to undo position bias the caller asks both orders."""
        ...


@runtime_checkable
class Resamplable(Protocol):
    """What a judge has besides that need not give the same answer to the same question."""

    def resampled(self) -> Judge:
        """Return this judge at its second sample: the same questions, asked anew."""
        ...

    def for_principle(self, principle: str) -> Judge:
        """Return this judge with one principle of its rubric."""
        ...


class MissingShare(NamedTuple):
    """How many judgements failed, of how many."""

    missing: int
    total: int

    @property
    def share(self) -> float:
        """Missing over total, 0 when there was nothing to judge."""
        return self.missing / self.total if self.total else 0.0


_LOOK = (
    "look at the replies (`psychocounsel journal export FILE`), try another judge, or allow a larger share; "
    "the same command asks those again"
)
_REMEDIES = {
    ReplyStatus.CUT.value: "give replies more room with judge.max_tokens, then run the same command; where "
    "that stands as it is, the same would be cut again",
    ReplyStatus.INVALID.value: f"a model that keeps to no schema may need endpoint.replies; {_LOOK}",
}


def missing_share(judgements: Sequence[Judgement | Comparison]) -> MissingShare:
    """Count the judgements (or verdicts) that carry no result."""
    missing = sum(judgement.status is not ReplyStatus.VALID for judgement in judgements)
    return MissingShare(missing, len(judgements))


def addressing_judge(judgements: Sequence[Judgement]) -> int:
    """Count the valid judgements of texts that look like an attempt on the judge."""
    return sum(each.reason == ADDRESSES_JUDGE for each in judgements)


def require_judged(results: Sequence[Judgement | Comparison], what: str, max_missing_share: float) -> None:
    """Refuse results that would be sealed with too little in them.

    Args:
        results: valid and failed ones.
        what: their name in a message.
        max_missing_share: the largest share that may fail for good.

    Raises:
        IncompleteError: an endpoint left some unanswered, which says nothing of the text to be judged.
        DataQualityError: more failed than may.
    """
    failed = Counter(each.status.value for each in results if each.status is not ReplyStatus.VALID)
    if lost := failed[ReplyStatus.ERROR.value]:
        raise IncompleteError(
            f"{lost} of {len(results)} {what} got no answer from the judge",
            where="judge.endpoint",
            remedy="see to the endpoint, then run the same command again; only what is owed is asked",
        )
    if failed.total() > max_missing_share * len(results):
        commonest = failed.most_common(1)[0][0]
        judged = [each for each in results if isinstance(each, Judgement) and each.status == commonest]
        reason = next((each.reason for each in judged if each.reason), "")
        raise DataQualityError(
            f"{failed.total()} of {len(results)} {what} failed ({counted(failed)})"
            + (f", the first {commonest}: {reason}" if reason else ""),
            where="judge.max_missing_share",
            remedy=_REMEDIES.get(commonest, _LOOK),
        )


PILOT_RESULTS = 20
"""If none of so many can be read, the judge is given up."""


class FailureLimit:
    """Ends a run of a judge as soon as `max_missing_share` cannot be met any more.

    Args:
        what: name of the results in a message.
        results: how many are wanted, with `samples` requests each; more than half of them have to succeed.
        samples: requests for one result.
        max_missing_share: the largest share of the results that may fail; at 1 nothing is limited.
    """

    def __init__(self, what: str, results: int, samples: int, max_missing_share: float) -> None:
        self._what, self._results, self._samples, self._share = what, results, samples, max_missing_share
        self._ended: dict[int, bool] = {}
        self._failures: Counter[int] = Counter()
        self._statuses: Counter[str] = Counter()
        self._readable = self._failed = 0

    def note(self, place: int, reply: ChatReply, accepted: bool) -> None:
        """Note how a request ended; one that got no reply says nothing of the judge.

        Raises:
            DataQualityError: too many failed, or none of the first `PILOT_RESULTS` can be read.
        """
        if place in self._ended or not reply.answered:
            return
        self._ended[place] = accepted
        self._readable += accepted
        if not accepted:
            status = ReplyStatus.INVALID if reply.status is ReplyStatus.VALID else reply.status
            self._statuses[status.value] += 1
            self._failures[place // self._samples] += 1
            self._failed += self._failures[place // self._samples] == self._samples // 2 + 1
            self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        is_pilot_lost = not self._readable and len(self._failures) >= PILOT_RESULTS < self._results
        if self._share < 1 and (self._failed > self._share * self._results or is_pilot_lost):
            ended = len({place // self._samples for place in self._ended})
            raise DataQualityError(
                f"{self._failed} of the first {ended} {self._what} failed ({counted(self._statuses)}), "
                f"and of {self._results} no more than {self._share:.0%} may",
                where="judge.max_missing_share",
                remedy=_REMEDIES.get(self._statuses.most_common(1)[0][0], _LOOK),
            )


def missing_by_topic(
    speeches: Sequence[Speech], judgements: Sequence[Judgement | Comparison]
) -> dict[str, MissingShare]:
    """Count by the topic of the speech, for refusals are not missing at random.

    Args:
        speeches: the speech of each judgement, in the same order.
        judgements: valid and failed ones.
    """
    grouped: dict[str, list[Judgement | Comparison]] = {}
    for speech, judgement in zip(speeches, judgements, strict=True):
        grouped.setdefault(speech.topic, []).append(judgement)
    return {topic: missing_share(grouped[topic]) for topic in sorted(grouped)}


_Part = TypeVar("_Part")
_POINTS = {Winner.FIRST: 1, Winner.TIE: 0, Winner.SECOND: -1}


def averaged(judge: str, parts: Sequence[Judgement]) -> Judgement:
    """Return the mean of several judgements of one candidate, with every sample behind it.

    Args:
        judge: the name of whoever judged, all together.
        parts: repeated samples of one judge, or what each judge of a panel says; each knows its own samples.
    """
    valid = [part for part in parts if part.status is ReplyStatus.VALID]
    samples = tuple(sample for part in parts for sample in part.samples)
    failure = _failure([part.status for part in parts])
    candidate_id = parts[0].candidate_id
    if failure is not None:
        why = next((part.reason for part in parts if part.status is failure), "")
        reason = f"{len(valid)} of {len(parts)} succeeded: {why}"
        return Judgement(candidate_id, judge, failure, reason=reason, samples=samples)
    remark = next((part.reason for part in valid if part.reason), "")
    ratings = mean_ratings([part.ratings for part in valid])
    return Judgement(candidate_id, judge, ReplyStatus.VALID, ratings, remark, samples)


def voted(parts: Sequence[Comparison]) -> Comparison:
    """Return the vote of several verdicts on one comparison in one order, with every vote behind it.

    By criterion each verdict gives its winner one point; more points win, as many are a tie.
    """
    valid = [part for part in parts if part.status is ReplyStatus.VALID]
    votes = tuple(vote for part in parts for vote in part.votes)
    failure = _failure([part.status for part in parts])
    ids = (parts[0].speech_id, parts[0].first_id, parts[0].second_id)
    if failure is not None:
        return Comparison(*ids, failure, votes=votes)
    winners = {name: _favourite([part.winners[name] for part in valid]) for name in valid[0].winners}
    return Comparison(*ids, ReplyStatus.VALID, winners, votes)


def with_sample(
    judgement: Judgement, sample_index: int = 0, parsed: ParsedRatings | ParseFailure | None = None
) -> Judgement:
    """Return a judgement that one reply gave, with that reply as the sample it rests on."""
    scored_by, reason = Scoring.WRITTEN, judgement.reason
    if isinstance(parsed, ParsedRatings):
        scored_by, reason = parsed.scored_by, parsed.remark or reason
    told = (judgement.judge, sample_index, judgement.status, judgement.ratings, reason, scored_by)
    return replace(judgement, samples=(RatingSample(*told),))


def with_vote(verdict: Comparison, judge: str, sample_index: int = 0) -> Comparison:
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


Opinions = Mapping[str, Mapping[str, Rating]]
"""By judge, its ratings of one response by principle."""


def histograms(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return by principle how often each rating was given, over all replies, to the nearest point."""
    given = [ratings for each in judgements for ratings in _given(each)]
    counts = {name: Counter(_nearest(ratings[name]) for ratings in given) for name in principles}
    return {name: {str(rating): count for rating, count in sorted(by.items())} for name, by in counts.items()}


def sample_metrics(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, Any]:
    """Return what the samples behind judgements say, for `metrics.json`; empty where there are none."""
    samples = [sample for each in judgements for sample in each.samples]
    if not samples:
        return {}
    valid = [sum(sample.status is ReplyStatus.VALID for sample in each.samples) for each in judgements]
    counts = {
        "asked": len(samples),
        "status": _by_judge(samples),
        "scored_by": _counted(sample.scored_by.value for sample in samples if sample.status is ReplyStatus.VALID),
        "valid_per_judgement": {str(count): n for count, n in sorted(Counter(valid).items())},
    }
    return {"samples": counts, "disagreement": _disagreement(judgements, principles)}


def vote_metrics(verdicts: Sequence[Comparison]) -> dict[str, Any]:
    """Return what the votes behind verdicts say, for `metrics.json`; empty where there are none."""
    votes = [vote for each in verdicts for vote in each.votes]
    if not votes:
        return {}
    overall = [_overall(each) for each in verdicts if each.status is ReplyStatus.VALID]
    return {
        "votes": {
            "asked": len(votes),
            "status": _by_judge(votes),
            "unanimous": sum(len(set(winners)) == 1 for winners in overall),
            "comparisons": len(overall),
        }
    }


def interval_alpha(units: Iterable[Sequence[Rating]]) -> float | None:
    """Return Krippendorff's alpha for interval data; None where nothing differs, or nothing was rated twice.

    alpha = 1 - observed / expected squared difference, over all values of units with at least two of them
    (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        units: the ratings of one thing each, as many as there are.
    """
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if len(set(values)) < 2:
        return None
    observed = math.fsum(_squared_differences(unit) / (len(unit) - 1) for unit in paired)
    return 1 - observed * (len(values) - 1) / _squared_differences(values)


def _squared_differences(values: Sequence[Rating]) -> float:
    """Return the sum over all ordered pairs of two values."""
    return 2 * len(values) * squared_deviations(values)


def _given(judgement: Judgement) -> list[Mapping[str, Rating]]:
    if judgement.samples:
        return [sample.ratings for sample in judgement.samples if sample.ratings]
    return [judgement.ratings] if judgement.ratings else []


def _nearest(rating: Rating) -> int:
    return math.floor(rating + 0.5)


def _by_judge(replies: Sequence[RatingSample] | Sequence[Vote]) -> dict[str, dict[str, int]]:
    judges = dict.fromkeys(reply.judge for reply in replies)
    return {judge: _counted(reply.status.value for reply in replies if reply.judge == judge) for judge in judges}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _disagreement(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, Any]:
    opinions = [opinion for each in judgements if len(opinion := _opinions(each)) > 1]
    judges = list(dict.fromkeys(judge for opinion in opinions for judge in opinion))
    return {
        "responses": len(opinions),
        "spread": {name: _mean_spread(opinions, name) for name in principles},
        "alpha": {
            name: interval_alpha([each[name] for each in opinion.values()] for opinion in opinions)
            for name in principles
        },
        "mean_rating": {judge: _means(opinions, judge, principles) for judge in judges},
        "pairs": [_pair(opinions, one, other, principles) for one, other in combinations(judges, 2)],
    }


def _opinions(judgement: Judgement) -> Opinions:
    """Return who said what of a response: the judges of a panel, or the repeated samples of one judge."""
    valid = [sample for sample in judgement.samples if sample.status is ReplyStatus.VALID]
    if len({sample.judge for sample in judgement.samples}) == 1:
        return {f"sample {sample.sample_index}": sample.ratings for sample in valid}
    judges = dict.fromkeys(sample.judge for sample in valid)
    if len(judges) == len(valid):
        return {sample.judge: sample.ratings for sample in valid}
    return {judge: mean_ratings([sample.ratings for sample in valid if sample.judge == judge]) for judge in judges}


def _mean_spread(opinions: Sequence[Opinions], principle: str) -> float | None:
    """Return the mean standard deviation, over the number of opinions on a response and not one less."""
    if not opinions:
        return None
    return fmean(_spread([ratings[principle] for ratings in opinion.values()]) for opinion in opinions)


def _spread(ratings: Sequence[Rating]) -> float:
    return math.sqrt(squared_deviations(ratings) / len(ratings))


def _means(opinions: Sequence[Opinions], judge: str, principles: Sequence[str]) -> dict[str, float]:
    own = [opinion[judge] for opinion in opinions if judge in opinion]
    return {name: fmean(ratings[name] for ratings in own) for name in principles}


def _pair(opinions: Sequence[Opinions], one: str, other: str, principles: Sequence[str]) -> dict[str, Any]:
    both = [(opinion[one], opinion[other]) for opinion in opinions if one in opinion and other in opinion]
    found = {name: agreement([(left[name], right[name]) for left, right in both]) for name in principles}
    told = {name: None if each is None else each._asdict() for name, each in found.items()}
    return {"judges": [one, other], "by_principle": told}


def _overall(verdict: Comparison) -> list[Winner]:
    return [vote.winners[OVERALL] for vote in verdict.votes if vote.status is ReplyStatus.VALID]


BETWEEN_NAMES = " + "
"""Joins the names of several judges into one."""

_SEPARATORS = re.compile(r"[-_:.@/\s]+")
_FINE_TUNED = "ft:"
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
"""By maker, the words by which a model's name is known."""


def same_family(left: str, right: str) -> bool:
    """Whether two judge or model names share a maker, read from the words of the name.

    `gpt-4o`, `chatgpt-4o-latest`, `o3-mini` and `ft:gpt-4o-mini:org::id` are of one family, and so are
    `Llama-3.1-8B` and `meta-llama/Meta-Llama-3.1-8B`; `gpt-4o` and `claude-sonnet-4` are not. A model made
    from another one's weights or answers that says so is of both families: `DeepSeek-R1-Distill-Llama-8B`. Of
    an unknown maker, a name counts by its first word without the owner. A panel is of each member's family.
    """
    return not _families(left).isdisjoint(_families(right))


def _families(name: str) -> frozenset[str]:
    return frozenset(family for judge in name.split(BETWEEN_NAMES) for family in _families_of_one(judge))


def _families_of_one(name: str) -> frozenset[str]:
    told = name.casefold().strip()
    if told.startswith(_FINE_TUNED):
        told = told.removeprefix(_FINE_TUNED).partition(":")[0]
    words = [word for word in _SEPARATORS.split(told.rsplit("/", maxsplit=1)[-1]) if word]
    known = [maker for maker, spelling in _MAKERS.items() if _is_among(words, spelling)]
    return frozenset(known or [re.sub(r"\d+$", "", words[0]) if words else ""])


def _is_among(words: list[str], spelling: str) -> bool:
    return any(re.fullmatch(spelling, word) for word in words)
