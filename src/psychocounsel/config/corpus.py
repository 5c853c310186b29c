"""YAML -> CorpusConfig: which client speeches and ready responses enter, and how they are split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from psychocounsel.config.base import Name, PositiveInt, Seed, Settings, Share

DataClass = Literal["public", "deidentified", "restricted"]


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


class CleaningConfig(Settings):
    """Which speeches stay. Lengths are in characters after normalisation."""

    min_chars: PositiveInt = 100
    max_chars: PositiveInt = 1000
    max_speeches: PositiveInt | None = None
    drop_empty: bool = False


class SplitConfig(Settings):
    """Shares of clusters of near-duplicate speeches; a cluster never crosses splits."""

    test_share: Share = 0.1
    dev_share: Share = 0.1
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "SplitConfig":
        if self.test_share + self.dev_share >= 1:
            raise ValueError("test_share + dev_share leave nothing to train on")
        return self


class CorpusConfig(Settings):
    """Client speeches and their ready responses."""

    name: Name
    speeches: Annotated[tuple[SpeechSource, ...], Field(strict=False, min_length=1)]
    candidates: Annotated[tuple[CandidateSource, ...], Field(strict=False)] = ()
    cleaning: CleaningConfig = CleaningConfig()
    split: SplitConfig = SplitConfig()
