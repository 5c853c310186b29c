"""Candidate -> Judgement, two Candidates -> Verdict: what every judge can do, whoever it is."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from psychocounsel.domain import Candidate, Judgement, ReplyStatus, Speech, Verdict
from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.llm.chat import JSON

ADDRESSES_JUDGE = "the response seems to address the judge"
"""Reason that a valid judgement carries when its text looks like an attempt on the judge."""

Progress = Callable[[int], None]
"""Called with the number of items newly done."""


class Comparison(NamedTuple):
    """Two responses to one speech, in the order in which the judge meets them."""

    speech: Speech
    first: Candidate
    second: Candidate


class Compared(NamedTuple):
    """The comparisons of all speeches that both sides answered, the policy first and the reference first."""

    forward: list[Comparison]
    backward: list[Comparison]

    @classmethod
    def of(
        cls,
        speeches: Mapping[str, Speech],
        policy: Mapping[str, Candidate],
        reference: Mapping[str, Candidate],
    ) -> "Compared":
        """Pair the answers of the two sides by speech."""
        both = [each for each in policy if each in reference]
        forward = [Comparison(speeches[each], policy[each], reference[each]) for each in both]
        return cls(forward, [Comparison(each.speech, each.second, each.first) for each in forward])


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

    def compare(self, items: Sequence[Comparison], progress: Progress) -> list[Verdict]:
        """Compare in exactly the order given; to undo position bias the caller asks both orders."""
        ...


@runtime_checkable
class AsksAgain(Protocol):
    """What a judge has besides that need not give the same answer to the same question."""

    def redrawn(self) -> Judge:
        """Return this judge at its second draw: the same questions, asked anew."""
        ...

    def of_one(self, principle: str) -> Judge:
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


def missing_share(judgements: Sequence[Judgement | Verdict]) -> MissingShare:
    """Count the judgements (or verdicts) that carry no result."""
    missing = sum(judgement.status is not ReplyStatus.VALID for judgement in judgements)
    return MissingShare(missing, len(judgements))


def addressing_judge(judgements: Sequence[Judgement]) -> int:
    """Count the valid judgements of texts that look like an attempt on the judge."""
    return sum(each.reason == ADDRESSES_JUDGE for each in judgements)


def require_judged(results: Sequence[Judgement | Verdict], what: str, max_missing_share: float) -> None:
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


def missing_by_topic(
    speeches: Sequence[Speech], judgements: Sequence[Judgement | Verdict]
) -> dict[str, MissingShare]:
    """Count by the topic of the speech, for refusals are not missing at random.

    Args:
        speeches: the speech of each judgement, in the same order.
        judgements: valid and failed ones.
    """
    grouped: dict[str, list[Judgement | Verdict]] = {}
    for speech, judgement in zip(speeches, judgements, strict=True):
        grouped.setdefault(speech.topic, []).append(judgement)
    return {topic: missing_share(grouped[topic]) for topic in sorted(grouped)}
