"""De-identification by patterns and lists of names; needs no extra package."""

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from psychocounsel.config.schema import Entity
from psychocounsel.corpus.contacts import CrisisLines, phone_numbers, web_addresses
from psychocounsel.corpus.deidentify import Fingerprint, Span
from psychocounsel.corpus.deidentify.names import LISTS_DIGEST, find_people

_MAIL_HOSTS = ("gmail", "yahoo", "hotmail", "outlook", "icloud", "proton", "aol")
_SPOKEN_EMAIL = re.compile(
    r"(?<![\w.])[\w+-]{1,30}(?:(?: dot |\.)[\w+-]{1,30}){0,3}\s?(?:\bat\b|\(at\)|\[at\])\s?"
    rf"(?:{'|'.join(_MAIL_HOSTS)})(?:mail)?\s?(?:\.|dot\b|\(dot\)|\[dot\])\s?com\b",
    re.IGNORECASE,
)


_LOCAL_PHONE = re.compile(
    r"\b(?:call|text|phone|cell|mobile|number|reach|dial|ring|rang|tel)\w*\b[^.!?\n\d]{0,40}"
    r"(?<![\w$-])(?P<number>\d{3}[-.]\d{4})(?![\w-])",
    re.IGNORECASE,
)


_HANDLE = re.compile(r"(?<![\w@.&/$-])@[^\W\d]\w{2,29}(?:\.\w{1,29})*(?![\w@])")
_TAG = re.compile(r"(?<!\w)[\w.]{2,32}#\d{4}(?!\w)")
_SITES = (
    "insta", "snap", "twitter", "tiktok", "discord", "reddit", "tumblr", "facebook", "username", "handle", "account"
)  # fmt: skip
# A plain word after `my snapchat is` may be anything; a digit, a dot or an underscore makes it an account.
_NAMED_HANDLE = re.compile(
    r"\b(?:insta(?:gram)?|snap(?:chat)?|twitter|tik ?tok|discord|reddit|tumblr|facebook|user ?name|handle"
    r"|account)(?:\s(?:user ?name|handle|name|account|id))?(?:\sis|:|,)\s"
    r"(?=[\w.]*[\d_.]\w)(?=[\d_.]*[^\W\d_])(?P<handle>\w+(?:\.\w+)*)",
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
    r"|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:,?\s(?:19|20)\d{2})?"
_DATE = (
    r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[/.-]\d{1,2}(?:[/.-]\d{2,4})?"
    rf"|{_MONTH}\s(?:the\s)?{_DAY}\b{_YEAR}|{_DAY}\s(?:of\s)?{_MONTH}{_YEAR})"
    r"(?!\w|[/-]\d| (?:years?|months?|weeks?|days?)\b)"
)
_BIRTH = re.compile(
    r"\b(?:born|date of birth|birth ?date|birthday|dob\b|d\.o\.b\b|turn(?:s|ed|ing)? \d{1,3} on)"
    rf"[^.!?\n\d]{{0,20}}\.?[^.!?\n\d]{{0,4}}(?<![\w/])(?P<after>{_DATE})"
    rf"|(?<![\w/])(?P<before>{_DATE})\s(?:is|was)\s(?:my|his|her|our|their)\s[^.!?\n\d]{{0,20}}birthday",
    re.IGNORECASE,
)


_TYPES = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Pl|Way|Terrace|Ter|Circle|Cir"
    "|Highway|Hwy|Parkway|Pkwy|Square|Sq|Crescent|Close|Gardens|Grove|Mews|Row|Walk|Hill|Alley|Trail|Loop|Plaza"
)
_LOWER_TYPES = "street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|place|terrace|circle|highway"
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR"
    "|PA|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC"
)
_NAME = r"[A-Z][\w'\u2019-]*"
_ZIP = r"\d{5}(?:-\d{4})?\b"
_UNIT = r"(?:\.?,?\s(?:(?i:apt|apartment|unit|suite|ste|flat|room)\b\.?\s?#?|#\s?)\w{1,5})?"
_TOWN = rf"(?:\.?,\s{_NAME}(?:\s{_NAME}){{0,2}},?\s(?:{_STATES})\b(?:\s{_ZIP})?)?"

_STREET = re.compile(
    r"(?<![\w.,/$:-])(?P<address>\d{1,6}[A-Za-z]?\s(?:[NSEW]\.?\s|(?:North|South|East|West)\s)?"
    rf"(?:\d{{1,3}}(?:st|nd|rd|th)|{_NAME})(?:\s{_NAME}){{0,3}}?\s(?:{_TYPES})\b{_UNIT}{_TOWN})"
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


VERSION = 2
# What a text must contain for the slower patterns to match; most texts do not.
_DIGIT = re.compile(r"[0-9]")
# Without a digit, an address or an account has one of these.
_NET_SHAPE = re.compile(r"\.[A-Za-z]")
_NET_SIGNS = ("@", "_", "://", "www", " dot ", "at)", "at]")
_SHAPES = {
    "four digits": re.compile(r"[0-9](?:[^0-9]{0,3}[0-9]){3}"),
    "six digits": re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){5}"),
    "ip": re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:"),
    "handle": re.compile(r"[0-9_]|\.\w"),
    "number and name": re.compile(r"\d[A-Za-z]?\s[A-Z\d]"),
    "code": re.compile(r"\d{5}|[A-Z]\d"),
}
_NUMBERS = ("PHONE", "ID_NUMBER")


class _Rule(NamedTuple):
    """A pattern, whose named group is the find, or else the whole match.

    Attributes:
        shape: key of `_SHAPES` that the text must contain, empty for none.
        words: one of them must be in the text in lower case, if there are any.
        is_valid: checks a match.
    """

    entity: Entity
    score: float
    pattern: re.Pattern[str]
    shape: str
    words: tuple[str, ...] = ()
    is_valid: Callable[[re.Match[str]], bool] = bool


_RULES = (
    _Rule("EMAIL", 0.85, _SPOKEN_EMAIL, "", _MAIL_HOSTS),
    _Rule("HANDLE", 0.85, _HANDLE, "", ("@",)),
    _Rule("HANDLE", 0.8, _TAG, "", ("#",)),
    _Rule("HANDLE", 0.8, _NAMED_HANDLE, "handle", _SITES),
)
_RULES_FOR_DIGITS = (
    _Rule("DATE_OF_BIRTH", 0.85, _BIRTH, "", ("born", "birth", "dob", "d.o.b", "turn")),
    _Rule("ADDRESS", 0.8, _STREET, "number and name"),
    _Rule("ADDRESS", 0.85, _TOWN_AND_ZIP, "code"),
    _Rule("ADDRESS", 0.7, _POST_CODE, "code"),
    _Rule("ADDRESS", 0.8, _CUED_ZIP, "code"),
    _Rule("ADDRESS", 0.9, _POST_BOX, "", ("box",)),
    _Rule("ADDRESS", 0.7, _LIVED_AT, "", ("live", "living", "stay", "address", "located", "reside", "moved")),
    _Rule("ID_NUMBER", 0.9, _SSN, "four digits"),
    _Rule("ID_NUMBER", 0.9, _CARD, "four digits", (), _passes_luhn),
    _Rule("ID_NUMBER", 0.85, _CUED, "four digits", (), _has_enough_digits),
    _Rule("IP", 0.9, _IP, "ip", (), _is_ip),
    _Rule("PHONE", 0.7, _LOCAL_PHONE, "six digits"),
)


class PatternDeidentifier:
    """Finds people by cues and lists of names, everything else by its form.

    Args:
        entities: what to find.
        min_score: finds with a lower score, in 0 to 1, are left out.
        crisis: lines that are no finds.
    """

    def __init__(self, entities: Sequence[Entity], min_score: float, crisis: CrisisLines) -> None:
        self._entities = frozenset(entities)
        self._min_score = min_score
        self._crisis = crisis

    @property
    def fingerprint(self) -> Fingerprint:
        """Engine, version, entities and threshold."""
        return {
            "engine": "patterns",
            "version": str(VERSION),
            "lists": LISTS_DIGEST,
            "entities": sorted(self._entities),
            "min_score": self._min_score,
        }

    def find(self, text: str) -> list[Span]:
        """Return the finds of all patterns; they may overlap."""
        found = [span for span in _all_finds(text) if span.entity in self._entities and span.score >= self._min_score]
        return without_crisis_lines(text, found, self._crisis)


def _all_finds(text: str) -> Iterator[Span]:
    yield from find_people(text)
    lowered = text.lower()
    has_digit = _DIGIT.search(text) is not None
    if not has_digit and not _NET_SHAPE.search(text) and not any(sign in lowered for sign in _NET_SIGNS):
        return
    yield from (Span(each.start, each.end, each.kind, 0.9) for each in web_addresses(text))
    if has_digit:
        yield from (Span(each.start, each.end, "PHONE", 0.8) for each in phone_numbers(text))
    shapes = {"": True}
    for rule in (*_RULES, *_RULES_FOR_DIGITS) if has_digit else _RULES:
        if rule.words and not any(word in lowered for word in rule.words):
            continue
        if rule.shape not in shapes:
            shapes[rule.shape] = _SHAPES[rule.shape].search(text) is not None
        for match in rule.pattern.finditer(text) if shapes[rule.shape] else ():
            if rule.is_valid(match):
                yield Span(*match.span(match.lastgroup or 0), rule.entity, rule.score)


def without_crisis_lines(text: str, spans: list[Span], crisis: CrisisLines) -> list[Span]:
    """Return the finds without the numbers of crisis lines, which stay in every text."""
    if not any(span.entity in _NUMBERS for span in spans):
        return spans
    lines = crisis.spans(text)
    return [
        span
        for span in spans
        if span.entity not in _NUMBERS or not any(start < span.end and span.start < end for start, end in lines)
    ]
