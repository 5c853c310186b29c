"""Names of people: those of bundled lists, and those that a nearby word announces."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from psychocounsel.corpus.deidentify import Span
from psychocounsel.store.files import digest_of_files

# --- Word lists --------------------

_FOLDER = Path(__file__).resolve().parent / "lists"
# Shorter ones in capitals are abbreviations more often than names: ED, IAN, KIM.
_SHORTEST_IN_CAPITALS = 4
_SHORTEST_IN_LOWER_CASE = 5


def word_list(name: str) -> frozenset[str]:
    """Return the words of a bundled list; its lines that start with `#` are comments."""
    lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


GIVEN = word_list("given_names")
AMBIGUOUS = word_list("ambiguous_names")
SURNAMES = word_list("surnames")
NOT_NAMES = word_list("not_names")

GIVEN_LOWER = frozenset(name.lower() for name in GIVEN)
AMBIGUOUS_LOWER = frozenset(name.lower() for name in AMBIGUOUS)
SURNAMES_LOWER = frozenset(name.lower() for name in SURNAMES)
NO_WORDS_LOWER = GIVEN_LOWER - word_list("words_in_lower_case")
GIVEN_ANYHOW = (
    GIVEN
    | {name.upper() for name in GIVEN if len(name) >= _SHORTEST_IN_CAPITALS}
    | {name for name in NO_WORDS_LOWER if len(name) >= _SHORTEST_IN_LOWER_CASE}
)
ORDINARY_CAPITALISED = frozenset(word.capitalize() for word in NOT_NAMES - AMBIGUOUS_LOWER)
LISTS_DIGEST = digest_of_files(_FOLDER, sorted(path.name for path in _FOLDER.glob("*.txt")))


UPPER = "A-Z\u00c0-\u00d6\u00d8-\u00de\u0106\u010c\u0110\u011e\u0130\u0141\u0143\u015a\u015e\u0160\u0179\u017b\u017d"
NAME = rf"[{UPPER}](?:[^\W\d_]|['\u2019-](?=[{UPPER}])){{1,40}}"


class Cue(NamedTuple):
    """What a word says of the next one.

    Attributes:
        is_sure: the next word is a name if it is capitalised and no ordinary word; else only if it is listed.
        score: in 0 to 1.
    """

    is_sure: bool
    score: float


_TITLE_CUE, _NAME_CUE = Cue(True, 0.9), Cue(True, 0.95)
_RELATION_CUE, _DOUBTFUL_RELATION_CUE, _LISTED_CUE = Cue(True, 0.85), Cue(False, 0.8), Cue(False, 0.8)

_PERSONS = ("someone", "somebody", "guy", "man", "woman", "boy", "girl", "friend", "person", "kid", "dog", "cat")
_GREETINGS = ("Hi", "hi", "Hello", "hello", "Dear", "dear", "Hi,", "hi,", "Hello,", "hello,")

RELATIONS = frozenset(word + plural for word in word_list("relations") for plural in ("", "s"))
AFTER_WORD = {
    **dict.fromkeys((*word_list("titles"), "named", "Named"), _TITLE_CUE),
    **dict.fromkeys(("name's", "Name's", "name:", "Name:"), _NAME_CUE),
    **dict.fromkeys(("called", "I'm", "i'm", "Im", "im", *_GREETINGS), _LISTED_CUE),
}
AFTER_TWO_WORDS = {
    **{(name, verb): _NAME_CUE for name in ("name", "Name", "names") for verb in ("is", "was")},
    **{(person, "called"): _RELATION_CUE for person in _PERSONS},
    **{(call, "me"): _LISTED_CUE for call in ("call", "Call", "calls", "called")},
    **{(go, "by"): _LISTED_CUE for go in ("go", "goes", "going")},
    **dict.fromkeys((("known", "as"), ("I", "am"), ("i", "am"), ("This", "is"), ("this", "is")), _LISTED_CUE),
}
MEETING = word_list("meeting_verbs")
SHORT_TITLES = frozenset(("Dr", "Drs", "Mr", "Mrs", "Ms", "Mx", "Prof", "dr", "mr", "mrs", "ms", "mx", "prof"))
TITLED = re.compile(rf"\b(?:[DdMm]rs?|[Mm][sx]|[Pp]rof)\b\.? ?(?P<name>{NAME}|[^\W\d_]{{3,}})(?!\w)")
NO_TITLED_NAMES = word_list("not_after_titles")
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
TIMES = frozenset(("in", "since", "last", "next", "this", "every", "until", "till", "of", "by", "early", "late"))


# --- Finding names --------------------

_CAPITALISED = re.compile(rf"(?<![\w@#/]){NAME}(?![\w@])")
_ANY_CAPITALISED = re.compile(rf"[{UPPER}][^\W\d_]+")
_WORD = re.compile(r"(?<![\w@#/'\u2019-])[^\W\d_]{2,}(?![\w@])")
_PUNCTUATION = ",.!?'\u2019()\""
_LOWER_SIGNS = GIVEN_LOWER | SHORT_TITLES
_MAX_REPEATED_SCORE = 0.65
_MAX_PARTS = 4
_LOOK_BACK_CHARS = 40
_OPENING = "(\u2013\u2014-"
_SENTENCE_END = frozenset('.!?:;"\u201c[*\u2026\u00b7\u2022-')


def find_people(text: str) -> list[Span]:
    """Return the names in a text, without titles and possessive endings; they may overlap.

    A name that was found once is found wherever the text repeats it, even without an announcement.
    """
    bare = text
    for mark in _PUNCTUATION:  # a regular expression takes five times as long
        bare = bare.replace(mark, " ")
    words = set(bare.split())
    capitals = set(_ANY_CAPITALISED.findall(text)) - ORDINARY_CAPITALISED
    has_lower = not words.isdisjoint(_LOWER_SIGNS)
    if not has_lower and not any(not word.isupper() or word in GIVEN_ANYHOW for word in capitals):
        return []
    found = list(_capitalised(text))
    signed = SIGN_OFF.search(text, max(0, len(text) - SIGN_OFF_CHARS))
    if signed is not None and _is_name(signed["name"], is_sure=True):
        found.append(_named(text, *signed.span("name"), 0.75))
    if has_lower:
        found.extend(_in_lower_case(text))
    if not words.isdisjoint(SHORT_TITLES):
        found.extend(_titled(text))
    for joined in [JOINED.match(text, span.end) for span in found]:
        if joined is not None and _is_name(joined["name"], is_sure=True):
            found.append(_named(text, *joined.span("name"), 0.7))
    found.extend(_repeated(text, found) if found else ())
    return found


class _Before(NamedTuple):
    """The two words before a word, and whether it starts a sentence."""

    second: str
    last: str
    is_apart: bool
    starts_sentence: bool


def _before(text: str, start: int) -> _Before:
    slice_ = text[max(0, start - _LOOK_BACK_CHARS) : start]
    plain = slice_.rstrip()
    bare = plain.rstrip(_OPENING).rstrip()
    second, last = (["", "", *bare.rsplit(None, 2)])[-2:]
    starts = not plain or plain[-1] in _SENTENCE_END or "\n" in slice_[len(plain) :]
    return _Before(second, last.replace("\u2019", "'"), bare != plain, starts or plain[-1] in _OPENING)


def _cue(text: str, before: _Before, end: int) -> Cue | None:
    last = before.last
    cue = AFTER_TWO_WORDS.get((before.second, last)) or AFTER_WORD.get(last)
    if cue is not None and not before.is_apart:
        return cue
    word = last.rstrip(",:").rpartition("-")[2]
    if word.lower() not in RELATIONS:
        return None
    is_direct = not before.is_apart and last[-1] not in ",:"
    is_sure = word.islower() and (is_direct or text[end : end + 1] in (",", ")"))
    return _RELATION_CUE if is_sure else _DOUBTFUL_RELATION_CUE


def _capitalised(text: str) -> Iterator[Span]:
    for match in _CAPITALISED.finditer(text):
        word = match.group()
        if word in ORDINARY_CAPITALISED:
            continue
        before = _before(text, match.start())
        cue = _cue(text, before, match.end())
        if cue is not None and _is_name(word, is_sure=cue.is_sure):
            yield _named(text, *match.span(), cue.score)
        elif _is_listed(word):
            if before.last not in PLACES and not INSTITUTION.match(text, match.end()):
                yield _named(text, *match.span(), 0.7)
        elif not word.isupper():
            yield from _doubtful(text, match, before)


def _is_listed(word: str) -> bool:
    return word in GIVEN_ANYHOW or word.partition("-")[0] in GIVEN_ANYHOW or word.startswith(("Mc", "O'"))


def _doubtful(text: str, match: re.Match[str], before: _Before) -> Iterator[Span]:
    """Yield a word that may be a name if a surname or, within a sentence, a verb follows it."""
    word = match.group()
    more = MORE_OF_NAME.match(text, match.end()) if word in AMBIGUOUS else None
    if more is not None and more["more"] in SURNAMES and not INSTITUTION.match(text, match.end()):
        yield Span(match.start(), more.end(), "PERSON", 0.7)
    elif word.lower() not in NOT_NAMES and before.last not in PLACE_PREPOSITIONS:
        if before.starts_sentence:
            is_person = word in AMBIGUOUS and SPEAKS.match(text, match.end())
        else:
            is_person = before.last in MEETING or ACTS.match(text, match.end())
        if is_person:
            yield Span(*match.span(), "PERSON", 0.5)


def _is_name(word: str, *, is_sure: bool) -> bool:
    lower = word.lower()
    if not word[0].isupper() or word.isupper():
        return lower in GIVEN_LOWER
    head = lower.partition("-")[0]
    if head in AMBIGUOUS_LOWER:
        return is_sure or head not in NOT_NAMES
    return head in GIVEN_LOWER or (is_sure and lower not in NOT_NAMES)


def _named(text: str, start: int, end: int, score: float) -> Span:
    """Return the span of the whole name that starts here, with middle names, initials and surname."""
    parts = 1 if text[start].isupper() else _MAX_PARTS
    while parts < _MAX_PARTS and (more := MORE_OF_NAME.match(text, end)) and _is_surname(more["more"]):
        end = more.end()
        parts += 1
    return Span(start, end, "PERSON", score)


def _is_surname(word: str) -> bool:
    lower = word.lower()
    return not word.isupper() and (lower in SURNAMES_LOWER or lower not in NOT_NAMES)


def _in_lower_case(text: str) -> Iterator[Span]:
    for match in _WORD.finditer(text):
        word = match.group()
        if word in GIVEN_LOWER:
            cue = _cue(text, _before(text, match.start()), match.end())
            if cue is not None or word in GIVEN_ANYHOW:
                yield Span(*match.span(), "PERSON", cue.score if cue else 0.5)


def _titled(text: str) -> Iterator[Span]:
    for match in TITLED.finditer(text):
        word = match["name"]
        lower = word.lower()
        is_name = lower not in NO_TITLED_NAMES if word[0].isupper() else lower in SURNAMES_LOWER | GIVEN_LOWER
        if is_name:
            yield _named(text, *match.span("name"), 0.95)


def _repeated(text: str, found: Iterable[Span]) -> Iterator[Span]:
    """Yield every word of the names again, with no higher score; in lower case too if it is no ordinary word."""
    capitalised, lower = dict[str, float](), dict[str, float]()
    for span in sorted(found, key=lambda each: each.score):
        name = text[span.start : span.end]
        if name.islower():
            lower[name] = capitalised[name.capitalize()] = span.score
        for word in _CAPITALISED.findall(name):
            capitalised[word] = span.score
            if word.lower() in NO_WORDS_LOWER:
                lower[word.lower()] = span.score
    for match in _CAPITALISED.finditer(text):
        if match.group() in capitalised and _is_name_again(text, match):
            yield _named(text, *match.span(), min(_MAX_REPEATED_SCORE, capitalised[match.group()]))
    for match in _WORD.finditer(text) if lower else ():
        if match.group() in lower:
            yield Span(*match.span(), "PERSON", min(_MAX_REPEATED_SCORE, lower[match.group()]))


def _is_name_again(text: str, match: re.Match[str]) -> bool:
    """Return whether a name found before is one here too: `Will said`, but not `Will I ever`, nor `in May`."""
    word = match.group().lower()
    if word not in AMBIGUOUS_LOWER and word not in NOT_NAMES:
        return True
    before = _before(text, match.start())
    if before.starts_sentence:
        return ACTS_OR_IS.match(text, match.end()) is not None
    return word not in NOT_NAMES or before.last.lower() not in TIMES
