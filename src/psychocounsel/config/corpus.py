"""YAML -> CorpusConfig: which client speeches and ready responses enter, and how they are split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from psychocounsel.config.base import Gate, Name, PositiveInt, Seed, Settings, Share
from psychocounsel.config.models import EndpointConfig

DataClass = Literal["public", "deidentified", "restricted"]
Entity = Literal["PERSON", "EMAIL", "PHONE", "URL", "ADDRESS", "ID_NUMBER", "DATE_OF_BIRTH", "HANDLE", "IP"]
Similarity = Annotated[float, Field(ge=0.5, le=1)]
ENTITIES: tuple[Entity, ...] = Entity.__args__  # type: ignore[attr-defined]


class SpeechColumns(Settings):
    """Which columns of a source hold what; `key` joins candidates that do not repeat the speech."""

    text: str
    topic: str | None = None
    crisis: str | None = None
    key: str | None = None


class SpeechSource(Settings):
    """One CSV, JSONL or Parquet file, or a Hub data set, of client speeches."""

    path: str
    columns: SpeechColumns
    licence: str
    data_class: DataClass
    split: str = "train"
    config: str | None = None


class CandidateColumns(Settings):
    """Which columns of a source hold the response, its author and the speech it answers."""

    text: str
    author: str
    speech_text: str | None = None
    speech_key: str | None = None

    @model_validator(mode="after")
    def _one_join(self) -> "CandidateColumns":
        if (self.speech_text is None) == (self.speech_key is None):
            raise ValueError("give exactly one of speech_text and speech_key")
        return self


class CandidateSource(Settings):
    """One file, or Hub data set, of ready responses."""

    path: str
    columns: CandidateColumns
    split: str = "train"
    config: str | None = None


class CleaningConfig(Settings):
    """Which speeches stay. Lengths are in characters after cleaning.

    `languages` are ISO 639-1 codes, none for any language. `contacts` says what becomes of phone numbers, and
    of e-mail and web addresses, in responses: their sentence goes, or a surrogate takes their place; crisis
    hotlines stay.
    """

    min_chars: PositiveInt = 100
    max_chars: PositiveInt = 1000
    max_speeches: PositiveInt | None = None
    drop_empty: bool = False
    languages: Annotated[tuple[str, ...], Field(strict=False)] = ("en",)
    contacts: Literal["drop_sentence", "surrogate", "keep"] = "drop_sentence"
    signatures: Literal["remove", "keep"] = "remove"


class DeidentificationConfig(Settings):
    """Who looks for what identifies a person; each find becomes a surrogate such as `[PERSON_1]`.

    `spacy_model` is the name or folder of the local pipeline on which Presidio runs.
    """

    engine: Literal["none", "patterns", "presidio"] = "none"
    entities: Annotated[tuple[Entity, ...], Field(strict=False, min_length=1)] = ENTITIES
    spacy_model: str | None = None
    min_score: Share = 0.4

    @model_validator(mode="after")
    def _presidio_has_a_pipeline(self) -> "DeidentificationConfig":
        if (self.engine == "presidio") != (self.spacy_model is not None):
            raise ValueError("engine: presidio needs spacy_model, the other engines take none")
        return self


class ExcludedSource(Settings):
    """Texts of another benchmark, in the named columns, with which no speech may share a span of words."""

    path: str
    columns: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    split: str = "train"
    config: str | None = None


class TopicsConfig(Settings):
    """Who gives each speech a topic of a taxonomy: words of the taxonomy file, or a model."""

    taxonomy: str = "counselling"
    backend: Literal["offline", "endpoint"] = "offline"
    endpoint: EndpointConfig | None = None
    max_missing_share: Annotated[Share, Gate()] = 0.05

    @model_validator(mode="after")
    def _endpoint_named(self) -> "TopicsConfig":
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("backend: endpoint needs an endpoint block, backend: offline takes none")
        return self


class SplitConfig(Settings):
    """Shares of clusters of near-duplicate speeches; a cluster never crosses splits.

    Stratified, every topic gives its share to each split. Two speeches are near-duplicates from a Jaccard
    similarity of `near_duplicate_similarity` on, between the sets of all runs of five letters in them.
    Unrelated speeches reach 0.2; a copy with typos, or with a sentence added or moved, is seldom below 0.5.
    """

    test_share: Share = 0.1
    dev_share: Share = 0.1
    stratify: bool = True
    near_duplicate_similarity: Similarity = 0.5
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "SplitConfig":
        if self.test_share + self.dev_share >= 1:
            raise ValueError("test_share + dev_share leave nothing to train on")
        return self


class CorpusConfig(Settings):
    """Client speeches and their ready responses.

    A speech that shares `exclude_span_words` words in a row with a text of `exclude` is dropped and listed.
    """

    name: Name
    speeches: Annotated[tuple[SpeechSource, ...], Field(strict=False, min_length=1)]
    candidates: Annotated[tuple[CandidateSource, ...], Field(strict=False)] = ()
    cleaning: CleaningConfig = CleaningConfig()
    deidentification: DeidentificationConfig = DeidentificationConfig()
    exclude: Annotated[tuple[ExcludedSource, ...], Field(strict=False)] = ()
    exclude_span_words: PositiveInt = 12
    topics: TopicsConfig | None = None
    split: SplitConfig = SplitConfig()
