"""Rows become speeches and responses: what is kept, what is dropped and why, counted to the last row."""

import gc
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniature import write_rows
from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import config_of
from psychocounsel.config.sources import CandidateSource
from psychocounsel.corpus.authors import KnownPeople
from psychocounsel.corpus.crisis import mentions_crisis
from psychocounsel.corpus.preparation import Cleaner
from psychocounsel.corpus.reading import (
    SPEECH_FUNNEL,
    Funnel,
    SpeechIndex,
    SpooledSpeeches,
    TextSpool,
    candidate_cells,
    candidate_funnel,
    read_candidates,
    read_speeches,
)
from psychocounsel.errors import IncompleteError, InputError
from psychocounsel.store.schemas import RowProvenance
from psychocounsel.types import Candidate, Speech

TEXT: dict[str, Any] = {"text": "text"}
KEYED: dict[str, Any] = {"text": "text", "key": "key"}
FULL: dict[str, Any] = {"text": "text", "topic": "topic", "crisis": "crisis", "key": "key"}
BY_KEY: dict[str, Any] = {"text": "reply", "author": "who", "speech_key": "key"}
BY_TEXT: dict[str, Any] = {"text": "reply", "author": "who", "speech_text": "speech"}
SHORT = {"min_chars": 3, "max_chars": 12, "drop_empty": True}
TERMS = {"licence": "mit", "data_class": "public"}

Cells = Mapping[str, object]


class Read(NamedTuple):
    """The result of a reading, its scratch files gone."""

    speeches: list[Speech]
    rows: list[RowProvenance]
    funnel: Funnel


def read_files(
    files: Iterable[Iterable[Cells]], columns: dict[str, Any] = TEXT, cleaning: dict[str, Any] = SHORT, **more: Any
) -> Read:
    with TemporaryDirectory() as folder:
        sources: list[dict[str, Any]] = []
        for name, rows in zip("abc", files, strict=False):
            path = Path(folder, f"{name}.jsonl")
            write_rows(path, rows)
            sources.append({"path": str(path), "columns": columns, **TERMS})
        config = config_of(CorpusConfig, {"name": "c", "speeches": sources, "cleaning": cleaning, **more})
        speeches, funnel = SpooledSpeeches(Path(folder)), Funnel(SPEECH_FUNNEL)
        rows = list(read_speeches(Cleaner(config), speeches))
        return Read(list(speeches), list(funnel.counting(rows)), funnel)


def read(*cells: Cells, columns: dict[str, Any]) -> Read:
    return read_files([cells], columns)


def read_texts(texts: Iterable[str | None], cleaning: dict[str, Any] = SHORT, **more: Any) -> Read:
    return read_files([[{"text": text} for text in texts]], cleaning=cleaning, **more)


def answer(speeches: Read, *cells: Cells, columns: dict[str, Any] = BY_KEY) -> tuple[list[Candidate], Funnel]:
    source = {"path": "a.jsonl", "columns": columns, **TERMS}
    keep = {"contacts": "keep", "signatures": "keep"}
    config = config_of(CorpusConfig, {"name": "c", "speeches": [{**source, "columns": TEXT}], "cleaning": keep})
    cleaner = Cleaner(config, KnownPeople.of(()))
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        write_rows(path, cells)
        rows = list(candidate_cells(config_of(CandidateSource, {**source, "path": str(path)})))
    candidates: list[Candidate] = []
    funnel = candidate_funnel(cleaner)
    log = list(
        funnel.counting(read_candidates([("a.jsonl", rows)], SpeechIndex(speeches.rows), cleaner, str, candidates))
    )
    assert [row.text_id for row in log if not row.reason] == [each.id for each in candidates]
    return candidates, funnel


def test_a_speech_keeps_what_its_row_says() -> None:
    row: dict[str, object] = {"text": " I am\ttired ", "topic": " sleep", "crisis": "False", "key": "k1", "more": 3}
    reading = read(row, columns=FULL)
    assert reading.speeches == [Speech("I am tired", "sleep", False, "a.jsonl")]
    assert [(row.key, row.text_id) for row in reading.rows] == [("k1", Speech("I am tired").id)]
    reading = read({"text": "one", "topic": None, "crisis": True, "key": 7}, columns=FULL)
    assert reading.speeches == [Speech("one", "", True, "a.jsonl")]
    assert [row.key for row in reading.rows] == ["7"]
    found = read_files([[{"text": "one"}], [{"text": "one"}, {"text": "two"}]]).speeches
    assert [(each.text, each.source) for each in found] == [("one", "a.jsonl"), ("two", "b.jsonl")]


def test_every_row_is_kept_or_dropped_for_one_reason() -> None:
    reading = read_texts(["tired", "no", "", None, "x" * 13, " tired ", "abc", "x" * 12])
    assert [speech.text for speech in reading.speeches] == ["tired", "abc", "x" * 12]
    assert (reading.funnel.rows_in, reading.funnel.as_dict()["kept"]) == (8, 3)
    assert reading.funnel.dropped == {"empty": 2, "repeated_speech": 1, "too_long": 1, "too_short": 1}


texts = st.none() | st.text("ab \n", max_size=6)


@given(st.lists(texts, min_size=1, max_size=20))
def test_the_funnel_adds_up(cells: list[str | None]) -> None:
    reading = read_texts(cells, {"min_chars": 2, "max_chars": 4, "drop_empty": True})
    assert reading.funnel.rows_in == len(cells)
    assert reading.funnel.as_dict()["kept"] == len(reading.speeches) == len({speech.id for speech in reading.speeches})
    assert all(2 <= len(speech.text) <= 4 for speech in reading.speeches)
    assert sum(not row.reason for row in reading.rows) == reading.funnel.as_dict()["kept"]
    assert_steps_add_up(reading.funnel)


def assert_steps_add_up(funnel: Funnel) -> None:
    whole = funnel.as_dict()
    rows_in = whole["rows_in"]
    for step in whole["steps"]:
        assert step["rows_in"] == rows_in
        rows_in = step["rows_out"]
        assert step["rows_in"] - step["rows_out"] == sum(step["dropped"].values())
    assert rows_in == whole["kept"]


GERMAN = "Seit dem Umzug schlafe ich kaum noch, und niemand fragt danach."
EXAM = "the night shift ends at six and then nobody is awake to talk to me"
ANNA = "My sister Anna Meyer never calls me back."
KEPT = ["I sleep &amp; wake", "I sleep  & wake", GERMAN, ANNA, "x", EXAM, "", ANNA]


@given(st.permutations(KEPT))
@settings(max_examples=20)
def test_the_order_of_rows_changes_no_number_of_the_funnel(order: list[str]) -> None:
    with TemporaryDirectory() as folder:
        write_rows(Path(folder, "exam.jsonl"), [{"q": EXAM, "n": None}, {"q": 3, "n": None}])
        more: dict[str, Any] = {
            "exclude": [{"path": f"{folder}/exam.jsonl", "columns": ["q", "n"], "on_bad_row": "drop"}],
            "deidentification": {"engine": "patterns"},
        }
        cleaning = {"min_chars": 3, "drop_empty": True}
        funnels = [read_texts(texts, cleaning, **more).funnel.as_dict() for texts in (order, sorted(order))]
    assert funnels[0] == funnels[1]
    by_step = {step["step"]: step for step in funnels[0]["steps"]}
    assert by_step["language"]["dropped"] == {"other_language": 1}
    assert by_step["exclusion"]["dropped"] == {"shares_span_with_benchmark": 1}
    assert (by_step["markup"]["changed"], by_step["deidentification"]["changed"]) == (1, 2)


def test_what_was_read_once_is_read_the_same_again() -> None:
    first = read_texts(["one &amp; two", " three\u00a0 "])
    again = read_texts([speech.text for speech in first.speeches])
    assert again.speeches == first.speeches
    assert all(not step["changed"] for step in again.funnel.as_dict()["steps"])


def test_a_spool_on_a_full_disk_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("r+b")  # noqa: SIM115 - closed with the spool
    monkeypatch.setattr("psychocounsel.corpus.reading.TemporaryFile", Mock(return_value=full))
    spool = TextSpool(tmp_path)
    spool.append("one")
    with pytest.raises(IncompleteError) as caught:
        spool[0]
    assert caught.value.where == str(tmp_path)
    del spool, caught, full
    gc.collect()  # an error while it is closed would be shown now


@given(st.lists(st.tuples(st.sampled_from("abcx"), st.text("mn", max_size=2)), min_size=1, max_size=20))
def test_the_candidates_funnel_adds_up(cells: list[tuple[str, str]]) -> None:
    speeches = read(*({"text": key * 3, "key": key} for key in "abc"), columns=KEYED)
    candidates, funnel = answer(speeches, *({"key": key, "who": "elm", "reply": text} for key, text in cells))
    assert funnel.rows_in == len(cells)
    assert (
        funnel.as_dict()["kept"] == len(candidates) == len({key + text for key, text in cells if key != "x" and text})
    )
    assert funnel.dropped["no_such_speech"] == len({text for key, text in cells if key == "x" and text})
    assert funnel.dropped["empty"] == sum(not text for _, text in cells)
    assert_steps_add_up(funnel)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "one", "b": "two"}, "a.jsonl line 1: there is no column 'text'; did you mean 'txt'?"),
        ({"text": 3}, "a.jsonl line 1: 'text' is int, not text"),
        ({"text": "a\x00b"}, "a.jsonl line 1: 'text' holds a NUL character; remove it, or drop the row"),
        ({"text": "a\ud800b"}, "a.jsonl line 1: 'text' holds a lone surrogate"),
        ({"text": "one", "topic": "\ud800"}, "'topic' holds a lone surrogate"),
        ({"text": "one", "crisis": "no"}, "'crisis' is 'no'; write true or false"),
        ({"text": "one", "crisis": None}, "'crisis' is None"),
        ({"text": "one", "key": ""}, "'key' is empty; fill it, or drop the row"),
        ({"text": "one", "key": 1.5}, "'key' is float, not text"),
        ({"text": "one", "key": True}, "'key' is bool, not text"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(row: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as fault:
        read({**dict.fromkeys(("topic", "key"), "x"), "crisis": False, **row} if "text" in row else row, columns=FULL)
    assert message in str(fault.value)


def test_an_empty_speech_stops_the_reading_unless_it_may_be_dropped() -> None:
    strict = SHORT | {"drop_empty": False}
    for cell in ("", " \n", None):
        with pytest.raises(
            InputError, match=r"a\.jsonl line 1: the speech is empty; drop the row, or set drop_empty: true"
        ):
            read_texts([cell], strict)


def test_one_key_may_not_name_two_speeches_even_when_one_was_dropped() -> None:
    same = {"text": "one", "key": "1"}
    assert read(same, same, columns=KEYED).funnel.dropped == {"repeated_speech": 1}
    for other in ("two", "x"):
        with pytest.raises(InputError, match=r"a\.jsonl line 2: the key '1' already names another speech"):
            read(same, {"text": other, "key": "1"}, columns=KEYED)


def test_a_candidate_finds_its_speech_by_key_or_by_text() -> None:
    speeches = read({"text": "one", "key": 1}, columns=KEYED)
    reply = {"key": "1", "speech": " one ", "who": "elm", "reply": " Oh. "}
    for columns in (BY_KEY, BY_TEXT):
        found, _ = answer(speeches, reply, columns=columns)
        assert [(each.speech_id, each.author, each.text) for each in found] == [(Speech("one").id, "elm", "Oh.")]


def test_every_reply_is_kept_or_dropped_for_one_reason() -> None:
    speeches = read({"text": "one", "key": "1"}, {"text": "x", "key": "2"}, {"text": "", "key": "3"}, columns=KEYED)
    replies = [("1", "Oh."), ("1", "Oh. "), ("1", "Ah."), ("1", ""), ("2", "Oh."), ("3", "Oh."), ("4", "Oh.")]
    candidates, funnel = answer(speeches, *({"key": key, "who": "elm", "reply": text} for key, text in replies))
    assert [each.text for each in candidates] == ["Oh.", "Ah."]
    assert (funnel.rows_in, funnel.as_dict()["kept"]) == (7, 2)
    assert funnel.dropped == {"empty": 1, "its_speech_was_dropped": 2, "no_such_speech": 1, "repeated_text": 1}

    speeches = read_texts(["one", "x", None])
    cells: list[Any] = ["one", "x", None, "elsewhere"]
    replies_by_text = ({"speech": each, "who": "elm", "reply": "Oh."} for each in cells)
    _, funnel = answer(speeches, *replies_by_text, columns=BY_TEXT)
    assert funnel.dropped == {"its_speech_was_dropped": 2, "no_such_speech": 1}


def test_two_authors_of_one_text_count_once_and_an_author_has_a_name() -> None:
    speeches = read({"text": "one", "key": "1"}, columns=KEYED)
    candidates, _ = answer(speeches, *({"key": "1", "who": who, "reply": "Oh."} for who in ("elm", "oak")))
    assert [each.author for each in candidates] == ["elm"]
    with pytest.raises(InputError, match="'who' is empty"):
        answer(speeches, {"key": "1", "who": None, "reply": "Oh."})
    with pytest.raises(InputError, match="there is no column 'reply'"):
        answer(speeches, {"key": "1", "who": "elm"})


@pytest.mark.parametrize(
    ("is_crisis", "texts"),
    [
        (True, [
            "I have been suicidal since spring.", "I just want to end it all.", "Ending it all would be easier",
            "I think about ending my life", "she took her own life", "I wish I was dead, mostly at night",
            "I don't want to be alive", "I don\u2019t want to wake up", "I want to die", "I do not care if I die",
            "I started cutting myself again", "hurting myself", "self-harm", "He said he'd kill himself",
            "They are better off without me.", "They'd be better off with me gone", "I took all my pills",
            "he swallowed a handful of tablets", "I tried to overdose", "I have been cutting again",
            "I burnt my wrists", "I don't want to live in this world", "I took all the pills at once",
            "thinking about hanging myself", "I'll end it tonight", "I wrote a goodbye note", "Life isn't worth living",
            "there is no reason to live", "I go to bed hoping not to wake up", "I'd rather be dead",
            "I don\u2019t want to exist", "I wish I had never been born", "I am so tired of living",
            "I can't even bring myself to care if I live or die anymore", "I don't care whether I live.",
        ]),
        (False, [
            "I am ending my marriage in spring.", "ending my lease was a relief", "We took his car to the garage",
            "My brother wants to diet", "I do not want to stay with my parents", "I cut my hair myself",
            "This job is killing me", "I wish I were taller",
            "They don't care if I live with my mother",
            "I don't care if I live in a small flat", "Who cares if I leave?", "I took one of my tablets as usual",
            "I shot myself in the foot there", "We are better off now", "I am tired of living with my parents",
            "I hurt my leg at work", "I cut my leg shaving", "There is no point in living together",
            "I don't want to live with my parents", "I want to end it today with my boyfriend",
            "He took a couple of tablets for his cold", "I take all my tablets on time",
            "She burnt my toast", "He is cutting back", "It is not worth it", "I'm hoping to wake up early",
        ]),
    ],
)  # fmt: skip
def test_plain_words_of_crisis_are_seen(is_crisis: bool, texts: list[str]) -> None:
    assert [text for text in texts if mentions_crisis(text) != is_crisis] == []
