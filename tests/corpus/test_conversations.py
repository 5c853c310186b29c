"""Conversations become speeches with the turns before them: read, cleaned, de-identified and split as wholes."""

import json
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import config_of
from psychocounsel.config.sources import RowSource
from psychocounsel.corpus.build import CorpusArtifacts, make_corpus
from psychocounsel.corpus.formats import BadRow, SourceRow
from psychocounsel.corpus.sources import cell, read_source
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.store.schemas import read_candidates, read_row_provenance, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Turn
from release_files import speech

TERMS = {"licence": "mit", "data_class": "public"}
SAID = [
    ("therapist", "What brings you here?"),
    ("client", "I am tired."),
    ("client", "Very tired."),
    ("therapist", "Since when?"),
    ("client", "Since May."),
    ("therapist", "What happened?"),
    ("client", "Nothing."),
]
ANSWERED = [("I am tired.\n\nVery tired.", "Since when?"), ("Since May.", "What happened?")]


def write_jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(said: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


def messages(name: str, said: list[tuple[str, str]] = SAID) -> list[dict[str, str]]:
    return [{"id": name, "who": who, "said": text} for who, text in said]


def turns(path: str, **conversation: Any) -> list[SourceRow | BadRow]:
    return list(read_source(config_of(RowSource, {"path": path, "conversation": conversation})))


ALL_TRAIN = {"test_share": 0, "dev_share": 0}
BY_ID = {"id": "id", "role": "who", "text": "said"}


@pytest.mark.parametrize(
    "layout", ["messages", "json_in_a_cell", "rows", "numbers", "condition", "P", "patient", "Client", "gpt"]
)
def test_every_answered_turn_of_the_client_is_a_row(tmp_path: Path, layout: str) -> None:
    conversation: dict[str, Any] = {"messages": "chat"}
    if layout == "rows":
        path, conversation = write_jsonl(tmp_path / "a.jsonl", *messages("x"), *messages("y")), BY_ID
    elif layout == "numbers":
        said = [{**each, "who": int(each["who"] == "client")} for name in "xy" for each in messages(name)]
        path, conversation = write_jsonl(tmp_path / "a.jsonl", *said), {**BY_ID, "client": "1"}
    elif layout == "condition":
        path = write_jsonl(tmp_path / "a.jsonl", *messages("x"), *messages("y"))
        conversation = {**BY_ID, "role": 'who in ["client", "member"]'}
    elif layout in ("P", "patient", "Client", "gpt"):
        said = [("system", "Be kind."), *((layout if who == "client" else "T", text) for who, text in SAID)]
        path = write_jsonl(tmp_path / "a.jsonl", {"chat": chat(said)}, {"chat": chat(said)})
        conversation |= {"client": layout}
    else:
        given: Any = [*chat([("system", "Be kind."), *SAID]), {"role": "user", "content": None}]
        cell = json.dumps(given) if layout == "json_in_a_cell" else given
        path = write_jsonl(tmp_path / "a.jsonl", {"chat": cell}, {"chat": cell})
    rows = turns(path, **conversation)
    found = [row.values["turn"] for row in rows if isinstance(row, SourceRow)]
    assert [(each["text"], each["answer"]) for each in found] == ANSWERED * 2
    assert [each["number"] for each in found] == [1, 2, 1, 2]
    assert len({each["key"] for each in found}) == 4
    opening, *exchange = Turn("assistant", SAID[0][1]), Turn("user", ANSWERED[0][0]), Turn("assistant", ANSWERED[0][1])
    assert [each["history"] for each in found[:2]] == [(opening,), (opening, *exchange)]
    last = [row.values["turn"]["history"] for row in turns(path, **conversation, last=1) if isinstance(row, SourceRow)]
    assert last[:2] == [(opening,), (exchange[1],)]


@pytest.mark.parametrize("layout", ["messages", "id"])
def test_conversations_of_files_with_one_name_stay_apart(tmp_path: Path, layout: str) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        said = [(who, f"{text} {speech(ord(folder))}") for who, text in SAID]
        rows = [{"chat": chat(said)}] if layout == "messages" else messages("1", said)
        write_jsonl(tmp_path / folder / "c.jsonl", *rows)
    conversation = {"messages": "chat"} if layout == "messages" else BY_ID
    key = "c.jsonl line 1 turn 1" if layout == "messages" else "1 turn 1"
    (alone, *_) = turns(str(tmp_path / "a" / "c.jsonl"), **conversation)
    assert isinstance(alone, SourceRow)
    assert (alone.where, alone.values["turn"]["key"]) == ("c.jsonl line 1 turn 1", key)
    columns: dict[str, Any] = {"text": "turn.text", "history": "turn.history", "key": "turn.key"}
    source = {"path": str(tmp_path / "*" / "c.jsonl"), "conversation": conversation, "columns": columns}
    found = made(tmp_path, source, split=ALL_TRAIN).speeches
    assert (found.metrics["splits"]["train"], found.metrics["clusters"]) == (4, 2)
    assert {row.where for row in read_row_provenance(found)} == {
        f"{folder}/c.jsonl line 1 turn {number}" for folder in ("a", "b") for number in (1, 2)
    }
    sources = [
        {
            **TERMS,
            **source,
            "path": str(tmp_path / each / "c.jsonl"),
            "columns": {**columns, "key": [{"constant": each}, "turn.key"]},
        }
        for each in ("a", "b")
    ]
    assert made(tmp_path, {}, speeches=sources, split=ALL_TRAIN).speeches.metrics["clusters"] == 2


def test_the_file_of_a_conversation_is_known(tmp_path: Path) -> None:
    for name in ("anna", "ben"):
        write_jsonl(tmp_path / f"{name}.jsonl", *messages("1"))
    rows = [row for row in turns(str(tmp_path), **BY_ID) if isinstance(row, SourceRow)]
    assert [cell(row, "file") for row in rows] == ["anna", "anna", "ben", "ben"]
    write_jsonl(tmp_path / "anna.ndjson", *messages("1"))  # its conversation would be taken for the other one's end
    with pytest.raises(InputError, match="two files are called anna"):
        turns(str(tmp_path), **BY_ID)


def test_a_conversation_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *messages("x"), *messages("y"), *messages("x"))
    with pytest.raises(InputError, match=r"a.jsonl line 15: the conversation 'x' goes on after another; sort"):
        turns(path, **BY_ID)
    path = write_jsonl(tmp_path / "b.jsonl", {"chat": [{"role": "P", "content": "Hi."}]}, {"chat": "Hi."})
    with pytest.raises(InputError, match=r"b.jsonl line 1: .* message of 'P'; .*client"):
        turns(path, messages="chat")
    source = {"path": path, "conversation": {"messages": "chat"}, "on_bad_row": "drop"}
    assert [type(row) for row in read_source(config_of(RowSource, source))] == [BadRow, BadRow]
    path = write_jsonl(
        tmp_path / "c.jsonl",
        *messages("x"),
        *({**each, "who": "68"} for each in messages("y")),
        *messages("z", SAID[:2]),
    )
    with pytest.raises(InputError, match=r"c.jsonl line 8: the client says nothing in this conversation; say with"):
        turns(path, **BY_ID, client="client")
    source = {"path": path, "conversation": {**BY_ID, "client": "client"}, "on_bad_row": "drop"}
    assert [type(row) for row in read_source(config_of(RowSource, source))] == [SourceRow, SourceRow, BadRow]
    for wrong in ({}, {"id": "a"}, {"messages": "a", "id": "a", "role": "b", "text": "c"}):
        with pytest.raises(ConfigError):
            turns(path, **wrong)


def made(folder: Path, source: dict[str, Any], ready: dict[str, Any] | None = None, **more: Any) -> CorpusArtifacts:
    config = {
        "name": "c",
        "speeches": [{**TERMS, **source}],
        "candidates": [] if ready is None else [{**TERMS, **ready}],
        "cleaning": {"min_chars": 1, "languages": []},
        **more,
    }
    return make_corpus(config_of(CorpusConfig, config), Store(folder / "store"))


def test_speeches_and_responses_of_conversations_share_placeholders(tmp_path: Path) -> None:
    said = [
        ("client", "My sister Anna Meyer   left."),
        ("therapist", "When did Anna leave? Write to me at dr.smith@example.com."),
        ("client", "My friend Peter Novak knows. So does Anna."),
        ("therapist", "What does Peter say of Anna?"),
    ]
    path = write_jsonl(tmp_path / "a.jsonl", *messages("x", said))
    shared = {"path": path, "conversation": BY_ID}
    corpus = made(
        tmp_path,
        {**shared, "columns": {"text": "turn.text", "history": "turn.history", "key": "turn.key"}},
        {**shared, "columns": {"text": "turn.answer", "author": {"constant": "T"}, "speech_key": "turn.key"}},
        deidentification={"engine": "patterns"},
        split=ALL_TRAIN,
    )
    assert corpus.candidates is not None
    first, second = (each.speech for each in read_speeches(corpus.speeches))
    assert (first.text, first.history) == ("My sister [PERSON_1] left.", ())
    assert second.text == "My friend [PERSON_2] knows. So does [PERSON_1]."
    assert second.history[0] == Turn("user", first.text)
    assert second.history[1] == Turn("assistant", "When did [PERSON_1] leave? Write to me at [EMAIL_1].")
    answers = {each.speech_id: each.text for each in read_candidates(corpus.candidates)}
    assert answers[second.id] == "What does [PERSON_2] say of [PERSON_1]?"
    for artifact in (corpus.speeches, corpus.candidates):
        funnel = artifact.metrics["funnel"]
        assert funnel["rows_in"] == funnel["kept"] + sum(funnel["dropped"].values()) == 2
        assert len(list(read_row_provenance(artifact))) == 2


@pytest.mark.parametrize("layout", ["conversation", "history", "named"])
def test_a_conversation_is_never_divided_between_splits(tmp_path: Path, layout: str) -> None:
    conversations = [
        [(("client", "therapist")[at % 2], speech(10 * number + at)) for at in range(6)] for number in range(30)
    ]
    if layout == "conversation":
        rows = [each for number, said in enumerate(conversations) for each in messages(str(number), said)]
        source: dict[str, Any] = {"conversation": BY_ID}
        columns = {"text": "turn.text", "history": "turn.history"}
    else:
        rows = [
            {"text": said[at][1], "before": chat(said[max(0, at - 1) if layout == "named" else 0 : at]), "n": number}
            for number, said in enumerate(conversations)
            for at in (0, 2, 4)
        ]
        source, columns = {}, {"text": "text", "history": "before"}
        columns |= {"conversation": "n"} if layout == "named" else {}
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    corpus = made(
        tmp_path, {"path": path, **source, "columns": columns}, split={"test_share": 0.2, "dev_share": 0.2}
    ).speeches
    place = {each.speech.text: (each.cluster, each.split) for each in read_speeches(corpus)}
    assert len(place) == 90
    assert all(len({place[said[at][1]] for at in (0, 2, 4)}) == 1 for said in conversations)
    assert {split for _, split in place.values()} == {"train", "dev", "test"}
    assert (corpus.metrics["clusters"], corpus.metrics["near_duplicates"]) == (30, 0)


def test_responses_of_rows_with_a_history_are_joined_by_both(tmp_path: Path) -> None:
    before = [[], chat(SAID[:1]), chat(SAID[:4])]
    rows = [{"text": "I am tired.", "before": each, "answer": f"Answer {at}."} for at, each in enumerate(before)]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    corpus = made(
        tmp_path,
        {"path": path, "columns": {"text": "text", "history": "before"}},
        {
            "path": path,
            "columns": {
                "text": "answer",
                "author": {"constant": "T"},
                "speech_text": "text",
                "speech_history": "before",
            },
        },
        split=ALL_TRAIN,
    )
    assert corpus.candidates is not None
    turns_of = {each.speech.id: len(each.speech.history) for each in read_speeches(corpus.speeches)}
    found = {each.text: turns_of[each.speech_id] for each in read_candidates(corpus.candidates)}
    assert found == {"Answer 0.": 0, "Answer 1.": 1, "Answer 2.": 3}


@pytest.mark.parametrize("layout", ["messages", "json", "transcript", "marked"])
def test_a_prompt_ends_with_the_speech_and_begins_with_its_history(tmp_path: Path, layout: str) -> None:
    rows: list[dict[str, Any]] = []
    for at in range(3):
        said = [("user", "Hello."), ("assistant", "Yes?"), ("user", speech(at))]
        held: Any = chat(said)
        if layout == "json":
            held = json.dumps(held)
        elif layout == "transcript":
            held = f"\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: {speech(at)}\n\nAssistant:"
        elif layout == "marked":
            held = f"Hello.\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\n{speech(at)}"
        rows.append({"prompt": held, "a": f"A {at}", "b": f"B {at}"})
    if layout == "marked":
        rows.append({"prompt": speech(9), "a": "A 9", "b": "B 9"})  # its prompts of one turn are texts
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    both = {"speech_text": "prompt", "speech_history": "prompt"}
    answers = {"path": path, "wide": {"columns": ["a", "b"]}, "columns": both}
    source = {"path": path, "columns": {"text": "prompt", "history": "prompt"}}
    found = made(tmp_path, source, answers, split=ALL_TRAIN)
    speeches = [each.speech for each in read_speeches(found.speeches)]
    assert [each.text for each in speeches] == [speech(at) for at in (0, 1, 2, 9)[: len(rows)]]
    assert {each.history for each in speeches[:3]} == {(Turn("user", "Hello."), Turn("assistant", "Yes?"))}
    assert found.candidates is not None
    assert len(read_candidates(found.candidates)) == 2 * len(rows)
    ended = write_jsonl(tmp_path / "b.jsonl", {"prompt": chat(SAID[:4])})
    with pytest.raises(InputError, match="does not end with the client"):
        made(tmp_path, {**source, "path": ended})


def test_equal_words_after_other_turns_are_other_speeches(tmp_path: Path) -> None:
    before = [[], chat(SAID[:1]), chat(SAID[:1])]
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": "I am tired.", "before": each} for each in before))
    corpus = made(
        tmp_path,
        {"path": path, "columns": {"text": "text", "history": "before"}},
        split=ALL_TRAIN,
    )
    assert corpus.speeches.metrics["funnel"]["dropped"] == {"repeated_speech": 1}
    assert [len(each.speech.history) for each in read_speeches(corpus.speeches)] == [0, 1]
    path = write_jsonl(tmp_path / "b.jsonl", {"text": "Yes.", "before": chat(SAID[:2])})
    with pytest.raises(InputError, match=r"b.jsonl line 1: 'before' ends with the client"):
        made(tmp_path, {"path": path, "columns": {"text": "text", "history": "before"}})


@pytest.mark.parametrize("excluded", ["user", "assistant"])
def test_a_benchmark_is_kept_out_of_histories_too(tmp_path: Path, excluded: str) -> None:
    said = [(("client", "therapist")[at % 2], f"Anna Meyer says: {speech(at)}") for at in range(6)]
    path = write_jsonl(tmp_path / "a.jsonl", *messages("x", said))
    benchmark = write_jsonl(tmp_path / "b.jsonl", {"text": said[2 if excluded == "user" else 1][1]})
    source = {"path": path, "conversation": BY_ID, "columns": {"text": "turn.text", "history": "turn.history"}}
    excludes = [{"path": benchmark, "columns": ["text"]}]
    corpus = made(tmp_path, source, exclude=excludes, deidentification={"engine": "patterns"}, split=ALL_TRAIN).speeches
    assert corpus.metrics["funnel"]["dropped"] == {"shares_span_with_benchmark": 2}
    assert [each.speech.history for each in read_speeches(corpus)] == [()]


def test_identities_in_histories_are_counted(tmp_path: Path) -> None:
    before = chat([("client", "My sister Anna Meyer left."), ("therapist", "When?")])
    path = write_jsonl(
        tmp_path / "a.jsonl",
        *({"text": text, "before": before} for text in ("In May, and nobody wrote.", "Anna Meyer never says when.")),
    )
    corpus = made(
        tmp_path,
        {"path": path, "columns": {"text": "text", "history": "before"}},
        deidentification={"engine": "patterns"},
        split=ALL_TRAIN,
    ).speeches
    assert all(each.speech.history[0].content == "My sister [PERSON_1] left." for each in read_speeches(corpus))
    assert corpus.metrics["deidentification"]["found"] == {"PERSON": 2}


def test_conversations_with_the_same_opening_words_are_in_one_split(tmp_path: Path) -> None:
    opening = [("client", speech(1)), ("therapist", "Go on.")]
    conversations = [[*opening, ("client", speech(10 + at)), ("therapist", "I see.")] for at in range(2)]
    path = write_jsonl(
        tmp_path / "a.jsonl", *(each for at, said in enumerate(conversations) for each in messages(str(at), said))
    )
    source = {"path": path, "conversation": BY_ID, "columns": {"text": "turn.text", "history": "turn.history"}}
    corpus = made(tmp_path, source, split=ALL_TRAIN).speeches
    assert (corpus.metrics["splits"]["train"], corpus.metrics["clusters"]) == (3, 1)


def test_conversations_that_a_common_answer_joins_are_told(tmp_path: Path) -> None:
    common = "I really do not know what I could say to that, honestly."
    talks: list[dict[str, str]] = []
    for at in range(40):
        words = [speech(10 * at + each) for each in range(3)] + ([common] if at < 15 else [])
        talks += messages(f"t{at}", [each for text in words for each in (("client", text), ("therapist", "I see."))])
    path = write_jsonl(tmp_path / "talks.jsonl", *talks)
    source = {"path": path, "conversation": BY_ID, "columns": {"text": "turn.text", "history": "turn.history"}, **TERMS}
    given = {"name": "talks", "speeches": [source], "cleaning": {"min_chars": 1}}
    speeches = make_corpus(config_of(CorpusConfig, given), Store(tmp_path / "store")).speeches
    assert any("60 of 135 speeches are one cluster in one split" in warning for warning in speeches.warnings)
    assert speeches.metrics["splits"]["test"] < 20
