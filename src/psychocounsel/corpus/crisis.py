"""Crisis services, whose names, links and numbers stay in every text; and whether a text speaks of a crisis."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from psychocounsel.config.base import OneOrMore, Several
from psychocounsel.config.components import Settings
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.contacts import CALLED_ABROAD, holds, phone_numbers, web_addresses, with_ascii_numbers
from psychocounsel.corpus.text import Span, blanked, either, sentences
from psychocounsel.types import Turn

# --- The list --------------------

BUNDLED = Path(__file__).resolve().parent / "crisis_services.yaml"

_Number = Annotated[str, Field(pattern=r"^[0-9A-Z .-]*[0-9][0-9A-Z .-]*$")]
_Domain = Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]
_Address = Annotated[str, Field(pattern=r"^[a-z0-9._-]+(@[a-z0-9.-]+|(/[a-z0-9._-]+)+)$")]


class Service(Settings):
    """One service, with its numbers and the domains of its pages and mail addresses.

    `addresses` are those under domains that are not its own: a mail address, or a page without `https://www.`.
    """

    name: Annotated[str, Field(min_length=2)]
    numbers: Several[_Number] = ()
    domains: Several[_Domain] = ()
    addresses: Several[_Address] = ()


class Country(Settings):
    """The services of one country (ISO 3166, XX for all); `calling_code` is dialled from abroad."""

    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
    calling_code: Annotated[str, Field(pattern=r"^[0-9]{1,3}$")] | None = None
    services: Several[Service]


class CrisisServicesFile(Settings):
    """The content of `crisis_services.yaml`."""

    countries: OneOrMore[Country]


# --- Where they stand in a text --------------------

_NEXT_KEY = re.compile(r"[\s().\-\u2013—/·]{0,3}(\+?[0-9A-Za-z])")
_GOES_ON = re.compile(r"[0-9]|[.,:/%-][0-9]")
_CERTAIN_DIGITS = 6
_NORTH_AMERICA = "1"
_KEYPAD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "22233344455566677778889999")
_CALLING = re.compile(
    r"(?:\b(?:call|calls|called|calling|dial|dials|dialing|dialling|text|texts|texting|txt|sms|ring\w*|phone|telephone"
    rf"|number|contact|contacting|reach|hotline|helpline|lifeline|line|emergency|samaritans)\b|{CALLED_ABROAD}).{{0,80}}$",
    re.IGNORECASE | re.DOTALL,
)
_NAMED = re.compile(
    r"[\s,]{0,2}(?:\w+[\s,]+){0,2}(?:suicide|crisis|lifeline|hotline|helpline|emergency)\b", re.IGNORECASE
)
_NUMBER_BEGINS = re.compile(r"[(+0-9](?<![0-9+$€£(][0-9])(?<![0-9][.,:/-][0-9])(?=[0-9(]|(?<=[0-9]))")
_LOOK_BACK_CHARS = 100
_DIGIT = re.compile(r"[0-9]")
_NUMBER_LINK = re.compile(r"\s*(?:tel|sms):(?://)?([^?&;]*)", re.IGNORECASE)
_NO_DIGIT = re.compile(r"[^0-9]")
_WORD = re.compile(r"\w")
_INNER_STOP = re.compile(r"\.(?=\w)")
_DOTTED = re.compile(r"(?<![A-Za-z0-9_./-])[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]+){1,6}(?!\w)")
_NOT_IN_NUMBERS = "\N{WHITE SQUARE}"
_SPEAKS_OF_CRISIS = re.compile(
    r"\b(?:cris[ei]s|suicid|self[- ]?harm|hot ?line|help ?line|life ?line|emergenc|samaritan|befriend|kris[ei]|notruf"
    r"|seelsorge|urgences|zelfmoord|självmord|selvmord|itsemurha|samobój|sebevra|samovra|öngyilkos|sinucid|intihar"
    r"|bunuh diri|самоуб|суїцид)|自[杀殺]|危机|危機|热线|[熱專]線|いのち"
    r"|ホットライン|相談(?:ダイヤル|窓口|電話)|電話相談|자살|انتحار|आत्महत्या",
    re.IGNORECASE,
)
_SOMEBODYS_OWN = re.compile(
    r"\b(?:my|our|his|her|their)(?: \w+)? (?:cell|mobile|number|phone|office|practice|clinic|home|work)\b"
    r"|\b(?:call|text|phone|ring|reach|contact|e-?mail)(?:ing)? (?:me|us)\b",
    re.IGNORECASE,
)


class CrisisServices:
    """Finds listed services in texts: numbers whatever their punctuation, addresses by their domain, names."""

    def __init__(self, *files: CrisisServicesFile) -> None:
        self._numbers: dict[str, bool] = {}  # as they are dialled -> whether one counts anywhere
        names: set[str] = set()
        self._domains: set[str] = set()
        self._addresses: set[str] = set()
        for country in (each for file in files for each in file.countries):
            for service in country.services:
                names.add(service.name.removeprefix("The "))
                self._domains.update(service.domains)
                self._addresses.update(service.addresses)
                for number in service.numbers:
                    written = re.sub(r"[^0-9A-Z]", "", number)
                    for key in (written, written.translate(_KEYPAD)):
                        ways = _ways_to_dial(key, country.calling_code)
                        self._numbers.update(dict.fromkeys(ways, len(key) >= _CERTAIN_DIGITS))
        self._longest = max(map(len, self._numbers))
        self._names = re.compile(rf"(?<!\w){either(names)}(?!\w)")

    def numbers(self, text: str) -> list[tuple[int, int]]:
        """Return where listed numbers stand, as sorted (start, end).

        A number of fewer than six digits counts only near words such as "call" or "hotline", or behind the name of a
        service, and not as a part of a longer one: `123` is no service's in `+63 917 123 4567`.
        """
        text = with_ascii_numbers(text)
        found: dict[int, int] = {}
        position = 0
        for begin in _NUMBER_BEGINS.finditer(text):
            start = begin.start()
            if start < position or (end := self._number_end(text, start)) == start:
                continue
            longer = phone_numbers(text) if end - start < _CERTAIN_DIGITS else ()
            if all(phone.start in found for phone in longer if phone.start < start < phone.end):
                found[start] = position = end
        return list(found.items())

    def _number_end(self, text: str, start: int) -> int:
        """Return the end of the longest listed number that starts at a position; the position where there is none."""
        dialled, end, at = "", start, start
        while len(dialled) < self._longest and (key := _NEXT_KEY.match(text, at)):
            dialled += key[1].upper()
            at = key.end()
            counts_anywhere = self._numbers.get(dialled)
            if counts_anywhere is not None and not _GOES_ON.match(text, at):
                end = at if counts_anywhere or self._is_called(text, start, at) else end
        return end

    def _is_called(self, text: str, start: int, end: int) -> bool:
        begin = max(0, start - _LOOK_BACK_CHARS)
        if _CALLING.search(text[begin:start]) is not None or _NAMED.match(text, end) is not None:
            return True
        return any(not _WORD.search(text, name.end(), start) for name in self._names.finditer(text, begin, start))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where services stand by number, address or name, as sorted (start, end) that may overlap.

        A name of one word, which a person may have too, counts only in a sentence that speaks of a crisis.
        """
        names = [
            match.span()
            for match in self._names.finditer(text)
            if " " in match.group() or speaks_of_crisis(_sentence_at(text, match.start()))
        ]
        return sorted([*self.told_apart(text)[0], *names])

    def pages(self, text: str) -> list[tuple[int, int]]:
        """Return where domains of services stand alone: `azzurro.it` may look like two sentences."""
        pages = (page.span() for page in (_DOTTED.finditer(text) if _INNER_STOP.search(text) else ()))
        listed = [(start, end) for start, end in pages if self.owns(text[start:end])]
        addresses = web_addresses(text) if listed else ()
        # In "janeroe.com/?from=samaritans.org" it is a part of somebody's address.
        return [(start, end) for start, end in listed if not (holds(addresses, start - 1) or holds(addresses, end))]

    def told_apart(self, text: str) -> tuple[list[tuple[int, int]], list[Span]]:
        """Return where numbers and addresses of services stand, and all other contacts, both sorted.

        In doubt a number is a service's: any in a sentence that speaks of a crisis, a hotline or an emergency, or names
        a service, unless it is somebody's own.
        """
        pages = self.pages(text)
        ours = [*pages]
        others: list[Span] = []
        for address in web_addresses(text):
            if holds(pages, address.start):
                continue
            if self.owns(text[address.start : address.end]):
                ours.append((address.start, address.end))
            else:
                others.append(address)
        text = with_ascii_numbers(text)
        if _DIGIT.search(text):
            ours += self.numbers(text)
            for phone in phone_numbers(blanked(text, [*ours, *others], _NOT_IN_NUMBERS)):
                # "116 123/0800 1111"
                numbers = (_NO_DIGIT.sub("", each) for each in text[phone.start : phone.end].split("/"))
                is_listed = all(number in self._numbers for number in numbers)
                if is_listed or self._may_own(_sentence_at(text, phone.start)):
                    ours.append((phone.start, phone.end))
                else:
                    others.append(phone)
        return sorted(ours), sorted(others, key=lambda each: each.start)

    def _may_own(self, sentence: str) -> bool:
        """Return whether a number in a sentence may be a service's: Kiran may be a person, KIRAN is a service."""
        if _SOMEBODYS_OWN.search(sentence):
            return False
        names = (match.group() for match in self._names.finditer(sentence))
        return speaks_of_crisis(sentence) or any(" " in name or (name.isupper() and len(name) > 3) for name in names)

    def owns(self, address: str) -> bool:
        """Return whether a web or mail address, or a link such as `tel:988`, is a service's."""
        if number := _NUMBER_LINK.match(address):
            return re.sub(r"[^0-9A-Z+]", "", number[1].upper()) in self._numbers
        host = re.sub(r"^[a-z]+://|^mailto:", "", address.lower())
        if re.split("[?#]", host.removeprefix("www."), maxsplit=1)[0].rstrip("/") in self._addresses:
            return True
        labels = re.split(r"[/?#:!,]", host, maxsplit=1)[0].rpartition("@")[2].rstrip(".-").split(".")
        return any(".".join(labels[first:]) in self._domains for first in range(len(labels)))


@cache
def crisis_services(*own: Path) -> CrisisServices:
    """Read the bundled list and one's own; raises ConfigError, each fault with its line, if a file is no such list."""
    return CrisisServices(*(load_config(CrisisServicesFile, path) for path in (BUNDLED, *own)))


def speaks_of_crisis(text: str) -> bool:
    """Return whether a text has a word for a crisis, a hotline or an emergency, by which a number is a service's."""
    return _SPEAKS_OF_CRISIS.search(text) is not None


def _sentence_at(text: str, position: int) -> str:
    for sentence in sentences(text):
        if position < len(sentence):
            return sentence
        position -= len(sentence)
    return ""


def names_crisis_service(text: str, crisis: CrisisServices, begin: int = 0) -> bool:
    """Return whether a text names a crisis service by a number, an address or a name that ends after a position."""
    return any(end > begin for _, end in crisis.spans(text))


def _ways_to_dial(key: str, calling_code: str | None) -> list[str]:
    """Return a number, digits or digits and letters, as it is dialled at home and, unless it is short, from abroad."""
    if len(key) < _CERTAIN_DIGITS or calling_code is None:
        return [key]
    if calling_code == _NORTH_AMERICA:
        return [prefix + key.removeprefix("1") for prefix in ("", "1", "+1", "001")]
    abroad = (f"{prefix}{calling_code}{zero}" for prefix in ("+", "00", "") for zero in ("", "0"))
    return [key, *(prefix + key.lstrip("0") for prefix in abroad)]


# --- Texts about a crisis --------------------

_IN_A_HOME = r"\b(?! (together|apart|here|near|at home|in (a|my|our)|with (him|her|them|my|each))\b)"
_CRISIS = re.compile(
    r"\b(?:suicid|self[- ]?harm|(?:i|to) (?:have )?overdosed?\b|(?:goodbye|farewell) (?:note|letter)s?\b"
    r"|cutting again\b"
    r"|(?:kill|hang|shoot)(?:ed|ing)? (?:my|him|her|them)sel(?:f|ves)\b(?! in the foot)"
    r"|(?:hurt|harm|cut|burn)(?:t?ing|ed|t)? myself\b|(?:cut|burn)(?:t?ing|ed|t)? my (?:arm|leg|thigh|wrist)s?\b"
    r"(?! (?:shaving|cooking|at work|on (?:a|the))\b)"
    r"|(?:tak(?:e|en|ing)|took|swallow(?:ed|ing)?) (?:all|too many|a (?:bottle|bunch|handful|lot|pack) of)(?: of)?"
    r"(?: (?:my|the|his|her|their))? (?:pill|tablet)s\b(?! (?:on time|every|each|as)\b)"
    r"|(?:end(?:ed|ing)?|tak(?:e|ing)|took) (?:my|his|her|their) (?:own )?life\b"
    r"|end(?:ed|ing)? it (?:all|today|tonight)\b"
    r"(?! with (?:him|her|them|my (?:boy|girl)friend|my (?:husband|wife|partner))\b)"
    r"|(?:want|wish)(?:ed|ing|s)? (?:to (?:die|be dead)|(?:i|he|she) (?:was dead|were dead|had never been born))\b"
    rf"|(?:do not|don['\u2019]?t|not) want to (?:be alive|be here any ?more|live{_IN_A_HOME}|exist|wake up)\b"
    r"|hop(?:e|ed|ing) (?:not to|(?:that )?i (?:don['\u2019]?t|won['\u2019]?t|never)) wake up\b"
    r"|not being here any ?more\b"
    r"|rather be dead\b|tired of (?:living|being alive)\b(?! \w)"
    r"|care (?:if|whether) i (?:live|die)(?= or\b| any ?more|\s*[.,;!?]|\s*$)"
    r"|better off (?:dead|without me|with me gone|if i (?:am|was|were|died))\b"
    rf"|(?:no|any) (?:reason|point) (?:to|in) (?:(?:live|living){_IN_A_HOME}|being alive\b)"
    r"|(?:(?<=\bnot )|(?<=n['\u2019]t )|(?<=\bno longer ))worth living\b)"
)


def mentions_crisis(text: str) -> bool:
    """Return whether a text speaks of suicide or self-harm in plain words; a hint, not an assessment."""
    return _CRISIS.search(text.lower()) is not None


def client_mentions_crisis(session: Iterable[Turn]) -> bool:
    """Return whether the client speaks of suicide or self-harm in any turn, as `mentions_crisis` sees it."""
    return any(mentions_crisis(turn.content) for turn in session if turn.role == "user")
