"""Speech -> Topic: what a client talks about, or the reason why nobody can say."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from psychocounsel.config.components import Settings
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.text import plain_words
from psychocounsel.errors import ConfigError
from psychocounsel.llm.types import JSON
from psychocounsel.store.files import digest_of
from psychocounsel.types import Speech

NO_CUE = "no_cue"
"""Why the offline assigner leaves a speech without a topic: no word of the taxonomy stands in it."""

Progress = Callable[[int], None]
"""Called with the number of speeches newly done."""


class Topic(NamedTuple):
    """Ids of a fine topic and of the coarse one that holds it."""

    coarse: str
    fine: str


class Unassigned(NamedTuple):
    """Why a speech has no topic.

    Attributes:
        reason: `no_cue`, or how the request ended (a `ReplyStatus`).
        detail: what was wrong with a reply, where there was one.
    """

    reason: str
    detail: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether asking again might give a topic: true of a model's failed reply, not of a missing cue."""
        return self.reason != NO_CUE


Assigned: TypeAlias = Topic | Unassigned


class TopicAssigner(Protocol):
    """Gives each speech a topic of a taxonomy, or none; never a guess.

    Attributes:
        identity: everything that shapes the topics, for ids and caches.
    """

    @property
    def identity(self) -> Mapping[str, JSON]: ...  # noqa: D102

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return what was found for each speech, in their order."""
        ...


def unassigned_by_reason(results: Sequence[Assigned]) -> dict[str, int]:
    """Count the speeches without a topic by reason, sorted by it."""
    counts = Counter(result.reason for result in results if isinstance(result, Unassigned))
    return dict(sorted(counts.items()))


_BUNDLED = Path(__file__).resolve().parent / "taxonomies"
MIN_STEM_CHARS = 3
"""A shorter stem would fit half the dictionary."""


def _one_spelling(cue: str) -> str:
    """Return a cue in plain words; a word may end in `*`, which stands for any ending.

    Raises:
        ValueError: there is no word in it, or a star that is not the end of a stem.
    """
    words: list[str] = []
    for written in cue.split():
        stem = written.removesuffix("*")
        plain = plain_words(stem)
        if not plain or "*" in stem:
            raise ValueError(f"the cue {cue!r} is not words; a star may only end a word")
        if stem != written and len(plain[-1]) < MIN_STEM_CHARS:
            raise ValueError(f"the stem in {cue!r} is too short; give at least {MIN_STEM_CHARS} letters")
        words += [*plain[:-1], plain[-1] + ("*" if stem != written else "")]
    if not words:
        raise ValueError("a cue is empty; write a word or take it out")
    return " ".join(words)


Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Cue = Annotated[str, AfterValidator(_one_spelling)]


class FineTopic(Settings):
    """One topic: what it is about, and the words by which the offline assigner knows it.

    `cues` speak for the topic by themselves; `hints` are words that often go with it and count less.
    """

    id: Id
    name: Text
    description: Text
    cues: Annotated[tuple[Cue, ...], Field(strict=False, min_length=1)]
    hints: Annotated[tuple[Cue, ...], Field(strict=False)] = ()


class CoarseTopic(Settings):
    """A group of fine topics."""

    id: Id
    name: Text
    fine: Annotated[tuple[FineTopic, ...], Field(strict=False, min_length=1)]


class Taxonomy(Settings):
    """Fine topics in coarse ones; every id names one topic, every cue speaks for one."""

    version: Text
    language: Text
    topics: Annotated[tuple[CoarseTopic, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Taxonomy":
        ids = [coarse.id for coarse in self.topics] + [fine.id for fine in self.fine_topics]
        _refuse_repeats("topic id", ids, "give each topic its own id")
        cues = [cue for fine in self.fine_topics for cue in (*fine.cues, *fine.hints)]
        _refuse_repeats("cue", cues, "leave each to the one topic that it speaks for most")
        return self

    @cached_property
    def fine_topics(self) -> tuple[FineTopic, ...]:
        """All fine topics in the order of the file."""
        return tuple(fine for coarse in self.topics for fine in coarse.fine)

    @cached_property
    def coarse_of(self) -> dict[str, str]:
        """The id of the coarse topic by that of the fine one."""
        return {fine.id: coarse.id for coarse in self.topics for fine in coarse.fine}

    @property
    def digest_of_words(self) -> str:
        """SHA-256 over what a model is shown: ids, names, descriptions, grouping and order."""
        shown = [
            [coarse.id, coarse.name, [[fine.id, fine.name, fine.description] for fine in coarse.fine]]
            for coarse in self.topics
        ]
        return digest_of([self.version, self.language, shown])

    @property
    def digest_of_cues(self) -> str:
        """SHA-256 over what the offline assigner goes by: ids, cues, hints, grouping and order."""
        heard = [
            [coarse.id, [[fine.id, sorted(fine.cues), sorted(fine.hints)] for fine in coarse.fine]]
            for coarse in self.topics
        ]
        return digest_of([self.version, heard])


def load_taxonomy(name_or_path: str) -> Taxonomy:
    """Load a bundled taxonomy by its name, or any YAML file by its path.

    Raises:
        ConfigError: no such taxonomy, or a faulty one; names every fault with its file and line.
    """
    bundled = {path.stem: path for path in sorted(_BUNDLED.glob("*.yaml"))}
    if name_or_path in bundled:
        return _load_bundled(bundled[name_or_path])
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            "no taxonomy can be read there",
            where=name_or_path,
            remedy=f"name a bundled taxonomy ({', '.join(bundled)}) or the path of a UTF-8 YAML file",
        )
    return load_config(Taxonomy, path)


@cache
def _load_bundled(path: Path) -> Taxonomy:
    # No user edits the package's own files, and a run asks for the taxonomy at every plan.
    return load_config(Taxonomy, path)


def _refuse_repeats(kind: str, values: Iterable[str], remedy: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{kind} used twice: {', '.join(repeated)}; {remedy}")


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
