"""Response -> response in which nobody gives a name: introductions go, names of authors become surrogates."""

import re
from bisect import bisect_left
from collections.abc import Sequence

from psychocounsel.speeches.closings import ANY_NAME, TITLE
from psychocounsel.speeches.crisis_lines import names_crisis_line
from psychocounsel.speeches.known_people import KnownPeople, NameSpan
from psychocounsel.speeches.sentences import sentences
from psychocounsel.speeches.web_addresses import holds, web_addresses

SURROGATE = re.compile(r"\[PERSON_([0-9]{1,6})\]")

_BEFORE_NAME = re.compile(
    r"(?:\bmy name(?:['\u2019]?s| is)|\bi am|\bi['\u2019]m|\bthis is|\bme llamo|\bmi nombre es|\bsoy)"
    rf"\s+{TITLE}?$",
    re.IGNORECASE,
)
_GREETING = re.compile(
    r"\s*(?:(?:Hi|[Hh]ello|[Hh]ey)\b[^.!?\n]{0,20}?\b(?:I am|I['\u2019]m|[Tt]his is|[Mm]y name is)"
    r"|[Mm]y name is)"
    rf"\s+{ANY_NAME}(?=\s*[,.!(-]|\s+(?:and|from|with|here)\b|\s*$)"
)
_I_AM = re.compile(
    rf"\s*(?:I am|I['\u2019]m|This is)\s+{TITLE}?(?P<first>[A-Z][a-z]+)"
    r"(?: [A-Z][\w'\u2019-]*\.?){0,3}\s*[.!]?\s*$"
)
_GREETING_SIGNS = ("y name", "Hi", "Hello", "Hey", "hello", " hey ", " hey,")
_LOOK_BACK_CHARS = 40


def without_greetings(text: str, known: KnownPeople) -> str:
    """Drop each sentence that says "Hello, I'm Jane" of anybody, or "I'm Jane." of a known author."""
    if not any(sign in text for sign in _GREETING_SIGNS):
        return text
    return "".join(piece for piece in sentences(text) if not _gives_name(piece, known)).rstrip()


def _gives_name(sentence: str, known: KnownPeople) -> bool:
    named = _I_AM.match(sentence)
    is_known = named is not None and named["first"].lower() in known.first_names
    return (is_known or _GREETING.match(sentence) is not None) and not names_crisis_line(sentence)


def without_introductions(text: str, names: Sequence[NameSpan]) -> str:
    """Drop each sentence in which one of the names is given as the writer's own."""
    starts = [name.start for name in names]
    kept: list[str] = []
    end = 0
    for sentence in sentences(text):
        start, end = end, end + len(sentence)
        inside = starts[bisect_left(starts, start) : bisect_left(starts, end)]
        before = (text[max(start, at - _LOOK_BACK_CHARS) : at] for at in inside)
        if not any(map(_BEFORE_NAME.search, before)) or names_crisis_line(sentence):
            kept.append(sentence)
    return "".join(kept).rstrip()


def with_surrogates(text: str, names: Sequence[NameSpan]) -> str:
    """Return the text with `[PERSON_1]` for the names; equal ones share a number."""
    taken = max(map(int, SURROGATE.findall(text)), default=0)
    numbers: dict[str, int] = {}
    pieces: list[str] = []
    position = 0
    for span in names:
        number = numbers.setdefault(span.name, len(numbers) + 1 + taken)
        pieces += [text[position : span.start], f"[PERSON_{number}]"]
        position = span.end
    return "".join([*pieces, text[position:]])


def outside_addresses(names: Sequence[NameSpan], text: str) -> list[NameSpan]:
    """Return the names that do not stand in a web or mail address."""
    addresses = web_addresses(text) if names else []
    return [name for name in names if not holds(addresses, name.start)]
