"""De-identification: `my sister Anna` becomes `my sister [PERSON_1]`."""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from importlib import import_module, metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from psychocounsel.config.corpus import ENTITIES, DeidentificationConfig, Entity
from psychocounsel.corpus.crisis import CrisisServices, crisis_services
from psychocounsel.corpus.deidentify import patterns
from psychocounsel.corpus.deidentify.patterns import AMBIGUOUS_LOWER, NOT_NAMES, PLACEHOLDER
from psychocounsel.corpus.deidentify.planted import MarkedText
from psychocounsel.corpus.text import Span, either, replaced, touches
from psychocounsel.errors import ConfigError
from psychocounsel.store.files import digest_of_files

_POSSESSIVE = re.compile(r"['\u2019][sS]?$")
_WORD = re.compile(r"\w+")
# What one number or address is written with or without.
_OPTIONAL = {
    "PHONE": re.compile(r"^\+?1(?=\W|\d{10}$)"),
    "EMAIL": re.compile(r"^mailto:"),
    "URL": re.compile(r"^(?:https?://)?(?:www\.)?"),
}


class Finder(Protocol):
    """Finds what identifies a person."""

    def find(self, text: str) -> Sequence[Span]:
        """Return the detections in any order; they may overlap."""
        ...


class Placeholders:
    """Placeholders by what they stand for. Shared by several texts, `[PERSON_1]` is one person in all of them."""

    def __init__(self, text: str = "") -> None:
        self._last: Counter[str] = Counter()
        self.reserve(text)
        self._by_content: dict[tuple[Entity, str], str] = {}
        self._people: list[tuple[tuple[str, ...], str]] = []

    def reserve(self, text: str) -> None:
        """Use none of the placeholders that the text already contains."""
        for entity, number in PLACEHOLDER.findall(text):
            self._last[entity] = max(self._last[entity], int(number))

    def rename(self, text: str, numbered: Iterable[str]) -> str:
        """Return a text with other placeholders for the given ones, which were not numbered here."""
        new = {each: self._new(each[1:].rpartition("_")[0]) for each in sorted(numbered)}
        return PLACEHOLDER.sub(lambda match: new.get(match.group(), match.group()), text)

    def again_in(self, text: str) -> Iterator[Span]:
        """Yield where a text repeats, capitalised, the names of known people that are no ordinary words."""
        words = {word for name, _ in self._people for word in name if len(word) > 1} - NOT_NAMES - AMBIGUOUS_LOWER
        folded = text.casefold() if words else ""
        for match in _WORD.finditer(text) if any(word in folded for word in words) else ():
            if match.group()[0].isupper() and match.group().casefold() in words:
                yield Span(match.start(), match.end(), "PERSON", 1.0)

    def put_in(self, text: str, spans: Iterable[Span]) -> str:
        """Return the text with a placeholder for each of the spans, which are sorted and do not overlap."""
        return replaced(text, ((start, end, self.of(entity, text[start:end])) for start, end, entity, _ in spans))

    def of(self, entity: Entity, found: str) -> str:
        """Return the placeholder of a find, the same one for the same person, number or address."""
        if entity == "PERSON":
            return self._of_person(tuple(_WORD.findall(_POSSESSIVE.sub("", found).casefold())))
        bare = found.casefold()
        if entity in _OPTIONAL:
            bare = _OPTIONAL[entity].sub("", bare)
        # In an address the marks count: a-b.org is not ab.org.
        key = (entity, bare.rstrip("/") if entity in ("EMAIL", "URL") else "".join(_WORD.findall(bare)))
        if key not in self._by_content:
            self._by_content[key] = self._new(entity)
        return self._by_content[key]

    def _of_person(self, name: tuple[str, ...]) -> str:
        for at, (known, placeholder) in enumerate(self._people):
            if _same_person(known, name):
                self._people[at] = (max(known, name, key=len), placeholder)
                return placeholder
        self._people.append((name, self._new("PERSON")))
        return self._people[-1][1]

    def _new(self, entity: str) -> str:
        self._last[entity] += 1
        return f"[{entity}_{self._last[entity]}]"


def _same_person(known: tuple[str, ...], name: tuple[str, ...]) -> bool:
    """A first or last name alone is the first person of the text who has it."""
    if min(len(known), len(name)) <= 1:
        short, full = sorted((known, name), key=len)
        return short == full or (len(full) > 1 and short[:1] in (full[:1], full[-1:]))
    return (known[0], known[-1]) == (name[0], name[-1])


def deidentify(text: str, finder: Finder, placeholders: Placeholders | None = None) -> str:
    """Return the text with a placeholder for every find, numbered in order of appearance.

    What the finder sees only after a neighbour was replaced is replaced too, so a second call changes nothing.
    Texts that belong together, such as a speech and its responses, share `placeholders`.
    """
    known = placeholders or Placeholders()
    found = [*finder.find(text), *known.again_in(text)]
    if not found and placeholders is None:
        return text
    known.reserve(text)
    while spans := resolve(_outside_placeholders(text, found)):
        text = known.put_in(text, spans)
        found = [*finder.find(text), *known.again_in(text)]
    return text


def _outside_placeholders(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    taken = [match.span() for match in PLACEHOLDER.finditer(text)] if spans else []
    for span in spans:
        if span.entity == "PERSON" and (ending := _POSSESSIVE.search(text, span.start, span.end)):
            span = span._replace(end=ending.start())
        if span.start < span.end and not touches(span.start, span.end, taken):
            yield span


def resolve(spans: Iterable[Span]) -> list[Span]:
    """Return sorted spans without overlap: of two that overlap the longer stays, then the one with the higher score."""
    starts: list[int] = []
    kept: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start - each.end, -each.score, each.start)):
        at = bisect_left(starts, span.start)
        is_free_before = at == 0 or kept[at - 1].end <= span.start
        if is_free_before and (at == len(kept) or span.end <= kept[at].start):
            starts.insert(at, span.start)
            kept.insert(at, span)
    return kept


# --- Presidio --------------------

VERSION = 4
_LANGUAGE = "en"
_PACKAGES = ("presidio-analyzer", "spacy", "phonenumbers")
_NUMBERS = (
    "CreditCard", "Iban", "MedicalLicense", "Nhs", "UkNino", "UsBank", "UsItin", "UsLicense", "UsPassport", "UsSsn"
)  # fmt: skip
_ID: Entity = "ID_NUMBER"
# Of mail and IP addresses the patterns find all.
_RECOGNIZERS: dict[str, Entity] = {"Url": "URL", "Phone": "PHONE", **dict.fromkeys(_NUMBERS, _ID)}
_TRAILING = ".,;:!?"
# What pipelines of different languages call a person.
_PERSON_LABELS = ("PERSON", "PER", "Person", "persName", "PRS", "PS", "PATIENT", "STAFF", "HCW")


class Presidio:
    """Finds what Presidio finds: names by the pipeline, numbers by its recognisers; towns and countries stay.

    The pipeline, an installed package or a folder, of any language, is loaded with the first text. Raises ConfigError
    if the extra or the pipeline is not installed.
    """

    def __init__(self, spacy_model: str, entities: Sequence[Entity]) -> None:
        self._spacy_model, self._entities = spacy_model, frozenset(entities)
        versions = {name: _version(name) for name in _PACKAGES}
        self.fingerprint = {"presidio": str(VERSION), "pipeline": _pipeline_fingerprint(spacy_model), **versions}

    def find(self, text: str) -> list[Span]:
        """Return the detections; they may overlap."""
        found: list[Span] = []
        if self._names:
            for result in self._analyzer.analyze(text, language=_LANGUAGE, entities=list(self._names)):
                end = result.start + len(text[result.start : result.end].rstrip(_TRAILING))
                found.append(Span(result.start, end, self._names[result.entity_type], float(result.score)))
        return found

    @cached_property
    def _recognizers(self) -> list[tuple[Any, Entity]]:
        predefined = import_module("presidio_analyzer.predefined_recognizers")
        every: list[tuple[Any, Entity]] = [
            (predefined.SpacyRecognizer(supported_entities=["PERSON"]), "PERSON"),
            *((getattr(predefined, f"{name}Recognizer")(), entity) for name, entity in _RECOGNIZERS.items()),
        ]
        return [(recognizer, entity) for recognizer, entity in every if entity in self._entities]

    @cached_property
    def _names(self) -> dict[str, Entity]:
        """Our name of each entity by Presidio's."""
        return {name: entity for each, entity in self._recognizers for name in each.supported_entities}

    @cached_property
    def _analyzer(self) -> Any:
        presidio, engines = import_module("presidio_analyzer"), import_module("presidio_analyzer.nlp_engine")
        pipeline = import_module("spacy").load(self._spacy_model)
        labels = {label for labels in pipeline.pipe_labels.values() for label in labels}
        if "PERSON" in self._entities and labels.isdisjoint(_PERSON_LABELS):
            raise ConfigError(
                f"the pipeline {self._spacy_model} finds no people: it has no component with one of the labels "
                f"{', '.join(_PERSON_LABELS)}",
                where="deidentification.spacy_model",
                remedy="name a pipeline with named-entity recognition, such as en_core_web_lg, or set engine: patterns",
            )
        others = labels - set(_PERSON_LABELS)
        settings = engines.NerModelConfiguration(
            labels_to_ignore=sorted(others),
            model_to_presidio_entity_mapping=dict.fromkeys(_PERSON_LABELS, "PERSON"),
        )
        engine = engines.SpacyNlpEngine([{"lang_code": _LANGUAGE, "model_name": self._spacy_model}], settings)
        engine.nlp = {_LANGUAGE: pipeline}  # by itself it would download a missing one
        recognizers = [recognizer for recognizer, _ in self._recognizers]
        registry = presidio.RecognizerRegistry(recognizers, supported_languages=[_LANGUAGE])
        return presidio.AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[_LANGUAGE])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"engine: presidio needs the package {package}",
            where="deidentification.engine",
            remedy="pip install 'psychocounsel[deid]', or set engine: patterns",
        ) from None


def _pipeline_fingerprint(spacy_model: str) -> str:
    folder = Path(spacy_model)
    if (folder / "config.cfg").is_file():
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return digest_of_files(folder, names)
    try:
        return f"{spacy_model} {metadata.version(spacy_model)}"
    except (metadata.PackageNotFoundError, ValueError):
        raise ConfigError(
            f"{spacy_model!r} is neither an installed spaCy pipeline nor the folder of one",
            where="deidentification.spacy_model",
            remedy="install one, for example with: python -m spacy download en_core_web_lg",
        ) from None


# --- Both --------------------

_CACHED_TEXTS = 2_000  # what is said once in a session stands in the histories of all that follows


class Deidentifier:
    """Finds what the patterns and, with a pipeline, Presidio find, of the wanted entities and with the least score.

    It finds no crisis service, nothing of the keep-list, and no author who is known for a method. Its fingerprint is
    everything that affects what it finds, and part of the id of each artifact that it shapes.
    """

    def __init__(self, config: DeidentificationConfig, crisis: CrisisServices) -> None:
        self._presidio = None if config.spacy_model is None else Presidio(config.spacy_model, config.entities)
        self._entities, self._min_score, self._crisis = frozenset(config.entities), config.min_score, crisis
        # Scripts without spaces have no ends of words.
        self._kept = re.compile(rf"(?<![A-Za-z0-9]){either({*config.keep, *patterns.METHOD_AUTHORS})}(?![A-Za-z0-9])")
        self.fingerprint: dict[str, Any] = {
            "engine": config.engine,
            "patterns": str(patterns.VERSION),
            "lists": patterns.LISTS_DIGEST,
            "entities": sorted(config.entities),
            "min_score": config.min_score,
            **({"keep": sorted({*config.keep})} if config.keep else {}),
            **({} if self._presidio is None else self._presidio.fingerprint),
        }
        self._find_once = lru_cache(_CACHED_TEXTS)(self._find)

    def find(self, text: str) -> list[Span]:
        """Return the detections in any order; they may overlap."""
        return self._find_once(text)

    def _find(self, text: str) -> list[Span]:
        every = [*patterns.find_all(text), *(() if self._presidio is None else self._presidio.find(text))]
        found = [span for span in every if span.entity in self._entities and span.score >= self._min_score]
        if not found:
            return found
        spared = [*self._crisis.spans(text), *(match.span() for match in self._kept.finditer(text))]
        return [span for span in found if not touches(span.start, span.end, spared)]


def open_deidentifier(config: DeidentificationConfig, crisis: CrisisServices | None = None) -> Deidentifier | None:
    """Return the configured engine, or None for `engine: none`; raises ConfigError if it is not installed."""
    return None if config.engine == "none" else Deidentifier(config, crisis or crisis_services())


# --- Evaluation on marked texts --------------------

Half = Literal["tuned", "held_out"]

_FILE = files("psychocounsel.corpus.deidentify") / "pii_evaluation.jsonl"
_MARK = re.compile(rf"<({'|'.join(ENTITIES)})>(.*?)</\1>", re.DOTALL)


class Counts(NamedTuple):
    """Marked spans, those that detections of their entity cover; detections, those that touch no marked span of it."""

    marked: int
    found: int
    finds: int
    false: int


def read_pii_set(half: Half | None = None) -> list[MarkedText]:
    """Return the bundled set; its half `held_out` was not looked at while the patterns were tuned."""
    _about, *lines = _FILE.read_text(encoding="utf-8").splitlines()
    return [parse_marks(row["text"]) for row in map(json.loads, lines) if half in (None, row["half"])]


def parse_marks(marked: str) -> MarkedText:
    """Parse a text whose spans are marked as `<PERSON>Anna</PERSON>`."""
    text, spans, end = "", list[Span](), 0
    for match in _MARK.finditer(marked):
        text += marked[end : match.start()]
        spans.append(Span(len(text), len(text) + len(match[2]), match[1], 1.0))  # pyrefly: ignore[bad-argument-type]
        text += match[2]
        end = match.end()
    return MarkedText(text + marked[end:], tuple(spans))


def evaluate(finder: Finder, texts: Iterable[MarkedText]) -> tuple[Counts, dict[Entity, Counts]]:
    """Count what the finder finds of the marked spans, and what else it finds, overall and by entity."""
    marked, found, finds, false = tallies = tuple(Counter[Entity]() for _ in Counts._fields)
    for item in texts:
        end = len(item.text) if item.end is None else item.end
        detected = [each for each in resolve(finder.find(item.text)) if item.begin <= each.start < end]
        for span in item.spans:
            own = [find for find in detected if find.entity == span.entity]
            letters = (at for at in range(span.start, span.end) if item.text[at].isalnum())
            marked[span.entity] += 1
            found[span.entity] += all(touches(at, at + 1, own) for at in letters)
        for find in detected:
            own = [span for span in item.spans if span.entity == find.entity]
            finds[find.entity] += 1
            false[find.entity] += not touches(find.start, find.end, own)
    by_entity: dict[Entity, Counts] = {entity: Counts(*(each[entity] for each in tallies)) for entity in ENTITIES}
    return Counts(*(each.total() for each in tallies)), by_entity
