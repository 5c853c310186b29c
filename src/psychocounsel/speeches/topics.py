"""Speech -> Topic: what a client talks about, or the reason why nobody can say."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from psychocounsel.domain import Speech
from psychocounsel.llm.chat import JSON

NO_CUE = "no_cue"
"""Why the offline assigner leaves a speech without a topic: no word of the taxonomy stands in it."""

Progress = Callable[[int], None]
"""Called with the number of speeches newly done."""


class Topic(NamedTuple):
    """Ids of a fine topic and of the coarse one that holds it."""

    coarse: str
    fine: str


class Unassigned(NamedTuple):
    """Why a speech has no topic.

    Attributes:
        reason: `no_cue`, or how the request ended (a `ReplyStatus`).
        detail: what was wrong with a reply, where there was one.
    """

    reason: str
    detail: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether asking again might give a topic: true of a model's failed reply, not of a missing cue."""
        return self.reason != NO_CUE


Assigned: TypeAlias = Topic | Unassigned


class TopicAssigner(Protocol):
    """Gives each speech a topic of a taxonomy, or none; never a guess.

    Attributes:
        identity: everything that shapes the topics, for ids and caches.
    """

    @property
    def identity(self) -> Mapping[str, JSON]: ...  # noqa: D102

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return what was found for each speech, in their order."""
        ...


def unassigned_by_reason(results: Sequence[Assigned]) -> dict[str, int]:
    """Count the speeches without a topic by reason, sorted by it."""
    counts = Counter(result.reason for result in results if isinstance(result, Unassigned))
    return dict(sorted(counts.items()))
