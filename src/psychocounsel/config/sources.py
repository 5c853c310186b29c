"""Where rows of users come from, and which of their columns hold what."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from psychocounsel.config.base import OneOrMore, PathBeside, PositiveInt, Settings
from psychocounsel.config.expressions import condition

DataClass = Literal["public", "deidentified", "restricted"]


class Constant(Settings):
    """The same text in every row."""

    constant: str


def _kind_of_column(given: Any) -> str:
    kinds: dict[type, str] = {dict: "constant", Constant: "constant", list: "list", tuple: "list"}
    return kinds.get(type(given), "name")


Parts = OneOrMore[str | Constant]
Column = Annotated[
    Annotated[str, Tag("name")] | Annotated[Constant, Tag("constant")] | Annotated[Parts, Tag("list")],
    Discriminator(_kind_of_column),
]
"""A column, a path such as `choices[0].turns[0]`, `{constant: TEXT}`, or a list of these, joined by blank lines."""


class WideColumns(Settings):
    """Each row becomes one for every column named here: `wide.column` is its name, `wide.value` its cell.

    Columns that say what `wide.column` is there are `{"Q1_2": empathy}`, or several things, as in
    `{"Q1_2": {principle: empathy, rater: anna}}`.
    """

    columns: Annotated[
        Annotated[OneOrMore[str], Tag("names")]
        | Annotated[dict[str, str | dict[str, str | int]], Field(min_length=1), Tag("labels")],
        Discriminator(lambda given: "labels" if isinstance(given, dict) else "names"),
    ]


class Conversation(Settings):
    """Each thing that the client says and that is answered becomes a row, with everything said before as its history.

    A row is a conversation if `messages` names its list of messages; or a message, with the columns `id` of its
    conversation, `role` and `text`, those of one conversation following each other. The new rows have `turn.text`,
    `turn.answer`, `turn.history`, `turn.number` (from 1) and `turn.key`, and the columns of the conversation's first
    row. `client` is what the role says of the client, where it is no usual word; all others but the system are
    counsellors then. Or `role` is a condition, true where the client speaks. With `last`, a history has this many
    messages at most. A conversation stands in one file; where a source has several, the file is in `turn.key`.
    """

    messages: Column | None = None
    id: Column | None = None
    role: Column | None = None
    text: Column | None = None
    client: str | None = None
    last: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        given = [each is not None for each in (self.id, self.role, self.text)]
        if (self.messages is not None) == any(given) or any(given) != all(given):
            raise ValueError("give messages, or id, role and text")
        return self


Condition = Annotated[str, AfterValidator(condition)]
"""A comparison such as `interlocutor == "client"`."""


class RowSource(Settings):
    """Rows of a file, of a folder or several files (`*`), or of a Hub dataset (`hub:owner/name@revision`).

    Files end in .csv, .tsv, .jsonl, .json, .parquet or .xlsx (its first sheet); .gz and .zst may follow. With
    `quotes: false`, quotation marks in .csv and .tsv are part of the text. `replace` has words that stand for others,
    such as `{_comma_: ","}`, in all texts of a row. `split` and `config` are for the Hub. A row
    becomes one for each item of the lists in `explode`, which have the name given there. Only rows in which `where` is
    true are read. A row that cannot be read is an error, or dropped and counted. `conversation` makes rows of the turns
    of conversations.
    """

    path: PathBeside
    split: str = "train"
    config: str | None = None
    quotes: bool = True
    replace: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    explode: dict[str, Column] = Field(default_factory=dict)
    where: Condition | None = None
    wide: WideColumns | None = None
    conversation: Conversation | None = None
    on_bad_row: Literal["error", "drop"] = "error"


class SpeechColumns(Settings):
    """Which columns of a source hold what. `key` joins candidates that do not repeat the speech.

    Of a `text` that is a list of messages, what the client says first is the speech. `history` is a list of the
    messages before the speech; where it is the same column as `text`, the last of them is the speech. Speeches of one
    `conversation` are in one split; those of a source with `conversation` are anyway.
    """

    text: Column
    history: Column | None = None
    conversation: Column | None = None
    topic: Column | None = None
    crisis: Column | None = None
    key: Column | None = None


class SpeechSource(RowSource):
    """Client speeches. `split_column` says to which split a row belongs; without it, `corpus.split` decides."""

    columns: SpeechColumns
    licence: str
    data_class: DataClass
    split_column: Column | None = None


class CandidateColumns(Settings):
    """Which columns of a source hold the response, its author and the speech that it answers.

    Of a `text` that is a list of messages, the first answer to the client is the response. In a source with `wide`,
    texts and authors are those columns and their names, unless columns are given. `speech_history` goes with
    `speech_text`, for speeches with a `history`.
    """

    text: Column = "wide.value"
    author: Column = "wide.column"
    speech_text: Column | None = None
    speech_history: Column | None = None
    speech_key: Column | None = None

    @model_validator(mode="after")
    def _one_join(self) -> Self:
        if (self.speech_text is None) == (self.speech_key is None):
            raise ValueError("give exactly one of speech_text and speech_key")
        if self.speech_history is not None and self.speech_text is None:
            raise ValueError("speech_history needs speech_text")
        return self


AuthorIs = Literal["person", "model"]


class CandidateSource(RowSource):
    """Existing responses; a source of speeches with the same path has their licence and class too.

    `author_is` says whether its authors are people, whose names are removed from all responses, or models; null takes
    those for people whose label looks like it.
    """

    columns: CandidateColumns
    licence: str | None = None
    data_class: DataClass | None = None
    author_is: AuthorIs | None = None

    @model_validator(mode="after")
    def _says_where_texts_are(self) -> Self:
        if self.wide is None and not {"text", "author"} <= self.columns.model_fields_set:
            raise ValueError("give text and author among the columns, or wide")
        return self


class ExcludedSource(RowSource):
    """Texts of another benchmark, in the named columns, with which no speech may share a span of words."""

    columns: OneOrMore[str]


class TableColumns(Settings):
    """Which columns of a table of ratings hold what.

    `speech` is the key or the text of a speech, `author` who wrote the rated response, `response` its text where an
    author has several. Without a `rater` all ratings are one rater's. Without a `principle`, `value` is an object of
    ratings by principle, or a text with one in JSON.
    """

    speech: Column
    author: Column | None = None
    response: Column | None = None
    rater: Column | None = None
    principle: Column | None = None
    value: Column = "wide.value"

    @model_validator(mode="after")
    def _names_the_response(self) -> Self:
        if self.author is None and self.response is None:
            raise ValueError("give author or response")
        return self


class RatingTable(RowSource):
    """Ratings that exist already. With `on_bad_row: drop`, what is off the scale is missing instead of an error.

    `points` says which point of the scale a word is, such as `{Strongly agree: 5}`, and null that it is none.
    """

    columns: TableColumns
    points: dict[str, float | None] = Field(default_factory=dict)


class PreferenceColumns(Settings):
    """Which columns of a preference dataset hold what.

    `speech`, `chosen` and `rejected` are texts, lists of messages, or transcripts as in HH-RLHF; without a `speech`,
    both responses begin with it. Earlier turns stand there too, or in `history`, a list of messages. `ratings` are by
    principle the columns of the chosen and of the rejected response. In rows where `swap` is true, as in
    `better_response_id == 1`, the response in `rejected` is the chosen one; where `tie` is, neither.
    """

    speech: Column | None = None
    history: Column | None = None
    chosen: Column = "chosen"
    rejected: Column = "rejected"
    chosen_author: Column | None = None
    rejected_author: Column | None = None
    topic: Column | None = None
    swap: Condition | None = None
    tie: Condition | None = None
    ratings: dict[str, Annotated[tuple[Column, Column], Field(strict=False)]] = Field(default_factory=dict)
