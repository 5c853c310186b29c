"""Rows of any shape: paths, filters, wide tables, joined columns, chats, folders and archives, bad rows."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psychocounsel.config.base import Settings
from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import config_of, load_config
from psychocounsel.config.schema import BuildPreferencesConfig
from psychocounsel.config.sources import CandidateSource, Column, RowSource, SpeechSource
from psychocounsel.corpus.build import make_corpus
from psychocounsel.corpus.formats import BadRow, SourceRow
from psychocounsel.corpus.sources import (
    read_rows,
    read_source,
    source_fingerprint,
    text_cell,
)
from psychocounsel.errors import ConfigError, DataQualityError, InputError
from psychocounsel.stages.build_preferences import specs
from psychocounsel.store.schemas import read_candidates, read_row_provenance, read_speeches
from psychocounsel.store.store import Store
from release_files import speech

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "I am tired."},
    {"role": "assistant", "content": "Since when?"},
    {"role": "user", "content": "Since May."},
    {"role": "assistant", "content": "What happened in May?"},
]
NESTED = {"choices": [{"turns": ["How long?", "I see."]}], "a b": "spaced", "n": 3, "topic": "sleep", "m": CHAT}
TERMS = {"licence": "mit", "data_class": "public"}


class Wanted(Settings):
    """A block with one column."""

    column: Column


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(path: Path, *rows: Any) -> str:
    return str(write(path, "".join(json.dumps(row) + "\n" for row in rows)))


def values(path: Path | str, **settings: Any) -> list[Any]:
    source = config_of(RowSource, {"path": str(path), **settings})
    return [row if isinstance(row, BadRow) else row.values for row in read_source(source)]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("a b", "spaced"),
        ("choices[0].turns[0]", "How long?"),
        ("choices[0].turns[-1]", "I see."),
        ("choices[1].turns[0]", ""),
        ("choices[0].nothing.at_all", ""),
        ('row["a b"]', "spaced"),
        ("m[1].content", "I am tired."),
        ({"constant": "GPT"}, "GPT"),
        (["topic", "a b", "choices[3]", "n"], "sleep\n\nspaced\n\n3"),
        (["topic", {"constant": "x"}], "sleep\n\nx"),
    ],
)
def test_what_a_column_is(column: Any, expected: str) -> None:
    wanted = config_of(Wanted, {"column": column}).column
    assert text_cell(SourceRow("a.jsonl line 1", NESTED), wanted) == expected


@pytest.mark.parametrize("column", ["nothing", "no such", "nothing[0]", "f(n)", ["topic", "nothing"]])
def test_a_column_that_is_not_there_is_an_error_with_those_that_are(column: Any) -> None:
    with pytest.raises(InputError, match=r"a.jsonl line 1: .*'choices', 'a b', 'n', 'topic', 'm'"):
        text_cell(SourceRow("a.jsonl line 1", NESTED), config_of(Wanted, {"column": column}).column)


def test_a_file_with_a_header_alone_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    source = {"path": str(tmp_path / "a.csv"), "columns": {"text": "text"}, **TERMS}
    with pytest.raises(DataQualityError, match="a file has a header alone"):
        make_corpus(corpus([source], []), Store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("messages", "said", "answered"),
    [
        (CHAT, "I am tired.", "Since when?"),
        (CHAT[:2], "I am tired.", ""),
        ([{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}], "Hi.", "Hello."),
        ([CHAT[2], CHAT[1], CHAT[3], CHAT[4]], "I am tired.\n\nSince May.", "What happened in May?"),
        ([*CHAT[1:4], {"role": "assistant", "content": None, "tool_calls": []}], "I am tired.", "Since when?"),
        ([], "", ""),
    ],
)
def test_a_chat_gives_its_first_exchange(messages: list[Any], said: str, answered: str) -> None:
    row = SourceRow("a.jsonl line 1", {"messages": messages})
    assert (text_cell(row, "messages"), text_cell(row, "messages", "assistant")) == (said, answered)


@pytest.mark.parametrize(
    "held",
    [
        "\n\nHuman: I am tired.\n\nAssistant: Since when?\n\nHuman: Since May.\n\nAssistant:",
        json.dumps(CHAT),
        str(CHAT),
        "[" + "\n ".join(map(str, CHAT)) + "]",
        [["I am tired.", "Since when?"], ["Since May.", "What happened in May?"]],
        [{"speaker": "seeker", "text": "I am tired."}, {"speaker": "supporter", "text": "Since when?"}],
        [{"sender": "Client", "message": "I am tired."}, {"sender": "Therapist", "message": "Since when?"}],
    ],
)
def test_a_chat_may_be_written_otherwise(held: Any) -> None:
    row = SourceRow("a.csv line 2", {"chat": held})
    assert (text_cell(row, "chat"), text_cell(row, "chat", "assistant")) == ("I am tired.", "Since when?")


@pytest.mark.parametrize(
    "text", ["[removed]", "[]", '[{"name": "x"}]', '[{"speaker": "Tom", "text": "Hi."}]', "{", "{{}}", "{[1]: 2}"]
)
def test_a_text_in_brackets_is_no_chat(text: str) -> None:
    assert text_cell(SourceRow("a.csv line 2", {"chat": text}), "chat") == text


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('interlocutor == "client"', [1, 3]),
        ('interlocutor != "client" or n > 2', [2, 3]),
        ("n in [1, 2] and not (n == 1)", [2]),
        ("n < 2.5", [1, 2]),
        ('"li" in interlocutor', [1, 3]),
        ("nested.deep[0] == null", [1, 2]),
        ("nested != null", [3]),
    ],
)
def test_only_rows_that_meet_a_condition_are_read(tmp_path: Path, where: str, expected: list[int]) -> None:
    who = ["client", "therapist", "client"]
    rows = [{"interlocutor": each, "n": n, "nested": {"deep": [1]} if n > 2 else None} for n, each in enumerate(who, 1)]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    assert [row["n"] for row in values(path, where=where)] == expected


def test_numbers_in_csv_cells_compare_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,votes\none,10\ntwo,9\nthree,\n")
    assert [row["text"] for row in values(path, where='votes != "" and votes >= 10')] == ["one"]
    assert [row["text"] for row in values(path, where='votes in [9, 11] or text in ["three"]')] == ["two", "three"]
    assert [row["text"] for row in values(path, where="votes not in [9, 10]")] == ["three"]
    with pytest.raises(InputError, match=r"a.csv line 4: .*cannot be evaluated"):
        values(path, where="votes >= 10")
    assert BadRow in map(type, values(path, where="votes >= 10", on_bad_row="drop"))


@pytest.mark.parametrize("where", ['class == "suicide"', 'mi-quality == "high"'])
def test_a_name_that_is_no_word_is_written_otherwise(tmp_path: Path, where: str) -> None:
    name = where.split(" ")[0]
    path = write(tmp_path / "a.csv", f"{name}\nsuicide\nhigh\n")
    with pytest.raises(ConfigError, match=r'row\["NAME"\]'):
        values(path, where=where)
    assert len(values(path, where=where.replace(name, f'row["{name}"]'))) == 1


@pytest.mark.parametrize("where", ["n ==", "__import__('os')", "n.f()", "lambda: 1", "n + 1", "[x for x in n]"])
def test_a_condition_that_cannot_be_read_is_an_error_of_the_config(where: str) -> None:
    with pytest.raises(ConfigError, match="where"):
        config_of(RowSource, {"path": "a.csv", "where": where})


def test_one_column_per_model_becomes_one_row_each(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "q,gpt,llama \none,a,b\ntwo,c,d\n")
    source = config_of(
        CandidateSource,
        {"path": str(path), "wide": {"columns": ["gpt", "llama "]}, "columns": {"speech_text": "q"}},
    )
    rows = [row for row in read_source(source) if isinstance(row, SourceRow)]
    columns = source.columns
    found = [tuple(text_cell(row, each) for each in ("q", columns.author, columns.text)) for row in rows]
    assert found == [("one", "gpt", "a"), ("one", "llama", "b"), ("two", "gpt", "c"), ("two", "llama", "d")]
    assert rows[1].where == "a.csv line 2 column llama "
    with pytest.raises(ConfigError, match="text and author"):
        config_of(CandidateSource, {"path": "a.csv", "columns": {"speech_text": "q"}})


def test_a_column_says_what_it_is_where_its_name_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,Q1_1,Q1_2\n7,4,5\n")
    labels = {"Q1_1": "empathy", "Q1_2": {"principle": "safety", "rater": "ann"}}
    found = [row["wide"] for row in values(path, wide={"columns": labels})]
    assert found == [{"column": labels["Q1_1"], "value": "4"}, {"column": labels["Q1_2"], "value": "5"}]


ANSWERS = [{"text": "one", "tags": ["a", "b"]}, {"text": "two", "tags": None}, {"text": "three", "tags": ["c"]}]


@pytest.mark.parametrize("held", [ANSWERS, json.dumps(ANSWERS), str(ANSWERS)])
def test_each_item_of_a_list_becomes_a_row(tmp_path: Path, held: Any) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"id": 1, "answers": held},
        {"id": 2, "answers": []},
        {"id": 3, "answers": None},
        {"id": 4, "answers": ""},
    )
    found = values(path, explode={"answer": "answers"}, where='answer.text != "three"')
    assert [(row["id"], row["answer"]["text"]) for row in found] == [(1, "one"), (1, "two")]
    twice = {"path": path, "explode": {"answer": "answers", "tag": "answer.tags"}}
    rows = [row for row in read_source(config_of(RowSource, twice)) if isinstance(row, SourceRow)]
    assert [(row.values["answer"]["text"], row.values["tag"]) for row in rows] == [
        ("one", "a"),
        ("one", "b"),
        ("three", "c"),
    ]
    assert rows[1].where == "a.jsonl line 1 answer 1 tag 2"
    with pytest.raises(InputError, match=r"a.jsonl line 1: 'id' holds no list; explode"):
        values(path, explode={"answer": "id"})
    dropped = values(path, explode={"answer": "id"}, on_bad_row="drop")
    assert [type(row) for row in dropped] == [BadRow] * 4


def test_lists_are_not_joined_to_texts() -> None:
    wanted = config_of(Wanted, {"column": ["topic", "m"]}).column
    with pytest.raises(InputError, match="'m' holds no text to be joined"):
        text_cell(SourceRow("a.jsonl line 1", NESTED), wanted)


def test_words_that_stand_for_others_are_replaced_in_every_text(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", {"text": "Yes_comma_ no_comma_ <noinput>", "m": [{"x": "a_comma_"}], "n": 1}
    )
    found = values(path, replace={"_comma_": ",", "<noinput>": ""}, where='m[0].x == "a,"')
    assert found == [{"text": "Yes, no, ", "m": [{"x": "a,"}], "n": 1}]


@pytest.mark.parametrize(("key", "named"), [(17.0, "17"), (17, 17.0), ("a 17", "a  17")])
def test_keys_join_whatever_wrote_them(tmp_path: Path, key: Any, named: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"id": key, "text": speech(1)})
    answers = write_jsonl(tmp_path / "b.jsonl", {"of": named, "text": speech(2)})
    ready = {"path": answers, "columns": {"text": "text", "author": "of", "speech_key": "of"}, **TERMS}
    source = {"path": path, "columns": {"text": "text", "key": "id", "topic": "id"}, **TERMS}
    made = make_corpus(corpus([source], [ready]), Store(tmp_path / "store"))
    assert made.candidates is not None
    label = " ".join(str(key).removesuffix(".0").split())
    assert [each.author for each in read_candidates(made.candidates)] == [label]
    assert [each.speech.topic for each in read_speeches(made.speeches)] == [label]


def test_a_condition_may_say_what_is_a_crisis(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        *({"text": speech(at), "class": each} for at, each in enumerate(("suicide", "non-suicide"))),
    )
    source = {"path": path, "columns": {"text": "text", "crisis": 'row["class"] == "suicide"'}, **TERMS}
    made = make_corpus(corpus([source], []), Store(tmp_path / "store"))
    assert [each.speech.crisis for each in read_speeches(made.speeches)] == [True, False]
    source["columns"] = {"text": "text", "crisis": "class"}
    with pytest.raises(InputError, match=r"'class' is 'suicide'; .*condition"):
        make_corpus(corpus([source], []), Store(tmp_path / "other"))


def test_a_column_that_some_rows_lack_is_named_by_the_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"id": 1, "parent": 0}, {"id": 2})
    with pytest.raises(
        InputError, match=r"line 2: there is no column 'parent'; .* row.parent where only some rows have it"
    ):
        values(path, where="parent is null")
    assert [row["id"] for row in values(path, where="row.parent is null")] == [2]


def test_files_in_other_forms(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "two"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines))
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(lines)
    write(tmp_path / "a.json.gz", gzip.compress(json.dumps(rows).encode()))
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    write(tmp_path / "a.parquet.gz", gzip.compress(table.getvalue()))
    write(tmp_path / "a.tsv", 'text\none\n"two"\n')
    write(tmp_path / "a.json", b"\xef\xbb\xbf" + lines)
    write(tmp_path / "a.ndjson", lines)
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.parquet.gz", "a.tsv", "a.json", "a.ndjson"):
        assert values(tmp_path / name) == rows, name
    write(tmp_path / "one.json", json.dumps({"rows": rows}, indent=1))
    assert values(tmp_path / "one.json") == [{"rows": rows}]
    write(tmp_path / "b.json", lines + b"{\n")
    assert [type(row) for row in values(tmp_path / "b.json", on_bad_row="drop")] == [dict, dict, BadRow]
    write(tmp_path / "torn.jsonl.gz", gzip.compress(lines * 1000)[:-30])
    with pytest.raises(InputError, match=r"torn.jsonl.gz"):
        values(tmp_path / "torn.jsonl.gz")
    # A frame with a window of 2 GiB, as dumps of Reddit have, and one raw block.
    frame = b"\x28\xb5\x2f\xfd\x00\xa8" + (len(lines) << 3 | 1).to_bytes(3, "little") + lines
    write(tmp_path / "RS_2020.jsonl.zst", frame)
    with pytest.raises(InputError, match=r"zstd -d --long=31 RS_2020.jsonl.zst"):
        values(tmp_path / "RS_2020.jsonl.zst")
    write(tmp_path / "RS_2020.zst", frame)
    with pytest.raises(InputError, match=r"name it RS_2020.jsonl.zst"):
        values(tmp_path / "RS_2020.zst")


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", "\t")])
def test_quotation_marks_may_be_part_of_the_text(tmp_path: Path, name: str, sign: str) -> None:
    said = ['"so um', 'she said "no', '"Yes" he said']
    path = write(tmp_path / name, f"id{sign}said\n" + "".join(f"{at}{sign}{text}\n" for at, text in enumerate(said)))
    assert [row["said"] for row in values(path, quotes=False)] == said
    with pytest.raises(InputError, match="quotes: false"):
        values(path)


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,,\none,,\n")
    assert [row["text"] for row in values(path)] == ["one"]


def test_a_folder_and_a_pattern_are_all_their_files_by_name(tmp_path: Path) -> None:
    for name in ("d/2.jsonl", "d/sub/1.jsonl", "d/README.md", "d/.hidden.jsonl", "e.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}) + "\n")
    assert [row["text"] for row in values(tmp_path / "d")] == ["d/2.jsonl", "d/sub/1.jsonl"]
    assert [row["text"] for row in values(tmp_path / "*" / "*.jsonl")] == ["d/2.jsonl"]
    assert [row["text"] for row in values(tmp_path / "**" / "[12].jsonl")] == ["d/2.jsonl", "d/sub/1.jsonl"]
    for path, names in (("d", ["2", "sub/1"]), ("d/*.jsonl", ["2"]), ("e.jsonl", ["e"])):
        columns = {"columns": ["file", "row.text"]}
        assert [row["wide"]["value"] for row in values(tmp_path / path, wide=columns)][::2] == names
    assert len(values(tmp_path / "d", where='file == "sub/1"')) == 1
    before = source_fingerprint(str(tmp_path / "d"), "train")
    write(tmp_path / "d" / "2.jsonl", '{"text": "changed"}\n')
    assert source_fingerprint(str(tmp_path / "d"), "train") != before
    before = source_fingerprint(str(tmp_path / "d"), "train")
    (tmp_path / "d" / "2.jsonl").rename(tmp_path / "d" / "3.jsonl")  # `file` says so
    assert source_fingerprint(str(tmp_path / "d"), "train") != before
    write(tmp_path / "d" / "sub" / "1.jsonl", "no JSON")
    with pytest.raises(InputError, match=r"^sub/1.jsonl line 1: "):
        values(tmp_path / "d")
    for empty in ("none-*.jsonl", "d/.*"):
        with pytest.raises(InputError, match="no file"):
            values(tmp_path / empty)


def test_a_path_is_first_looked_for_beside_its_config(tmp_path: Path) -> None:
    write(tmp_path / "c" / "rows" / "a.csv", "text\none\n")
    for path in ("rows/a.csv", "rows/*.csv", "rows"):
        write(tmp_path / "c" / "source.yaml", json.dumps({"path": path}))
        found = load_config(RowSource, tmp_path / "c" / "source.yaml")
        assert [row.values for row in read_rows(found.path)] == [{"text": "one"}]
    for path in ("hub:owner/name", "bundled:speeches.jsonl", "elsewhere.csv"):
        write(tmp_path / "c" / "source.yaml", json.dumps({"path": path}))
        assert load_config(RowSource, tmp_path / "c" / "source.yaml").path == path


def corpus(speeches: list[Any], candidates: list[Any], **more: Any) -> CorpusConfig:
    cleaning = {"min_chars": 1, "max_chars": 10_000, "languages": []}
    split = {"test_share": 0, "dev_share": 0}
    given = {"name": "c", "speeches": speeches, "candidates": candidates, "cleaning": cleaning, "split": split}
    return config_of(CorpusConfig, {**given, **more})


def test_bad_rows_are_dropped_and_counted_where_the_config_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": speech(1)}), "{", json.dumps({"text": 3}), "[]", json.dumps({"text": speech(2)}), ""]
    write(path, "\n".join([*lines, json.dumps({"text": "NUL \x00."}), json.dumps({"text": ""})]))
    source = {"path": str(path), "columns": {"text": "text"}, **TERMS}
    with pytest.raises(InputError, match=r"a.jsonl line 2: .*on_bad_row: drop"):
        make_corpus(corpus([source], []), Store(tmp_path / "store"))
    made = make_corpus(corpus([{**source, "on_bad_row": "drop"}], []), Store(tmp_path / "store")).speeches
    funnel = made.metrics["funnel"]
    assert (funnel["rows_in"], funnel["kept"], funnel["dropped"]) == (7, 2, {"bad_row": 4, "empty": 1})
    faults = {row.where: row.detail for row in read_row_provenance(made) if row.reason == "bad_row"}
    assert set(faults) == {f"a.jsonl line {number}" for number in (2, 3, 4, 7)}
    assert "int, not text" in faults["a.jsonl line 3"]


def test_the_splits_of_a_source_are_kept_by_cluster(tmp_path: Path) -> None:
    copies = [(speech(0), "train"), (f"{speech(0)} !", "test"), (speech(1), "validation")]
    rows = copies + [(speech(number), "train") for number in range(2, 40)]
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": text, "part": part} for text, part in rows))
    source = {"path": path, "columns": {"text": "text"}, "split_column": "part", **TERMS}
    split = {"test_share": 0.2, "dev_share": 0.2}
    made = make_corpus(corpus([source], [], split=split), Store(tmp_path / "store")).speeches
    found = {each.speech.text: each.split for each in read_speeches(made)}
    assert [found[text] for text, _ in copies] == ["test", "test", "dev"]
    assert set(found.values()) == {"train", "dev", "test"}
    assert list(found.values()).count("train") == 38
    only_train = write_jsonl(tmp_path / "b.jsonl", *({"text": text, "part": "train"} for text, _ in rows[2:]))
    made = make_corpus(corpus([{**source, "path": only_train}], [], split=split), Store(tmp_path / "store")).speeches
    assert made.metrics["splits"] == {"train": 23, "dev": 8, "test": 8}
    wrong = write_jsonl(tmp_path / "c.jsonl", {"text": "one", "part": "holdout"})
    with pytest.raises(InputError, match="'holdout', which is no split"):
        make_corpus(corpus([{**source, "path": wrong}], []), Store(tmp_path / "store"))


@pytest.mark.parametrize("shape", ["chat", "wide", "long"])
def test_funnels_add_up_for_every_mapping(tmp_path: Path, shape: str) -> None:
    texts = [f"My {who} worries me." for who in ("job", "boss", "mother", "health", "son", "money")]
    if shape == "chat":
        exchange = [
            [{"role": "user", "content": q}, {"role": "assistant", "content": f"What is it? {q}"}] for q in texts
        ]
        path = write_jsonl(tmp_path / "a.jsonl", *({"messages": each} for each in exchange))
        speeches, columns = {"columns": {"text": "messages"}}, {"text": "messages", "speech_text": "messages"}
        candidates: dict[str, Any] = {"columns": {**columns, "author": {"constant": "gpt-4o"}}}
    elif shape == "wide":
        path = write_jsonl(tmp_path / "a.jsonl", *({"t": "A title", "q": q, "m1": f"1 {q}", "m2": ""} for q in texts))
        speeches = {"columns": {"text": ["t", "q"]}}
        candidates = {"wide": {"columns": ["m1", "m2"]}, "columns": {"speech_text": ["t", "q"]}}
    else:
        turns = [{"id": n, "who": who, "say": f"{who} {q}"} for n, q in enumerate(texts) for who in ("client", "bot")]
        path = write_jsonl(tmp_path / "a.jsonl", *turns)
        speeches = {"where": 'who == "client"', "columns": {"text": "say", "key": "id"}}
        columns = {"text": "say", "author": "who", "speech_key": "id"}
        candidates = {"where": 'who == "bot"', "columns": columns}
    source = config_of(SpeechSource, {"path": path, **speeches, **TERMS})
    made = make_corpus(
        corpus([source.given], [{"path": path, **candidates, "author_is": "model"}]), Store(tmp_path / "store")
    )
    assert made.candidates is not None
    for artifact in made.speeches, made.candidates:
        funnel = artifact.metrics["funnel"]
        assert funnel["rows_in"] == funnel["kept"] + sum(funnel["dropped"].values())
        assert funnel["rows_in"] == len(list(read_row_provenance(artifact)))
    assert made.speeches.metrics["funnel"]["kept"] == 6
    assert made.candidates.metrics["funnel"]["dropped"] == ({"empty": 6} if shape == "wide" else {})
    ids = {each.speech.id for each in read_speeches(made.speeches)}
    assert {each.speech_id for each in read_candidates(made.candidates)} == ids


def given_terms(speeches: str, candidates: str | None, same_path: bool, **deidentification: Any) -> CorpusConfig:
    source = {"path": "s.csv", "columns": {"text": "t"}, "licence": "mit", "data_class": speeches}
    ready: dict[str, Any] = {"path": "s.csv" if same_path else "c.csv", "wide": {"columns": ["m"]}}
    ready |= {"columns": {"speech_text": "t"}}
    if candidates is not None:
        ready |= {"licence": "cc0-1.0", "data_class": candidates}
    return corpus([source], [ready], **({"deidentification": deidentification} if deidentification else {}))


def test_responses_say_their_licence_and_class_or_share_the_file_of_the_speeches() -> None:
    for candidates, expected in ((None, ("mit", "public")), ("restricted", ("cc0-1.0", "restricted"))):
        (ready,) = given_terms("public", candidates, same_path=True).candidates
        assert (ready.licence, ready.data_class) == expected
    with pytest.raises(ConfigError, match=r"candidates.0 has no licence and no data_class"):
        given_terms("public", None, same_path=False)


@pytest.mark.parametrize(
    ("speeches", "candidates", "given", "engine"),
    [
        ("public", "public", {}, "none"),
        ("deidentified", "public", {}, "patterns"),
        ("public", "restricted", {}, "patterns"),
        ("restricted", "public", {"engine": "none"}, "none"),
        ("restricted", "public", {"entities": ["EMAIL"]}, "patterns"),
    ],
)
def test_what_is_not_public_is_deidentified_unless_the_config_says_otherwise(
    speeches: str, candidates: str, given: dict[str, Any], engine: str
) -> None:
    assert given_terms(speeches, candidates, same_path=False, **given).deidentification.engine == engine


def test_restricted_responses_reach_no_remote_judge(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"t": "I sleep badly.", "m": "Since when?"})
    source = {"path": path, "columns": {"text": "t"}, "licence": "mit", "data_class": "public"}
    ready = {"path": path, "wide": {"columns": ["m"]}, "columns": {"speech_text": "t"}, "data_class": "restricted"}
    given = {"name": "p", "corpus": corpus([source], [ready]).model_dump(), "judge": {"backend": "endpoint"}}
    with pytest.raises(ConfigError, match="restricted client text must not be sent"):
        specs(config_of(BuildPreferencesConfig, given), Store(tmp_path))
