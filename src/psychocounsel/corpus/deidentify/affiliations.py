"""Where people work and study: names of schools, and names after words such as `I work at`."""

import re
from collections.abc import Iterator

from psychocounsel.config.corpus import Entity
from psychocounsel.corpus.deidentify.words import UPPER
from psychocounsel.corpus.text import Span, word_list

_WORD = rf"(?:St\. )?[{UPPER}][\w&'\u2019-]*"
_NAME = rf"{_WORD}(?: (?!and I\b)(?:(?:of|and|the|for|&|de|la) )?{_WORD}){{0,4}}"
_JOBS = "boss|manager|cashier|barista|nurse|teacher|engineer|driver|cook|clerk|intern|supervisor|analyst|employee"
_EMPLOYER = re.compile(
    r"\b(?i:work(?:s|ed|ing)? (?:(?:full|part)[- ]time )?(?:at|for)|(?:job|shifts?|internship|position) (?:at|with)"
    r"|(?:employed|hired) (?:at|by)|(?:fired|laid off) (?:from|by)|(?:company|firm|start-?up) (?:called|named)"
    rf"|(?:{_JOBS}) (?:at|for)) (?:the |a |an )?(?P<name>{_NAME})"
)
# What follows each of the words above; and what is in each name of a school. Most texts have neither.
_AFTER_PREPOSITION = re.compile(
    rf" (?=(?:the |a |an )?[{UPPER}])"
    r"(?i:(?<= (?:at|by|of|to) )|(?<=into )|(?<= for )|(?<=(?:with|from) )|(?<=called )|(?<=named ))"
)
_LEVELS = "High|Middle|Elementary|Primary|Secondary|Grammar|Junior High|Law|Medical|Business|Prep|Preparatory"
_TYPES = rf"(?:(?:{_LEVELS}) )?(?:School|Academy)|University|College|High|Elementary|Prep|Institute of Technology"
_TYPE_SIGNS = ("School", "Academy", "University", "College", "High", "Elementary", "Prep", "Institute")
_SCHOOL = re.compile(
    rf"\b(?:(?P<of>(?:University|College) of (?:the )?{_WORD}(?: {_WORD})?(?: at {_WORD}(?: {_WORD})?)?)"
    rf"|(?P<own>{_WORD}(?: (?:of |and )?{_WORD}){{0,3}}? (?:{_TYPES}))"
    r"|(?i:student at|graduated? from|studying at|enrolled at|degree (?:from|at)|(?:accepted|admitted) (?:in)?to"
    rf"|dropped out of|(?:freshman|sophomore|junior|senior) at) (?:the )?(?P<after>{_NAME}))(?!\w)"
)
_STARTS = word_list("sentence_starts")
_KINDS = _STARTS | word_list("kinds_of_places")


def affiliations(text: str) -> Iterator[Span]:
    """Yield the employers and schools that a text names, each wherever it stands again; they may overlap."""
    found: dict[str, tuple[Entity, float]] = {}
    is_announced = _AFTER_PREPOSITION.search(text) is not None
    for match in _EMPLOYER.finditer(text) if is_announced else ():
        found[match["name"]] = ("EMPLOYER", 0.6)
    is_named = any(sign in text for sign in _TYPE_SIGNS)
    for match in _SCHOOL.finditer(text) if is_announced or is_named else ():
        words = match[match.lastgroup or 0].split()
        while words and words[0].lower() in _STARTS:
            words = words[1:]
        found[" ".join(words)] = ("SCHOOL", 0.75)
    for name, (entity, score) in found.items():
        if not _KINDS.issuperset(name.lower().replace("\u2019", "'").split()):
            for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                yield Span(*match.span(), entity, score)
