"""Words beside a name -> how far it is to be believed: `my name is`, `my sister`, `and I`."""

import re
from enum import Enum, auto
from typing import NamedTuple

from psychocounsel.speeches.deidentification.name_lists import words

UPPER = (
    "A-Z\u00c0-\u00d6\u00d8-\u00de"
    "\u0106\u010c\u0110\u011e\u0130\u0141\u0143\u015a\u015e\u0160\u0179\u017b\u017d"
)
NAME = rf"[{UPPER}](?:[^\W\d_]|['\u2019-](?=[{UPPER}])){{1,40}}"


class Trust(Enum):
    """What a cue says of the word after it."""

    TITLED = auto()  # whatever is capitalised
    NAMED = auto()  # what is capitalised and no ordinary word
    LISTED = auto()  # a given name of the lists


class Cue(NamedTuple):
    """How far the next word is a name; the score is in 0 to 1."""

    trust: Trust
    score: float


_TITLED_CUE, _NAMED_CUE = Cue(Trust.NAMED, 0.9), Cue(Trust.NAMED, 0.95)
RELATION, RELATION_DOUBTFUL = Cue(Trust.NAMED, 0.85), Cue(Trust.LISTED, 0.8)
_LISTED_CUE = Cue(Trust.LISTED, 0.8)

_PERSONS = (
    "someone",
    "somebody",
    "guy",
    "man",
    "woman",
    "boy",
    "girl",
    "friend",
    "person",
    "kid",
    "dog",
    "cat",
)
_GREETINGS = ("Hi", "hi", "Hello", "hello", "Dear", "dear", "Hi,", "hi,", "Hello,", "hello,")

RELATIONS = frozenset(word + plural for word in words("relations") for plural in ("", "s"))
AFTER_WORD = {
    **dict.fromkeys((*words("titles"), "named", "Named"), _TITLED_CUE),
    **dict.fromkeys(("name's", "Name's", "name:", "Name:"), _NAMED_CUE),
    **dict.fromkeys(("called", "I'm", "i'm", "Im", "im", *_GREETINGS), _LISTED_CUE),
}
AFTER_TWO_WORDS = {
    **{(name, verb): _NAMED_CUE for name in ("name", "Name", "names") for verb in ("is", "was")},
    **{(person, "called"): RELATION for person in _PERSONS},
    **{(call, "me"): _LISTED_CUE for call in ("call", "Call", "calls", "called")},
    **{(go, "by"): _LISTED_CUE for go in ("go", "goes", "going")},
    **dict.fromkeys((("known", "as"), ("I", "am"), ("i", "am"), ("This", "is"), ("this", "is")), _LISTED_CUE),
}
MEETING = words("meeting_verbs")
SHORT_TITLES = frozenset(
    ("Dr", "Drs", "Mr", "Mrs", "Ms", "Mx", "Prof", "dr", "mr", "mrs", "ms", "mx", "prof")
)
TITLED = re.compile(rf"\b(?:[DdMm]rs?|[Mm][sx]|[Pp]rof)\b\.? ?(?P<name>{NAME}|[^\W\d_]{{3,}})(?!\w)")
NO_TITLED_NAMES = words("not_after_titles")
SIGN_OFF = re.compile(
    r"(?:\b(?:[Tt]hanks|[Tt]hank you|[Ss]incerely|[Rr]egards|[Bb]est|[Ll]ove|[Yy]ours|[Ss]igned)[^\w\n]{0,3}?"
    r"(?:,\s{0,3}|\s{0,2}\n\s{0,3}|\s?[\u2013\u2014~-]+\s?)|\n\s{0,3}[\u2013\u2014~-]+\s?)"
    rf"(?P<name>{NAME})(?: {NAME}){{0,2}}[.!\s]{{0,3}}\Z"
)
SIGN_OFF_CHARS = 80

# What may follow a name.
JOINED = re.compile(rf",? (?:and|&) (?P<name>{NAME})(?!\w)")
MORE_OF_NAME = re.compile(
    rf"(?: [{UPPER}]\.?(?= {NAME}))?(?: (?:de|la|le|van|von|der|den|del|bin|al|el|di|da|dos|y)\b){{0,2}} "
    rf"(?P<more>{NAME})(?!\w)"
)
SPEAKS = re.compile(r" (?:said|says|told|tells|asked|asks|texted|texts|yelled)\b| and I\b")
ACTS = re.compile(
    rf"{SPEAKS.pattern}| (?:came|went|left|punched|hit|wants|wanted|thinks|knew|knows|died|cheated|lied|hates"
    r"|loves|loved|moved|cried|cries|promised|threatened|laughed|refuses|refused)\b"
)
ACTS_OR_IS = re.compile(
    rf"{ACTS.pattern}|['\u2019]s\b| (?:is|was|has|had|never|always|does|did|would|who|called|calls)\b"
)
INSTITUTION = re.compile(
    rf"(?: {NAME})?(?:['\u2019]s)? (?:Project|Foundation|Hospital|Clinic|University|College|Institute|School"
    r"|Church|Center|Centre|Club|Scale|Inventory|Test|Syndrome|Disease|Method|Effect|Bank|Park|City|County|Beach|Island|Street|Avenue"
    r"|Road|Talks?)\b| \d{1,3}:\d"
)
PLACE_PREPOSITIONS = frozenset(("in", "from", "to", "at", "near", "outside", "around", "via"))
PLACES = frozenset(("St", "St.", "San", "Santa", "Saint", "Mt", "Mt.", "Mount", "Fort", "Port", "Lake"))
TIMES = frozenset(
    ("in", "since", "last", "next", "this", "every", "until", "till", "of", "by", "early", "late")
)
