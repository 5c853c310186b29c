"""Text -> sentences: pieces that give the text back when they are joined."""

import re

# Written so that `re` skips to line feeds and marks.
_END = re.compile(
    r"[\n.!?…](?:(?<=\n)\n*(?=(?P<line>\S)?)"
    r"|(?<!\n)[.!?…]*[)\]\"”\u2019]*[ \u2028]+(?=(?P<next>[\"'“\u2018(\[¿¡]*\S)))"
)
_MARKS = re.compile(r"[.!?…]+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:dr|mr|mrs|ms|mx|prof|rev|st|vs|ex|approx|dept|ext|fig|no|vol|ch|pp|e\.g|i\.e|cf|[a-z])$",
    re.IGNORECASE,
)
_SMALL_I = re.compile(r"i\b")
_NUMBERING = re.compile(r"\s*[(\[]?\w{1,2}[)\]]?$")
_NUMBERING_CHARS = 8
_ABBREVIATION_CHARS = 12
_WRAPPED_LINE_CHARS = 60
_ENDS = tuple('.!?…:;"”)')


def sentences(text: str) -> list[str]:
    """Cut a text behind each sentence and each line; the space behind a sentence belongs to it.

    A full stop ends a sentence when a capital, a digit or a quotation mark follows, and no abbreviation,
    initial or number of a list goes before it. A line ends one unless its paragraph is wrapped there.
    """
    pieces: list[str] = []
    start = 0
    for end in _END.finditer(text):
        goes_on = _is_wrapped(text, end) if text[end.start()] == "\n" else _goes_on(text, start, end)
        if not goes_on:
            pieces.append(text[start : end.end()])
            start = end.end()
    if start < len(text):
        pieces.append(text[start:])
    return pieces


def _is_wrapped(text: str, end: re.Match[str]) -> bool:
    if end.end() - end.start() > 1 or end["line"] is None:
        return False
    line_start = text.rfind("\n", 0, end.start()) + 1
    is_full = end.start() - line_start >= _WRAPPED_LINE_CHARS
    is_open = not text[line_start : end.start()].rstrip().endswith(_ENDS)
    return is_open and (is_full or end["line"].islower())


def _goes_on(text: str, start: int, end: re.Match[str]) -> bool:
    mark = _MARKS.match(text, end.start())
    marks = mark.group() if mark is not None else ""
    following = end["next"][-1]
    if marks != ".":
        return marks.endswith((".", "…")) and following.islower()
    if following.islower() and not _SMALL_I.match(text, end.end("next") - 1):
        return True
    before = text[max(start, end.start() - _ABBREVIATION_CHARS) : end.start()]
    if before.endswith((" I", " i")):
        return False
    is_numbering = end.start() - start <= _NUMBERING_CHARS and _NUMBERING.match(text[start : end.start()])
    return bool(is_numbering or _ABBREVIATION.search(before))
