"""Phone numbers, e-mail and web addresses in a text."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING

from phonenumbers import Leniency, PhoneNumberMatcher

from psychocounsel.corpus.text import Span, blanked, touches

if TYPE_CHECKING:
    from tldextract import TLDExtract

_ADDRESS_SCORE, _PHONE_SCORE = 0.9, 0.8
_start = itemgetter(0)


def holds(contacts: Sequence[Span | tuple[int, int]], position: int) -> bool:
    """Return whether a position lies in one of the contacts, which are sorted and do not overlap."""
    at = bisect_right(contacts, position, key=_start) - 1
    return at >= 0 and position < contacts[at][1]


# --- E-mail and web addresses --------------------

# Top-level domains that are no words count alone. Any other counts with a path only: "help.me" lacks a space.
_GENERIC = "com org net edu gov mil info biz"
_COUNTRIES = "io ca uk au nz ie de fr es nl ch eu co app dev"


def _any_case(words: str) -> str:
    return "|".join(f"{word}|{word.title()}|{word.upper()}" for word in words.split())


# In "example.com.it is", a space is missing.
_OF_COUNTRY = r"\.(?!(?:am|an|as|be|by|go|he|if|is|it|me|no|of|on|or|so|to|up|us|we)\b)[a-z]{2}(?![A-Za-z0-9_-])"
_SURE_ENDING = f"(?:{_any_case(_GENERIC)}|{'|'.join(_COUNTRIES.split())})(?:{_OF_COUNTRY})?"
# Scripts that need no space beside an address, and their marks: where they begin, it ends.
UNSPACED = re.compile("[\u0e00-\u0eff\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
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
    r"(?:mailto:)?[^\W_][\w.%+'\u2019-]{0,63}@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}"
    r"|[\w.+-]{1,63} ?[\[({] ?at ?[\])}] ?[\w-]{1,63} ?(?:[\[({] ?dot ?[\])}]|\.) ?[A-Za-z]{2,24}\b"
    r"|[\w+-]{1,30}(?:(?: dot |\.)[\w+-]{1,30}){0,3} at (?:[\w-]{1,63} dot (?:com|org|net|edu)"
    r"|(?:gmail|yahoo|hotmail|outlook|icloud|proton|aol)(?:mail)? ?(?:\.|dot ) ?com)\b",
    re.IGNORECASE,
)
_MAIL_SIGNS = ("@", ".com", " dot ", "at]", "at)")  # in lower case
_WEB_SIGNS = ("://", "www.", "WWW.", "Www.")
_MAY_END = re.compile(rf"\.(?:{_SURE_ENDING}(?![a-z])|[a-z]{{2,24}}/)")
_NEXT_ADDRESS = re.compile(r"(?<=.)(?:https?://|(?<!/)www\.)", re.IGNORECASE)
# A sentence that begins without a space: `example.org/helpI hope`.
_STARTS = (
    "I|If|It|In|A|As|At|The|This|That|There|These|What|When|You|Your|We|My|Be|Some|One|For|To|And|But|So|Once|Now|Hope"
    "|Here|Another|After|Besides|Also"
)
_GLUED_WORD = re.compile(
    r"(?<=[a-z0-9])(?:[AI]|[A-Z][a-z'\u2019]+)$|[A-Z][a-z'\u2019]+,$"
    rf"|(?<=[/.)])(?:{_STARTS})(?:['\u2019][a-z]+)?$"
)
# "dQw4w9WgXcQ", "1lrwyCu", "JaneRoe", "to%2Fhelp" have no word glued to them, "dQw4w9WgXcOne" and "10-waysHope" have.
_GOES_ON = re.compile(r"[/=](?:(?:[\w-]*[a-z0-9][A-Z]|@?[A-Z])[\w-]*|\w*[0-9]\w*)$|%[0-9A-Fa-f]{1,2}$")
_TRAILING = ".,;:!?'\"\u2019*_~"


@lru_cache(maxsize=10_000)
def is_host(name: str) -> bool:
    """Return whether a name ends in a public suffix, by the list that comes with tldextract: no network."""
    return bool(_suffixes()(name).suffix)


@cache
def _suffixes() -> "TLDExtract":
    from tldextract import TLDExtract  # its imports take a tenth of a second; few texts need it

    return TLDExtract(cache_dir=None, suffix_list_urls=())


@lru_cache(maxsize=16)  # one cleaning step after the other looks at the same text
def web_addresses(text: str) -> Sequence[Span]:
    """Return the e-mail and web addresses of a text, sorted and without overlap.

    A web address has a scheme, a `www.`, a well-known ending, or any public suffix and a path. A sentence that
    follows without a space is not part of it, as in `example.org/helpI hope`.
    """
    lowered = text.lower()
    may_hold_mail = any(sign in lowered for sign in _MAIL_SIGNS)
    if not (may_hold_mail or any(sign in text for sign in _WEB_SIGNS) or _MAY_END.search(text)):
        return []
    found: list[Span] = []
    text = UNSPACED.sub(" ", text)
    for match in _EMAIL.finditer(text) if may_hold_mail else ():
        glued = _GLUED_WORD.search(match.group())
        length = glued.start() if glued and "." in match.group()[: glued.start()] else len(match.group())
        found.append(Span(match.start(), match.start() + length, "EMAIL", _ADDRESS_SCORE))
    # Mail addresses are blanked, so that their domains do not count again.
    rest = blanked(text, found)
    position = 0
    while match := _URL.search(rest, position):
        if match["unsure"] and not is_host(match["host"]):
            position = match.end("host")
            continue
        found.append(_url(match))
        position = found[-1].end
    return sorted(found, key=_start)


def _url(match: re.Match[str]) -> Span:
    run = match.group()
    if (following := _NEXT_ADDRESS.search(run)) is not None:
        run = run[: following.start()]
    brackets = (at for at, each in enumerate(run) if each == ")")  # one that was opened before the address ends it
    run = run[: next((at for at in brackets if run.count(")", 0, at) == run.count("(", 0, at)), len(run))]
    glued = _GLUED_WORD.search(run)
    if glued is not None and glued.start() > 0 and (match["path"] or "/" in run or match["long"]):
        goes_on = _GOES_ON.search(run[: glued.start()]) and not re.match(rf"(?:{_STARTS})\b", glued.group())
        run = run if goes_on else run[: glued.start()]
    return Span(match.start(), match.start() + len(run.rstrip(_TRAILING)), "URL", _ADDRESS_SCORE)


# --- Phone numbers --------------------

# In numbers only: digits of other scripts, and hyphens that break no line, as models write them.
_SIGNS: dict[str, str] = dict(zip("\u2010\u2011\u2012\u2212\uff0d\uff08\uff09\uff0b", "-----()+", strict=True))
_OTHER_SIGN = re.compile(rf"[{''.join(_SIGNS)}]|(?![0-9])\d")


def with_ascii_numbers(text: str) -> str:
    """Return the text with ASCII for digits of other scripts, dashes and wide brackets; all keep their places."""
    if text.isascii():
        return text
    return _OTHER_SIGN.sub(lambda sign: _SIGNS.get(sign.group()) or str(int(sign.group())), text)


# North America for every run of digits, the others where it begins as theirs do at home.
_HOME_REGION = "US"
_REGIONS_ABROAD = ("GB", "IE", "FR", "BE", "NL", "DE", "AT", "CH", "AU", "NZ", "ZA", "IN", "JP", "KR")
_BEGINS_ABROAD = re.compile(r"\(?0|1[38]00")
_NOT_BEFORE = r"(?<![0-9$€£+])(?<![0-9][.,:/\u2013-])"
_NOT_BEHIND = r"(?![0-9]|[.,:/%][0-9])"
_DIGITS = r"[+(]{0,2}[0-9][0-9 .\-\u2013()/·]{5,400}[0-9]"
_NO_ITEM = r"(?!^[0-9]{1,2}[.)] )"  # in "1. 020 7946 0958" the 1 is no part of it
_RUN = re.compile(rf"(?m){_NOT_BEFORE}{_NO_ITEM}{_DIGITS}(?:,? ?(?:ext\.?|extension|x) ?[0-9]{{1,5}})?{_NOT_BEHIND}")
# Grouped as in North America, with a country's code, or of a mobile in China: a number whether or not it is assigned.
_GAP = r"[ .\-\u2013/·]"
_GROUPED = re.compile(
    rf"(?<![0-9])(?:\+?1{_GAP}{{0,2}})?"
    rf"(?:\([2-9][0-9]{{2}}\){_GAP}?|[2-9][0-9]{{2}}{_GAP}{{1,2}})[0-9]{{3}}{_GAP}{{1,2}}[0-9]{{4}}"
    r"|(?<![0-9])(?:\+|00)[1-9][0-9 .\-\u2013()/]{6,20}[0-9](?![0-9])(?<!\([0-9]{3})"
    rf"|(?<![0-9])1[3-9][0-9](?:{_GAP}?[0-9]{{4}}){{2}}(?![0-9])"
)
_TOLL_FREE = "8(?:00|33|44|55|66|77|88)"
_VANITY = re.compile(
    rf"(?a:\b)(?:1[-.]{_TOLL_FREE}(?=[-.A-Za-z0-9]{{6}})(?:[-.][A-Za-z0-9]{{1,11}}){{1,4}}"
    rf"|1 {_TOLL_FREE}(?:[ -][A-Z0-9]{{2,8}}){{1,3}})(?a:\b)"
)
# What is done with a number, or has one, in other languages than English.
CALLED_ABROAD = (
    r"\b(?:anruf\w*|ruf(?:e|en|t|st|nummer\w*)?|nummer\w*|ll[aá]m\w+|marc(?:a|ar|ando|ad)|marque\w*|appel\w*"
    r"|lig(?:a|am|ar|o|ou|ue|uem)|bel|n[uú]mero|num[ée]ro|t[ée]l[ée]f\w+|tél|chiam\w+|zadzwoń|zavolej\w*"
    r"|soita\w*|sun[aă]\w*|hívd|hívj\w+|nazovite|pokličite|aray\u0131n|hubungi|tawag\w*|телефон\w*|звон\w+|позвон\w+)\b"
    r"|[电電]话|電話|[联聯][系繫]|热线|[熱專]線|拨打|撥打|致电|전화|상담|โทร"
    r"|اتصل|الخط|رقم|هاتف|हेल्पलाइन|फ़?ोन|नंबर|התקשר"
)
_OWN_PHONE_ABROAD = r"\b(?:handy\w*|celular|cellulare|m[óo]vil)\b|手[机機]|QQ|جوال|मोबाइल"  # no crisis service has one
# Any run of seven digits or more is a number where the text says to call it.
_CALLED = re.compile(
    r"(?:\b(?:call|calling|called|calls|phone|telephone|tel|cell|mobile|fax|ring|text|texting|whatsapp|sms|dial|contact|hotline"
    rf"|helpline|reach (?:me|us|him|her|them)|number is)\b|{CALLED_ABROAD}|{_OWN_PHONE_ABROAD})[^0-9\n]{{0,30}}?"
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


@lru_cache(maxsize=16)
def phone_numbers(text: str) -> Sequence[Span]:
    """Return the telephone numbers of a text, sorted and without overlap, the longest at each place.

    A number is one that `phonenumbers` holds valid in North America, with a country's code, or as it is dialled
    in some other countries; one grouped as in North America; one spelt in letters; and any other run of seven
    to fifteen digits where the text says to call it.
    """
    text = with_ascii_numbers(text)
    if not _MANY_DIGITS.search(text):
        return []
    digits: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        digits += [(run.start() + start, run.start() + end) for start, end in _numbers_in(run.group())]
    called = [match.span("number") for match in _CALLED.finditer(text)]  # may reach into the next number
    digits += [span for span in called if not touches(*span, digits)]
    spans = [match.span() for match in _VANITY.finditer(text)]
    spans += [
        (start, end)
        for start, end in digits
        if _MIN_DIGITS <= sum(map(str.isdigit, text[start:end])) <= _MAX_DIGITS
        and not _DATE.match(text, start, end)  # 04.03.1990 is a number in France
        and not _BOOK.search(text, max(0, start - _BOOK_LOOK_BACK_CHARS), start)
    ]
    found: list[Span] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not found or start >= found[-1].end:
            is_inside = text[start] == "(" and ")" not in text[start:end]  # "my office (514-690-2469)"
            found.append(Span(start + is_inside, end, "PHONE", _PHONE_SCORE))
    return found


@lru_cache(maxsize=10_000)
def _numbers_in(run: str) -> list[tuple[int, int]]:
    spans = [match.span() for match in _GROUPED.finditer(run)]
    for region in (_HOME_REGION, *(_REGIONS_ABROAD if _BEGINS_ABROAD.match(run) else ())):
        if found := [(each.start, each.end) for each in PhoneNumberMatcher(run, region, Leniency.VALID)]:
            return [*spans, *found]
    return spans
