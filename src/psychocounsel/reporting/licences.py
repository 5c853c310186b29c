"""The one licence of a work from the licences of its sources: the strictest, or `other`. A rule, not legal advice.

It knows four conditions; a work carries those of all its sources together.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum


class Condition(StrEnum):
    """What a licence requires of those who share a work, in the words of a card."""

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


_CONDITIONS: dict[str, Conditions] = {
    **dict.fromkeys(_FREE, frozenset[Condition]()),
    **dict.fromkeys(_ATTRIBUTION, _BY),
    **dict.fromkeys(sorted(_COPYLEFT), _BY | {Condition.SA}),
    **{each: frozenset(Condition[part.upper()] for part in each.split("-")[1:-1]) for each in _CREATIVE_COMMONS},
}
"""What each licence requires; of two that require the same, the later one is the stricter or the newer."""

HUB_LICENCES = frozenset({*_CONDITIONS, *_OWN_TERMS})
"""Identifiers that the Hub knows; any other licence is `other` in the front matter and spelt out below it."""


def hub_licence(name: str) -> str:
    """Return the Hub's identifier of a licence, `other` where the Hub does not know it."""
    written = "-".join(name.casefold().split())
    return written if written in HUB_LICENCES else OTHER


def conditions_of(name: str) -> tuple[Condition, ...] | None:
    """Return what a licence requires, None where it has terms of its own that no rule knows."""
    found = _CONDITIONS.get(hub_licence(name))
    return None if found is None else tuple(each for each in Condition if each in found)


def strictest_first(names: Iterable[str]) -> list[str]:
    """Return distinct licences: terms that no rule knows first, then by ND, NC, SA and BY."""

    def strictness(name: str) -> tuple[bool, ...]:
        found = _CONDITIONS.get(hub_licence(name))
        weighed = (Condition.ND, Condition.NC, Condition.SA, Condition.BY)
        return (found is None, *(found is not None and each in found for each in weighed))

    return sorted(dict.fromkeys(names), key=strictness, reverse=True)


def combine(names: Sequence[str]) -> tuple[str, str]:
    """Return the licence under which material of all these licences may be passed on together, and why.

    One of them that requires all that the others require; else the Creative Commons licence that requires their
    conditions together; `other` where there is none or where a licence has terms that no rule knows.
    """
    distinct = strictest_first(names)
    ids = list(dict.fromkeys(map(hub_licence, distinct)))
    if set(ids) <= {UNKNOWN}:
        return UNKNOWN, "The sources name no licence."
    if len(distinct) == 1:
        return ids[0], f"The sources are under one licence: {distinct[0]}."
    unknown = [name for name in distinct if hub_licence(name) not in _CONDITIONS]
    if unknown:
        named = ", ".join("an unknown licence" if name == UNKNOWN else name for name in unknown)
        return OTHER, f"No rule says what {named} requires, so every source keeps its own terms."
    required = frozenset[Condition]().union(*(_CONDITIONS[each] for each in ids))
    copyleft = [each for each in ids if each in _COPYLEFT]
    # A share-alike licence admits no other share-alike licence, and only material under itself.
    clash = copyleft and any(Condition.SA in _CONDITIONS[each] for each in ids if each != copyleft[0])
    carriers = [each for each in _CONDITIONS if _CONDITIONS[each] == required]
    own = [each for each in carriers if each in ids]
    united = own or [each for each in carriers if each in _CREATIVE_COMMONS and not copyleft]
    if united and not clash:
        return united[-1], f"{united[-1]} requires what {', '.join(distinct)} require together."
    return OTHER, f"No one licence meets {', '.join(distinct)} together, so every source keeps its own terms."
