"""Sentence -> what kind of question: open, closed, an invitation, a question about safety."""

from collections.abc import Iterable
from enum import StrEnum

from psychocounsel.judging.lexicon import load_lexicon
from psychocounsel.judging.words import Sentence

_OPENING_WORDS = 3
_SHORTEST_OPEN = 3
_PERSONAL = frozenset({"you", "your", "it", "that"})


class QuestionKind(StrEnum):
    """OPEN asks for a story, CLOSED for a fact, INVITATION may be declined, SAFETY is about danger."""

    OPEN = "open"
    CLOSED = "closed"
    INVITATION = "invitation"
    SAFETY = "safety"


def classify(sentence: Sentence, about_danger: bool) -> QuestionKind | None:
    """Return the kind of question that `sentence` is, or None when it asks nothing.

    Args:
        sentence: of the response.
        about_danger: the client may be in danger and the sentence names it.
    """
    if not sentence.is_question:
        return QuestionKind.INVITATION if _wonders(sentence.words) or _invites(sentence.words) else None
    if about_danger and "you" in sentence.words:
        return QuestionKind.SAFETY
    if any(_asks_openly(sentence.words[start:]) for start in _places(sentence)):
        return QuestionKind.OPEN
    return QuestionKind.INVITATION if _invites(sentence.words) else QuestionKind.CLOSED


def _places(sentence: Sentence) -> list[int]:
    """Where an asking clause may open: at clause starts or just after ("and what", "so then how")."""
    count = len(sentence.words)
    return [
        place
        for start in sentence.clause_starts
        for place in range(start, min(start + _OPENING_WORDS, count))
    ]


def _asks_openly(words: tuple[str, ...]) -> bool:
    lists = load_lexicon().questions
    if words[0] not in lists["openers"] - lists["never_open"] or len(words) < _SHORTEST_OPEN:
        return False
    if words[1] in lists["facts"]:
        return False
    return not _PERSONAL.isdisjoint(words) and not lists["inner"].isdisjoint(words[1:])


def _wonders(words: tuple[str, ...]) -> bool:
    return _holds(words, load_lexicon().questions["wondering"])


def _invites(words: tuple[str, ...]) -> bool:
    lists = load_lexicon().questions
    return _holds(words, lists["inviting"]) and _holds(words, lists["invited_to"])


def _holds(words: tuple[str, ...], phrases: Iterable[str]) -> bool:
    text = f" {' '.join(words)} "
    return any(f" {phrase} " in text for phrase in phrases)
