"""Parquet tables: what is written is read, in the released columns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychocounsel.errors import StoreError
from psychocounsel.store import schemas
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.schemas import SPEECHES_FILE, SplitSpeech, TextColumn, read_pairs, read_speeches, write_pairs
from psychocounsel.store.store import Store
from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    PreferencePair,
    ReplyStatus,
    ScoredCandidate,
    Speech,
    Turn,
    Winner,
)

PRINCIPLES: tuple[str, ...] = ("empathy", "relevance", "clarity", "safety", "exploration", "autonomy", "staging")
AWKWARD = (
    "\U0001f469\u200d\U0001f467 and \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "\u200f\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u200e",
    "one\u2028two\u2029three\x85four",
    "she said \"no\", 'never', `ever`; a,b\tc\r\nd\\n",
    "=HYPERLINK(\u201cx\u201d)",
    "null",
    "\ufeffmark",
)
texts = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
speech_texts = texts.filter(lambda text: bool(text.strip()))
statuses = st.sampled_from([status for status in ReplyStatus if status is not ReplyStatus.VALID])
ratings = st.fixed_dictionaries({name: st.integers(1, 5) for name in PRINCIPLES})
turns = st.builds(Turn, st.sampled_from(["user", "assistant"]), texts)
histories = st.lists(turns, max_size=3).map(tuple)
speeches = st.builds(Speech, speech_texts, st.just("") | texts, st.booleans(), texts, history=histories)


@st.composite
def pairs(draw: st.DrawFn) -> PreferencePair:
    speech = draw(speeches)
    sides = draw(st.lists(texts, min_size=2, max_size=2, unique=True))
    scores = sorted(draw(st.lists(st.integers(7, 35), min_size=2, max_size=2, unique=True)), reverse=True)
    chosen, rejected = (
        ScoredCandidate(
            Candidate(speech.id, draw(texts), text, draw(st.booleans())), score, draw(ratings | st.just({}))
        )
        for text, score in zip(sides, scores, strict=True)
    )
    return PreferencePair(speech, chosen, rejected)


judgements = st.builds(Judgement, texts, texts, st.just(ReplyStatus.VALID), ratings, reasons=texts) | st.builds(
    Judgement, texts, texts, statuses, st.just({}), texts
)
CRITERIA = ("overall", *PRINCIPLES)
numbers = st.floats(allow_nan=False)
winners = st.fixed_dictionaries({name: st.sampled_from(Winner) for name in CRITERIA})
comparisons = st.builds(
    Comparison, texts, texts, texts, st.just(ReplyStatus.VALID), winners, reasons=texts
) | st.builds(Comparison, texts, texts, texts, statuses, st.just({}))


def built(folder: Path, write: Callable[[ArtifactWriter], None], name: str = "talk") -> Artifact:
    return Store(folder).make(ArtifactSpec("preferences", name, "stage", 1, {"name": name}), write)


draws = st.integers(0, 64)
ordered = st.builds(schemas.OrderedComparison, comparisons, st.sampled_from(["forward", "backward"]), draws)
split_speeches = st.builds(SplitSpeech, speeches, st.sampled_from(["train", "dev", "test"]), texts)
candidates = st.builds(Candidate, texts, texts, texts, st.booleans(), draws)
by_head = st.fixed_dictionaries({"safety": numbers})
scores = st.builds(schemas.RewardScore, texts, numbers, numbers, st.integers(0, 4096), by_head)


def write_train_pairs(writer: ArtifactWriter, rows: Sequence[PreferencePair], principles: Sequence[str]) -> None:
    write_pairs(writer, "train", rows, principles)


# Of each kind: its rows, how they are written (with these columns), and how they are read.
ROUND_TRIPS: dict[str, tuple[Any, ...]] = {
    "speeches": (split_speeches, schemas.write_speeches, (), read_speeches),
    "candidates": (candidates, schemas.write_candidates, (), schemas.read_candidates),
    "judgements": (judgements, schemas.write_judgements, (PRINCIPLES,), schemas.read_judgements),
    "scores": (scores, schemas.write_scores, (), schemas.read_scores),
    "comparisons": (ordered, schemas.write_comparisons, (CRITERIA,), schemas.read_comparisons),
    "pairs": (pairs(), write_train_pairs, (PRINCIPLES,), lambda artifact: read_pairs(artifact, "train")),
}


@pytest.mark.parametrize("kind", ROUND_TRIPS)
@settings(max_examples=25)
@given(data=st.data())
def test_rows_come_back(kind: str, data: st.DataObject) -> None:
    row, write, columns, read = ROUND_TRIPS[kind]
    rows = data.draw(st.lists(row, max_size=4))
    with TemporaryDirectory() as folder:
        artifact = built(Path(folder), lambda writer: write(writer, rows, *columns))
        assert read(artifact) == rows
        assert list(artifact.manifest["rows"].values()) == [len(rows)]


def example_pair(question: str = "I lie awake at four.") -> PreferencePair:
    speech = Speech(question, "sleep", crisis=False, source="speeches.csv")
    good = dict.fromkeys(PRINCIPLES, 5)
    poor = dict.fromkeys(PRINCIPLES, 2)
    chosen = ScoredCandidate(Candidate(speech.id, "alder", "What goes through you then?"), 35, good)
    return PreferencePair(speech, chosen, ScoredCandidate(Candidate(speech.id, "elm", "Sleep more."), 14, poor))


def test_the_released_columns_come_first_in_their_order_and_types(tmp_path: Path) -> None:
    artifact = built(tmp_path, lambda writer: write_pairs(writer, "train", [example_pair()], PRINCIPLES))
    schema = pq.read_schema(artifact.file("data/train-00000-of-00001.parquet"))
    released = [("ID", "string"), ("prefID", "int64")]
    released += [(name, "string") for name in ("question", "chosen", "rejected", "chosen_model", "rejected_model")]
    released += [(f"{side}_{name}_rating", "int64") for side in ("chosen", "rejected") for name in PRINCIPLES]
    assert [(column.name, str(column.type)) for column in schema][: len(released)] == released
    assert len(schema) > len(released)
    assert read_pairs(artifact, "dev") == []


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [example_pair(), example_pair("I lie awake at five.")]
    first, second = (
        built(tmp_path, lambda writer: write_pairs(writer, "train", rows, PRINCIPLES), name) for name in ("a", "b")
    )
    assert first.manifest["files"] == second.manifest["files"]
    other = built(tmp_path, lambda writer: write_pairs(writer, "train", rows[::-1], PRINCIPLES), "c")
    assert other.manifest["files"] != first.manifest["files"]


def test_any_flipped_byte_of_a_table_is_found_when_it_is_read(tmp_path: Path) -> None:
    rows = [SplitSpeech(Speech("I lie awake at four."), "train", "c")]
    artifact = built(tmp_path, lambda writer: schemas.write_speeches(writer, rows))
    path = artifact.file(SPEECHES_FILE)
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreError, match=r"speeches\.parquet: the table is missing or damaged"):
            read_speeches(artifact)
    path.write_bytes(whole)
    assert read_speeches(artifact) == rows
    path.unlink()
    with pytest.raises(StoreError, match="psychocounsel verify"):
        read_speeches(artifact)


def test_only_columns_that_may_hold_text_are_searched(tmp_path: Path) -> None:
    table = pa.table(
        {
            "number": [1, 2],
            "text": ["a", None],
            "large": pa.array(["b", "c"], pa.large_string()),
            "named": pa.array(["d", "d"]).dictionary_encode(),
            "many": [["e"], ["g", "h"]],
            "within": [{"key": "i"}, None],
            "flag": [True, False],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    expected = {
        "text": ["a", ""],
        "large": ["b", "c"],
        "named": ["d", "d"],
        "many": ['["e"]', '["g", "h"]'],
        "within": ['{"key": "i"}', ""],
    }
    found = list(schemas.text_columns(tmp_path / "t.parquet"))
    assert found == [TextColumn(1, name, texts) for name, texts in expected.items()]


def test_pieces_of_a_column_know_their_first_row(tmp_path: Path) -> None:
    texts = [f"row {row}" for row in range(1, 20_001)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    pieces = list(schemas.text_columns(tmp_path / "t.parquet"))
    assert len(pieces) > 1
    assert all(each.texts[0] == f"row {each.first_row}" for each in pieces)
    assert [text for each in pieces for text in each.texts] == texts
