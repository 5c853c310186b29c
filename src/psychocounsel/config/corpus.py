"""The config of a corpus: what is read, how it is cleaned, de-identified and divided into splits."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from psychocounsel.config.base import (
    Gate,
    Name,
    OneOrMore,
    PathBeside,
    PositiveInt,
    RefOrPathBeside,
    Seed,
    Settings,
    Several,
    Share,
    SpeedSetting,
)
from psychocounsel.config.components import EndpointConfig
from psychocounsel.config.sources import CandidateSource, ExcludedSource, SpeechSource

Entity = Literal[
    "PERSON", "EMAIL", "PHONE", "URL", "ADDRESS", "ID_NUMBER", "DATE_OF_BIRTH", "HANDLE", "IP",
    "EMPLOYER", "SCHOOL", "EVENT_DATE",
]  # fmt: skip
Similarity = Annotated[float, Field(ge=0.5, le=1)]
ENTITIES: tuple[Entity, ...] = get_args(Entity)


class CleaningConfig(Settings):
    """Which speeches are kept. Lengths are in characters after cleaning.

    `languages` are ISO 639-1 codes, none for any language. `contacts` is what happens to phone numbers, and to e-mail
    and web addresses, in responses: they are cut out, with their sentence if it says nothing without them, or a
    placeholder replaces them. Names, addresses and numbers of crisis services always stay; `crisis_services` is a file
    with more of them than the bundled list has.
    With `strict`, the command `corpus` ends with an error if a rule touches more than 5 % of the texts, or takes more
    than half of one.
    """

    min_chars: PositiveInt = 100
    max_chars: PositiveInt = 1000
    max_speeches: PositiveInt | None = None
    drop_empty: bool = False
    languages: Several[str] = ("en",)
    contacts: Literal["drop_sentence", "placeholder", "keep"] = "drop_sentence"
    signatures: Literal["remove", "keep"] = "remove"
    crisis_services: PathBeside | None = None
    strict: Annotated[bool, Gate()] = False


class DeidentificationConfig(Settings):
    """What finds details that identify a person; each is replaced by a placeholder such as `[PERSON_1]`.

    Without an `engine` it is `none` if all sources are public, and else `patterns`. `spacy_model` is the name or folder
    of the local pipeline that Presidio uses, for any language. What `keep` lists is never replaced: public persons,
    and words that were taken for names. Well-known authors of methods, such as Carl Rogers, stay anyway.
    """

    engine: Literal["none", "patterns", "presidio"] = "none"
    entities: OneOrMore[Entity] = ENTITIES
    spacy_model: str | None = None
    min_score: Share = 0.4
    keep: Several[Annotated[str, Field(min_length=2)]] = ()

    @model_validator(mode="after")
    def _presidio_has_a_pipeline(self) -> Self:
        if (self.engine == "presidio") != (self.spacy_model is not None):
            raise ValueError("engine: presidio needs spacy_model, the other engines take none")
        return self


class TopicsConfig(Settings):
    """What gives each speech a topic of a taxonomy: the cue words in the taxonomy file, or a model."""

    taxonomy: RefOrPathBeside = "counselling"
    backend: Literal["offline", "endpoint"] = "offline"
    endpoint: EndpointConfig | None = None
    max_missing_share: Annotated[Share, Gate()] = 0.05

    @model_validator(mode="after")
    def _fits_its_backend(self) -> Self:
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("backend: endpoint needs an endpoint block, backend: offline takes none")
        return self


class SplitConfig(Settings):
    """Shares of clusters of near-duplicate speeches. A cluster is never divided between splits.

    What is left is trained on; of a corpus that only measures answers, nothing may be (`test_share: 1, dev_share: 0`).

    With `stratify`, every topic gives its share to each split. Two speeches are near-duplicates if the Jaccard
    similarity of their sets of five-letter runs is at least `near_duplicate_similarity`: unrelated speeches reach 0.2;
    a copy with typos, or with a sentence added or moved, is seldom below 0.5.
    """

    test_share: Share = 0.1
    dev_share: Share = 0.1
    stratify: bool = True
    near_duplicate_similarity: Similarity = 0.5
    seed: Seed = 0

    @model_validator(mode="after")
    def _parts_of_a_whole(self) -> Self:
        if self.test_share + self.dev_share > 1:
            raise ValueError("test_share + dev_share are more than all speeches")
        return self


class CorpusConfig(Settings):
    """Client speeches and existing responses to them.

    A speech that shares `exclude_span_words` consecutive words with a text of `exclude`, itself or in a turn before it,
    is dropped and listed. In the folder `prepared` are the texts that a pipeline over many machines has cleaned.
    `expected_speeches` is how many are likely to be kept: a dry run estimates with it until the Hub's data are fetched.
    """

    name: Name
    speeches: OneOrMore[SpeechSource]
    candidates: Several[CandidateSource] = ()
    cleaning: CleaningConfig = CleaningConfig()
    deidentification: DeidentificationConfig = DeidentificationConfig()
    exclude: Several[ExcludedSource] = ()
    exclude_span_words: PositiveInt = 12
    topics: TopicsConfig | None = None
    prepared: Annotated[PathBeside | None, SpeedSetting()] = None
    split: SplitConfig = SplitConfig()
    expected_speeches: Annotated[PositiveInt | None, SpeedSetting()] = None

    @model_validator(mode="after")
    def _candidates_have_terms(self) -> Self:
        """Give candidates the licence and class of the speeches in the same file, where they have none of their own."""
        known = {each.path: each for each in self.speeches}
        resolved: list[CandidateSource] = []
        for at, each in enumerate(self.candidates):
            same = known.get(each.path)
            terms = {
                "licence": each.licence or (same and same.licence),
                "data_class": each.data_class or (same and same.data_class),
            }
            if missing := [name for name, value in terms.items() if value is None]:
                raise ValueError(f"candidates.{at} has no {' and no '.join(missing)}; add what its source says")
            resolved.append(each.model_copy(update=terms))
        object.__setattr__(self, "candidates", tuple(resolved))  # frozen for all others
        return self

    @model_validator(mode="after")
    def _private_text_is_deidentified(self) -> Self:
        if "engine" not in self.deidentification.model_fields_set and {*self.data_classes.values()} != {"public"}:
            patterns = self.deidentification.model_copy(update={"engine": "patterns"})
            object.__setattr__(self, "deidentification", patterns)
        return self

    @property
    def data_classes(self) -> dict[str, str]:
        """The class of every source, by its path and what is read there."""
        responses = {f"{each.path} (responses)": each.data_class or "" for each in self.candidates}
        return {each.path: each.data_class for each in self.speeches} | responses
