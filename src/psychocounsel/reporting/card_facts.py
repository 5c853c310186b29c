"""Licences of the sources -> the one licence of what was made from them: the strictest, or `other`.

A rule, not legal advice. It knows four conditions: attribution (BY), no commercial use (NC), share alike (SA)
and no derivatives (ND). What is made carries those of all its sources together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from psychocounsel.reporting.tables import ArtifactFacts


class Condition(StrEnum):
    """What a licence asks of whoever passes a work on, in the words of a card."""

    BY = "name the source"
    NC = "no commercial use"
    SA = "share under the same licence"
    ND = "no changed versions"


Conditions = frozenset[Condition]

OTHER, UNKNOWN = "other", "unknown"
_BY = frozenset({Condition.BY})
_FREE = ("wtfpl", "unlicense", "pddl", "cc0-1.0")
_ATTRIBUTION = (
    *("zlib", "isc", "mit", "postgresql", "bsl-1.0", "ncsa", "bsd", "bsd-2-clause", "bsd-3-clause"),
    *("bsd-3-clause-clear", "afl-3.0", "artistic-2.0", "ecl-2.0", "apache-2.0", "etalab-2.0"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by"),
)
_COPYLEFT = frozenset(
    {
        *("agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr"),
        *("cdla-sharing-1.0", "odbl", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "lppl-1.3c"),
        *("ms-pl", "mpl-2.0", "osl-3.0", "ofl-1.1"),
    }
)
"""Share alike by a text of their own: what is under one of them cannot go under another licence."""
_CREATIVE_COMMONS = (
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
)
_OWN_TERMS = frozenset(
    {
        *("openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
        *("bigscience-bloom-rail-1.0", "c-uda", "cc", "deepfloyd-if-license", "gemma", "llama2", "llama3"),
        *("llama3.1", "llama3.2", "llama3.3", "llama4", UNKNOWN, OTHER),
    }
)


def _creative_conditions(licence: str) -> Conditions:
    return frozenset(Condition[part.upper()] for part in licence.split("-")[1:-1])


_CONDITIONS: dict[str, Conditions] = {
    **dict.fromkeys(_FREE, frozenset[Condition]()),
    **dict.fromkeys(_ATTRIBUTION, _BY),
    **dict.fromkeys(sorted(_COPYLEFT), _BY | {Condition.SA}),
    **{licence: _creative_conditions(licence) for licence in _CREATIVE_COMMONS},
}
"""By licence what it asks; of two that ask the same, the later one is the stricter or the newer."""

HUB_LICENCES = frozenset({*_CONDITIONS, *_OWN_TERMS})
"""Identifiers that the Hub knows; any other licence is `other` in the front matter and spelt out below it."""


class CombinedLicence(NamedTuple):
    """The Hub's identifier for the whole, and the sentence that says how it was found."""

    licence: str
    reason: str


def hub_licence(name: str) -> str:
    """Return the Hub's identifier of a licence, `other` where the Hub does not know it."""
    written = "-".join(name.casefold().split())
    return written if written in HUB_LICENCES else OTHER


def conditions_of(name: str) -> tuple[Condition, ...] | None:
    """Return what a licence asks, None where it has terms of its own that no rule knows."""
    found = _CONDITIONS.get(hub_licence(name))
    return None if found is None else tuple(each for each in Condition if each in found)


def strictest_first(names: Iterable[str]) -> list[str]:
    """Return distinct licences: terms that no rule knows first, then by ND, NC, SA and BY."""
    return sorted(dict.fromkeys(names), key=_strictness, reverse=True)


def _strictness(name: str) -> tuple[bool, ...]:
    found = _CONDITIONS.get(hub_licence(name))
    weighed = (Condition.ND, Condition.NC, Condition.SA, Condition.BY)
    return (found is None, *(found is not None and each in found for each in weighed))


def combine(names: Sequence[str]) -> CombinedLicence:
    """Return the licence under which material of all these licences may be passed on together.

    One of them that asks for all that the others ask; else the Creative Commons licence that asks for their
    conditions together; `other` where there is none or where a licence has terms that no rule knows.
    """
    distinct = strictest_first(names)
    if {hub_licence(name) for name in distinct} <= {UNKNOWN}:
        return CombinedLicence(UNKNOWN, "The sources name no licence.")
    if len(distinct) == 1:
        return CombinedLicence(hub_licence(distinct[0]), f"The sources are under one licence: {distinct[0]}.")
    ids = list(dict.fromkeys(hub_licence(name) for name in distinct))
    unknown = [name for name in distinct if hub_licence(name) not in _CONDITIONS]
    if unknown:
        told = f"No rule tells what {', '.join(unknown)} asks for"
        return CombinedLicence(OTHER, f"{told}, so every source keeps its own terms.")
    return _covering(ids) or _united(ids) or CombinedLicence(OTHER, _clash(distinct))


def _clash(names: Sequence[str]) -> str:
    return f"No one licence meets {', '.join(names)} together, so every source keeps its own terms."


def _asked(ids: Sequence[str]) -> Conditions:
    return frozenset[Condition]().union(*(_CONDITIONS[each] for each in ids))


def _covering(ids: Sequence[str]) -> CombinedLicence | None:
    """Return the one among them that asks for everything; a share-alike licence admits no other beside it."""
    bound = [each for each in ids if each in _COPYLEFT]
    if bound and any(Condition.SA in _CONDITIONS[each] for each in ids if each != bound[0]):
        return None
    order = list(_CONDITIONS)
    covering = [each for each in ids if _CONDITIONS[each] == _asked(ids)]
    if not covering:
        return None
    strictest = max(covering, key=order.index)
    return CombinedLicence(strictest, f"{strictest} is the strictest of the sources' licences.")


def _united(ids: Sequence[str]) -> CombinedLicence | None:
    if any(each in _COPYLEFT for each in ids):
        return None
    asked = _asked(ids)
    united = next((each for each in reversed(_CREATIVE_COMMONS) if _CONDITIONS[each] == asked), None)
    if united is None:
        return None
    reason = f"{united} asks for what {', '.join(strictest_first(ids))} ask for together."
    return CombinedLicence(united, reason)


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
        """The type of the columns of ratings: whole numbers, or means of samples."""
        return "float64" if self.judgements is not None and self.judgements.table("samples") else "int64"

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
