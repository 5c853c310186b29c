"""Removes the names of authors from responses: signatures, introductions, names in the text."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from psychocounsel.config.sources import AuthorIs
from psychocounsel.corpus.contacts import holds, phone_numbers, web_addresses
from psychocounsel.corpus.crisis import CrisisServices, names_crisis_service
from psychocounsel.corpus.deidentify import PLACEHOLDER, Placeholders
from psychocounsel.corpus.deidentify.patterns import AMBIGUOUS, GIVEN, NOT_NAMES, SURNAMES
from psychocounsel.corpus.text import blanked, either, replaced, sentences, touches, word_list

# --- Who the authors are --------------------

_TITLES = word_list("titles_of_authors")
_CREDENTIALS = word_list("credentials")
_PROFESSIONS = word_list("professions")
_ORGANISATIONS = word_list("organisations")
_NO_PEOPLE = _ORGANISATIONS | word_list("not_people")
_CLOSINGS, _FAREWELLS = word_list("closings"), word_list("farewells")

_PAGE = re.compile(r"^(?:https?://|www\.)", re.IGNORECASE)
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
_SMALL_TITLE = re.compile(r"[a-z]+\.")  # "Dr. med."
_BRACKETED = re.compile(r"\([^)]*\)")
_MAX_NAME_WORDS, _MIN_NAME_WORDS = 5, 2


def author_name(author: str) -> str | None:
    """Return a person's full name from a plain name or the last part of a page's address; else None.

    `https://example.org/therapists/dr-jane-doe-lcsw-2` and `Dr. Jane Doe, LCSW` are both `Jane Doe`. Names of
    models and practices, and single words, are no full names.
    """
    text = author.strip()
    if _PAGE.match(text):
        text = text.partition("?")[0].rstrip("/").rsplit("/", maxsplit=1)[-1].lower()
    elif "/" in text and " " not in text:
        return None  # a model and its publisher
    if _SLUG.fullmatch(text):
        words = text.split("-")
        if words[-1].isdigit() and not _is_no_person(words[:-1]):
            words = words[:-1]  # the second of its name
        words = [word.capitalize() for word in _bare_name(words)]
    else:
        first, second, *_ = (*_BRACKETED.sub(" ", text).split(","), "")
        if len(first.split()) == 1 and bare(second) not in _CREDENTIALS:  # "Roe, Jane"
            first = f"{second} {first}"
        words = [word.strip(".-") for word in _bare_name(first.split()) if word.strip(".-")]
    is_name = _MIN_NAME_WORDS <= len(words) <= _MAX_NAME_WORDS and len(words[0]) > 1
    return " ".join(words) if is_name and not _is_no_person(words) else None


class Person(NamedTuple):
    """An author who is a person; if the name is not `certain`, it counts in capitals only."""

    name: str
    certain: bool


def person(author: str, author_is: AuthorIs | None = None) -> Person | None:
    """Return the person behind the label of an author, or None for a model, a practice or a phrase.

    Unless the source says what its authors are, a label is a person's by evidence: a page of their own, a title or
    credentials, a listed given name, or a listed surname. "Family Member" and "Deep Breathing" have none. What the
    source calls a person is one, unless it is all ordinary words: "mental health counselor" gives no name.
    """
    name = None if author_is == "model" else author_name(author)
    if name is None:
        return None
    words = re.split("[ -]", name)
    around = {bare(word).replace("-", "") for word in re.split(r"[\s,-]+", author)} - set(name.lower().split())
    is_titled = not around.isdisjoint(_TITLES | _CREDENTIALS)
    said = author_is == "person" and not author.islower()
    certain = is_titled or _PAGE.match(author) is not None or not GIVEN.isdisjoint(words)
    ordinary = sum(word.lower() in NOT_NAMES for word in words)
    listed = words[0] in AMBIGUOUS or not SURNAMES.isdisjoint(words)
    is_named = listed and not ordinary
    if author_is == "person":
        is_named = listed or ordinary < len(words)
    return Person(name, certain or said) if certain or is_named else None


def _is_no_person(words: Sequence[str]) -> bool:
    return any(word.lower() in _NO_PEOPLE or any(map(str.isdigit, word)) for word in words)


def _bare_name(words: list[str]) -> list[str]:
    """Drop titles before a name, and everything from the first credential after two of its words."""
    while words and (bare(words[0]) in _TITLES or _SMALL_TITLE.fullmatch(words[0])):
        words = words[1:]
    for at, word in enumerate(words):
        joined = bare(word) + (bare(words[at + 1]) if at + 1 < len(words) and len(bare(word)) <= 3 else "")
        is_credential = bare(word) in _CREDENTIALS | _PROFESSIONS or joined in _CREDENTIALS
        if at >= _MIN_NAME_WORDS and is_credential:  # "Ma" and "Do" may be names
            return words[:at]
    return words


def bare(word: str) -> str:
    """Return a word as the lists spell it: lower case, without punctuation."""
    return "".join(character for character in word.lower() if character.isalnum() or character == "-").strip("-")


# --- Their names in texts --------------------


class NameSpan(NamedTuple):
    """The position of a known person's full name in a text: `text[start:end]`."""

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


@dataclass(frozen=True)
class KnownPeople:
    """Full names, to find in texts with any punctuation and middle initials, certain ones in any case.

    First names are in lower case.
    """

    names: frozenset[str]
    first_names: frozenset[str]
    _by_first: dict[str, list[tuple[str, re.Pattern[str]]]]  # longest first

    @classmethod
    def of(cls, people: Iterable[Person | None]) -> "KnownPeople":
        """Collect the names of authors who are people."""
        certain = {each.name: each.certain for each in sorted(each for each in people if each is not None)}
        spelt = ((len("".join(parts)), name, parts) for name in certain for parts in _spellings(name))
        by_first: dict[str, list[tuple[str, re.Pattern[str]]]] = defaultdict(list)
        for letters, name, parts in sorted(spelt, key=lambda each: (-each[0], each[1])):
            case, written = ("i", parts) if certain[name] else ("", tuple(map(str.capitalize, parts)))
            others = _BETWEEN.join(map(re.escape, written[1:]))
            body = f"(?{case}:{re.escape(written[0])}){_INITIAL}(?{case}:{others})"
            if letters < _LONG_NAME_LETTERS or len(parts[-1]) == 1:  # it must not touch other letters
                body = rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z])){body}(?:(?![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
            by_first[parts[0]].append((name, re.compile(body)))
        return cls(frozenset(certain), frozenset(by_first), dict(by_first))

    def first_names_in(self, text: str) -> frozenset[str]:
        """Return the known first names that a text contains as words, lower case."""
        words = set(_LETTERS.findall(text)) if self.names else set[str]()
        if _INNER_CAPITAL.search(text):  # "informationLaura", "JanaLee"
            words.update(_CAMEL.findall(text))
        return self.first_names.intersection(map(str.lower, words))

    def find(self, text: str) -> list[NameSpan]:
        """Return the positions of known full names, sorted and without overlap."""
        if not self.names:
            return []
        found: list[NameSpan] = []
        # Without accents too; each letter keeps its place.
        for spelling in (text, _unaccented(text)) if not text.isascii() and _ACCENTED.search(text) else (text,):
            firsts = self.first_names_in(spelling)
            joined = [spelling[address.start : address.end] for address in web_addresses(spelling)]
            for run in [*joined, *_HANDLE.findall(spelling)]:
                firsts |= {first for first in self.first_names if first in run.lower()}
            for name, pattern in (each for first in firsts for each in self._by_first[first]):
                found += [NameSpan(name, *match.span()) for match in pattern.finditer(spelling)]
        apart: list[NameSpan] = []
        for span in sorted(found, key=lambda each: (each.start, -each.end)):
            if not apart or span.start >= apart[-1].end:
                apart.append(span)
        return apart


_SAMPLED_TEXTS = 2_000
_COMMON_SHARE, _COMMON_TEXTS = 0.02, 3


def common_phrases(known: KnownPeople, written: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the known names that others than their bearers write often, with the share of such texts.

    `written` are names (or labels) of authors, each with a text; at most 2,000 of them are read. What stands in more
    than 2 % of the texts of others, and in at least three, is a phrase and no name.
    """
    sample = written[:: len(written) // _SAMPLED_TEXTS + 1]
    by_others: Counter[str] = Counter()
    for author, text in sample:
        by_others.update({span.name for span in known.find(text)} - {author})
    written_by = Counter(author for author, _ in sample)
    shares = {name: count / (len(sample) - written_by[name]) for name, count in by_others.items()}
    return {name: share for name, share in shares.items() if share > _COMMON_SHARE and by_others[name] >= _COMMON_TEXTS}


def _unaccented(text: str) -> str:
    return _ACCENTED.sub(lambda letter: unicodedata.normalize("NFD", letter.group())[0], text)


def _spellings(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the parts of a name in lower case: in full, without middle names, without its last words.

    The last words of a page's address may be a place: `lynda-martens-london-ontario`.
    """
    for spelling in {_unaccented(name), name}:
        parts = tuple(re.findall(r"[a-z0-9]+", spelling.lower()))
        if len(parts) < _MIN_NAME_WORDS:  # of a name in another script: "Mary" alone would be anybody's
            continue
        ends = [at for at, part in enumerate(parts) if at and len(part) > 1]
        yield from {parts, *(parts[: end + 1] for end in ends), *((parts[0], parts[end]) for end in ends)}


# --- Closing words at the end of a text --------------------

_TAIL_CHARS = 280

_CAPITALISED = r"[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿA-Z'\u2019.-]*"
_TITLE = r"(?:\b(?:[Dd]r|DR|[Mm]rs?|[Mm]s|Prof)\b\.?\s*)"
_BLANK_NAME = r"\[(?:(?:[Yy]our|[Tt]herapist|[Cc]ounsel+or|[Nn]ame)[^\]\n]{0,30}|PERSON_[0-9]+)\]"
_ANY_NAME = rf"(?:{_TITLE}?{_CAPITALISED}(?:[ \t-]+{_CAPITALISED}){{0,3}}|{_BLANK_NAME})"

_BOUNDARY = re.compile(r"[.!?…\n\"”)]\s*")
_LOOSE_END = re.compile(rf"[\s,;~\u2013—-]+{_TITLE}?$")
_TO_WHOM = r"(?i: to (?:you|you both|both of you|you all|all))?"


# A name after closing words, after a dash behind a sentence, or before credentials.
_CREDITED = (
    rf"{_TITLE}?{_CAPITALISED}(?:[ \t]+{_CAPITALISED}){{1,3}}?"
    # "Acceptance Therapy, ACT" has no credentials.
    r"(?:,[ \t]*(?=[A-Z]\S*[a-z.]\S)[A-Z][A-Za-z.]*[A-Z]"
    rf"|,?[ \t]+(?=[A-Z])(?i:{either(_CREDENTIALS)})\b)"
)
_CLOSING, _ANY_CLOSING = (either(each).replace(r"\ ", r"\s+") for each in (_CLOSINGS, _CLOSINGS | _FAREWELLS))
_SIGNED = re.compile(
    rf"(?:(?i:{_ANY_CLOSING}){_TO_WHOM}(?:[!.]?\s*[,~\u2013—-]+\s*|\s*\n\s*)"
    r"|(?:(?<=[.!?…)])|(?<=[.!?…)]\s)|(?<=[.!?…)]\n\n))[-\u2013—~]+[ \t]*"
    rf"|(?={_CREDITED}))"
    rf"(?P<name>{_ANY_NAME})(?P<rest>[^!?\n]*(?:\n[^\n]*){{0,4}})$"
)
_DASHES = "-\u2013—~"
_BULLET = re.compile(r"\s*(?:[-*•·\u2013—]|\(?\d{1,2}[.)])\s")
_LEADS_TO_NAME = re.compile(rf"(?i:{_ANY_CLOSING}){_TO_WHOM}\s*$")
# Closing words that need a name.
_DANGLING = re.compile(rf"(?i:{_CLOSING})\s*[,.~\u2013—-]*\s*$")


def _at_boundaries(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Match the pattern after the last sentences and lines of a text, the earliest first."""
    begin = max(0, len(text) - _TAIL_CHARS)
    places = [match.end() for match in _BOUNDARY.finditer(text, begin)]
    if begin == 0:
        places.insert(0, 0)
    return next((match for place in places if (match := pattern.match(text, place))), None)


def _without_loose_end(text: str) -> str:
    """Cut from the end what only led up to a signature; a farewell stays and gets its full stop."""
    begin = max(0, len(text) - _TAIL_CHARS)
    text = text[:begin] + _LOOSE_END.sub("", text[begin:])
    closing = _at_boundaries(_DANGLING, text)
    if closing is not None:
        return text[: closing.start()].rstrip()
    return f"{text}." if text[-1:].isalnum() else text


# --- Responses without names --------------------

_GREETING = re.compile(
    r"\s*(?:(?:Hi|[Hh]ello|[Hh]ey)\b[^.!?\n]{0,20}?\b(?:I am|I['\u2019]m|[Tt]his is|[Mm]y name is)"
    r"|[Mm]y name is)"
    rf"\s+{_ANY_NAME}(?=\s*[,.!(-]|\s+(?:and|from|with|here)\b|\s*$)"
)
_I_AM = re.compile(
    rf"\s*(?:I am|I['\u2019]m|This is)\s+{_TITLE}?(?P<first>[A-Z][a-z]+)"
    r"(?: [A-Z][\w'\u2019-]*\.?){0,3}\s*[.!]?\s*$"
)
_GREETING_SIGNS = ("y name", "Hi", "Hello", "Hey", "hello", " hey ", " hey,")


def without_signatures(text: str, known: KnownPeople, crisis: CrisisServices, *, in_addresses: bool = True) -> str:
    """Return the text without its closing signature, and without the names of the known authors.

    At the end a name goes with its credentials, addresses and closing words; a sentence such as "my name is
    Jane" goes; elsewhere a known full name becomes `[PERSON_1]`, `in_addresses` too where addresses stay. What names
    a crisis service always stays.
    """
    names = _found(text, known, crisis)
    text = _unsigned(text.rstrip(), names, known, crisis)
    if names or any(sign in text for sign in _GREETING_SIGNS):
        text = _without_greetings(text, known, crisis)
    if not names:
        return text
    names = _found(text, known, crisis)
    placeholders = Placeholders(text)
    spans = names if in_addresses else _outside_addresses(names, text)
    return replaced(text, ((span.start, span.end, placeholders.of("PERSON", span.name)) for span in spans))


def _found(text: str, known: KnownPeople, crisis: CrisisServices) -> list[NameSpan]:
    """Return where known names stand, other than in those of crisis services."""
    names = known.find(text)
    services = crisis.spans(text) if names else []
    return [each for each in names if not touches(each.start, each.end, services)]


def _without_greetings(text: str, known: KnownPeople, crisis: CrisisServices) -> str:
    """Drop each sentence that says "Hello, I'm Jane" of any name, or "I'm Jane." of a known author."""
    kept: list[str] = []
    for sentence in sentences(text):
        named = _I_AM.match(sentence)
        is_known = named is not None and named["first"].lower() in known.first_names
        if not (is_known or _GREETING.match(sentence)) or names_crisis_service(sentence, crisis):
            kept.append(sentence)
    return "".join(kept).rstrip()


def _outside_addresses(names: Sequence[NameSpan], text: str) -> list[NameSpan]:
    addresses = web_addresses(text) if names else []
    return [name for name in names if not holds(addresses, name.start)]


# --- Signatures --------------------

_MAX_SIGNATURE_WORDS = 16
_WORD = re.compile(r"[^\s,;:|/~*_()&\u2013—]+")
_TITLE_BEFORE = re.compile(rf"{_TITLE}$")
_STANDS_APART = re.compile(r"(?:^|[.!?…\n\"”)~:]|[,;\u2013—-])\s*$")
_FIRST_NAME = re.compile(
    r"(?P<kept>[.!?…\"”)]*)(?P<mark>\s*[-\u2013—~]+\s*|(?<=[a-zA-Z)\"”]),\s*|(?<=[.!?…\n\"”)])\s*|\n\s*|^)"
    r"(?P<first>[A-Za-z]+)(?P<rest>~[^.!?\n]*|(?:\s[A-Z][a-z]{0,3}\.?)?\s*[~.!]?\s*(?:\([^()\n]*\))?)\s*$"
)


def _unsigned(text: str, names: Sequence[NameSpan], known: KnownPeople, crisis: CrisisServices) -> str:
    """Cut signatures off the end until none is left."""
    left = _outside_addresses(names, text)
    while (start := _signature_start(text, left, known)) is not None:
        if names_crisis_service(text, crisis, start):
            return text
        text = _without_loose_end(text[:start])
        while left and left[-1].end > len(text):
            left.pop()
    return _without_loose_end(text) if _at_boundaries(_DANGLING, text) else text


def _signature_start(text: str, names: Sequence[NameSpan], known: KnownPeople) -> int | None:
    begin = max(0, len(text) - _TAIL_CHARS)
    tail = text[begin:]
    near = takewhile(lambda name: name.start >= begin, reversed(names))
    spans = [(name.start - begin, name.end - begin) for name in near]
    spans += [match.span() for match in PLACEHOLDER.finditer(tail) if match[1] == "PERSON"]
    start = _named_start(tail, spans)
    if start is None:
        start = _first_name_start(tail, known)
    if start is not None:
        return begin + start
    signed = _at_boundaries(_SIGNED, text)
    if signed is None or not _is_signature_rest(signed["rest"]):
        return None
    before = text[: signed.start()]
    begins_with_dash = before.endswith("\n") and signed.group()[0] in _DASHES
    around = [before.rstrip().rpartition("\n")[2], *signed["rest"].split("\n")[1:]]
    is_item = begins_with_dash and any(map(_BULLET.match, around))
    return None if is_item else signed.start("name")


def _named_start(tail: str, spans: Sequence[tuple[int, int]]) -> int | None:
    """Return the position of the earliest name that is a signature and not a part of a sentence."""
    for start, end in sorted(spans):
        before, rest = _TITLE_BEFORE.sub("", tail[:start]), tail[end:]
        is_glued = before[-1:].islower() and tail[start].isupper()
        is_apart = is_glued or _STANDS_APART.search(before) or _at_boundaries(_LEADS_TO_NAME, before)
        if is_apart and _is_signature_rest(rest):
            return len(before)
    return None


def _is_signature_rest(rest: str) -> bool:
    """Return whether what follows a name is credentials, a profession, a practice or an address: no sentence."""
    contacts = [*web_addresses(rest), *phone_numbers(rest)]
    rest = blanked(rest, contacts)
    words = [word for word in _WORD.findall(rest) if any(map(str.isalnum, word))]
    if len(words) > _MAX_SIGNATURE_WORDS:
        return False
    small = _PROFESSIONS | _CREDENTIALS | _ORGANISATIONS | {"and", "of", "in", "for", "the"}
    return all(not word[0].islower() or bare(word) in small for word in words)


def _first_name_start(tail: str, known: KnownPeople) -> int | None:
    """Return where a lone first name of an author ends the text, after a dash, a comma or a closed sentence."""
    firsts = known.first_names_in(tail)
    if not firsts:
        return None
    match = next((each for each in _FIRST_NAME.finditer(tail) if each["first"].lower() in firsts), None)
    if match is None or not _is_signature_rest(match["rest"]):
        return None
    is_dashed = match["mark"].strip() not in ("", ",")
    # "Tell it to your sister, Grace." is a sentence; "Hope that helps, Grace" is signed.
    ends_in_sentence = match["rest"].strip() in (".", "!")
    return match.end("kept") if is_dashed or (match["first"][0].isupper() and not ends_in_sentence) else None
