"""Text -> where the full names of known authors stand in it."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psychocounsel.speeches.people import author_name
from psychocounsel.speeches.web_addresses import web_addresses


class NameSpan(NamedTuple):
    """Where a known person's full name stands in a text: `text[start:end]`."""

    name: str
    start: int
    end: int


# Between the parts of a name: nothing, hyphens, commas; letters that a slug dropped; a middle initial.
_BETWEEN = r"[^A-Za-z0-9\n]{0,3}"
_INITIAL = rf"{_BETWEEN}(?:(?:(?<=[^A-Za-z])|(?<=[a-z])(?=[A-Z]))[A-Za-z]\.?[^A-Za-z0-9\n]{{1,3}})?"
_LETTERS = re.compile(r"[A-Za-z]+")
_INNER_CAPITAL = re.compile(r"[A-Z](?<=[a-z][A-Z])")
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_HANDLE = re.compile(r"[@#][\w.-]{8,64}")
_ACCENTED = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_LONG_NAME_LETTERS = 10
_MIN_PARTS = 2


@dataclass(frozen=True)
class KnownPeople:
    """Full names that are looked for in texts, whatever their case, punctuation and middle initials.

    Attributes:
        names: full names, as `author_name` gives them.
        first_names: lower case.
    """

    names: frozenset[str]
    first_names: frozenset[str]
    _by_first: dict[str, tuple["_Pattern", ...]]
    _spelt_firsts: frozenset[str]

    @classmethod
    def of_authors(cls, authors: Iterable[str]) -> "KnownPeople":
        """Collect the names of all authors that are people."""
        names = frozenset(name for name in map(author_name, set(authors)) if name is not None)
        by_first: dict[str, list[_Pattern]] = defaultdict(list)
        for name in sorted(names):
            for parts in _spellings(name):
                by_first[parts[0]].append(_Pattern(name, _compiled(parts), len("".join(parts))))
        ordered = {first: tuple(sorted(known, key=_longest_first)) for first, known in by_first.items()}
        spelt = frozenset(case(first) for first in ordered for case in (str.lower, str.title, str.upper))
        return cls(names, frozenset(ordered), ordered, spelt)

    def first_names_in(self, text: str) -> set[str]:
        """Return the known first names that a text holds as words, lower case."""
        if not self.names:
            return set()
        words = set(_LETTERS.findall(text))
        hits = {word.lower() for word in words & self._spelt_firsts}
        for word in words if _INNER_CAPITAL.search(text) else ():  # "informationLaura", "JanaLee"
            if not (word.islower() or word[1:].islower()):
                hits |= self.first_names.intersection([word.lower(), *map(str.lower, _CAMEL.findall(word))])
        return hits

    def find(self, text: str) -> list[NameSpan]:
        """Return where known full names stand, in order and apart from each other."""
        if not self.names:
            return []
        found: list[NameSpan] = []
        for spelling in _spelt(text):
            firsts = self.first_names_in(spelling)
            for joined in _joined(spelling):
                firsts |= {first for first in self.first_names if first in joined}
            for first in firsts:
                found += _places(self._by_first[first], spelling)
        return _apart(found)


def _joined(text: str) -> Iterator[str]:
    """Yield the runs in which words are written together, in lower case."""
    yield from (text[address.start : address.end].lower() for address in web_addresses(text))
    if "@" in text or "#" in text:
        yield from (handle.lower() for handle in _HANDLE.findall(text))


def _places(patterns: Iterable["_Pattern"], text: str) -> Iterator[NameSpan]:
    for pattern in patterns:
        for match in pattern.expression.finditer(text):
            yield NameSpan(pattern.name, *match.span())


class _Pattern(NamedTuple):
    name: str
    expression: re.Pattern[str]
    letters: int


def _longest_first(pattern: _Pattern) -> tuple[int, str]:
    return -pattern.letters, pattern.name


def _spelt(text: str) -> Iterator[str]:
    """Yield the text, and where it has accents the text without them; each letter keeps its place."""
    yield text
    if not text.isascii() and _ACCENTED.search(text):
        yield _unaccented(text)


def _unaccented(text: str) -> str:
    return _ACCENTED.sub(lambda letter: unicodedata.normalize("NFD", letter.group())[0], text)


def _spellings(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the parts of a name in lower case: in full, without middle names, with one surname alone."""
    for spelling in {_unaccented(name), name}:
        parts = tuple(re.findall(r"[a-z0-9]+", spelling.lower()))
        if len(parts) < _MIN_PARTS:
            continue
        yield parts
        whole = [part for part in parts[1:] if len(part) > 1]
        if len(parts) > _MIN_PARTS and whole:
            yield from {(parts[0], whole[-1]), (parts[0], whole[0])} - {parts}


def _compiled(parts: Sequence[str]) -> re.Pattern[str]:
    """A short name must stand apart from other letters; a long one is also found inside an address."""
    body = f"(?i:{re.escape(parts[0])}){_INITIAL}(?i:{_BETWEEN.join(map(re.escape, parts[1:]))})"
    if len("".join(parts)) >= _LONG_NAME_LETTERS and len(parts[-1]) > 1:
        return re.compile(body)
    return re.compile(rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z])){body}(?:(?![A-Za-z])|(?<=[a-z])(?=[A-Z]))")


def _apart(found: list[NameSpan]) -> list[NameSpan]:
    apart: list[NameSpan] = []
    for span in sorted(found, key=lambda each: (each.start, -each.end)):
        if not apart or span.start >= apart[-1].end:
            apart.append(span)
    return apart
