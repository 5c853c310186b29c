"""De-identification by Presidio on a local spaCy pipeline, in addition to the patterns; it opens no connection."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from psychocounsel.config.schema import DeidentificationConfig, Entity
from psychocounsel.corpus.contacts import CrisisLines, crisis_lines, is_host
from psychocounsel.corpus.deidentify import Deidentifier, Fingerprint, Span
from psychocounsel.corpus.deidentify.patterns import PatternDeidentifier, without_crisis_lines
from psychocounsel.errors import ConfigError
from psychocounsel.store.files import digest_of_files

VERSION = 1
_LANGUAGE = "en"
_WHERE = "deidentification"
_PACKAGES = ("presidio-analyzer", "spacy", "phonenumbers", "tldextract")
_NUMBERS = (
    "CreditCard", "Iban", "MedicalLicense", "Nhs", "UkNino", "UsBank", "UsItin", "UsLicense", "UsPassport", "UsSsn"
)  # fmt: skip
_ID: Entity = "ID_NUMBER"
_RECOGNIZERS: dict[str, Entity] = {"Url": "URL", "Ip": "IP", "Phone": "PHONE", **dict.fromkeys(_NUMBERS, _ID)}
_TRAILING = ".,;:!?"
_PERSON_LABELS = ("PERSON", "PER", "PATIENT", "STAFF", "HCW")


class PresidioDeidentifier:
    """Finds what the patterns find, and what Presidio finds: names by the pipeline, numbers by its recognisers.

    Towns and countries stay, as they do for the patterns. The pipeline is loaded with the first text.

    Args:
        patterns: found in addition.
        spacy_model: an installed package, or the folder of a pipeline.
        entities: what to find.
        min_score: finds with a lower score, in 0 to 1, are left out.
        crisis: lines that are no finds.

    Raises:
        ConfigError: the extra or the pipeline is not installed.
    """

    def __init__(
        self,
        patterns: Deidentifier,
        spacy_model: str,
        entities: Sequence[Entity],
        min_score: float,
        crisis: CrisisLines,
    ) -> None:
        self._patterns = patterns
        self._entities = frozenset(entities)
        self._min_score = min_score
        self._crisis = crisis
        self._spacy_model = spacy_model
        self._versions = {name: _version(name) for name in _PACKAGES}
        self._pipeline = _pipeline_fingerprint(spacy_model)

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the patterns, the version of every package, and the version or digest of the pipeline."""
        return {
            **{f"patterns_{key}": value for key, value in self._patterns.fingerprint.items()},
            "engine": "presidio",
            "version": str(VERSION),
            "pipeline": self._pipeline,
            **self._versions,
        }

    def find(self, text: str) -> list[Span]:
        """Return the finds of both; they may overlap."""
        found = list(self._finds_of_presidio(text)) if self._names else []
        return [*self._patterns.find(text), *without_crisis_lines(text, found, self._crisis)]

    def _finds_of_presidio(self, text: str) -> Iterator[Span]:
        results = self._analyzer.analyze(
            text, language=_LANGUAGE, entities=list(self._names), score_threshold=self._min_score
        )
        for result in results:
            end = result.start + len(text[result.start : result.end].rstrip(_TRAILING))
            yield Span(result.start, end, self._names[result.entity_type], float(result.score))

    @cached_property
    def _recognizers(self) -> list[tuple[Any, Entity]]:
        predefined = import_module("presidio_analyzer.predefined_recognizers")
        email = predefined.EmailRecognizer()
        email.validate_result = is_host  # by itself it would fetch the newest list of suffixes
        every: list[tuple[Any, Entity]] = [
            (predefined.SpacyRecognizer(supported_entities=["PERSON"]), "PERSON"),
            (email, "EMAIL"),
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
        others = {label for labels in pipeline.pipe_labels.values() for label in labels} - set(_PERSON_LABELS)
        settings = engines.NerModelConfiguration(labels_to_ignore=sorted(others))
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
            where=f"{_WHERE}.engine",
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
            where=f"{_WHERE}.spacy_model",
            remedy="install one, for example with: python -m spacy download en_core_web_lg",
        ) from None


def open_deidentifier(config: DeidentificationConfig, crisis: CrisisLines | None = None) -> Deidentifier | None:
    """Return the configured engine, or None for `engine: none`; `crisis` defaults to the bundled lines.

    Raises:
        ConfigError: the engine or its pipeline is not installed.
    """
    if config.engine == "none":
        return None
    crisis = crisis or crisis_lines()
    patterns = PatternDeidentifier(config.entities, config.min_score, crisis)
    if config.spacy_model is None:
        return patterns
    return PresidioDeidentifier(patterns, config.spacy_model, config.entities, config.min_score, crisis)
