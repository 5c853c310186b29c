"""Text -> text with the spaces that are missing behind sentences, never inside addresses or numbers."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from psychocounsel.config.schema import CleaningConfig
from psychocounsel.corpus.authors import KnownPeople, without_signatures
from psychocounsel.corpus.contacts import Contact, holds, web_addresses, with_placeholders, without_contacts
from psychocounsel.corpus.text import normalise, without_markup

_LOWER = "a-zß-öø-ÿ"
_UPPER = "A-ZÀ-ÖØ-Þ"
_FILE_TYPES = "PDF|DOCX?|XLSX?|PPTX?|JPE?G|PNG|GIF|TXT|HTML?|CSV|EXE|ZIP|MP[34]|JS|NET|MD|Docx?|Pdf|Txt|Net|Js"
_SMALL_STARTS = "i|im|ive|but|and|so|then|my|he|she|we|they|it|its|because|the|this|that|you|your|if|when|what|now|also"
# A sentence's last mark with what closes it, and no space behind. Written so that `re` skips to the marks.
_MARK = re.compile(r"(?P<mark>[.!?…][.!?…]*)(?P<closing>[)\]”\u2019]?\"?)(?=[^\s.!?…])")


class _Rule(NamedTuple):
    """Where a space is missing: what stands before the marks, which they are, what stands behind them."""

    before: re.Pattern[str]
    marks: re.Pattern[str]
    ahead: re.Pattern[str]


def _rule(before: str, marks: str, ahead: str) -> _Rule:
    return _Rule(re.compile(before, re.MULTILINE), re.compile(marks), re.compile(ahead))


_STOPS = r"[.…]+"
_STOP = r"\."
_CALLS = r"[!?][.!?…]*"
_CALL = r"[!?]+"


_OPENING = r"[“\u2018\"¿¡(\[]?"
_CAPITAL = (
    rf"{_OPENING}(?!(?:{_FILE_TYPES})\b)"
    rf"(?:[{_UPPER}][{_LOWER}'\u2019]|[IAÉÓYO](?=[\s'\u2019,])|[A-Z]{{2,}}(?![.\w]))"
)
_ENDS_BEFORE_ADDRESS = re.compile(r"(?:[^\W_]|[.,;:!?…]|[.!?…][)\]\"”])\Z")
_BEHIND_ADDRESS = re.compile(rf"\)?[.!?]+(?={_CAPITAL})")
_RULES = (
    # A word of two letters or a number: "U.S.A", "e.g." and initials have one letter before the stop.
    _rule(rf"(?<=[{_LOWER}{_UPPER}0-9'\u2019][{_LOWER}0-9])|(?<=[A-Z][A-Z][A-Z])", _STOPS, _CAPITAL),
    _rule(rf"(?<=[)\]\"”\u2019%])|(?<=[{_LOWER}] )", _STOPS, _CAPITAL),
    _rule(rf"(?<=[{_LOWER}'\u2019][{_LOWER}])", _STOP, rf"(?:{_SMALL_STARTS})(?:['\u2019][a-z]+)?[\s,]"),
    _rule(rf"(?<=[{_LOWER}]{{3}})", _STOP, r"\d+[.)]?\s"),
    _rule(r"(?<=[.!?\s]\d)|(?<=^\d)", _STOP, rf"[{_UPPER}][{_LOWER}]"),
    _rule(r"(?<=[ap]\.m)", _STOP, rf"[{_UPPER}][{_LOWER}]"),
    _rule(rf"(?<=[{_LOWER}{_UPPER}0-9'\u2019)\]\"”])", _CALL, rf"{_OPENING}[{_LOWER}{_UPPER}]"),
    _rule(rf"(?<=[{_LOWER}{_UPPER}0-9'\u2019)\]\"”])|(?<=[{_LOWER}{_UPPER}] )", _CALLS, _CAPITAL),
)


def with_sentence_spacing(text: str) -> str:
    """Return the text with a space behind every sentence and around every web address.

    `I am sad.I feel alone` becomes `I am sad. I feel alone`; `3.5`, `p.m.`, `U.S.A`, `e.g.`, names of files
    and `www.example.org` stay.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    addresses = web_addresses(text)
    gaps = {*_around(addresses, text), *_behind_sentences(text, marks, addresses)}
    edges = [0, *sorted(gaps), len(text)]
    return " ".join(text[start:end] for start, end in pairwise(edges))


def _around(addresses: list[Contact], text: str) -> Iterator[int]:
    for address in addresses:
        before, after = text[max(0, address.start - 2) : address.start], text[address.end : address.end + 1]
        if _ENDS_BEFORE_ADDRESS.search(before):
            yield address.start
        if after.isalnum() or (after and after in "¿¡"):
            yield address.end
        elif closing := _BEHIND_ADDRESS.match(text, address.end):
            yield closing.end()


def _behind_sentences(text: str, marks: list[re.Match[str]], addresses: list[Contact]) -> Iterator[int]:
    for mark in marks:
        if not holds(addresses, mark.start()) and (gap := _gap(text, mark)) is not None:
            yield gap


def _gap(text: str, mark: re.Match[str]) -> int | None:
    end = mark.end()
    if mark["closing"].endswith('"') and _is_outside_quotes(text, mark.start()):
        end -= 1  # the quotation mark opens what follows
    if end == mark.start():
        return None
    for rule in _RULES:
        if rule.marks.fullmatch(mark["mark"]) and rule.before.match(text, mark.start()) and rule.ahead.match(text, end):
            return end
    return None


def _is_outside_quotes(text: str, position: int) -> bool:
    paragraph = text.rfind("\n", 0, position) + 1
    return text.count('"', paragraph, position) % 2 == 0


DEIDENTIFICATION = "deidentification"

_MAX_ROUNDS = 20


class Step(NamedTuple):
    """One pure change of a text, and the name under which the funnel counts it."""

    name: str
    change: Callable[[str], str]


class Cleaned(NamedTuple):
    """A clean text and the names of the steps that changed it, in their order."""

    text: str
    changed_by: tuple[str, ...]


class Prepared(NamedTuple):
    """A text as the cleaning left it, as it is known once identities are hidden, and what changed it.

    `foreign` says that it is in none of the wanted languages; None where nobody looked.
    """

    plain: str
    text: str
    changed_by: tuple[str, ...]
    foreign: str | None = None


SPEECH_STEPS = (
    Step("markup", without_markup),
    Step("characters", normalise),
    Step("sentence_spacing", with_sentence_spacing),
)


def response_steps(config: CleaningConfig, authors: Iterable[str]) -> tuple[Step, ...]:
    """Return the steps for responses: those for speeches, then signatures and contacts as the config says.

    Args:
        config: `signatures` and `contacts` are read.
        authors: names or page addresses of all authors; people among them are looked for in every response.
    """
    steps = list(SPEECH_STEPS)
    if config.signatures == "remove":
        known = KnownPeople.of_authors(authors)
        # Where addresses go, they go as a whole, and the names in them too.
        in_addresses = config.contacts == "keep"
        steps.append(Step("signatures", partial(without_signatures, known=known, in_addresses=in_addresses)))
    if config.contacts != "keep":
        change = without_contacts if config.contacts == "drop_sentence" else with_placeholders
        steps.append(Step("contacts", change))
    return tuple(steps)


def prepare(
    raw: str,
    steps: Sequence[Step],
    deidentify: Callable[[str], str] | None = None,
    other_language: Callable[[str], str | None] | None = None,
) -> Prepared:
    """Clean a text, look at its language, and hide identities; an empty text stays as it is."""
    plain, changed_by = clean(raw, steps)
    if not plain:
        return Prepared(plain, plain, changed_by)
    foreign = None if other_language is None else other_language(plain)
    hidden = plain if deidentify is None else deidentify(plain)
    changed_by = (*changed_by, DEIDENTIFICATION) if hidden != plain else changed_by
    return Prepared(plain, hidden, changed_by, foreign)


def clean(text: str, steps: Sequence[Step]) -> Cleaned:
    """Apply the steps in order, again and again, until none changes the text: a clean text stays as it is."""
    changed_by: set[str] = set()
    unchanged: dict[str, str] = {}  # a step that left this very text alone is not asked again
    for _ in range(_MAX_ROUNDS):
        before = text
        for step in steps:
            if unchanged.get(step.name) == text:
                continue
            after = step.change(text)
            if after == text:
                unchanged[step.name] = text
            else:
                changed_by.add(step.name)
            text = after
        if text == before:
            break
    return Cleaned(text, tuple(step.name for step in steps if step.name in changed_by))
