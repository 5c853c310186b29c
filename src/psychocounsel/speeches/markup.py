"""HTML or plain text -> plain text: known tags become line breaks or go, references are decoded."""

import html
import re

_LINE_TAGS = """
    address article aside blockquote br dd div dl dt figure footer form h1 h2 h3 h4 h5 h6 header hr li main
    nav ol p pre section table tbody tfoot thead tr ul
"""
_INLINE_TAGS = """
    a abbr b bdi bdo big body center cite code del dfn em figcaption font head html i iframe img input ins kbd
    label link mark meta q s samp small span strike strong sub sup td th title tt u var wbr
"""
_LINE_NAMES = frozenset(_LINE_TAGS.split())
_PARAGRAPHS = frozenset(("blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "table"))
_CELLS = frozenset(("td", "th"))
_BULLETED = "li"

# An attribute has a value: "<i cry>" is a stage direction, not an italic.
_ATTRIBUTE = r"""\s+[A-Za-z_:][\w:.-]*\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+)"""
_NAMES = "|".join(sorted([*_LINE_NAMES, *_INLINE_TAGS.split()], key=len, reverse=True))
_TAG = re.compile(rf"<(?P<closing>/?)(?P<name>{_NAMES})(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
# A comment or a script holds no other one, or a text of openings alone would take for ever.
_HIDDEN = re.compile(
    r"<!--(?:(?!<!--).)*?-->|<(script|style)\b[^<>]*>(?:(?!<\1).)*?</\1\s*>", re.IGNORECASE | re.DOTALL
)
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_MAX_NESTING = 20


def without_markup(text: str) -> str:
    """Return the text that a browser would show, more or less, with line feeds for its breaks.

    Only the names of HTML elements count as tags, so `I <3 you`, `a < b` and `<sighs>` stay. A text that was
    escaped more than once is decoded to the end.
    """
    for _ in range(_MAX_NESTING):
        plain = _decoded(text)
        if "<" in plain:
            plain = _TAG.sub(_shown, _HIDDEN.sub("", plain))
        if plain == text:
            return text
        text = plain
    # Tags within tags within tags: nobody wrote that as prose, and the loop must end somewhere.
    return text.replace("<", "").replace("&", "")


def _decoded(text: str) -> str:
    """Decode references that end in a semicolon; others stand in addresses, such as `?a=1&copy=2`."""
    if "&" not in text:
        return text
    return _REFERENCE.sub(lambda found: html.unescape(found.group()), text)


def _shown(tag: re.Match[str]) -> str:
    name = tag["name"].lower()
    if name in _CELLS:
        return "" if tag["closing"] else " "
    if name not in _LINE_NAMES:
        return ""
    if name == _BULLETED:
        return "" if tag["closing"] else "\n- "
    return "\n\n" if name in _PARAGRAPHS else "\n"
