"""Text -> spans of web and mail addresses, cut where a sentence is glued to them."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Kind = Literal["PHONE", "EMAIL", "URL"]


class Contact(NamedTuple):
    """Where a phone number or an address stands in a text: `text[start:end]`."""

    kind: Kind
    start: int
    end: int


# Endings that are no words; the rest only counts with a path behind it, for "help.me" is a missing space.
_GENERIC = "com org net edu gov mil info biz"
_SURE = "io ca uk au nz ie de fr es nl ch eu co app dev"
_WORDLIKE = "me us tv ly bz be in it so to gl gle la ai"
_WORDLIKE_TOO = "blog care club health help life live online one page site tips"


def _any_case(words: str) -> str:
    return "|".join(f"{word}|{word.title()}|{word.upper()}" for word in words.split())


_ENDING = f"(?:{_any_case(_GENERIC)}|{'|'.join(_SURE.split())})(?:\\.(?:uk|au|nz|za|br|in))?"
_WEAK_ENDING = f"(?:{'|'.join([*_WORDLIKE.split(), *_WORDLIKE_TOO.split()])})"
# Every repetition has a bound, so that no cell of a megabyte takes minutes.
_LABELS = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}"
_STOP = r"\s<>\"“”«»¿¡\[\]{}|\\"
_URL = re.compile(
    rf"(?P<long>[hH][tT][tT][pP][sS]?://[^{_STOP}]{{1,2000}}"
    rf"|[wW][wW][wW]\.(?=[A-Za-z0-9-]+\.[A-Za-z])[^{_STOP}]{{1,2000}})"
    rf"|(?<![A-Za-z0-9@-])(?![A-Za-z0-9-]{{0,63}}[wW]{{3}}\.){_LABELS}(?:{_ENDING}(?![a-z0-9_-]*[a-z-])|{_WEAK_ENDING}(?=/))(?P<path>[/?#:][^{_STOP}]{{0,2000}})?"
    r"|\b[A-Za-z0-9-]{1,63} (?:dot|DOT) (?:com|org|net)\b"
)
_MAIL_SIGNS = ("@", " dot ", " DOT ", "at]", "at)", "AT)", "AT]")
_WEB_SIGNS = ("://", "www.", "WWW.", "Www.")
_MAY_END = re.compile(rf"\.(?:{_ENDING}(?![a-z])|{_WEAK_ENDING}/)")
_EMAIL = re.compile(
    r"(?:mailto:)?[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,24}"
    r"|[\w.+-]{1,63} ?[\[({] ?at ?[\])}] ?[\w-]{1,63} ?(?:[\[({] ?dot ?[\])}]|\.) ?[A-Za-z]{2,24}\b"
    r"|[\w.+-]{1,63} at [\w-]{1,63} dot (?:com|org|net|edu)\b",
    re.IGNORECASE,
)
_NEXT_ADDRESS = re.compile(r"(?<=.)(?:https?://|(?<!/)www\.)", re.IGNORECASE)
_HOST_END = re.compile(rf"\.{_ENDING}(?=[A-Z]|\.[A-Z])|\.(?:{_any_case(_GENERIC)})(?=[0-9])")
_GLUED_WORD = re.compile(
    r"(?<=[a-z0-9])[A-Z][a-z'\u2019]*$|[A-Z][a-z'\u2019]+,$|(?<=[/.)])(?:I|If|It|In|A|As|At|The|This|That|There|These|What|When"
    r"|You|Your|We|My|Be|Some|One|For|To|And|But|So|Once|Now|Hope|Here|Another|After|Besides|Also)(?:['\u2019][a-z]+)?$"
)
_TRAILING = ".,;:!?'\"\u2019*_~"


def web_addresses(text: str) -> list[Contact]:
    """Return the e-mail and web addresses of a text, in order and apart from each other.

    A web address has a scheme, a `www.` or a well-known ending. A sentence that follows without a space is no
    part of it, as in `example.org/helpI hope`.
    """
    may_hold_mail = any(sign in text for sign in _MAIL_SIGNS)
    if not (may_hold_mail or any(sign in text for sign in _WEB_SIGNS) or _MAY_END.search(text)):
        return []
    found = [_mail(match) for match in _EMAIL.finditer(text)] if may_hold_mail else []
    # A mail address is blanked, so that its domain does not count again.
    rest = blanked(text, [(mail.start, mail.end) for mail in found])
    position = 0
    while match := _URL.search(rest, position):
        contact = _url(match)
        found.append(contact)
        position = contact.end
    return sorted(found, key=_start)


def holds(contacts: Sequence[Contact], position: int) -> bool:
    """Say whether a position lies in one of the contacts, which are in order and apart."""
    at = bisect_right(contacts, position, key=_start) - 1
    return at >= 0 and position < contacts[at].end


def _start(contact: Contact) -> int:
    return contact.start


def blanked(text: str, spans: Iterable[tuple[int, int]], filler: str = " ") -> str:
    """Return the text with a filler in the spans, so that every other character keeps its place."""
    pieces: list[str] = []
    position = 0
    for start, end in sorted(spans):
        pieces += [text[position:start], filler * (end - max(start, position))]
        position = max(position, end)
    return "".join([*pieces, text[position:]])


def _mail(match: re.Match[str]) -> Contact:
    glued = _GLUED_WORD.search(match.group())
    length = glued.start() if glued and "." in match.group()[: glued.start()] else len(match.group())
    return Contact("EMAIL", match.start(), match.start() + length)


def _end_of_brackets(run: str) -> int:
    """Return where a bracket closes that was opened before the address, or the length."""
    depth = 0
    for bracket in re.finditer(r"[()]", run):
        depth += 1 if bracket.group() == "(" else -1
        if depth < 0:
            return bracket.start()
    return len(run)


def _url(match: re.Match[str]) -> Contact:
    run = match.group()
    following = _NEXT_ADDRESS.search(run)
    if following is not None:
        run = run[: following.start()]
    run = run[: _end_of_brackets(run)]
    if match["long"] is not None:
        host = _HOST_END.search(run)
        slash = run.find("/", run.find("://") + 3 if "://" in run else 0)
        if host is not None and (slash < 0 or host.end() <= slash):
            run = run[: host.end()]
    glued = _GLUED_WORD.search(run)
    if glued is not None and glued.start() > 0 and (match["path"] or "/" in run or match["long"]):
        run = run[: glued.start()]
    run = run.rstrip(_TRAILING)
    return Contact("URL", match.start(), match.start() + len(run))
