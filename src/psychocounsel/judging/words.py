"""text -> words, sentences, phrases: the plain view of a text that the offline judge reads.

Everything is decided by word lists and punctuation, so a reader can follow each step by hand.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_SENTENCE = re.compile(r"[^.!?…]+(?:[.!?…]+|$)")
_CLAUSE_EDGE = re.compile("[,;:()\n\u2013\u2014]|\\s-\\s|--")
_QUOTES = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "}
)
_IRREGULAR = {"can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not"}
_ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will", "'m": " am", "'d": " would"}
_IS_AFTER = frozenset(
    {"what", "that", "it", "there", "who", "how", "where", "he", "she", "here", "when", "why"}
)
_SUFFIXES = ("ings", "ing", "edly", "ed", "ies", "es", "ly", "s")
_SHORTEST_STEM = 3


class Sentence(NamedTuple):
    """The words of one sentence, how it ended, and the places in it where a clause opens."""

    words: tuple[str, ...]
    is_question: bool
    is_exclamation: bool
    clause_starts: tuple[int, ...]
    is_finished: bool


class Hit(NamedTuple):
    """A phrase of a lexicon found in a text, as it stands there."""

    category: str
    entry: str
    found: str
    start: int


def split_words(text: str) -> list[str]:
    """Return the lower-case words of `text` with contractions undone ("you're" is two words)."""
    words: list[str] = []
    for token in _WORD.findall(text.translate(_QUOTES).lower()):
        words.extend(_expand(token).split())
    return words


def _expand(written: str) -> str:
    if written in _IRREGULAR:
        return _IRREGULAR[written]
    if written == "let's":
        return "let us"
    for ending, full in _ENDINGS.items():
        if written.endswith(ending) and len(written) > len(ending):
            return written[: -len(ending)] + full
    if written.endswith("'s"):
        stem = written[:-2]
        return f"{stem} is" if stem in _IS_AFTER else stem
    return written


def split_sentences(text: str) -> list[Sentence]:
    """Cut `text` after each run of `.`, `!`, `?` or an ellipsis; a piece without words is no sentence."""
    sentences: list[Sentence] = []
    for piece in _SENTENCE.findall(text.translate(_QUOTES)):
        words, starts = _clauses(piece)
        if words:
            ending = piece[-3:]
            finished = ending[-1] in ".!?…"
            sentences.append(Sentence(words, "?" in ending, "!" in ending, starts, finished))
    return sentences


def _clauses(piece: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    words: list[str] = []
    starts: list[int] = []
    for clause in _CLAUSE_EDGE.split(piece):
        clause_words = split_words(clause)
        if clause_words:
            starts.append(len(words))
            words.extend(clause_words)
    return tuple(words), tuple(starts)


def stem(word: str) -> str:
    """Cut the commonest English endings so that "driving", "drives" and "drive" meet; no dictionary."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM:
            word = word[: -len(suffix)]
            break
    if len(word) > _SHORTEST_STEM and word[-1] == word[-2] and word[-1] not in "aeiousl":
        return word[:-1]
    return word[:-1] if len(word) > _SHORTEST_STEM and word[-1] in "ey" else word


@dataclass(frozen=True)
class PhraseBook:
    """Phrases by category, found in one pass over the words of a text."""

    phrases: Mapping[str, tuple[str, ...]]
    _by_word: dict[str, list[tuple[str, str, tuple[str, ...]]]] = field(init=False, repr=False, compare=False)
    _by_stem: dict[str, list[tuple[str, str, tuple[str, ...]]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_word: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {}
        by_stem: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {}
        for category, entries in self.phrases.items():
            for entry in entries:
                pattern = tuple(entry.split())
                first = pattern[0]
                index, key = (by_stem, first.split("*")[0]) if "*" in first else (by_word, first)
                index.setdefault(key, []).append((category, entry, pattern))
        object.__setattr__(self, "_by_word", by_word)
        object.__setattr__(self, "_by_stem", by_stem)

    def hits(self, words: tuple[str, ...] | list[str]) -> list[Hit]:
        """Return every phrase found, in order of place; phrases of different categories may overlap."""
        found: list[Hit] = []
        for start, word in enumerate(words):
            for category, entry, pattern in self._opening(word):
                window = words[start : start + len(pattern)]
                if len(window) == len(pattern) and all(map(_fits, pattern, window)):
                    found.append(Hit(category, entry, " ".join(window), start))
        return found

    def _opening(self, word: str) -> Iterable[tuple[str, str, tuple[str, ...]]]:
        yield from self._by_word.get(word, ())
        for length in range(1, len(word) + 1):
            yield from self._by_stem.get(word[:length], ())


def _fits(pattern: str, word: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return word == pattern
    return word.startswith(head) and word.endswith(tail) and len(word) >= len(head) + len(tail)
