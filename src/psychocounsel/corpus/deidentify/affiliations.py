"""Where people work and study: names of schools, and names after words such as `I work at`."""

import re
from collections.abc import Iterator

from psychocounsel.config.corpus import Entity
from psychocounsel.corpus.deidentify.words import UPPER, Span

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
# What begins a sentence, and words that say what kind of school or place it is, and not which.
_START_WORDS = """
    a after also and at because before but from has he her his i if in is it my now on our she since so that the then
    they this to was we when while with your
"""
_KIND_WORDS = """
    aa academy art bible boarding business catholic christian christmas church college community covid cps dr easter
    elementary er eu friday god grad graduate grammar high home hospital hr i'm i've icu institute it jesus jewish
    junior law local medical middle monday mr mrs ms night nursing of prep preparatory primary private public saturday
    school secondary state summer sunday technology thanksgiving thursday tuesday tv uk university us usa wednesday
"""
_STARTS = frozenset(_START_WORDS.split())
_KINDS = _STARTS.union(_KIND_WORDS.split())


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
