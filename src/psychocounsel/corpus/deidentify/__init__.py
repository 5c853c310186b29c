"""De-identification: `my sister Anna` becomes `my sister [PERSON_1]`."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from psychocounsel.config.schema import ENTITIES, Entity

Fingerprint = Mapping[str, "str | float | list[str]"]

_PLACEHOLDER = re.compile(rf"\[({'|'.join(ENTITIES)})_(\d+)\]")
_POSSESSIVE = re.compile(r"['\u2019][sS]?$")
_WORD = re.compile(r"\w+")


class Span(NamedTuple):
    """A part of a text that identifies a person: `text[start:end]`; the score is in 0 to 1."""

    start: int
    end: int
    entity: Entity
    score: float


class Deidentifier(Protocol):
    """Finds what identifies a person; never a crisis line."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that affects its finds; part of the id of each artifact that it shapes."""
        ...

    def find(self, text: str) -> Sequence[Span]:
        """Return the finds in any order; they may overlap."""
        ...


class Placeholders:
    """Placeholders by what they stand for. Shared by several texts, `[PERSON_1]` is one person in all of them."""

    def __init__(self) -> None:
        self._last: Counter[str] = Counter()
        self._by_content: dict[tuple[Entity, str], str] = {}
        self._people: list[tuple[tuple[str, ...], str]] = []

    def reserve(self, text: str) -> None:
        """Use none of the placeholders that the text already contains."""
        for entity, number in _PLACEHOLDER.findall(text):
            self._last[entity] = max(self._last[entity], int(number))

    def of(self, entity: Entity, found: str) -> str:
        """Return the placeholder of a find, the same one for the same person, number or address."""
        if entity == "PERSON":
            return self._of_person(tuple(_WORD.findall(_POSSESSIVE.sub("", found).casefold())))
        key = (entity, "".join(_WORD.findall(found.casefold())))
        if key not in self._by_content:
            self._by_content[key] = self._new(entity)
        return self._by_content[key]

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


def _same_person(known: tuple[str, ...], name: tuple[str, ...]) -> bool:
    """A first or last name alone is the first person of the text who has it."""
    if min(len(known), len(name)) <= 1:
        short, full = sorted((known, name), key=len)
        return short == full or (len(full) > 1 and short[:1] in (full[:1], full[-1:]))
    return (known[0], known[-1]) == (name[0], name[-1])


def deidentify(text: str, finder: Deidentifier, placeholders: Placeholders | None = None) -> str:
    """Return the text with a placeholder for every find, numbered in order of appearance.

    What the finder sees only after a neighbour was replaced is replaced too, so a second call changes nothing.

    Args:
        text: as the client wrote it, or with placeholders of an earlier call.
        finder: finds what to replace.
        placeholders: those of texts that belong together, such as a speech and its responses.
    """
    found = finder.find(text)
    if placeholders is None:
        if not found:
            return text
        placeholders = Placeholders()
    placeholders.reserve(text)
    while spans := resolve(_outside_placeholders(text, found)):
        pieces: list[str] = []
        end = 0
        for span in spans:
            pieces += [text[end : span.start], placeholders.of(span.entity, text[span.start : span.end])]
            end = span.end
        text = "".join([*pieces, text[end:]])
        found = finder.find(text)
    return text


def _outside_placeholders(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    taken = [match.span() for match in _PLACEHOLDER.finditer(text)] if spans else []
    for span in spans:
        if span.entity == "PERSON" and (ending := _POSSESSIVE.search(text, span.start, span.end)):
            span = span._replace(end=ending.start())
        if span.start < span.end and not any(start < span.end and span.start < end for start, end in taken):
            yield span


def resolve(spans: Iterable[Span]) -> list[Span]:
    """Return sorted spans without overlap: of two that overlap the longer stays, then the one with the higher score."""
    starts: list[int] = []
    kept: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start - each.end, -each.score, each.start)):
        at = bisect_left(starts, span.start)
        is_free_before = at == 0 or kept[at - 1].end <= span.start
        if is_free_before and (at == len(kept) or span.end <= kept[at].start):
            starts.insert(at, span.start)
            kept.insert(at, span)
    return kept
