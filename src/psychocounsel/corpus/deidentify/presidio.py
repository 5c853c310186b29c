"""Text -> Spans by Presidio on a local spaCy pipeline, beside the patterns; it opens no connection."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from psychocounsel.config.schema import DeidentificationConfig, Entity
from psychocounsel.corpus.contacts import crisis_lines
from psychocounsel.corpus.deidentify.patterns import PatternDeidentifier, without_crisis_lines
from psychocounsel.corpus.deidentify.spans import CrisisSpans, Deidentifier, Identity, Span
from psychocounsel.errors import ConfigError
from psychocounsel.store.files import digest_of_files

VERSION = 1
_LANGUAGE = "en"
_WHERE = "deidentification"
_PACKAGES = ("presidio-analyzer", "spacy", "phonenumbers", "tldextract")
_RECOGNIZERS: dict[str, Entity] = {
    "UrlRecognizer": "URL",
    "IpRecognizer": "IP",
    "PhoneRecognizer": "PHONE",
    "CreditCardRecognizer": "ID_NUMBER",
    "IbanRecognizer": "ID_NUMBER",
    "MedicalLicenseRecognizer": "ID_NUMBER",
    "NhsRecognizer": "ID_NUMBER",
    "UkNinoRecognizer": "ID_NUMBER",
    "UsBankRecognizer": "ID_NUMBER",
    "UsItinRecognizer": "ID_NUMBER",
    "UsLicenseRecognizer": "ID_NUMBER",
    "UsPassportRecognizer": "ID_NUMBER",
    "UsSsnRecognizer": "ID_NUMBER",
}
_TRAILING = ".,;:!?"
_PERSON_LABELS = ("PERSON", "PER", "PATIENT", "STAFF", "HCW")


class PresidioDeidentifier:
    """The finds of the patterns, and those of Presidio: names by the pipeline, numbers by its recognisers.

    Towns and countries stay, as they do for the patterns.
    """

    def __init__(
        self, spacy_model: str, entities: Sequence[Entity], min_score: float, crisis_spans: CrisisSpans
    ) -> None:
        """Check that everything is installed; the pipeline is loaded with the first text.

        Args:
            spacy_model: an installed package, or the folder of a pipeline.
            entities: what is looked for.
            min_score: finds below it are left out, in 0 to 1.
            crisis_spans: where in a text crisis lines stand.

        Raises:
            ConfigError: the extra or the pipeline is not installed.
        """
        self._patterns = PatternDeidentifier(entities, min_score, crisis_spans)
        self._entities = frozenset(entities)
        self._min_score = min_score
        self._crisis_spans = crisis_spans
        self._spacy_model = spacy_model
        self._versions = {name: _version(name) for name in _PACKAGES}
        self._pipeline = _pipeline_identity(spacy_model)

    @property
    def identity(self) -> Identity:
        """That of the patterns, the version of every package, and the pipeline by version or digest."""
        return {
            **{f"patterns_{key}": value for key, value in self._patterns.identity.items()},
            "engine": "presidio",
            "version": str(VERSION),
            "pipeline": self._pipeline,
            **self._versions,
        }

    def find(self, text: str) -> list[Span]:
        """Return the finds of both; they may overlap."""
        found = list(self._finds_of_presidio(text)) if self._names else []
        return self._patterns.find(text) + without_crisis_lines(text, found, self._crisis_spans)

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
        every: list[tuple[Any, Entity]] = [
            (predefined.SpacyRecognizer(supported_entities=["PERSON"]), "PERSON"),
            (_offline_email_recognizer(), "EMAIL"),
        ]
        every.extend((getattr(predefined, name)(), entity) for name, entity in _RECOGNIZERS.items())
        return [(recognizer, entity) for recognizer, entity in every if entity in self._entities]

    @cached_property
    def _names(self) -> dict[str, Entity]:
        """Our name of each entity by Presidio's."""
        return {name: entity for each, entity in self._recognizers for name in each.supported_entities}

    @cached_property
    def _analyzer(self) -> Any:
        presidio = import_module("presidio_analyzer")
        recognizers = [recognizer for recognizer, _ in self._recognizers]
        registry = presidio.RecognizerRegistry(recognizers, supported_languages=[_LANGUAGE])
        return presidio.AnalyzerEngine(
            registry=registry, nlp_engine=_loaded_engine(self._spacy_model), supported_languages=[_LANGUAGE]
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise ConfigError(
            f"engine: presidio needs the package {package}",
            where=f"{_WHERE}.engine",
            remedy="pip install 'psychocounsel[deid]', or take engine: patterns",
        ) from None


def _pipeline_identity(spacy_model: str) -> str:
    folder = Path(spacy_model)
    if (folder / "config.cfg").is_file():
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return digest_of_files(folder, names)
    try:
        return f"{spacy_model} {version(spacy_model)}"
    except (PackageNotFoundError, ValueError):
        raise ConfigError(
            f"{spacy_model!r} is neither an installed spaCy pipeline nor the folder of one",
            where=f"{_WHERE}.spacy_model",
            remedy="install one, for example with: python -m spacy download en_core_web_lg",
        ) from None


def _loaded_engine(spacy_model: str) -> Any:
    """Return Presidio's engine with the pipeline in it; by itself it would download a missing one."""
    engines = import_module("presidio_analyzer.nlp_engine")
    pipeline = import_module("spacy").load(spacy_model)
    others = {label for labels in pipeline.pipe_labels.values() for label in labels} - set(_PERSON_LABELS)
    settings = engines.NerModelConfiguration(labels_to_ignore=sorted(others))
    engine = engines.SpacyNlpEngine([{"lang_code": _LANGUAGE, "model_name": spacy_model}], settings)
    engine.nlp = {_LANGUAGE: pipeline}
    return engine


def _offline_email_recognizer() -> Any:
    """Return Presidio's recogniser of e-mail addresses with the suffix list that comes with its package.

    By itself it would fetch the newest list with the first address.
    """
    suffixes = import_module("tldextract").TLDExtract(cache_dir=None, suffix_list_urls=())
    recognizer = import_module("presidio_analyzer.predefined_recognizers").EmailRecognizer()

    def has_domain(found: str) -> bool:
        return bool(suffixes(found).fqdn)

    recognizer.validate_result = has_domain
    return recognizer


def open_deidentifier(config: DeidentificationConfig, crisis_spans: CrisisSpans | None = None) -> Deidentifier | None:
    """Return the engine, or None for `engine: none`.

    Args:
        config: engine, entities and threshold.
        crisis_spans: where in a text crisis lines stand; those of the bundled list when left out.

    Raises:
        ConfigError: the engine or its pipeline is not installed.
    """
    if config.engine == "none":
        return None
    lines = crisis_spans or crisis_lines().spans
    if config.engine == "presidio" and config.spacy_model is not None:
        return PresidioDeidentifier(config.spacy_model, config.entities, config.min_score, lines)
    return PatternDeidentifier(config.entities, config.min_score, lines)
