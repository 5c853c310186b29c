"""CorpusConfig -> those who look at a text while it is read: steps, language, benchmarks, identities."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

from psychocounsel.config.corpus import ENTITIES, CorpusConfig
from psychocounsel.domain import content_id
from psychocounsel.speeches.candidate_reading import CandidateScreens
from psychocounsel.speeches.cleaning import SPEECH_STEPS, Prepared, prepare, response_steps
from psychocounsel.speeches.deidentification.engines import open_deidentifier
from psychocounsel.speeches.deidentification.planted import Counts, evaluate, read_planted
from psychocounsel.speeches.deidentification.spans import deidentify
from psychocounsel.speeches.exclusion import ExcludedTexts, ExclusionIndex, texts_in
from psychocounsel.speeches.languages import OfflineIdentifier, is_foreign
from psychocounsel.speeches.people import author_name
from psychocounsel.speeches.reading import Screen, SpeechScreens
from psychocounsel.speeches.side_by_side import SideBySide, processors
from psychocounsel.store.tables.sources import read_rows, source_name

_Opened = Callable[[], Callable[[str], Prepared]]
_SURROGATE = re.compile(rf"\[({'|'.join(ENTITIES)})_(\d+)\]")


def screens_identity(config: CorpusConfig) -> dict[str, Any]:
    """Return what identifies those who look: the language identifier and the engine for identities.

    Raises:
        ConfigError: an engine is not installed.
    """
    identity: dict[str, Any] = {}
    if config.cleaning.languages:
        identity["language_identifier"] = f"py3langid {version('py3langid')}"
    deidentifier = open_deidentifier(config.deidentification)
    identity["deidentification"] = None if deidentifier is None else dict(deidentifier.identity)
    return identity


class Screens:
    """Those who look at the texts of one corpus, and what was found by them."""

    def __init__(self, config: CorpusConfig) -> None:
        """Open what a config asks for.

        Raises:
            ConfigError: an engine is not installed.
            InputError: an excluded source cannot be read.
        """
        self._config = config
        self._deidentifier = open_deidentifier(config.deidentification)
        self._found: Counter[str] = Counter()
        deidentify = None if self._deidentifier is None else self._hide
        self.for_speeches = SpeechScreens(
            SPEECH_STEPS,
            _other_language(config),
            _benchmark(config),
            deidentify,
            self._together(partial(open_for_speeches, config)),
        )

    def for_candidates(self, authors: Iterable[str]) -> CandidateScreens:
        """Return how responses are cleaned; the authors who are people are looked for in every text."""
        cleaning = self._config.cleaning
        return CandidateScreens(
            response_steps(cleaning, authors),
            self.for_speeches.text_of,
            _pseudonym if cleaning.signatures == "remove" else str,
            self.for_speeches.deidentify,
            self._together(partial(open_for_candidates, self._config, frozenset(authors))),
        )

    def _together(self, opened: _Opened) -> Callable[[Iterable[str]], Iterator[Prepared]]:
        # An engine with a language model of its own would be loaded by every worker.
        workers = 0 if self._config.deidentification.engine == "presidio" else processors()
        side_by_side = SideBySide(opened(), opened, workers)

        def prepare_all(raws: Iterable[str]) -> Iterator[Prepared]:
            for prepared in side_by_side.each(raws):
                self._count(prepared.plain, prepared.text)
                yield prepared

        return prepare_all

    def _hide(self, text: str) -> str:
        assert self._deidentifier is not None  # noqa: S101
        hidden = deidentify(text, self._deidentifier)
        self._count(text, hidden)
        return hidden

    def _count(self, text: str, hidden: str) -> None:
        if hidden != text:
            new = set(_SURROGATE.findall(hidden)) - set(_SURROGATE.findall(text))
            self._found.update(entity for entity, _ in new)

    def found(self) -> dict[str, Any] | None:
        """Return what the engine for identities found, and how it does on texts with planted identities."""
        if self._deidentifier is None:
            return None
        planted = evaluate(self._deidentifier, read_planted("held_out"))
        return {
            "engine": self._config.deidentification.engine,
            "found": dict(sorted(self._found.items())),
            "planted": {name: _entity_counts(each) for name, each in sorted(planted.by_entity.items())},
            "planted_overall": _entity_counts(planted.overall),
        }


def open_for_speeches(config: CorpusConfig) -> Callable[[str], Prepared]:
    """Return what prepares one speech, here or in a worker."""
    return partial(
        prepare, steps=SPEECH_STEPS, deidentify=_hiding(config), other_language=_other_language(config)
    )


def open_for_candidates(config: CorpusConfig, authors: Iterable[str]) -> Callable[[str], Prepared]:
    """Return what prepares one response, here or in a worker."""
    steps = response_steps(config.cleaning, sorted(authors))
    return partial(prepare, steps=steps, deidentify=_hiding(config))


def _hiding(config: CorpusConfig) -> Callable[[str], str] | None:
    engine = open_deidentifier(config.deidentification)
    return None if engine is None else partial(deidentify, finder=engine)


def _entity_counts(counts: Counts) -> dict[str, int]:
    return {**counts._asdict()}


def _other_language(config: CorpusConfig) -> Screen | None:
    if not config.cleaning.languages:
        return None
    identifier = OfflineIdentifier()
    wanted = config.cleaning.languages
    told = f"not {' or '.join(wanted)}"
    return lambda text: told if is_foreign(text, wanted, identifier) else None


def _benchmark(config: CorpusConfig) -> Screen | None:
    if not config.exclude:
        return None
    sources = (
        ExcludedTexts(
            source_name(each.path), texts_in(read_rows(each.path, each.split, each.config), each.columns)
        )
        for each in config.exclude
    )
    return ExclusionIndex(sources, config.exclude_span_words).shares_span


def _pseudonym(author: str) -> str:
    """Return a name that can be published: a person's, or a page's, gives way to a number of its own."""
    is_public = author_name(author) is None and "://" not in author
    return author if is_public else f"person-{content_id('author', author)[:8]}"
