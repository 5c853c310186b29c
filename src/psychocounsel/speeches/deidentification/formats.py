"""Text -> Spans of what is known by its form: addresses of the net, phone numbers, accounts."""

import re
from collections.abc import Iterator
from ipaddress import ip_address

from psychocounsel.speeches.deidentification.spans import Span
from psychocounsel.speeches.phones import phone_numbers
from psychocounsel.speeches.web_addresses import web_addresses

_MAIL_HOSTS = ("gmail", "yahoo", "hotmail", "outlook", "icloud", "proton", "aol")
_SPOKEN_EMAIL = re.compile(
    r"(?<![\w.])[\w+-]{1,30}(?:(?: dot |\.)[\w+-]{1,30}){0,3}\s?(?:\bat\b|\(at\)|\[at\])\s?"
    rf"(?:{'|'.join(_MAIL_HOSTS)})(?:mail)?\s?(?:\.|dot\b|\(dot\)|\[dot\])\s?com\b",
    re.IGNORECASE,
)


def find_addresses_of_the_net(text: str, lowered: str) -> Iterator[Span]:
    """Find e-mail addresses, also as `sam dot lee at gmail dot com`, and web addresses."""
    for contact in web_addresses(text):
        yield Span(contact.start, contact.end, "EMAIL" if contact.kind == "EMAIL" else "URL", 0.9)
    if any(host in lowered for host in _MAIL_HOSTS):
        yield from (Span(*match.span(), "EMAIL", 0.85) for match in _SPOKEN_EMAIL.finditer(text))


_LOCAL_PHONE = re.compile(
    r"\b(?:call|text|phone|cell|mobile|number|reach|dial|ring|rang|tel)\w*\b[^.!?\n\d]{0,40}"
    r"(?<![\w$-])(?P<number>\d{3}[-.]\d{4})(?![\w-])",
    re.IGNORECASE,
)


def find_phones(text: str) -> Iterator[Span]:
    """Find phone numbers; one of seven digits needs a word such as `called` before it."""
    yield from (Span(contact.start, contact.end, "PHONE", 0.8) for contact in phone_numbers(text))
    yield from (Span(*match.span("number"), "PHONE", 0.7) for match in _LOCAL_PHONE.finditer(text))


_HANDLE = re.compile(r"(?<![\w@.&/$-])@[^\W\d]\w{2,29}(?:\.\w{1,29})*(?![\w@])")
_TAG = re.compile(r"(?<!\w)[\w.]{2,32}#\d{4}(?!\w)")
_SITES = (
    "insta",
    "snap",
    "twitter",
    "tiktok",
    "discord",
    "reddit",
    "tumblr",
    "facebook",
    "username",
    "handle",
    "account",
)
# A plain word after `my snapchat is` tells nothing; a digit, a dot or an underscore makes it an account.
_NAMED_HANDLE = re.compile(
    r"\b(?:insta(?:gram)?|snap(?:chat)?|twitter|tik ?tok|discord|reddit|tumblr|facebook|user ?name|handle"
    r"|account)(?:\s(?:user ?name|handle|name|account|id))?(?:\sis|:|,)\s"
    r"(?=[\w.]*[\d_.]\w)(?=[\d_.]*[^\W\d_])(?P<handle>\w+(?:\.\w+)*)",
    re.IGNORECASE,
)


def find_handles(text: str, lowered: str) -> Iterator[Span]:
    """Find names of accounts: `@quiet_riot`, `nightowl#4471`, `my snapchat is quiet_riot22`."""
    if "@" in text:
        yield from (Span(*match.span(), "HANDLE", 0.85) for match in _HANDLE.finditer(text))
    if "#" in text:
        yield from (Span(*match.span(), "HANDLE", 0.8) for match in _TAG.finditer(text))
    if any(site in lowered for site in _SITES):
        yield from (Span(*match.span("handle"), "HANDLE", 0.8) for match in _NAMED_HANDLE.finditer(text))


_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[0-9a-f:]*[0-9])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?![\w:]|\.\d)",
    re.IGNORECASE,
)
_SHORTEST_IP = len("::1") + 3


def find_ips(text: str) -> Iterator[Span]:
    """Find IP addresses of both versions."""
    for match in _IP.finditer(text):
        if len(match.group()) >= _SHORTEST_IP and _is_ip(match.group()):
            yield Span(*match.span(), "IP", 0.9)


def _is_ip(found: str) -> bool:
    try:
        ip_address(found)
    except ValueError:
        return False
    return True
