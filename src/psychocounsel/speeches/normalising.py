"""Raw text -> clean text, or the reason why it must not be used."""

import re
import unicodedata

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
    composed = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    visible = _CONTROLS.sub("", composed)
    lines = (_SPACES.sub(" ", line).strip(" ") for line in visible.split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()
