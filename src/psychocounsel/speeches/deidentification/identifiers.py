"""Text -> Spans of numbers that stand for a person: ids of authorities, cards, accounts, dates of birth."""

import re
from collections.abc import Iterator

from psychocounsel.speeches.deidentification.spans import Span

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


def find_id_numbers(text: str) -> Iterator[Span]:
    """Find social security numbers and cards by their form, other numbers by the word before them."""
    yield from (Span(*match.span(), "ID_NUMBER", 0.9) for match in _SSN.finditer(text))
    for match in _CARD.finditer(text):
        if passes_luhn(match.group()):
            yield Span(*match.span(), "ID_NUMBER", 0.9)
    for match in _CUED.finditer(text):
        enough = _CUED_DIGITS if match["sure"] or match["number"] else _BARE_DIGITS
        if _digits(match["value"]) >= enough:
            yield Span(*match.span("value"), "ID_NUMBER", 0.85)


def _digits(value: str) -> int:
    return sum(character.isdigit() for character in value)


def passes_luhn(number: str) -> bool:
    """Whether the last digit checks the others, as on bank cards (ISO/IEC 7812-1, annex B)."""
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


def find_birth_dates(text: str, lowered: str) -> Iterator[Span]:
    """Find a day beside words such as `born` or `birthday`; a year or a month alone stays."""
    if not any(sign in lowered for sign in _BIRTH_SIGNS):
        return
    for match in _BIRTH.finditer(text):
        yield Span(*match.span("after" if match["after"] else "before"), "DATE_OF_BIRTH", 0.85)
