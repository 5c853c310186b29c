"""Text -> Spans by patterns and lists: the engine that is always there."""

import re
from collections.abc import Iterator, Sequence

from psychocounsel.config.corpus import Entity
from psychocounsel.speeches.deidentification.addresses import find_addresses
from psychocounsel.speeches.deidentification.formats import (
    find_addresses_of_the_net,
    find_handles,
    find_ips,
    find_phones,
)
from psychocounsel.speeches.deidentification.identifiers import find_birth_dates, find_id_numbers
from psychocounsel.speeches.deidentification.name_lists import LISTS_DIGEST
from psychocounsel.speeches.deidentification.names import find_people
from psychocounsel.speeches.deidentification.spans import CrisisSpans, Identity, Span

VERSION = 1
# Signs without which the slower patterns cannot match; most texts have none.
_DIGIT = re.compile(r"[0-9]")
_FOUR_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,3}[0-9]){3}")
_SIX_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){5}")
_IP_SIGN = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:")
_NET_SIGN = re.compile(r"\.[A-Za-z]")
_NET_SIGNS = ("@", "://", "www", " dot ", "at)", "at]")
_NUMBERS = ("PHONE", "ID_NUMBER")


class PatternDeidentifier:
    """Patterns for what has a form, cues and lists of names for people."""

    def __init__(self, entities: Sequence[Entity], min_score: float, crisis_spans: CrisisSpans) -> None:
        """Set up what is looked for.

        Args:
            entities: what is looked for.
            min_score: finds below it are left out, in 0 to 1.
            crisis_spans: where in a text crisis lines stand.
        """
        self._entities = frozenset(entities)
        self._min_score = min_score
        self._crisis_spans = crisis_spans

    @property
    def identity(self) -> Identity:
        """Engine, version, entities and threshold."""
        return {
            "engine": "patterns",
            "version": str(VERSION),
            "lists": LISTS_DIGEST,
            "entities": sorted(self._entities),
            "min_score": self._min_score,
        }

    def find(self, text: str) -> list[Span]:
        """Return the finds of all patterns; they may overlap."""
        found = [
            span
            for span in _candidates(text)
            if span.entity in self._entities and span.score >= self._min_score
        ]
        return without_crisis_lines(text, found, self._crisis_spans)


def _candidates(text: str) -> Iterator[Span]:
    lowered = text.lower()
    yield from find_people(text)
    has_digit = _DIGIT.search(text) is not None
    has_net_sign = _NET_SIGN.search(text) is not None or any(sign in lowered for sign in _NET_SIGNS)
    if has_net_sign:
        yield from find_addresses_of_the_net(text, lowered)
    if has_net_sign or has_digit or "_" in text:
        yield from find_handles(text, lowered)
    if has_digit:
        yield from _numbers(text, lowered)


def _numbers(text: str, lowered: str) -> Iterator[Span]:
    yield from find_birth_dates(text, lowered)
    yield from find_addresses(text, lowered)
    if _FOUR_DIGITS.search(text):
        yield from find_id_numbers(text)
        if _IP_SIGN.search(text):
            yield from find_ips(text)
        if _SIX_DIGITS.search(text):
            yield from find_phones(text)


def without_crisis_lines(text: str, spans: list[Span], crisis_spans: CrisisSpans) -> list[Span]:
    """Return the finds without the numbers of crisis lines: those stay in every text."""
    if not any(span.entity in _NUMBERS for span in spans):
        return spans
    lines = crisis_spans(text)
    return [
        span
        for span in spans
        if span.entity not in _NUMBERS
        or not any(start < span.end and span.start < end for start, end in lines)
    ]
