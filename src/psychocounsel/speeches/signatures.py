"""Response -> response without the names of its authors: signatures, self-introductions, names in between."""

import re
from collections.abc import Sequence
from itertools import takewhile

from psychocounsel.speeches.closings import (
    ANY_NAME,
    FULL_NAME,
    TAIL_CHARS,
    TITLE,
    ends_in_closing,
    has_loose_closing,
    signed_by_anybody,
    without_loose_end,
)
from psychocounsel.speeches.crisis_lines import names_crisis_line
from psychocounsel.speeches.introductions import (
    SURROGATE,
    outside_addresses,
    with_surrogates,
    without_greetings,
    without_introductions,
)
from psychocounsel.speeches.known_people import KnownPeople, NameSpan
from psychocounsel.speeches.people import bare, people_words
from psychocounsel.speeches.phones import phone_numbers
from psychocounsel.speeches.web_addresses import blanked, web_addresses

_MAX_SIGNATURE_WORDS = 16
_WORD = re.compile(r"[^\s,;:|/~*_()&\u2013—]+")
_TITLE_BEFORE = re.compile(rf"{TITLE}$")
_STANDS_APART = re.compile(r"(?:^|[.!?…\n\"”)~:]|[,;\u2013—-])\s*$")
# Words behind which a name belongs to the sentence, credentials or not.
_IN_SENTENCE = re.compile(
    r"\b(?:by|of|with|from|as|to|and|or|is|am|than|like|for|see|colleague|friend|doctor|author|named|called)\s+$",
    re.IGNORECASE,
)
_FIRST_NAME = re.compile(
    r"(?P<kept>[.!?…\"”)]*)(?P<mark>\s*[-\u2013—~]+\s*|(?<=[a-zA-Z)\"”]),\s*|(?<=[.!?…\n\"”)])\s*|\n\s*|^)"
    r"(?P<first>[A-Za-z]+)(?P<rest>~[^.!?\n]*|(?:\s[A-Z][a-z]{0,3}\.?)?\s*[~.!]?\s*(?:\([^()\n]*\))?)\s*$"
)
_DASHED = re.compile(rf"(?P<before>[.!?…)]\s*)[-\u2013—~]+[ \t]*{ANY_NAME}(?P<rest>[^.!?\n]*)\.?\s*$")
_WITH_CREDENTIALS = re.compile(rf"(?P<before>^|[.!?…\n)])\s*{FULL_NAME},?[ \t]+(?P<rest>[A-Z][^\n]*)$")
_BULLET = re.compile(r"\s*(?:[-*•·\u2013—]|\(?\d{1,2}[.)])\s")


def without_signatures(text: str, known: KnownPeople, *, in_addresses: bool = True) -> str:
    """Return the text without its closing signature, and without the names of the known authors.

    At the end a name goes with its credentials, addresses and closing words; a sentence in which somebody
    says "my name is" goes; elsewhere a known full name becomes `[PERSON_1]`. A crisis line always stays.

    Args:
        text: a response, its lines and sentences already apart.
        known: the authors of all responses.
        in_addresses: whether names inside addresses become surrogates; not needed where addresses go.
    """
    names = known.find(text)
    text = without_greetings(_unsigned(text.rstrip(), names, known), known)
    if not names:
        return text
    text = without_introductions(text, known.find(text))
    names = known.find(text)
    return with_surrogates(text, names if in_addresses else outside_addresses(names, text))


def _unsigned(text: str, names: Sequence[NameSpan], known: KnownPeople) -> str:
    """Cut signatures off the end until none is left."""
    left = outside_addresses(names, text)
    while (start := _signature_start(text, left, known)) is not None:
        if names_crisis_line(text, start):
            return text
        text = without_loose_end(text[:start])
        while left and left[-1].end > len(text):
            left.pop()
    return without_loose_end(text) if has_loose_closing(text) else text


def _signature_start(text: str, names: Sequence[NameSpan], known: KnownPeople) -> int | None:
    begin = max(0, len(text) - TAIL_CHARS)
    tail = text[begin:]
    near = takewhile(lambda name: name.start >= begin, reversed(names))
    spans = [(name.start - begin, name.end - begin) for name in near]
    start = _named_start(tail, [*spans, *(match.span() for match in SURROGATE.finditer(tail))])
    if start is None:
        start = _first_name_start(tail, known)
    if start is None:
        start = _dashed_or_credited_start(tail)
    if start is not None:
        return begin + start
    signed = signed_by_anybody(text)
    return signed.start("gap") if signed is not None and _is_signature_rest(signed["rest"]) else None


def _named_start(tail: str, spans: Sequence[tuple[int, int]]) -> int | None:
    """Find the earliest of the names that is a signature, and not a part of a sentence."""
    for start, end in sorted(spans):
        before = _TITLE_BEFORE.sub("", tail[:start])
        if _signs(before, tail[start], tail[end:]) and _is_signature_rest(tail[end:]):
            return len(before)
    return None


def _signs(before: str, initial: str, rest: str) -> bool:
    is_glued = before[-1:].islower() and initial.isupper()
    if is_glued or _STANDS_APART.search(before) or ends_in_closing(before):
        return True
    return _first_is_credential(rest) and not _IN_SENTENCE.search(before)


def _first_is_credential(rest: str) -> bool:
    word = _WORD.search(rest)
    return word is not None and _is_credential(word.group())


def _is_credential(word: str) -> bool:
    return bare(word).replace("-", "") in people_words().credentials and any(map(str.isupper, word))


def _is_signature_rest(rest: str) -> bool:
    """Say whether what follows a name is credentials, a profession, a practice or an address: no sentence."""
    contacts = [*web_addresses(rest), *phone_numbers(rest)]
    rest = blanked(rest, [(contact.start, contact.end) for contact in contacts])
    words = [word for word in _WORD.findall(rest) if any(map(str.isalnum, word))]
    if len(words) > _MAX_SIGNATURE_WORDS:
        return False
    lists = people_words()
    small = lists.professions | lists.credentials | lists.organisations | {"and", "of", "in", "for", "the"}
    return all(not word[0].islower() or bare(word) in small for word in words)


def _first_name_start(tail: str, known: KnownPeople) -> int | None:
    """Find a lone first name of an author at the end, behind a dash, a comma or a closed sentence."""
    firsts = known.first_names_in(tail)
    if not firsts:
        return None
    match = next((each for each in _FIRST_NAME.finditer(tail) if each["first"].lower() in firsts), None)
    if match is None or not _is_signature_rest(match["rest"]):
        return None
    is_dashed = match["mark"].strip() not in ("", ",")
    # "Tell it to your sister, Grace." is a sentence; "Hope that helps, Grace" is signed.
    ends_in_sentence = match["rest"].strip() in (".", "!")
    if is_dashed or (match["first"][0].isupper() and not ends_in_sentence):
        return match.end("kept")
    return None


def _dashed_or_credited_start(tail: str) -> int | None:
    """Find a name of anybody behind a dash, or before credentials."""
    dashed = _DASHED.search(tail)
    if dashed is not None and _is_signature_rest(dashed["rest"]) and not _in_list(tail, dashed.end("before")):
        return dashed.end("before")
    for match in _WITH_CREDENTIALS.finditer(tail):
        if _first_is_credential(match["rest"]) and _is_signature_rest(match["rest"]):
            return match.end("before")
    return None


def _in_list(tail: str, start: int) -> bool:
    """Say whether a line that begins with a dash is an item of a list, or names who is quoted."""
    before = tail[:start].rstrip()
    last_line = before.rpartition("\n")[2]
    return before.endswith((":", '"', "”")) or (
        tail[:start].endswith("\n") and bool(_BULLET.match(last_line))
    )
