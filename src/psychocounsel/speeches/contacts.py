"""Response -> response without phone numbers, e-mail and web addresses; crisis lines stay."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from psychocounsel.speeches.crisis_lines import CrisisLines, crisis_lines
from psychocounsel.speeches.phones import phone_numbers
from psychocounsel.speeches.sentences import sentences
from psychocounsel.speeches.web_addresses import Contact, blanked, web_addresses

_DIGIT = re.compile(r"[0-9]")
_NOT_IN_NUMBERS = "\N{WHITE SQUARE}"
_BEHIND_ADDRESS = re.compile(r"[)\]\"”.]*\s+(?=[“\"'(¿¡]?[A-ZÀ-ÖØ-Þ])")
_BEFORE_ADDRESS = re.compile(r"[.!?…][)\]\"”\u2019]*\s+$")
# What leads up to a contact and means nothing without it.
_LEAD = re.compile(
    r"(?:[\s,;\u2013-]*\b(?:or|and|either|also))?"
    r"(?:[\s,;]*\b(?:(?:please )?(?:visit|see|check out|go to|look at|click|use|try|text|call)"
    r"|(?:on|at|via|through|from|by|in|is)(?: the| our| their| its| my)?(?: web ?site| site| page| link)?"
    r"|(?:the |our |their |its |my )?(?:web ?site|site|e-?mail|link)(?: at| is)?|online)){0,4}"
    r"[\s:,;(\[\u2013-]*$",
    re.IGNORECASE,
)
_LEAD_CHARS = 80
_ANNOUNCES = re.compile(
    r"\b(?:here(?:['\u2019]?s| is| are)|links?|web ?sites?|this (?:site|page|article|video|blog|post))\b",
    re.IGNORECASE,
)
_EMPTY_BRACKETS = re.compile(r"\s*[(\[]\s*[,;/]?\s*[)\]]")
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[.,;!?](?:\s|$))")
_NUMBERED = re.compile(r"\[(?P<kind>PHONE|EMAIL|URL)_(?P<number>[0-9]{1,6})\]")
_ORPHAN = re.compile(r"(?m)^[ \t]*(?:[-*•·\u2013—]|\(?[0-9]{1,2}[.)])[ \t]*$\n?")


class _Piece(NamedTuple):
    text: str
    names_crisis_line: bool


def contacts_in(text: str, crisis: CrisisLines) -> list[Contact]:
    """Return the contacts of a text in order, crisis lines left out."""
    found = web_addresses(text)
    if not _DIGIT.search(text):
        return found
    taken = [(contact.start, contact.end) for contact in found] + crisis.spans(text)
    numbers = phone_numbers(blanked(text, taken, _NOT_IN_NUMBERS))
    return sorted([*found, *numbers], key=lambda contact: contact.start)


def with_surrogates(text: str) -> str:
    """Return the text with `[PHONE_1]` or `[URL_1]` for its contacts; equal ones share a number."""
    found = contacts_in(text, crisis_lines())
    if not found:
        return text
    pieces: list[str] = []
    numbers: dict[tuple[str, str], int] = {}
    last = {kind: _highest(text, kind) for kind in ("PHONE", "EMAIL", "URL")}
    position = 0
    for contact in found:
        key = (contact.kind, _plain(contact, text))
        if key not in numbers:
            last[contact.kind] += 1
            numbers[key] = last[contact.kind]
        pieces += [text[position : contact.start], f"[{contact.kind}_{numbers[key]}]"]
        position = contact.end
    return "".join([*pieces, text[position:]])


def _highest(text: str, kind: str) -> int:
    return max(
        (int(match["number"]) for match in _NUMBERED.finditer(text) if match["kind"] == kind), default=0
    )


def _plain(contact: Contact, text: str) -> str:
    written = text[contact.start : contact.end].lower()
    if contact.kind == "PHONE":
        return re.sub(r"[^0-9a-z]", "", written).removeprefix("1")
    return re.sub(r"^(?:mailto:|https?://)?(?:www\.)?", "", written).rstrip("/")


def without_contacts(text: str) -> str:
    """Return the text without each sentence or line that holds a contact.

    A sentence that names a crisis line stays, and only its other contacts go.
    """
    crisis = crisis_lines()
    found = contacts_in(text, crisis)
    if not found:
        return text
    lines = [start for start, _ in crisis.spans(text)]
    starts = [contact.start for contact in found]
    kept: list[_Piece] = []
    end = 0
    for piece in _pieces(text, found):
        start, end = end, end + len(piece)
        held = found[bisect_left(starts, start) : bisect_left(starts, end)]
        names_crisis_line = bisect_left(lines, start) < bisect_left(lines, end)
        if not held:
            kept.append(_Piece(piece, names_crisis_line))
        elif names_crisis_line:
            spans = [(contact.start - start, contact.end - start) for contact in held]
            kept.append(_Piece(_taken_out(piece, spans), names_crisis_line))
        else:
            _drop_announcement(kept, is_address_alone=held[0].start == start)
            kept.append(_Piece(piece[len(piece.rstrip("\n")) :], names_crisis_line))
    _drop_headings(kept)
    return _ORPHAN.sub("", "".join(piece.text for piece in kept)).strip()


def _drop_announcement(kept: list[_Piece], *, is_address_alone: bool) -> None:
    """Drop "Here is a link." where the link stood alone behind it."""
    if is_address_alone and kept and not kept[-1].names_crisis_line and _ANNOUNCES.search(kept[-1].text):
        kept.pop()


def _drop_headings(kept: list[_Piece]) -> None:
    """Drop a last line such as "Resources:" under which nothing is left."""
    while kept and not kept[-1].names_crisis_line and kept[-1].text.rstrip()[-1:] in ("", ":"):
        kept.pop()


def _pieces(text: str, found: Sequence[Contact]) -> list[str]:
    """Cut into sentences; an address behind a full stop, and a capital behind an address, begin one too."""
    edges = {0, len(text)}
    end = 0
    for piece in sentences(text):
        end += len(piece)
        edges.add(end)
    for contact in found:
        if (gap := _BEHIND_ADDRESS.match(text, contact.end)) is not None:
            edges.add(gap.end())
        if _BEFORE_ADDRESS.search(text[max(0, contact.start - 8) : contact.start]):
            edges.add(contact.start)
    ordered = sorted(edges)
    return [text[start:end] for start, end in pairwise(ordered)]


def _taken_out(sentence: str, spans: Sequence[tuple[int, int]]) -> str:
    """Cut the spans out of a sentence, each with the words that led up to it and the brackets around it."""
    kept: list[str] = []
    position = 0
    for start, end in spans:
        cut = max(position, start - _LEAD_CHARS)
        lead = sentence[cut:start]
        stripped = _LEAD.sub("", lead)
        kept += [sentence[position:cut], stripped]
        opened = lead[len(stripped) :].rstrip()[-1:]
        is_bracketed = opened in ("(", "[") and sentence[end : end + 1] in (")", "]")
        position = end + 1 if is_bracketed else end
    kept.append(sentence[position:])
    return _SPACE_BEFORE_MARK.sub("", _EMPTY_BRACKETS.sub("", "".join(kept)))
