"""Phone numbers, e-mail and web addresses in a text, and how responses lose them; crisis lines stay."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from phonenumbers import Leniency, PhoneNumberMatcher
from pydantic import Field

from psychocounsel.config.components import Settings
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.text import sentences

if TYPE_CHECKING:
    from tldextract import TLDExtract

Kind = Literal["PHONE", "EMAIL", "URL"]


class Contact(NamedTuple):
    """The position of a phone number or an address in a text: `text[start:end]`."""

    kind: Kind
    start: int
    end: int


_start = attrgetter("start")


def holds(contacts: Sequence[Contact], position: int) -> bool:
    """Return whether a position lies in one of the contacts, which are sorted and do not overlap."""
    at = bisect_right(contacts, position, key=_start) - 1
    return at >= 0 and position < contacts[at].end


def blanked(text: str, spans: Iterable[tuple[int, int]], filler: str = " ") -> str:
    """Return the text with a filler in the spans, so that every other character keeps its position."""
    pieces: list[str] = []
    position = 0
    for start, end in sorted(spans):
        pieces += [text[position:start], filler * (end - max(start, position))]
        position = max(position, end)
    return "".join([*pieces, text[position:]])


# --- E-mail and web addresses --------------------

# Top-level domains that are no words count alone. Any other counts with a path only: "help.me" lacks a space.
_GENERIC = "com org net edu gov mil info biz"
_COUNTRIES = "io ca uk au nz ie de fr es nl ch eu co app dev"


def _any_case(words: str) -> str:
    return "|".join(f"{word}|{word.title()}|{word.upper()}" for word in words.split())


_SURE_ENDING = f"(?:{_any_case(_GENERIC)}|{'|'.join(_COUNTRIES.split())})(?:\\.(?:uk|au|nz|za|br|in))?"
# Every repetition has a bound, so that no cell of a megabyte takes minutes.
_LABELS = r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}"
_STOP = r"\s<>\"“”«»¿¡\[\]{}|\\"
_URL = re.compile(
    rf"(?P<long>[hH][tT][tT][pP][sS]?://[^{_STOP}]{{1,2000}}"
    rf"|[wW][wW][wW]\.(?=[\w-]+\.[A-Za-z])[^{_STOP}]{{1,2000}})"
    rf"|(?<![\w@-])(?![A-Za-z0-9-]{{0,63}}[wW]{{3}}\.)"
    rf"(?P<host>{_LABELS}(?:{_SURE_ENDING}(?![a-z0-9_-]*[a-z-])|(?P<unsure>[a-z]{{2,24}})(?=/)))"
    rf"(?P<path>[/?#:][^{_STOP}]{{0,2000}})?"
    r"|\b[A-Za-z0-9-]{1,63} (?:dot|DOT) (?:com|org|net)\b"
)
_EMAIL = re.compile(
    r"(?:mailto:)?[^\W_][\w.%+-]{0,63}@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}"
    r"|[\w.+-]{1,63} ?[\[({] ?at ?[\])}] ?[\w-]{1,63} ?(?:[\[({] ?dot ?[\])}]|\.) ?[A-Za-z]{2,24}\b"
    r"|[\w.+-]{1,63} at [\w-]{1,63} dot (?:com|org|net|edu)\b",
    re.IGNORECASE,
)
_MAIL_SIGNS = ("@", " dot ", " DOT ", "at]", "at)", "AT)", "AT]")
_WEB_SIGNS = ("://", "www.", "WWW.", "Www.")
_MAY_END = re.compile(rf"\.(?:{_SURE_ENDING}(?![a-z])|[a-z]{{2,24}}/)")
_NEXT_ADDRESS = re.compile(r"(?<=.)(?:https?://|(?<!/)www\.)", re.IGNORECASE)
_HOST_END = re.compile(rf"\.{_SURE_ENDING}(?=[A-Z]|\.[A-Z])|\.(?:{_any_case(_GENERIC)})(?=[0-9])")
# A sentence that begins without a space: `example.org/helpI hope`.
_GLUED_WORD = re.compile(
    r"(?<=[a-z0-9])[A-Z][a-z'\u2019]*$|[A-Z][a-z'\u2019]+,$|(?<=[/.)])(?:I|If|It|In|A|As|At|The|This|That|There|These|What|When"
    r"|You|Your|We|My|Be|Some|One|For|To|And|But|So|Once|Now|Hope|Here|Another|After|Besides|Also)(?:['\u2019][a-z]+)?$"
)
_TRAILING = ".,;:!?'\"\u2019*_~"


@lru_cache(maxsize=10_000)
def is_host(name: str) -> bool:
    """Return whether a name ends in a public suffix, by the list that comes with tldextract: no network."""
    return bool(_suffixes()(name).suffix)


@cache
def _suffixes() -> "TLDExtract":
    from tldextract import TLDExtract  # its imports take a tenth of a second; few texts need it

    return TLDExtract(cache_dir=None, suffix_list_urls=())


def web_addresses(text: str) -> list[Contact]:
    """Return the e-mail and web addresses of a text, sorted and without overlap.

    A web address has a scheme, a `www.`, a well-known ending, or any public suffix and a path. A sentence that
    follows without a space is not part of it, as in `example.org/helpI hope`.
    """
    may_hold_mail = any(sign in text for sign in _MAIL_SIGNS)
    if not (may_hold_mail or any(sign in text for sign in _WEB_SIGNS) or _MAY_END.search(text)):
        return []
    found: list[Contact] = []
    for match in _EMAIL.finditer(text) if may_hold_mail else ():
        glued = _GLUED_WORD.search(match.group())
        length = glued.start() if glued and "." in match.group()[: glued.start()] else len(match.group())
        found.append(Contact("EMAIL", match.start(), match.start() + length))
    # Mail addresses are blanked, so that their domains do not count again.
    rest = blanked(text, [(mail.start, mail.end) for mail in found])
    position = 0
    while match := _URL.search(rest, position):
        if match["unsure"] and not is_host(match["host"]):
            position = match.end("host")
            continue
        found.append(_url(match))
        position = found[-1].end
    return sorted(found, key=_start)


def _url(match: re.Match[str]) -> Contact:
    run = match.group()
    if (following := _NEXT_ADDRESS.search(run)) is not None:
        run = run[: following.start()]
    brackets = (at for at, each in enumerate(run) if each == ")")  # one that was opened before the address ends it
    run = run[: next((at for at in brackets if run.count(")", 0, at) == run.count("(", 0, at)), len(run))]
    if match["long"] is not None:
        host = _HOST_END.search(run)
        slash = run.find("/", run.find("://") + 3 if "://" in run else 0)
        if host is not None and (slash < 0 or host.end() <= slash):
            run = run[: host.end()]
    glued = _GLUED_WORD.search(run)
    if glued is not None and glued.start() > 0 and (match["path"] or "/" in run or match["long"]):
        run = run[: glued.start()]
    return Contact("URL", match.start(), match.start() + len(run.rstrip(_TRAILING)))


# --- Phone numbers --------------------

# North America for every run of digits, the others where it begins as theirs do at home.
_HOME_REGION = "US"
_REGIONS_ABROAD = ("GB", "IE", "FR", "BE", "NL", "DE", "AT", "CH", "AU", "NZ", "ZA", "IN")
_BEGINS_ABROAD = re.compile(r"\(?0|1[38]00")
_NOT_BEFORE = r"(?<![0-9$€£+])(?<![0-9][.,:/\u2013-])"
_NOT_BEHIND = r"(?![0-9]|[.,:/%][0-9])"
_DIGITS = r"[+(]{0,2}[0-9][0-9 .\-\u2013()/·]{5,400}[0-9]"
_RUN = re.compile(rf"{_NOT_BEFORE}{_DIGITS}(?:,? ?(?:ext\.?|extension|x) ?[0-9]{{1,5}})?{_NOT_BEHIND}")
# Grouped as in North America, or with a country's code: a number even where its area is not assigned.
_GAP = r"[ .\-\u2013/·]"
_GROUPED = re.compile(
    rf"(?<![0-9])(?:\+?1{_GAP}{{0,2}})?"
    rf"(?:\([2-9][0-9]{{2}}\){_GAP}?|[2-9][0-9]{{2}}{_GAP}{{1,2}})[0-9]{{3}}{_GAP}{{1,2}}[0-9]{{4}}"
    r"|(?<![0-9])(?:\+|00)[1-9][0-9 .\-\u2013()/]{6,20}[0-9]"
)
_TOLL_FREE = "8(?:00|33|44|55|66|77|88)"
_VANITY = re.compile(
    rf"\b(?:1[-.]{_TOLL_FREE}(?=[-.A-Za-z0-9]{{6}})(?:[-.][A-Za-z0-9]{{1,11}}){{1,4}}"
    rf"|1 {_TOLL_FREE}(?:[ -][A-Z0-9]{{2,8}}){{1,3}})\b"
)
# Any run of seven digits or more is a number where the text says to call it.
_CALLED = re.compile(
    r"\b(?:call|calling|phone|telephone|tel|cell|mobile|fax|ring|text|texting|whatsapp|sms|dial|contact|hotline"
    r"|helpline|reach (?:me|us|him|her|them)|llam\w+|número|numero|number is)\b[^0-9\n]{0,30}?"
    rf"(?P<number>\(?[0-9][0-9 .\-\u2013()/]{{5,16}}[0-9]){_NOT_BEHIND}",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"\(?(?:(?:[0-9]{1,2}[./ -]){2}(?:19|20)[0-9]{2}\b|(?:19|20)[0-9]{2}[./-][0-9]{1,2}[./-][0-9]{1,2}"
    r"|(?:19|20)[0-9]{2} ?[/\u2013-] ?(?:19|20)[0-9]{2}\b)"
)
_BOOK = re.compile(r"ISBN[-:\s0-9]*$", re.IGNORECASE)
_BOOK_LOOK_BACK_CHARS = 24
_MANY_DIGITS = re.compile(r"[0-9][^\n]{0,3}[0-9][^\n]{0,20}[0-9]")
_MIN_DIGITS, _MAX_DIGITS = 7, 15


def phone_numbers(text: str) -> list[Contact]:
    """Return the telephone numbers of a text, sorted and without overlap, the longest at each place.

    A number is one that `phonenumbers` holds valid in North America, with a country's code, or as it is dialled
    in some other countries; one grouped as in North America; one spelt in letters; and any other run of seven
    to fifteen digits where the text says to call it.
    """
    if not _MANY_DIGITS.search(text):
        return []
    digits = [match.span("number") for match in _CALLED.finditer(text)]
    for run in _RUN.finditer(text):
        digits += [(run.start() + start, run.start() + end) for start, end in _numbers_in(run.group())]
    spans = [match.span() for match in _VANITY.finditer(text)]
    spans += [span for span in digits if _has_form(text, *span)]
    found: list[Contact] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not found or start >= found[-1].end:
            found.append(Contact("PHONE", start, end))
    return found


@lru_cache(maxsize=10_000)
def _numbers_in(run: str) -> list[tuple[int, int]]:
    spans = [match.span() for match in _GROUPED.finditer(run)]
    for region in (_HOME_REGION, *(_REGIONS_ABROAD if _BEGINS_ABROAD.match(run) else ())):
        if found := [(each.start, each.end) for each in PhoneNumberMatcher(run, region, Leniency.VALID)]:
            return [*spans, *found]
    return spans


def _has_form(text: str, start: int, end: int) -> bool:
    digits = sum(map(str.isdigit, text[start:end]))
    is_book = _BOOK.search(text, max(0, start - _BOOK_LOOK_BACK_CHARS), start)
    return _MIN_DIGITS <= digits <= _MAX_DIGITS and not _DATE.match(text, start, end) and not is_book


# --- Crisis lines --------------------

BUNDLED = Path(__file__).resolve().parent / "crisis_lines.yaml"

_WIDE_GAP = r"[\s().\-\u2013—/·]{0,3}"
_CERTAIN_DIGITS = 6
_NORTH_AMERICA = "1"
_KEYPAD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "22233344455566677778889999")
_CALLING = re.compile(
    r"\b(?:call|calls|called|calling|dial|dials|dialing|dialling|text|texts|texting|txt|sms|ring|phone|telephone|number"
    r"|contact|contacting|reach|hotline|helpline|lifeline|line|emergency|samaritans|anruf\w*|ruf\w*|nummer|llam\w+"
    r"|marc\w+|appel\w*|ligue|bel)\b.{0,80}$",
    re.IGNORECASE | re.DOTALL,
)
_NAMED = re.compile(
    r"[\s,]{0,2}(?:\w+[\s,]+){0,2}(?:suicide|crisis|lifeline|hotline|helpline|emergency)\b", re.IGNORECASE
)
_NUMBER_BEGINS = re.compile(r"[(+0-9](?<![0-9+$€£(][0-9])(?<![0-9][.,:/-][0-9])(?=[0-9(]|(?<=[0-9]))")
_LOOK_BACK_CHARS = 100


class Line(Settings):
    """One service and its numbers."""

    name: str
    numbers: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9A-Z .-]*[0-9][0-9A-Z .-]*$")], ...], Field(strict=False)
    ]


class Country(Settings):
    """The services of one country; `calling_code` is dialled from abroad."""

    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
    calling_code: Annotated[str, Field(pattern=r"^[0-9]{1,3}$")]
    lines: Annotated[tuple[Line, ...], Field(strict=False)]


class CrisisLinesFile(Settings):
    """The content of `crisis_lines.yaml`."""

    countries: Annotated[tuple[Country, ...], Field(strict=False, min_length=1)]


class CrisisLines:
    """Finds listed numbers in texts, whatever their punctuation."""

    def __init__(self, file: CrisisLinesFile) -> None:
        unsure: set[str] = set()
        certain: set[str] = set()
        for country in file.countries:
            for number in (number for line in country.lines for number in line.numbers):
                written = re.sub(r"[^0-9A-Z]", "", number)
                digits = written.translate(_KEYPAD)
                patterns = {_number_pattern(key, country.calling_code) for key in (digits, written)}
                (unsure if len(digits) < _CERTAIN_DIGITS else certain).update(patterns)
        self._unsure = _any_of(unsure)
        self._certain = _any_of(certain)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where listed numbers stand, as sorted (start, end).

        A number of fewer than six digits counts only near words such as "call" or "hotline".
        """
        found: list[tuple[int, int]] = []
        position = 0
        for begin in _NUMBER_BEGINS.finditer(text):
            if begin.start() < position:
                continue
            match = self._certain.match(text, begin.start()) or self._unsure_at(text, begin.start())
            if match is not None:
                found.append(match.span())
                position = match.end()
        return found

    def _unsure_at(self, text: str, position: int) -> re.Match[str] | None:
        match = self._unsure.match(text, position)
        if match is None:
            return None
        before = text[max(0, position - _LOOK_BACK_CHARS) : position]
        return match if _CALLING.search(before) or _NAMED.match(text, match.end()) else None


@cache
def crisis_lines(path: Path = BUNDLED) -> CrisisLines:
    """Read a list of crisis lines; raises ConfigError, each fault with its line, if the file is no such list."""
    return CrisisLines(load_config(CrisisLinesFile, path))


def names_crisis_line(text: str, begin: int = 0) -> bool:
    """Return whether a text names a bundled crisis line that ends after a position."""
    if _NUMBER_BEGINS.search(text, begin) is None:
        return False
    return any(end > begin for _, end in crisis_lines().spans(text))


def _number_pattern(key: str, calling_code: str) -> str:
    """Return a pattern for a number; `key` is its digits, or digits and letters, without punctuation."""
    if len(key) < _CERTAIN_DIGITS:
        return _spread(key)
    if calling_code == _NORTH_AMERICA:
        return rf"(?:(?:\+|00)?1{_WIDE_GAP})?{_spread(key.removeprefix('1'))}"
    abroad = rf"(?:\+|00){calling_code}{_WIDE_GAP}(?:0{_WIDE_GAP})?{_spread(key.lstrip('0'))}"
    return rf"{_spread(key)}|{abroad}"


def _spread(key: str) -> str:
    return _WIDE_GAP.join(
        f"[{character}{character.lower()}]" if character.isalpha() else character for character in key
    )


def _any_of(patterns: set[str]) -> re.Pattern[str]:
    longest_first = sorted(patterns, key=lambda pattern: (-len(pattern), pattern))
    return re.compile(rf"\(?(?:{'|'.join(longest_first)})(?![0-9]|[.,:/%-][0-9])")


_CRISIS = re.compile(
    r"\bsuicid|\bself[- ]?harm|\bkill(ed|ing)? (my|him|her|them)sel(f|ves)"
    r"|\b(end(ed|ing)?|tak(e|ing)|took) (my|his|her|their) (own )?life\b|\bend(ed|ing)? it all\b"
    r"|\b(hurt|harm|cut)(ting|ing)? myself\b|\b(want|wish)(ed|ing|s)? (to die|(i|he|she) (was|were) dead)\b"
    r"|\bbetter off (dead|without me)\b"
    r"|\b(do not|don['\u2019]?t|not) want to (be alive|be here any ?more|live|wake up)\b",
    re.IGNORECASE,
)


def mentions_crisis(text: str) -> bool:
    """Return whether a text speaks of suicide or self-harm in plain words; a hint, not an assessment."""
    return _CRISIS.search(text) is not None


# --- Responses without contacts --------------------

_DIGIT = re.compile(r"[0-9]")
_NOT_IN_NUMBERS = "\N{WHITE SQUARE}"
_AFTER_ADDRESS = re.compile(r"[)\]\"”.]*\s+(?=[“\"'(¿¡]?[A-ZÀ-ÖØ-Þ])")
_BEFORE_ADDRESS = re.compile(r"[.!?…][)\]\"”\u2019]*\s+$")
# What leads up to a contact and means nothing without it.
_LEAD = re.compile(
    r"(?:[\s,;\u2013-]*\b(?:or|and|either|also))?"
    r"(?:[\s,;]*\b(?:(?:please )?(?:visit|see|check out|go to|look at|click|use|try|text|call)"
    r"|(?:on|at|via|through|from|by|in|is)(?: the| our| their| its| my)?(?: web ?site| site| page| link)?"
    r"|(?:the |our |their |its |my )?(?:web ?site|site|e-?mail|link)(?: at| is)?|online)){0,4}"
    r"[\s:,;(\[\u2013-]*$",
    re.IGNORECASE,
)
_LEAD_CHARS = 80
_ANNOUNCES = re.compile(
    r"\b(?:here(?:['\u2019]?s| is| are)|links?|web ?sites?|this (?:site|page|article|video|blog|post))\b", re.IGNORECASE
)
_EMPTY_BRACKETS = re.compile(r"\s*[(\[]\s*[,;/]?\s*[)\]]")
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[.,;!?](?:\s|$))")
_PLACEHOLDER = re.compile(r"\[(PHONE|EMAIL|URL)_([0-9]{1,6})\]")
_EMPTY_BULLET = re.compile(r"(?m)^[ \t]*(?:[-*•·\u2013—]|\(?[0-9]{1,2}[.)])[ \t]*$\n?")


def contacts_in(text: str, crisis: CrisisLines) -> list[Contact]:
    """Return the contacts of a text, sorted, without crisis lines."""
    found = web_addresses(text)
    if not _DIGIT.search(text):
        return found
    taken = [(contact.start, contact.end) for contact in found] + crisis.spans(text)
    return sorted([*found, *phone_numbers(blanked(text, taken, _NOT_IN_NUMBERS))], key=_start)


def with_placeholders(text: str) -> str:
    """Return the text with `[PHONE_1]` or `[URL_1]` for its contacts; equal ones share a number."""
    found = contacts_in(text, crisis_lines())
    if not found:
        return text
    last: dict[str, int] = {}
    for kind, number in _PLACEHOLDER.findall(text):
        last[kind] = max(last.get(kind, 0), int(number))
    placeholders: dict[tuple[str, str], str] = {}
    pieces: list[str] = []
    position = 0
    for kind, start, end in found:
        written = text[start:end].lower()
        if kind == "PHONE":
            bare = re.sub(r"[^0-9a-z]", "", written).removeprefix("1")
        else:
            bare = re.sub(r"^(?:mailto:|https?://)?(?:www\.)?", "", written).rstrip("/")
        key = kind, bare
        if key not in placeholders:
            last[kind] = last.get(kind, 0) + 1
            placeholders[key] = f"[{kind}_{last[kind]}]"
        pieces += [text[position:start], placeholders[key]]
        position = end
    return "".join([*pieces, text[position:]])


def without_contacts(text: str) -> str:
    """Return the text without sentences and lines that hold a contact; one with a crisis line loses only the others."""
    crisis = crisis_lines()
    found = contacts_in(text, crisis)
    if not found:
        return text
    lines = [start for start, _ in crisis.spans(text)]
    starts = [contact.start for contact in found]
    kept: list[tuple[str, bool]] = []  # a sentence, and whether it names a crisis line
    for start, end in pairwise(_edges(text, found)):
        piece = text[start:end]
        held = found[bisect_left(starts, start) : bisect_left(starts, end)]
        names_crisis_line = bisect_left(lines, start) < bisect_left(lines, end)
        if not held:
            kept.append((piece, names_crisis_line))
        elif names_crisis_line:
            spans = [(contact.start - start, contact.end - start) for contact in held]
            kept.append((_cut_out(piece, spans), True))
        else:
            if held[0].start == start and kept and not kept[-1][1] and _ANNOUNCES.search(kept[-1][0]):
                kept.pop()  # "Here is a link."
            kept.append((piece[len(piece.rstrip("\n")) :], False))
    while kept and not kept[-1][1] and kept[-1][0].rstrip()[-1:] in ("", ":"):
        kept.pop()  # a last heading such as "Resources:" with nothing under it
    return _EMPTY_BULLET.sub("", "".join(piece for piece, _ in kept)).strip()


def _edges(text: str, found: Sequence[Contact]) -> list[int]:
    """Return where sentences begin; an address after a full stop, and a capital after an address, begin one too."""
    edges = {0, len(text)}
    end = 0
    for piece in sentences(text):
        end += len(piece)
        edges.add(end)
    for contact in found:
        if (gap := _AFTER_ADDRESS.match(text, contact.end)) is not None:
            edges.add(gap.end())
        if _BEFORE_ADDRESS.search(text[max(0, contact.start - 8) : contact.start]):
            edges.add(contact.start)
    return sorted(edges)


def _cut_out(sentence: str, spans: Sequence[tuple[int, int]]) -> str:
    """Cut the spans out of a sentence, each with the words that lead up to it and the brackets around it."""
    kept: list[str] = []
    position = 0
    for start, end in spans:
        cut = max(position, start - _LEAD_CHARS)
        lead = sentence[cut:start]
        stripped = _LEAD.sub("", lead)
        kept += [sentence[position:cut], stripped]
        opened = lead[len(stripped) :].rstrip()[-1:]
        is_bracketed = opened in ("(", "[") and sentence[end : end + 1] in (")", "]")
        position = end + 1 if is_bracketed else end
    kept.append(sentence[position:])
    return _SPACE_BEFORE_MARK.sub("", _EMPTY_BRACKETS.sub("", "".join(kept)))
