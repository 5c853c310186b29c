"""De-identification by lists of names, the words that announce a name, and patterns; needs no extra package."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from psychocounsel.config.corpus import ENTITIES, Entity
from psychocounsel.corpus.contacts import UNSPACED, phone_numbers, web_addresses
from psychocounsel.corpus.text import LISTS, Span, word_list
from psychocounsel.store.files import digest_of_files

PLACEHOLDER = re.compile(rf"\[({'|'.join(ENTITIES)})_(\d+)\]")

# --- Word lists --------------------

# Shorter ones in capitals are abbreviations more often than names: ED, IAN, KIM.
_SHORTEST_IN_CAPITALS = 4
_SHORTEST_IN_LOWER_CASE = 5

GIVEN = word_list("given_names")
AMBIGUOUS = word_list("ambiguous_names")
SURNAMES = word_list("surnames")
NOT_NAMES = word_list("not_names")
METHOD_AUTHORS = word_list("authors_of_methods")

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
LISTS_DIGEST = digest_of_files(LISTS, (path.name for path in LISTS.glob("*.txt")))

UPPER = "A-Z\u00c0-\u00d6\u00d8-\u00de\u0106\u010c\u0110\u011e\u0130\u0141\u0143\u015a\u015e\u0160\u0179\u017b\u017d"
# Of Latin letters: in a script without spaces the sentence goes on behind a name.
NAME = rf"[{UPPER}](?:[A-Za-z\u00c0-\u024f\u1e00-\u1eff]|['\u2019-](?=[{UPPER}])){{1,40}}"


# --- What announces a name --------------------


class Cue(NamedTuple):
    """After a sure cue a capitalised word is a name unless it is an ordinary word; else only if it is listed."""

    is_sure: bool
    score: float


_TITLE_CUE, _NAME_CUE = Cue(True, 0.9), Cue(True, 0.95)
_RELATION_CUE, _LISTED_CUE = Cue(True, 0.85), Cue(False, 0.8)

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
# "tl;dr" and "dp/dr" are no titles.
TITLED = re.compile(
    rf"(?i:(?<!\b(?:tl|dp)[;/]))\b(?:[DdMm]rs?|[Mm][sx]|[Pp]rof)\b\.? ?(?P<name>{NAME}|[^\W\d_]{{3,}})(?!\w)"
)
NO_TITLED_NAMES = word_list("not_after_titles") | word_list("sentence_starts")
SIGN_OFF = re.compile(
    r"(?:\b(?:[Tt]hanks|[Tt]hank you|[Ss]incerely|[Rr]egards|[Bb]est|[Ll]ove|[Yy]ours|[Ss]igned)[^\w\n]{0,3}?"
    r"(?:,\s{0,3}|\s{0,2}\n\s{0,3}|\s?[\u2013\u2014~-]+\s?)|\n\s{0,3}[\u2013\u2014~-]+\s?)"
    rf"(?P<name>{NAME})(?: {NAME}){{0,2}}[.!\s]{{0,3}}\Z"
)
SIGN_OFF_CHARS = 80
_ITEM_OR_HEADING = re.compile(r"\n\s{0,3}[\u2013\u2014~*•-][^\n]{0,200}\n*\Z|:\s*\Z")

# What may follow a name.
JOINED = re.compile(rf",? (?:and|&) (?P<name>{NAME})(?!\w)")
MORE_OF_NAME = re.compile(
    rf"(?: [{UPPER}]\.?(?= {NAME}))?(?: (?:de|la|le|van|von|der|den|del|bin|al|el|di|da|dos|y)\b){{0,2}} "
    rf"(?P<more>{NAME})(?!\w(?<!{UNSPACED.pattern}))"
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

# Nothing parts a name from a script without spaces: `我叫Anna。`
_CAPITALISED = re.compile(rf"(?<![\w@#/](?<!{UNSPACED.pattern})){NAME}(?![\w@](?<!{UNSPACED.pattern}))")
_WORD = re.compile(r"(?<![\w@#/'\u2019-])[^\W\d_]{2,}(?![\w@])")
_NAMES_LOWER = SURNAMES_LOWER | GIVEN_LOWER
_LISTED = {name for name in AMBIGUOUS | SURNAMES if name.lower() not in NOT_NAMES}
_MAX_REPEATED_SCORE = 0.65
_MAX_PARTS = 4
_LOOK_BACK_CHARS = 40
# "The American Psychological Association says", "your Inner Critic wants".
_NAMED_THING = re.compile(rf"\b(?i:the|an?|my|your|our|his|her|their)(?P<words>(?: {NAME})+) \Z")
# Who speaks, at the beginning of a line: "Mason:", "[00:12] **Mason**:".
_SPEAKER = re.compile(rf"^(?:[^\w\n]|\d){{0,16}}(?P<name>{NAME})[^\w\n]{{0,3}}:", re.MULTILINE)
_HYPHENS = re.compile(r"[ -]")
_OPENING = "(\u2013\u2014-"
_SENTENCE_END = frozenset('.!?:;"\u201c[*\u2026\u00b7\u2022-')


def find_people(text: str) -> list[Span]:
    """Return the names in a text, without titles and possessive endings; they may overlap.

    A name that was found once is found wherever the text repeats it, even without an announcement.
    """
    found = [*_capitalised(text), *_in_lower_case(text), *_speakers(text)]
    signed = SIGN_OFF.search(text, max(0, len(text) - SIGN_OFF_CHARS))
    is_item = signed and signed.group()[0] == "\n" and _ITEM_OR_HEADING.search(text, 0, signed.start())
    if signed is not None and not is_item and _is_name(signed["name"], is_sure=True):
        found.append(_named(text, *signed.span("name"), 0.75))
    for match in TITLED.finditer(text):
        lower = match["name"].lower()
        is_capitalised = match["name"][0].isupper()
        if lower not in NO_TITLED_NAMES if is_capitalised else lower in _NAMES_LOWER:
            found.append(_named(text, *match.span("name"), 0.95))
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
    return _RELATION_CUE if is_sure else _LISTED_CUE


def _capitalised(text: str) -> Iterator[Span]:
    for match in _CAPITALISED.finditer(text):
        word = match.group()
        if word in ORDINARY_CAPITALISED:
            continue
        before = _before(text, match.start())
        # "Occupation: Nurse" on the line before does not make a name of "Education:".
        is_label = text.startswith(":", match.end()) and text.startswith("\n", match.start() - 1)
        cue = None if is_label else _cue(text, before, match.end())
        if cue is not None and _is_name(word, is_sure=cue.is_sure):
            yield _named(text, *match.span(), cue.score)
        elif word in GIVEN_ANYHOW or word.partition("-")[0] in GIVEN_ANYHOW or word.startswith(("Mc", "O'")):
            if before.last not in PLACES and not INSTITUTION.match(text, match.end()):
                yield _named(text, *match.span(), 0.7)
        elif not word.isupper():
            yield from _doubtful(text, match, before)


def _doubtful(text: str, match: re.Match[str], before: _Before) -> Iterator[Span]:
    """Yield a word that may be a name if a surname or, within a sentence, a verb follows it."""
    word = match.group()
    more = MORE_OF_NAME.match(text, match.end()) if word in AMBIGUOUS else None
    if more is not None and more["more"] in SURNAMES and not INSTITUTION.match(text, match.end()):
        yield Span(match.start(), more.end(), "PERSON", 0.7)
    elif word.lower() not in NOT_NAMES and before.last not in PLACE_PREPOSITIONS:
        begin = max(0, match.start() - _LOOK_BACK_CHARS)
        thing = None if word in AMBIGUOUS else _NAMED_THING.search(text, begin, match.start())
        if before.starts_sentence:
            is_person = word in AMBIGUOUS and SPEAKS.match(text, match.end())
        elif thing is not None and RELATIONS.isdisjoint(_HYPHENS.split(thing["words"].lower())):
            is_person = False
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
    while parts < _MAX_PARTS and (more := MORE_OF_NAME.match(text, end)):
        lower = more["more"].lower()
        if more["more"].isupper() or (lower in NOT_NAMES and lower not in SURNAMES_LOWER):
            break
        end = more.end()
        parts += 1
    return Span(start, end, "PERSON", score)


def _speakers(text: str) -> Iterator[Span]:
    """Yield the labels of a transcript that may be names and stand before two lines or more."""
    labels = [match for match in _SPEAKER.finditer(text) if match["name"].capitalize() in _LISTED]
    times = Counter(match["name"] for match in labels)
    yield from (Span(*match.span("name"), "PERSON", 0.7) for match in labels if times[match["name"]] > 1)


def _in_lower_case(text: str) -> Iterator[Span]:
    for match in _WORD.finditer(text):
        word = match.group()
        if word in GIVEN_LOWER:
            cue = _cue(text, _before(text, match.start()), match.end())
            if cue is not None or word in GIVEN_ANYHOW:
                yield Span(*match.span(), "PERSON", cue.score if cue else 0.5)


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


# --- Where people work and study --------------------

_PROPER = rf"(?:St\. )?[{UPPER}][\w&'\u2019-]*"
_PLACE = rf"{_PROPER}(?: (?!and I\b)(?:(?:of|and|the|for|&|de|la) )?{_PROPER}){{0,4}}"
_JOBS = "boss|manager|cashier|barista|nurse|teacher|engineer|driver|cook|clerk|intern|supervisor|analyst|employee"
_EMPLOYER = re.compile(
    r"\b(?i:work(?:s|ed|ing)? (?:(?:full|part)[- ]time )?(?:at|for)|(?:job|shifts?|internship|position) (?:at|with)"
    r"|(?:employed|hired) (?:at|by)|(?:fired|laid off) (?:from|by)|(?:company|firm|start-?up) (?:called|named)"
    rf"|(?:{_JOBS}) (?:at|for)) (?:the |a |an )?(?P<name>{_PLACE})"
)
# What follows each of the words above; and what is in each name of a school. Most texts have neither.
_AFTER_PREPOSITION = re.compile(
    rf" (?=(?:the |a |an )?[{UPPER}])"
    r"(?i:(?<= (?:at|by|of|to) )|(?<=into )|(?<= for )|(?<=(?:with|from) )|(?<=called )|(?<=named ))"
)
_LEVELS = "High|Middle|Elementary|Primary|Secondary|Grammar|Junior High|Law|Medical|Business|Prep|Preparatory"
_KIND = rf"(?:(?:{_LEVELS}) )?(?:School|Academy)|University|College|High|Elementary|Prep|Institute of Technology"
_KIND_SIGNS = ("School", "Academy", "University", "College", "High", "Elementary", "Prep", "Institute")
_SCHOOL = re.compile(
    rf"\b(?:(?P<of>(?:University|College) of (?:the )?{_PROPER}(?: {_PROPER})?(?: at {_PROPER}(?: {_PROPER})?)?)"
    rf"|(?P<own>{_PROPER}(?: (?:of |and )?{_PROPER}){{0,3}}? (?:{_KIND}))"
    r"|(?i:student at|graduated? from|studying at|enrolled at|degree (?:from|at)|(?:accepted|admitted) (?:in)?to"
    rf"|dropped out of|(?:freshman|sophomore|junior|senior) at) (?:the )?(?P<after>{_PLACE}))(?!\w)"
)
_STARTS = word_list("sentence_starts")
_KINDS = _STARTS | word_list("kinds_of_places")


def _affiliations(text: str) -> Iterator[Span]:
    """Yield the employers and schools that a text names, each wherever it stands again; they may overlap."""
    found: dict[str, tuple[Entity, float]] = {}
    is_announced = _AFTER_PREPOSITION.search(text) is not None
    for match in _EMPLOYER.finditer(text) if is_announced else ():
        found[match["name"]] = ("EMPLOYER", 0.6)
    is_named = any(sign in text for sign in _KIND_SIGNS)
    for match in _SCHOOL.finditer(text) if is_announced or is_named else ():
        words = match[match.lastgroup or 0].split()
        while words and words[0].lower() in _STARTS:
            words = words[1:]
        found[" ".join(words)] = ("SCHOOL", 0.75)
    for name, (entity, score) in found.items():
        if not _KINDS.issuperset(name.lower().replace("\u2019", "'").split()):
            for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                yield Span(*match.span(), entity, score)


# --- Addresses and numbers --------------------

_LOCAL_PHONE = re.compile(
    r"\b(?:call|text|phone|cell|mobile|number|reach|dial|ring|rang|tel)\w*\b[^.!?\n\d]{0,40}"
    r"(?<![\w$-])(?P<number>\d{3}[-.]\d{4})(?![\w-])",
    re.IGNORECASE,
)
# In a script without spaces the sentence goes on behind an account, unless a space or a colon ends it.
_ACCOUNT = r"[^\W\u0e00-\u0eff\u3000-\uffef]"
_HANDLE = re.compile(
    rf"(?<![@.&/$-])(?:(?<!{_ACCOUNT})(?:@(?!\d){_ACCOUNT}{{3,30}}(?:\.{_ACCOUNT}{{1,29}})*|/?u/[A-Za-z0-9_-]{{3,20}})"
    rf"(?!{_ACCOUNT}|@)|(?<!\w)@[^\W\d]\w{{1,14}}(?=[\s:\uff1a]|\Z))"
)
_TAG = re.compile(r"(?<!\w)[\w.]{2,32}#\d{4}(?!\w)")
# A plain word after `my snapchat is` may be anything; a digit, a dot or an underscore makes it an account.
_NAMED_HANDLE = re.compile(
    r"(?:(?a:\b)(?:insta(?:gram)?|wechat|snap(?:chat)?|twitter|tik ?tok|discord|reddit|tumblr|facebook|user ?name"
    r"|handle|account)(?:\s(?:user ?name|handle|name|account|id))?(?:\sis|:|,)\s|微信号?[是:\uff1a]?\s?)"
    rf"(?=(?:{_ACCOUNT}|\.(?!\.))*[\d_.]{_ACCOUNT})(?=[\d_.]*(?![\d_]){_ACCOUNT})(?P<handle>{_ACCOUNT}+(?:\.{_ACCOUNT}+)*)",
    re.IGNORECASE,
)
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[0-9a-f:]*[0-9])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?![\w:]|\.\d)",
    re.IGNORECASE,
)
_MIN_IP_CHARS = 6


def _is_ip(match: re.Match[str]) -> bool:
    try:
        ip_address(match.group())
    except ValueError:
        return False
    return len(match.group()) >= _MIN_IP_CHARS


_SSN = re.compile(r"(?P<id>(?<![\w-])(?!000|666)\d{3}(?P<gap>[- ])(?!00)\d{2}(?P=gap)(?!0000)\d{4}(?![\w-]))")
_CARD = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")
_CUED = re.compile(
    r"\b(?:(?P<sure>MRN|SSN|(?-i:ID)|social security|medical record|passport|NHS|IBAN|inmate|prisoner"
    r"|driver['\u2019]?s licen[cs]e)|account|acct|case|claim|policy|member(?:ship)?|insurance|patient|chart"
    r"|file|licen[cs]e|student|employee|badge|docket|booking|routing|reference|confirmation|prescription|card"
    r"|social|tax)\b(?P<number>(?:\s?(?:number|num\b|no\b\.?|id\b|#))*)(?:\s?(?:is|was|:|,|=))?\s?"
    r"(?P<value>[a-z]{0,6}-?\d[\w-]*(?:[ -]\d[\w-]*)*)",
    re.IGNORECASE,
)
_CUED_DIGITS, _BARE_DIGITS = 4, 6


def _has_enough_digits(match: re.Match[str]) -> bool:
    enough = _CUED_DIGITS if match["sure"] or match["number"] else _BARE_DIGITS
    return sum(map(str.isdigit, match["value"])) >= enough


def _passes_luhn(match: re.Match[str]) -> bool:
    """Return whether the last digit checks the others, as on bank cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in match.group() if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b(?:\.(?=\s(?:the\s)?\d))?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:,?\s(?:19|20)\d{2})?"
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)"
_IN_WORDS = rf"{_MONTH}\s(?:the\s)?{_DAY}\b{_YEAR}|{_DAY}\s(?:of\s)?{_MONTH}{_YEAR}"
_NO_MORE = r"(?!\w|[/-]\d| (?:years?|months?|weeks?|days?)\b)"
_DATE = (
    r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[/.-]\d{1,2}(?:[/.-]\d{2,4})?"
    rf"|{_IN_WORDS}){_NO_MORE}"
)
_BIRTH = re.compile(
    r"\b(?:born|date of birth|birth ?date|birthday|dob\b|d\.o\.b\b|turn(?:s|ed|ing)? \d{1,3} on)"
    rf"[^.!?\n\d]{{0,20}}\.?[^.!?\n\d]{{0,4}}(?<![\w/])(?P<after>{_DATE})"
    rf"|(?<![\w/])(?P<before>{_DATE})\s(?:is|was)\s(?:my|his|her|our|their)\s[^.!?\n\d]{{0,20}}birthday",
    re.IGNORECASE,
)
# Of a day in words, what makes it a date: a word before it, its year, or its ending.
_EVENT = re.compile(
    rf"\b(?:on|since|until|till|by|from|after|before|dated)\s(?:the\s)?(?P<on>{_IN_WORDS}){_NO_MORE}"
    rf"|(?<![\w/.-])(?P<whole>{_MONTH}\s(?:the\s)?(?:{_ORDINAL}\b{_YEAR}|\d{{1,2}},?\s(?:19|20)\d\d)"
    rf"|{_ORDINAL}\s(?:of\s)?{_MONTH}{_YEAR}|\d{{1,2}}\s{_MONTH},?\s(?:19|20)\d\d"
    rf"|(?:19|20)\d\d-\d\d-\d\d|\d{{1,2}}/\d{{1,2}}/(?:19|20)\d\d|\d{{1,2}}\.\d{{1,2}}\.(?:19|20)\d\d){_NO_MORE}",
    re.IGNORECASE,
)
_HOLIDAYS = frozenset(("dec 24", "dec 25", "dec 31", "jan 1", "jul 4", "oct 31", "feb 14", "sep 11"))


def _is_no_holiday(match: re.Match[str]) -> bool:
    """Return whether a date is not one that a whole country keeps, which tells nothing about a person."""
    month = re.search(r"[a-z]{3}", match[match.lastgroup or 0].lower().replace("the ", ""))
    day = re.search(r"\d{1,2}", match[match.lastgroup or 0])
    return month is None or day is None or f"{month.group()} {day.group()}" not in _HOLIDAYS


_TYPES = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Pl|Way|Terrace|Ter|Circle|Cir"
    "|Highway|Hwy|Parkway|Pkwy|Square|Sq|Crescent|Close|Gardens|Grove|Mews|Row|Walk|Hill|Alley|Trail|Loop|Plaza"
)
_LOWER_TYPES = "street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|place|terrace|circle|highway"
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR"
    "|PA|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC"
)
_TOWN_NAME = r"[A-Z][\w'\u2019-]*"
_ZIP = r"\d{5}(?:-\d{4})?\b"
_UNIT = r"(?:\.?,?\s(?:(?i:apt|apartment|unit|suite|ste|flat|room)\b\.?\s?#?|#\s?)\w{1,5})?"
_TOWN = rf"(?:\.?,\s{_TOWN_NAME}(?:\s{_TOWN_NAME}){{0,2}},?\s(?:{_STATES})\b(?:\s{_ZIP})?)?"

_STREET = re.compile(
    r"(?<![\w.,/$:-])(?P<address>\d{1,6}[A-Za-z]?\s(?:[NSEW]\.?\s|(?:North|South|East|West)\s)?"
    rf"(?:\d{{1,3}}(?:st|nd|rd|th)|{_TOWN_NAME})(?:\s{_TOWN_NAME}){{0,3}}?\s(?:{_TYPES})\b{_UNIT}{_TOWN})"
)
_LIVED_AT = re.compile(
    r"\b(?:live|lives|lived|living|stay|staying|stays|address|located|reside|moved)\s(?:is|at|to|in)\s"
    rf"(?P<address>\d{{1,6}}\s\w+(?:\s\w+){{0,2}}?\s(?:{_LOWER_TYPES})\b{_UNIT})",
    re.IGNORECASE,
)
_TOWN_AND_ZIP = re.compile(rf"\b(?P<address>[A-Z][\w'-]+(?:\s[A-Z][\w'-]+){{0,2}},?\s(?:{_STATES}),?\s{_ZIP})")
_CUED_ZIP = re.compile(
    rf"\b(?:zip|zip ?code|post ?code|postal code)\s?(?:is|was|:)?\s(?P<address>{_ZIP})", re.IGNORECASE
)
_POST_BOX = re.compile(r"\b(?P<address>P\.?\s?O\.?\sBox\s\d{1,7})\b", re.IGNORECASE)
# The letters that British post codes leave out of their second half keep `B12 5MG` and `4PM` away.
_POST_CODE = re.compile(r"\b(?P<address>[A-Z]{1,2}\d[A-Z\d]?\s\d[ABD-HJLNP-UW-Z]{2}|[A-Z]\d[A-Z]\s\d[A-Z]\d)\b")

VERSION = 17  # what removes contacts looks for people too: raise that of the corpus with it
# A digit, or what marks an account. Without one no rule has a match.
_SIGN = re.compile(r"[\d_@]|\.(?=\w)|u/\w")


class _Rule(NamedTuple):
    """A pattern, whose named group is the find, or else the whole match."""

    entity: Entity
    score: float
    pattern: re.Pattern[str]
    is_valid: Callable[[re.Match[str]], bool] = bool


_RULES = (
    _Rule("HANDLE", 0.85, _HANDLE),
    _Rule("HANDLE", 0.8, _NAMED_HANDLE),
    _Rule("HANDLE", 0.8, _TAG),
    _Rule("DATE_OF_BIRTH", 0.85, _BIRTH),
    _Rule("EVENT_DATE", 0.7, _EVENT, _is_no_holiday),
    _Rule("ADDRESS", 0.8, _STREET),
    _Rule("ADDRESS", 0.85, _TOWN_AND_ZIP),
    _Rule("ADDRESS", 0.7, _POST_CODE),
    _Rule("ADDRESS", 0.8, _CUED_ZIP),
    _Rule("ADDRESS", 0.9, _POST_BOX),
    _Rule("ADDRESS", 0.7, _LIVED_AT),
    _Rule("ID_NUMBER", 0.9, _SSN),
    _Rule("ID_NUMBER", 0.9, _CARD, _passes_luhn),
    _Rule("ID_NUMBER", 0.85, _CUED, _has_enough_digits),
    _Rule("IP", 0.9, _IP, _is_ip),
    _Rule("PHONE", 0.7, _LOCAL_PHONE),
)


def find_all(text: str) -> Iterator[Span]:
    """Yield the finds of all patterns: people by cues and names, all else by form; they may overlap."""
    yield from find_people(text)
    yield from _affiliations(text)
    yield from web_addresses(text)
    yield from phone_numbers(text)
    for rule in _RULES if _SIGN.search(text) else ():
        for match in rule.pattern.finditer(text):
            if rule.is_valid(match):
                yield Span(*match.span(match.lastgroup or 0), rule.entity, rule.score)
