"""Artifacts -> facts -> card: the nouns of a dataset's card, gathered before a word of it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from psychocounsel.reporting.report_data import ArtifactFacts

BINS_PER_POINT = 2
"""Bins of a mean rating on one point of the scale."""


class RubricFacts(NamedTuple):
    """What the responses were rated by; `names` has the name of each principle by its id."""

    version: str
    digest: str
    language: str
    minimum: int
    maximum: int
    names: Mapping[str, str]


class AuthorScores(NamedTuple):
    """The mean ratings of one author's responses: how many fall into each bin, and their mean.

    Bins are half a point wide, the first begins at the lowest rating; the last holds the highest rating too.
    """

    author: str
    counts: tuple[int, ...]
    mean: float

    @property
    def responses(self) -> int:
        """How many responses were rated."""
        return sum(self.counts)


@dataclass(frozen=True)
class DatasetFacts:
    """What the card of a preference dataset tells. What is not known is left out of the card.

    Args:
        name: of the artifact.
        licences: of the sources of the client speeches.
        rows: pairs by split, only the splits that have a file.
        principles: ids of the rated principles, in the order of the columns.
        notices: sentences that must head everything made from the sources.
        rubric: what was rated by.
        artifacts: the dataset itself, then what it came from, nearest first.
        judges: number of judgements by the judge, as the replies named it.
        scores_by_author: mean ratings of each author's responses, most responses first.
        words: by split and side (`chosen`, `rejected`), how many responses have so many words.
    """

    name: str
    licences: Sequence[str]
    rows: Mapping[str, int]
    principles: tuple[str, ...]
    notices: tuple[str, ...]
    rubric: RubricFacts | None = None
    artifacts: tuple[ArtifactFacts, ...] = ()
    judges: Mapping[str, int] = field(default_factory=dict[str, int])
    scores_by_author: tuple[AuthorScores, ...] = ()
    words: Mapping[str, Mapping[str, Mapping[int, int]]] = field(
        default_factory=dict[str, Mapping[str, Mapping[int, int]]]
    )

    @cached_property
    def dataset(self) -> ArtifactFacts | None:
        """The dataset's own artifact."""
        return next((each for each in self.artifacts if each.kind == "preferences"), None)

    @cached_property
    def speeches(self) -> ArtifactFacts | None:
        """The corpus of client speeches."""
        return next((each for each in self.artifacts if each.kind == "speeches"), None)

    @cached_property
    def judgements(self) -> ArtifactFacts | None:
        """The ratings that the pairs were made from."""
        return next((each for each in self.artifacts if each.kind == "judgements"), None)

    @property
    def rating_type(self) -> str:
        """The type of the columns of ratings: whole numbers, or means of draws."""
        return "float64" if self.judgements is not None and self.judgements.table("draws") else "int64"

    @cached_property
    def candidates(self) -> list[ArtifactFacts]:
        """The responses that were rated, one artifact for each way in which they came."""
        judged = {parent.id for parent in self.judgements.parents} if self.judgements else set[str]()
        return [each for each in self.artifacts if each.kind == "candidates" and each.id in judged]


class CardFigure(NamedTuple):
    """A picture beside the card: its file in the dataset's folder, the words for it, its bytes."""

    key: str
    alternative: str
    caption: str
    png: bytes = b""

    @property
    def file(self) -> str:
        """Where it lies in the dataset's folder."""
        return f"figures/{self.key}.png"
