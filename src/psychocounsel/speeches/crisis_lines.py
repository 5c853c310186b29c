"""crisis_lines.yaml -> CrisisLines: the telephone numbers that no cleaning takes from a text."""

import re
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from psychocounsel.config.base import Settings
from psychocounsel.config.loading import load_config

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
    """The whole list, as it is written."""

    countries: Annotated[tuple[Country, ...], Field(strict=False, min_length=1)]


class CrisisLines:
    """Finds listed numbers in texts, whatever their punctuation."""

    def __init__(self, file: CrisisLinesFile) -> None:
        unsure: set[str] = set()
        certain: set[str] = set()
        for country in file.countries:
            for number in (number for line in country.lines for number in line.numbers):
                keys = _keys(number)
                is_unsure = len(keys[0]) < _CERTAIN_DIGITS
                (unsure if is_unsure else certain).update(_pattern(key, country.calling_code) for key in keys)
        self._unsure = _any_of(unsure)
        self._certain = _any_of(certain)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where listed numbers stand, as (start, end) in order.

        A number of fewer than six digits counts near words such as "call" or "hotline" only.
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
    """Read a list of crisis lines, by default the bundled one.

    Raises:
        ConfigError: the file is no such list; names each fault with its line.
    """
    return CrisisLines(load_config(CrisisLinesFile, path))


def names_crisis_line(text: str, begin: int = 0) -> bool:
    """Say whether a text names a bundled crisis line at or behind a position."""
    if _NUMBER_BEGINS.search(text, begin) is None:
        return False
    return any(end > begin for _, end in crisis_lines().spans(text))


def _keys(number: str) -> tuple[str, ...]:
    """Return the number in digits and, where it has letters, as it is written too; without punctuation."""
    written = re.sub(r"[^0-9A-Z]", "", number)
    digits = written.translate(_KEYPAD)
    return (digits,) if digits == written else (digits, written)


def _pattern(key: str, calling_code: str) -> str:
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
