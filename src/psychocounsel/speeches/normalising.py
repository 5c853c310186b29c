"""Raw text -> clean text, or the reason why it must not be used."""

import re
import unicodedata

from psychocounsel.errors import InputError

_REFUSED = {"\x00": "a NUL character"}
_CONTROLS = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
_SPACES = re.compile(r"[ \t\u00a0]+")
_BLANK_LINES = re.compile(r"\n{3,}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def refusal(text: str) -> str | None:
    """Return what in a text no table can hold: a NUL or a lone surrogate; None when it is fine."""
    if _SURROGATE.search(text):
        return "a lone surrogate"
    return next((name for character, name in _REFUSED.items() if character in text), None)


def normalise(text: str) -> str:
    """Return the text in Unicode NFC with plain spaces and line feeds, outer space removed.

    Emoji with joiners, right-to-left text and U+2028 stay as they are; other control characters go.
    """
    visible = _CONTROLS.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    # Only now, for a control that is gone may have parted a letter from its accent.
    composed = unicodedata.normalize("NFC", visible)
    lines = (_SPACES.sub(" ", line).strip(" ") for line in composed.split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


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
