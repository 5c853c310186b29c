"""Text -> spans of telephone numbers; ages, dates, prices, ranges and scores are none."""

import re

from psychocounsel.speeches.web_addresses import Contact

_GAP = r"[ .\-\u2013/·]{0,2}"
_EXTENSION = r"(?:,? ?(?:ext\.?|extension|x) ?[0-9]{1,5})?"
_NORTH_AMERICAN = (
    rf"(?:\+?1[ .\-\u2013]{{0,2}})?(?:\([2-9][0-9]{{2}}\)|[2-9][0-9]{{2}}){_GAP}[0-9]{{3}}{_GAP}[0-9]{{4}}"
)
_ABROAD = r"(?:\+|00)[1-9][0-9 .\-\u2013()/]{6,20}[0-9]"
_TRUNK = r"\(?0[1-9][0-9]{0,3}\)?[ .\-\u2013/]{1,2}[0-9][0-9 .\-\u2013]{4,11}[0-9]|0[1-9][0-9]{8,9}"
_FREEPHONE = r"1[38]00[ -]?[0-9]{3}[ -]?[0-9]{3}"
_TOLL_FREE = "8(?:00|33|44|55|66|77|88)"
_LETTERS = rf"1[-. ]{_TOLL_FREE}-[A-Za-z0-9][A-Za-z0-9-]{{5,11}}|1 {_TOLL_FREE}(?: [A-Z0-9]{{2,8}}){{1,3}}"
_NOT_BEFORE = r"(?<![0-9$€£+])(?<![0-9][.,:/\u2013-])"
_NOT_BEHIND = r"(?![0-9]|[.,:/%][0-9])"
_ANY_NUMBER = rf"(?:{_ABROAD}|{_NORTH_AMERICAN}|{_TRUNK}|{_FREEPHONE}){_EXTENSION}"
_NUMBER = re.compile(rf"{_NOT_BEFORE}{_ANY_NUMBER}{_NOT_BEHIND}|\b(?:{_LETTERS})\b")
# Any run of seven digits or more is a number to call where the text says so.
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
_MANY_DIGITS = re.compile(r"[0-9][^\n]{0,3}[0-9][^\n]{0,20}[0-9]")
_MIN_DIGITS, _MAX_DIGITS = 7, 15
_BOOK_LOOK_BACK_CHARS = 24


def phone_numbers(text: str) -> list[Contact]:
    """Return the telephone numbers of a text, in order and apart from each other.

    North American numbers, numbers with a country's code or a leading zero count anywhere; other runs of
    seven to fifteen digits where the text says to call them.
    """
    if not _MANY_DIGITS.search(text):
        return []
    spans = [match.span() for match in _NUMBER.finditer(text)]
    spans += [match.span("number") for match in _CALLED.finditer(text)]
    found: list[Contact] = []
    for start, end in sorted(spans):
        is_new = not found or start >= found[-1].end
        if is_new and _is_number(text, start, end):
            found.append(Contact("PHONE", start, end))
    return found


def _is_number(text: str, start: int, end: int) -> bool:
    run = text[start:end]
    if any(character.isalpha() for character in run) and "ext" not in run.lower():
        return True
    digits = sum(character.isdigit() for character in run)
    is_book = _BOOK.search(text, max(0, start - _BOOK_LOOK_BACK_CHARS), start)
    return _MIN_DIGITS <= digits <= _MAX_DIGITS and not _DATE.match(run) and not is_book
