"""Speech -> Topic by cues: words of the taxonomy counted in the text, offline and open to inspection.

A stand-in for a model: it hears words and no meaning. The same text always gets the same topic, and
`cues_heard` shows why.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psychocounsel.domain import Speech
from psychocounsel.llm.chat import JSON
from psychocounsel.speeches.taxonomy import MIN_STEM_CHARS, Taxonomy
from psychocounsel.speeches.topics import NO_CUE, Assigned, Progress, Topic, Unassigned
from psychocounsel.speeches.words import plain_words

VERSION = 1
"""Raised by hand whenever the same cues may give another topic than before."""

CUE_WEIGHT = 3
HINT_WEIGHT = 1

_MAX_REMEMBERED_WORDS = 200_000


class HeardCue(NamedTuple):
    """A cue found in a text, the fine topic that it speaks for, and how much."""

    fine: str
    cue: str
    weight: int


class OfflineTopicAssigner:
    """Adds up the distinct cues of each topic.

    The heaviest coarse topic wins, then the heaviest fine one in it; of equals the first of the taxonomy.
    A text without any cue stays unassigned.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._digest = taxonomy.digest_of_cues
        self._topics = [Topic(coarse.id, fine.id) for coarse in taxonomy.topics for fine in coarse.fine]
        group_of = {coarse.id: rank for rank, coarse in enumerate(taxonomy.topics)}
        self._groups = [group_of[topic.coarse] for topic in self._topics]
        self._openings = _Openings(_entries(taxonomy))

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the topics: the cues and the way of counting."""
        return {"backend": "offline", "version": VERSION, "taxonomy": self._digest}

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or that it holds no cue."""
        results: list[Assigned] = []
        for speech in speeches:
            results.append(self._assigned(speech.text))
            progress(1)
        return results

    def cues_heard(self, text: str) -> list[HeardCue]:
        """Return the distinct cues of a text in the order of their first place in it."""
        return [
            HeardCue(self._topics[entry.topic].fine, " ".join(entry.words), entry.weight)
            for entry in dict.fromkeys(self._heard(text))
        ]

    def _assigned(self, text: str) -> Assigned:
        by_topic: dict[int, int] = {}
        by_group: dict[int, int] = {}
        for entry in set(self._heard(text)):
            topic, group = entry.topic, self._groups[entry.topic]
            by_topic[topic] = by_topic.get(topic, 0) + entry.weight
            by_group[group] = by_group.get(group, 0) + entry.weight
        if not by_topic:
            return Unassigned(NO_CUE)
        heaviest = _first_heaviest(by_group)
        within = {topic: weight for topic, weight in by_topic.items() if self._groups[topic] == heaviest}
        return self._topics[_first_heaviest(within)]

    def _heard(self, text: str) -> Iterator["_Entry"]:
        """Yield cues from left to right, at each place the longest; a word belongs to one cue."""
        words = plain_words(text)
        openings = self._openings
        free_from = 0
        for place, word in enumerate(words):
            opening = openings[word]
            if opening is None or place < free_from:
                continue
            entry = opening.longest(words, place)
            if entry is not None:
                free_from = place + len(entry.words)
                yield entry


def _first_heaviest(weights: Mapping[int, int]) -> int:
    return min(weights, key=lambda rank: (-weights[rank], rank))


@dataclass(frozen=True, eq=False)
class _Entry:
    """One cue as words, of which any may end in a star, and the rank of its topic; each is only itself."""

    topic: int
    words: tuple[str, ...]
    weight: int

    def goes_on(self, words: Sequence[str], place: int) -> bool:
        """Whether the rest of the cue follows a place where its first word stands."""
        rest = words[place + 1 : place + len(self.words)]
        return len(rest) == len(self.words) - 1 and all(map(_fits, self.words[1:], rest))


class _Opening:
    """The cues that one word may open: those of more words by the start of their second, and the one of one.

    A word such as "my" opens a hundred phrases; with the next word in hand only a few are left to try.
    """

    def __init__(self, closest_first: Sequence[_Entry]) -> None:
        self._alone = next((entry for entry in closest_first if len(entry.words) == 1), None)
        self._phrases: dict[str, list[_Entry]] = {}
        for entry in closest_first:
            if len(entry.words) > 1:
                self._phrases.setdefault(_start(entry.words[1]), []).append(entry)

    def longest(self, words: Sequence[str], place: int) -> _Entry | None:
        if self._phrases and place + 1 < len(words):
            for entry in self._phrases.get(_start(words[place + 1]), ()):
                if entry.goes_on(words, place):
                    return entry
        return self._alone


class _Openings(dict[str, _Opening | None]):
    """Word -> the cues that it may open, None where there are none; filled as words are met."""

    def __init__(self, entries: Iterator[_Entry]) -> None:
        super().__init__()
        self._by_start: dict[str, list[_Entry]] = {}
        for entry in sorted(entries, key=_closeness, reverse=True):
            self._by_start.setdefault(_start(entry.words[0]), []).append(entry)

    def __missing__(self, word: str) -> _Opening | None:
        if len(self) >= _MAX_REMEMBERED_WORDS:
            self.clear()
        near = [entry for entry in self._by_start.get(_start(word), ()) if _fits(entry.words[0], word)]
        self[word] = found = _Opening(near) if near else None
        return found


def _start(word: str) -> str:
    """Return the letters that a word and every cue that fits it have in common."""
    return word[:MIN_STEM_CHARS]


def _closeness(entry: _Entry) -> tuple[int, int]:
    """Words first, then letters: of "panic*" and "panic attack" the second says more."""
    return len(entry.words), len(" ".join(entry.words))


def _entries(taxonomy: Taxonomy) -> Iterator[_Entry]:
    for rank, topic in enumerate(taxonomy.fine_topics):
        for cues, weight in ((topic.cues, CUE_WEIGHT), (topic.hints, HINT_WEIGHT)):
            for cue in cues:
                yield _Entry(rank, tuple(cue.split()), weight)


def _fits(cue_word: str, word: str) -> bool:
    return word.startswith(cue_word[:-1]) if cue_word.endswith("*") else word == cue_word
