"""Text -> Spans of postal addresses: street and number, post box, town with its code."""

import re
from collections.abc import Iterator

from psychocounsel.speeches.deidentification.spans import Span

_TYPES = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Pl|Way|Terrace|Ter|Circle|Cir"
    "|Highway|Hwy|Parkway|Pkwy|Square|Sq|Crescent|Close|Gardens|Grove|Mews|Row|Walk|Hill|Alley|Trail|Loop|Plaza"
)
_LOWER_TYPES = (
    "street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|place|terrace|circle|highway"
)
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
_TOWN_AND_ZIP = re.compile(
    rf"\b(?P<address>[A-Z][\w'-]+(?:\s[A-Z][\w'-]+){{0,2}},?\s(?:{_STATES}),?\s{_ZIP})"
)
_CUED_ZIP = re.compile(
    rf"\b(?:zip|zip ?code|post ?code|postal code)\s?(?:is|was|:)?\s(?P<address>{_ZIP})", re.IGNORECASE
)
_POST_BOX = re.compile(r"\b(?P<address>P\.?\s?O\.?\sBox\s\d{1,7})\b", re.IGNORECASE)
# The letters that British post codes leave out of their second half keep `B12 5MG` and `4PM` away.
_POST_CODE = re.compile(
    r"\b(?P<address>[A-Z]{1,2}\d[A-Z\d]?\s\d[ABD-HJLNP-UW-Z]{2}|[A-Z]\d[A-Z]\s\d[A-Z]\d)\b"
)


_NUMBER_AND_NAME = re.compile(r"\d[A-Za-z]?\s[A-Z\d]")
_CODE = re.compile(r"\d{5}|[A-Z]\d")
_HOME_SIGNS = ("live", "living", "stay", "address", "located", "reside", "moved")


def find_addresses(text: str, lowered: str) -> Iterator[Span]:
    """Find postal addresses; every one of them holds a digit. A town or a country alone stays."""
    if _NUMBER_AND_NAME.search(text):
        yield from _spans(_STREET, text, 0.8)
    if _CODE.search(text):
        yield from _spans(_TOWN_AND_ZIP, text, 0.85)
        yield from _spans(_POST_CODE, text, 0.7)
        yield from _spans(_CUED_ZIP, text, 0.8)
    if "box" in lowered:
        yield from _spans(_POST_BOX, text, 0.9)
    if any(sign in lowered for sign in _HOME_SIGNS):
        yield from _spans(_LIVED_AT, text, 0.7)


def _spans(pattern: re.Pattern[str], text: str, score: float) -> Iterator[Span]:
    return (Span(*match.span("address"), "ADDRESS", score) for match in pattern.finditer(text))
