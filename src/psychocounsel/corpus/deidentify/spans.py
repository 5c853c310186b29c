"""Text, Spans -> text with placeholders: `my sister Anna` becomes `my sister [PERSON_1]`."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from psychocounsel.config.schema import ENTITIES, Entity

Identity = Mapping[str, "str | float | list[str]"]
CrisisSpans = Callable[[str], Sequence[tuple[int, int]]]

_PLACEHOLDER = re.compile(rf"\[({'|'.join(ENTITIES)})_(\d+)\]")
_POSSESSIVE = re.compile(r"['\u2019][sS]?$")
_WORD = re.compile(r"\w+")


class Span(NamedTuple):
    """A stretch of a text that identifies somebody: `text[start:end]`; the score is in 0 to 1."""

    start: int
    end: int
    entity: Entity
    score: float


class Deidentifier(Protocol):
    """Finds what identifies a person; never a crisis line."""

    @property
    def identity(self) -> Identity:
        """What shapes its finds: it enters the id of what is made with them."""
        ...

    def find(self, text: str) -> Sequence[Span]:
        """Return the finds in any order; they may overlap."""
        ...


class Placeholders:
    """Who got which placeholder. One for several texts keeps `[PERSON_1]` the same person in all of them."""

    def __init__(self) -> None:
        self._last: Counter[str] = Counter()
        self._given: dict[tuple[Entity, str], str] = {}
        self._people: list[tuple[tuple[str, ...], str]] = []

    def reserve(self, text: str) -> None:
        """Give no placeholder that the text holds already."""
        for entity, number in _PLACEHOLDER.findall(text):
            self._last[entity] = max(self._last[entity], int(number))

    def of(self, entity: Entity, found: str) -> str:
        """Return the placeholder of what was found, the same one for the same person, number or address."""
        if entity == "PERSON":
            return self._of_person(_name(found))
        key = (entity, "".join(_WORD.findall(found.casefold())))
        if key not in self._given:
            self._given[key] = self._new(entity)
        return self._given[key]

    def _of_person(self, name: tuple[str, ...]) -> str:
        for at, (known, placeholder) in enumerate(self._people):
            if _same_person(known, name):
                self._people[at] = (max(known, name, key=len), placeholder)
                return placeholder
        self._people.append((name, self._new("PERSON")))
        return self._people[-1][1]

    def _new(self, entity: Entity) -> str:
        self._last[entity] += 1
        return f"[{entity}_{self._last[entity]}]"


def _name(found: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(_POSSESSIVE.sub("", found).casefold()))


def _same_person(known: tuple[str, ...], name: tuple[str, ...]) -> bool:
    """A first or last name alone is the first person of the text who has it."""
    if min(len(known), len(name)) <= 1:
        short, full = sorted((known, name), key=len)
        return short == full or (len(full) > 1 and short[:1] in (full[:1], full[-1:]))
    return (known[0], known[-1]) == (name[0], name[-1])


def deidentify(text: str, finder: Deidentifier, placeholders: Placeholders | None = None) -> str:
    """Return the text with a placeholder for every find, numbered in order of appearance.

    What the finder sees only once a neighbour is gone is replaced too, so a second call changes nothing. A
    placeholder is never found again.

    Args:
        text: as the client wrote it, or with placeholders of an earlier call.
        finder: who looks.
        placeholders: those of texts that belong together, such as a speech and its responses.
    """
    found = finder.find(text)
    if placeholders is None:
        if not found:
            return text
        placeholders = Placeholders()
    placeholders.reserve(text)
    while spans := resolve(_outside_placeholders(text, found)):
        text = "".join(_pieces(text, spans, placeholders))
        found = finder.find(text)
    return text


def _outside_placeholders(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    taken = [match.span() for match in _PLACEHOLDER.finditer(text)] if spans else []
    for span in spans:
        own = _without_possessive(text, span) if span.entity == "PERSON" else span
        if own.start < own.end and not any(start < own.end and own.start < end for start, end in taken):
            yield own


def _without_possessive(text: str, span: Span) -> Span:
    ending = _POSSESSIVE.search(text, span.start, span.end)
    return span if ending is None else span._replace(end=ending.start())


def resolve(spans: Iterable[Span]) -> list[Span]:
    """Return spans that do not overlap, in order: of two that do the longer stays, then the surer one."""
    starts: list[int] = []
    kept: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start - each.end, -each.score, each.start)):
        at = bisect_left(starts, span.start)
        is_free_before = at == 0 or kept[at - 1].end <= span.start
        if is_free_before and (at == len(kept) or span.end <= kept[at].start):
            starts.insert(at, span.start)
            kept.insert(at, span)
    return kept


def _pieces(text: str, spans: Sequence[Span], placeholders: Placeholders) -> Iterator[str]:
    end = 0
    for span in spans:
        yield text[end : span.start]
        yield placeholders.of(span.entity, text[span.start : span.end])
        end = span.end
    yield text[end:]
