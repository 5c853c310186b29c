"""De-identification by patterns and lists of names; needs no extra package."""

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from psychocounsel.config.schema import DeidentificationConfig, Entity
from psychocounsel.corpus.contacts import CrisisLines, crisis_lines, phone_numbers, web_addresses
from psychocounsel.corpus.deidentify import Deidentifier, Fingerprint, Span
from psychocounsel.corpus.deidentify.names import LISTS_DIGEST, find_people

_MAIL_HOSTS = ("gmail", "yahoo", "hotmail", "outlook", "icloud", "proton", "aol")
_SPOKEN_EMAIL = re.compile(
    r"(?<![\w.])[\w+-]{1,30}(?:(?: dot |\.)[\w+-]{1,30}){0,3}\s?(?:\bat\b|\(at\)|\[at\])\s?"
    rf"(?:{'|'.join(_MAIL_HOSTS)})(?:mail)?\s?(?:\.|dot\b|\(dot\)|\[dot\])\s?com\b",
    re.IGNORECASE,
)


def _internet_addresses(text: str, lowered: str) -> Iterator[Span]:
    """Yield e-mail addresses, also as `sam dot lee at gmail dot com`, and web addresses."""
    for contact in web_addresses(text):
        yield Span(contact.start, contact.end, contact.kind, 0.9)
    if any(host in lowered for host in _MAIL_HOSTS):
        yield from (Span(*match.span(), "EMAIL", 0.85) for match in _SPOKEN_EMAIL.finditer(text))


_LOCAL_PHONE = re.compile(
    r"\b(?:call|text|phone|cell|mobile|number|reach|dial|ring|rang|tel)\w*\b[^.!?\n\d]{0,40}"
    r"(?<![\w$-])(?P<number>\d{3}[-.]\d{4})(?![\w-])",
    re.IGNORECASE,
)


def _phones(text: str) -> Iterator[Span]:
    """Yield phone numbers; one of seven digits needs a word such as `called` before it."""
    yield from (Span(contact.start, contact.end, "PHONE", 0.8) for contact in phone_numbers(text))
    yield from (Span(*match.span("number"), "PHONE", 0.7) for match in _LOCAL_PHONE.finditer(text))


_HANDLE = re.compile(r"(?<![\w@.&/$-])@[^\W\d]\w{2,29}(?:\.\w{1,29})*(?![\w@])")
_TAG = re.compile(r"(?<!\w)[\w.]{2,32}#\d{4}(?!\w)")
_SITES = "insta snap twitter tiktok discord reddit tumblr facebook username handle account".split()  # noqa: SIM905
# A plain word after `my snapchat is` may be anything; a digit, a dot or an underscore makes it an account.
_NAMED_HANDLE = re.compile(
    r"\b(?:insta(?:gram)?|snap(?:chat)?|twitter|tik ?tok|discord|reddit|tumblr|facebook|user ?name|handle"
    r"|account)(?:\s(?:user ?name|handle|name|account|id))?(?:\sis|:|,)\s"
    r"(?=[\w.]*[\d_.]\w)(?=[\d_.]*[^\W\d_])(?P<handle>\w+(?:\.\w+)*)",
    re.IGNORECASE,
)


def _handles(text: str, lowered: str) -> Iterator[Span]:
    """Yield names of accounts: `@quiet_riot`, `nightowl#4471`, `my snapchat is quiet_riot22`."""
    if "@" in text:
        yield from (Span(*match.span(), "HANDLE", 0.85) for match in _HANDLE.finditer(text))
    if "#" in text:
        yield from (Span(*match.span(), "HANDLE", 0.8) for match in _TAG.finditer(text))
    if any(site in lowered for site in _SITES):
        yield from (Span(*match.span("handle"), "HANDLE", 0.8) for match in _NAMED_HANDLE.finditer(text))


_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[0-9a-f:]*[0-9])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?![\w:]|\.\d)",
    re.IGNORECASE,
)
_SHORTEST_IP_CHARS = 6


def _ips(text: str) -> Iterator[Span]:
    for match in _IP.finditer(text):
        if len(match.group()) >= _SHORTEST_IP_CHARS:
            try:
                ip_address(match.group())
            except ValueError:
                continue
            yield Span(*match.span(), "IP", 0.9)


_SSN = re.compile(r"(?<![\w-])(?!000|666)\d{3}(?P<gap>[- ])(?!00)\d{2}(?P=gap)(?!0000)\d{4}(?![\w-])")
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


def _id_numbers(text: str) -> Iterator[Span]:
    """Yield social security numbers and cards by their form, other numbers by the word before them."""
    yield from (Span(*match.span(), "ID_NUMBER", 0.9) for match in _SSN.finditer(text))
    for match in _CARD.finditer(text):
        if _passes_luhn(match.group()):
            yield Span(*match.span(), "ID_NUMBER", 0.9)
    for match in _CUED.finditer(text):
        enough = _CUED_DIGITS if match["sure"] or match["number"] else _BARE_DIGITS
        if sum(map(str.isdigit, match["value"])) >= enough:
            yield Span(*match.span("value"), "ID_NUMBER", 0.85)


def _passes_luhn(number: str) -> bool:
    """Return whether the last digit checks the others, as on bank cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in number if character.isdigit()]
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
_BIRTH_SIGNS = ("born", "birth", "dob", "d.o.b", "turn")


def _birth_dates(text: str, lowered: str) -> Iterator[Span]:
    """Yield a day near words such as `born` or `birthday`; a year or a month alone stays."""
    for match in _BIRTH.finditer(text) if any(sign in lowered for sign in _BIRTH_SIGNS) else ():
        yield Span(*match.span("after" if match["after"] else "before"), "DATE_OF_BIRTH", 0.85)


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


_NUMBER_AND_NAME = re.compile(r"\d[A-Za-z]?\s[A-Z\d]")
_CODE = re.compile(r"\d{5}|[A-Z]\d")
_HOME_SIGNS = ("live", "living", "stay", "address", "located", "reside", "moved")


def _postal_addresses(text: str, lowered: str) -> Iterator[Span]:
    """Yield postal addresses; every one contains a digit. A town or a country alone stays."""
    if _NUMBER_AND_NAME.search(text):
        yield from _matches(_STREET, text, 0.8)
    if _CODE.search(text):
        yield from _matches(_TOWN_AND_ZIP, text, 0.85)
        yield from _matches(_POST_CODE, text, 0.7)
        yield from _matches(_CUED_ZIP, text, 0.8)
    if "box" in lowered:
        yield from _matches(_POST_BOX, text, 0.9)
    if any(sign in lowered for sign in _HOME_SIGNS):
        yield from _matches(_LIVED_AT, text, 0.7)


def _matches(pattern: re.Pattern[str], text: str, score: float) -> Iterator[Span]:
    return (Span(*match.span("address"), "ADDRESS", score) for match in pattern.finditer(text))


VERSION = 2
# Signs without which the slower patterns cannot match; most texts have none.
_DIGIT = re.compile(r"[0-9]")
_FOUR_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,3}[0-9]){3}")
_SIX_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){5}")
_IP_SIGN = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:")
_NET_SIGN = re.compile(r"\.[A-Za-z]")
_NET_SIGNS = ("@", "://", "www", " dot ", "at)", "at]")
_NUMBERS = ("PHONE", "ID_NUMBER")


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
    lowered = text.lower()
    yield from find_people(text)
    has_digit = _DIGIT.search(text) is not None
    has_net_sign = _NET_SIGN.search(text) is not None or any(sign in lowered for sign in _NET_SIGNS)
    if has_net_sign:
        yield from _internet_addresses(text, lowered)
    if has_net_sign or has_digit or "_" in text:
        yield from _handles(text, lowered)
    if not has_digit:
        return
    yield from _birth_dates(text, lowered)
    yield from _postal_addresses(text, lowered)
    if _FOUR_DIGITS.search(text):
        yield from _id_numbers(text)
        if _IP_SIGN.search(text):
            yield from _ips(text)
        if _SIX_DIGITS.search(text):
            yield from _phones(text)


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


def open_deidentifier(config: DeidentificationConfig, crisis: CrisisLines | None = None) -> Deidentifier | None:
    """Return the configured engine, or None for `engine: none`; `crisis` defaults to the bundled lines.

    Raises:
        ConfigError: the engine or its pipeline is not installed.
    """
    if config.engine == "none":
        return None
    crisis = crisis or crisis_lines()
    patterns = PatternDeidentifier(config.entities, config.min_score, crisis)
    if config.spacy_model is None:
        return patterns
    from psychocounsel.corpus.deidentify.presidio import PresidioDeidentifier

    return PresidioDeidentifier(patterns, config.spacy_model, config.entities, config.min_score, crisis)
