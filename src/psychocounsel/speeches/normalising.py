"""Raw text -> clean text, or the reason why it must not be used."""

import re
import unicodedata

from psychocounsel.errors import InputError

_REFUSED = {"\x00": "a NUL character"}
_CONTROLS = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
# Directions that a text sets for its reader, marks without width, hyphens that only show at a line's end.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# Joiners form emoji and letters of Arabic or Indic scripts; between other characters they only hide.
_JOINERS = "\u200c\u200d"
_IDLE_JOINERS = re.compile(f"(?<![\u0590-\u1dff\u2190-\U0010ffff])[{_JOINERS}]+")
# Anything but one plain space, for most spaces need no change.
_SPACES = re.compile("[ \t\u00a0\u2007\u202f](?:[ \t\u00a0\u2007\u202f]+|(?<! ))")
_UNTIDY = (" \n", "\n ", "\n\n\n")
_BLANK_LINES = re.compile(r"\n{3,}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def refusal(text: str) -> str | None:
    """Return what in a text no table can hold: a NUL or a lone surrogate; None when it is fine."""
    if not text.isascii() and _SURROGATE.search(text):
        return "a lone surrogate"
    return next((name for character, name in _REFUSED.items() if character in text), None)


def normalise(text: str) -> str:
    """Return the text in Unicode NFC with plain spaces and line feeds, outer space removed.

    Emoji with joiners, right-to-left letters and U+2028 stay as they are; other control characters, marks of
    direction, characters without width and soft hyphens go.
    """
    visible = _CONTROLS.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    if not visible.isascii():
        visible = _composed(visible)
    spaced = _SPACES.sub(" ", visible)
    if any(sign in spaced for sign in _UNTIDY):
        spaced = _BLANK_LINES.sub("\n\n", "\n".join(line.strip(" ") for line in spaced.split("\n")))
    return spaced.strip()


def _composed(text: str) -> str:
    # Only after invisible characters are gone, for one of them may have parted a letter from its accent;
    # and before joiners are judged, for composing may change the letter that a joiner stands behind.
    composed = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    if any(joiner in composed for joiner in _JOINERS):
        composed = unicodedata.normalize("NFC", _IDLE_JOINERS.sub("", composed))
    return composed


def clean_text(value: object, column: str, where: str) -> str:
    """Return a cell of a source as clean text; a null is an empty one.

    Raises:
        InputError: the cell holds no text, or text that no table can hold.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{column!r} is {type(value).__name__}, not text", where=where, remedy="quote it, or drop the row"
        )
    fault = refusal(value)
    if fault is not None:
        raise InputError(f"{column!r} holds {fault}", where=where, remedy="remove it, or drop the row")
    return normalise(value)
