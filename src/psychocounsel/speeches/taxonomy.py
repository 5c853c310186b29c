"""YAML -> Taxonomy: coarse and fine topics of what clients talk about, in words that anybody can edit.

The order of the file counts: of two topics that fit equally well, the offline assigner takes the first.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from psychocounsel.config.base import Settings
from psychocounsel.config.loading import load_config
from psychocounsel.errors import ConfigError
from psychocounsel.speeches.words import plain_words
from psychocounsel.store.digests import digest_of

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
