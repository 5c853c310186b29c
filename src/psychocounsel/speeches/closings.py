"""End of a text -> where the words that close a letter stand: "Best regards," and a name behind them."""

import re
from functools import cache
from typing import NamedTuple

from psychocounsel.speeches.people import people_words

TAIL_CHARS = 280

_CAPITALISED = r"[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿA-Z'\u2019.-]*"
TITLE = r"(?:\b(?:[Dd]r|DR|[Mm]rs?|[Mm]s|Prof)\b\.?\s*)"
_PLACEHOLDER = r"\[(?:(?:[Yy]our|[Tt]herapist|[Cc]ounsel+or|[Nn]ame)[^\]\n]{0,30}|PERSON_[0-9]+)\]"
ANY_NAME = rf"(?:{TITLE}?{_CAPITALISED}(?:[ \t-]+{_CAPITALISED}){{0,3}}|{_PLACEHOLDER})"
FULL_NAME = rf"(?:{TITLE}?{_CAPITALISED}(?:[ \t]+{_CAPITALISED}){{1,3}}?)"

_BOUNDARY = re.compile(r"[.!?…\n\"”)]\s*")
_LOOSE_END = re.compile(rf"[\s\u2013—~-]+{TITLE}?$|\s+$")
_LOOSE_MARK = re.compile(r"\s*[,;~\u2013—-]+$")
_TO_WHOM = r"(?i: to (?:you|you both|both of you|you all|all))?"


class _Patterns(NamedTuple):
    """Closing words with a name behind them, before a name that was found, and such as mean nothing alone."""

    signed: re.Pattern[str]
    ending: re.Pattern[str]
    dangling: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    words = people_words()
    every = rf"(?i:{_either(words.closings | words.farewells)}){_TO_WHOM}"
    gap = r"(?P<gap>[!.]?\s*[,~\u2013—-]+\s*|\s*\n\s*)"
    rest = r"(?P<rest>[^.!?\n]*(?:\n[^\n]*){0,4})"
    return _Patterns(
        signed=re.compile(rf"{every}{gap}{ANY_NAME}{rest}$"),
        ending=re.compile(rf"{every}[\s,!.~\u2013—-]*$"),
        dangling=re.compile(rf"(?i:{_either(words.closings)})\s*[,.~\u2013—-]*\s*$"),
    )


def _either(phrases: frozenset[str]) -> str:
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return "(?:" + "|".join(re.escape(phrase).replace("\\ ", r"\s+") for phrase in longest_first) + ")"


def _at_boundaries(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Match the pattern behind the last sentences and lines of a text, the earliest first."""
    begin = max(0, len(text) - TAIL_CHARS)
    places = [match.end() for match in _BOUNDARY.finditer(text, begin)]
    if begin == 0:
        places.insert(0, 0)
    return next((match for place in places if (match := pattern.match(text, place))), None)


def signed_by_anybody(text: str) -> re.Match[str] | None:
    """Return closing words with a name behind them at the end of a text; group `rest` follows the name."""
    return _at_boundaries(_patterns().signed, text)


def ends_in_closing(text: str) -> bool:
    """Say whether a text ends in closing words, so that what follows is a signature."""
    return _at_boundaries(_patterns().ending, text) is not None


def without_loose_end(text: str) -> str:
    """Take from the end what only led up to a signature; a farewell stays and gets its full stop."""
    text = _cut_from_tail(_LOOSE_END, text)
    closing = _at_boundaries(_patterns().dangling, text)
    if closing is not None:
        return text[: closing.start()].rstrip()
    text = _cut_from_tail(_LOOSE_MARK, text)
    return f"{text}." if text[-1:].isalnum() else text


def _cut_from_tail(pattern: re.Pattern[str], text: str) -> str:
    begin = max(0, len(text) - TAIL_CHARS)
    return text[:begin] + pattern.sub("", text[begin:])


def has_loose_closing(text: str) -> bool:
    """Say whether a text ends in closing words that mean nothing without a name."""
    return _at_boundaries(_patterns().dangling, text) is not None
