"""Pairs and best-of-k rows in the layouts of other people's datasets."""

import json
from pathlib import Path
from typing import Any

import pytest

from miniature import write_rows
from psychocounsel.config.schema import ResponseColumns
from psychocounsel.corpus.preferences import BestOfK, OutsidePairs, read_outside
from psychocounsel.errors import InputError
from psychocounsel.types import Turn
from release_files import write_columns

USER, SYSTEM = {"role": "user", "content": "Hi."}, {"role": "system", "content": "Be brief."}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(folder: Path, *rows: dict[str, Any]) -> OutsidePairs | list[BestOfK]:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_outside(str(path), "train", None)


PLAIN = {"prompt": "Hi.", "chosen": "Good.", "rejected": "Bad."}
LAYOUTS: list[dict[str, Any]] = [
    PLAIN,
    {**{"question" if name == "prompt" else name: text for name, text in PLAIN.items()}, "score_chosen": 99},
    {**PLAIN, "question": "Another?"},
    {**PLAIN, "pair_id": "1", "history": "none", "chosen_model": {"name": "x"}},
    {"prompt": [USER], "chosen": [answer("Good.")], "rejected": [answer("Bad.")]},
    {"chosen": [USER, answer("Good.")], "rejected": [USER, answer("Bad.")]},
    {"prompt": "Hi.", "chosen": [USER, answer("Good.")], "rejected": [USER, answer("Bad.")]},
    {"prompt": "Hi.", "response_1": "Good.", "response_2": "Bad.", "preference_strength": -1},
    {"prompt": "Hi.", "response_1": "Bad.", "response_2": "Good.", "preference_strength": 3},
]


@pytest.mark.parametrize("row", LAYOUTS)
def test_every_layout_gives_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read(tmp_path, row, row)
    assert isinstance(found, OutsidePairs)
    (pair,) = found.pairs
    texts = (pair.speech.text, pair.chosen.candidate.text, pair.rejected.candidate.text)
    assert texts == ("Hi.", "Good.", "Bad.")
    assert (pair.speech.source, found.dropped) == ("set.jsonl", {"repeated": 1})


def test_rows_that_say_so_are_of_another_split(tmp_path: Path) -> None:
    rows = [{**PLAIN, "prompt": f"{name}?", "split": name} for name in ("train", "val", "easy")]
    found = read(tmp_path, *rows)
    assert isinstance(found, OutsidePairs)
    assert [pair.speech.text for pair in found.pairs] == ["train?", "easy?"]
    assert found.dropped == {"another_split": 1}
    for split in ("val", "validation", "dev"):
        found = read_outside(str(tmp_path / "set.jsonl"), split, None)
        assert isinstance(found, OutsidePairs)
        assert [pair.speech.text for pair in found.pairs] == ["val?", "easy?"]
    best_of_k = [{**row, "chosen": ["Good."], "rejected": ["Bad."]} for row in rows]
    found = read(tmp_path, *best_of_k)
    assert [row.prompt for row in found if isinstance(row, BestOfK)] == ["train?", "easy?"]
    with pytest.raises(InputError, match="another split"):
        read(tmp_path, best_of_k[1])


def test_thoughts_are_no_part_of_a_response(tmp_path: Path) -> None:
    thoughts = {**PLAIN, "chosen": "<think>She is sad.</think>\n\nGood.", "rejected": " Bad.\n"}
    found = read(tmp_path, thoughts, {**PLAIN, "chosen": "<think>She is"})
    assert isinstance(found, OutsidePairs)
    (pair,) = found.pairs
    assert (pair.chosen.candidate.text, pair.rejected.candidate.text) == ("Good.", " Bad.\n")
    assert found.dropped == {"empty": 1}
    (row,) = read(tmp_path, {**thoughts, "chosen": [thoughts["chosen"]], "rejected": [" Bad.\n"]})
    assert isinstance(row, BestOfK)
    assert (row.chosen, row.rejected) == (("Good.",), (" Bad.\n",))


def test_an_instruction_is_read_with_its_input(tmp_path: Path) -> None:
    found = read(tmp_path, {"instruction": "Be kind.", "input": "I am sad.", "chosen": "Good.", "rejected": "Bad."})
    assert isinstance(found, OutsidePairs)
    assert [pair.speech.text for pair in found.pairs] == ["Be kind.\n\nI am sad."]


TRANSCRIPT = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: I am tired.\n\nAssistant: "
SECOND = [USER, answer("Yes?"), {"role": "user", "content": "I am tired."}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": SECOND, "chosen": "Good.", "rejected": "Bad."},
        {"chosen": [*SECOND, answer("Good.")], "rejected": [*SECOND, answer("Bad.")]},
        {"chosen": TRANSCRIPT + "Good.", "rejected": TRANSCRIPT + "Bad."},
        {"prompt": TRANSCRIPT, "chosen": "Good.", "rejected": "Bad."},
        {"prompt": str(SECOND), "chosen": "Good.", "rejected": json.dumps([answer("Bad.")])},
        {**PLAIN, "prompt": "Hi.\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nI am tired."},
        {**PLAIN, "prompt": [answer(""), USER, answer(" Yes?"), answer(" "), SECOND[2]]},
    ],
)
def test_turns_before_the_prompt_are_its_history(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read(tmp_path, row)
    assert isinstance(found, OutsidePairs)
    (pair,) = found.pairs
    assert (pair.speech.text, pair.chosen.candidate.text) == ("I am tired.", "Good.")
    assert pair.speech.history == (Turn("user", "Hi."), Turn("assistant", "Yes?"))


def test_messages_in_a_row_are_one_turn(tmp_path: Path) -> None:
    tired, still = ({"role": "user", "content": text} for text in ("I am tired.", "Still."))
    found = read(tmp_path, {**PLAIN, "prompt": [USER, tired, answer("Yes?"), answer("Go on."), tired, still]})
    assert isinstance(found, OutsidePairs)
    (pair,) = found.pairs
    assert pair.speech.text == "I am tired.\n\nStill."
    assert pair.speech.history == (Turn("user", "Hi.\n\nI am tired."), Turn("assistant", "Yes?\n\nGo on."))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi.", "response_1": "a", "response_2": "b", "preference_strength": 0}, "no_preference"),
        ({"prompt": [SYSTEM, USER], "chosen": "Good.", "rejected": "Bad."}, "not_an_exchange"),
        ({**PLAIN, "prompt": "Hi.\n<extra_id_1>Assistant\nYes?"}, "not_an_exchange"),
        ({"chosen": "Good.", "rejected": "Bad."}, "not_an_exchange"),
        ({"prompt": "Hi.", "chosen": [USER, answer("a")], "rejected": "b"} | {"prompt": "Other."}, "two_prompts"),
        ({**PLAIN, "chosen": "a\u0000"}, "unreadable"),
        ({**PLAIN, "rejected": " "}, "empty"),
        ({**PLAIN, "rejected": [{"role": "assistant", "content": None}]}, "empty"),
        ({**PLAIN, "rejected": "Good."}, "equal_texts"),
    ],
)
def test_rows_without_a_usable_pair_are_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    found = read(tmp_path, PLAIN, row)
    assert isinstance(found, OutsidePairs)
    assert (len(found.pairs), found.dropped) == (1, {reason: 1})


def test_a_subset_is_the_topic_and_a_folder_is_read_by_split(tmp_path: Path) -> None:
    rows = [{**PLAIN, "subset": "chat"}, {**PLAIN, "chosen": "Better.", "subset": "safety"}]
    write_columns(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    found = read_outside(str(tmp_path), "test", None)
    assert isinstance(found, OutsidePairs)
    assert [pair.speech.topic for pair in found.pairs] == ["chat", "safety"]
    with pytest.raises(InputError, match="train"):
        read_outside(str(tmp_path), "train", None)


@pytest.mark.parametrize("topic", ["topic", "subset"])
def test_a_topic_may_be_no_text(tmp_path: Path, topic: str) -> None:
    found = read(tmp_path, {**PLAIN, topic: 7})
    assert isinstance(found, OutsidePairs)
    assert found.pairs[0].speech.topic == "7"


@pytest.mark.parametrize(
    ("names", "split", "read_name"),
    [
        (["train.jsonl", "validation.jsonl"], "dev", "validation.jsonl"),
        (["train.jsonl", "dev.jsonl"], "validation", "dev.jsonl"),
        (["train.jsonl", "validation.jsonl"], "test", None),
        (["train-0.parquet", "train_more.jsonl", "notes.csv"], "train", "train-0.parquet"),
        (["pairs.jsonl", "notes.csv"], "train", "pairs.jsonl"),
    ],
)
def test_of_a_folder_no_other_split_is_read(
    tmp_path: Path, names: list[str], split: str, read_name: str | None
) -> None:
    for name in names:
        rows = [{**PLAIN, "subset": name}]
        if name.endswith(".parquet"):
            write_columns(tmp_path / name, rows)
        else:
            write_rows(tmp_path / name, [] if name == "notes.csv" else rows)
    if read_name is None:
        with pytest.raises(InputError, match=split):
            read_outside(str(tmp_path), split, None)
    else:
        found = read_outside(str(tmp_path), split, None)
        assert isinstance(found, OutsidePairs)
        assert [pair.speech.topic for pair in found.pairs] == [read_name]


def test_best_of_k_rows(tmp_path: Path) -> None:
    row = {"id": "1", "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "3"], "num_correct": 1, "subset": "Math"}
    assert read(tmp_path, row) == [BestOfK("1", "Math", "2+2?", ("4",), ("5", "3"))]
    faulty: list[dict[str, Any]] = [{"num_correct": 2}, {"rejected": []}, {"rejected": ["5", 3]}, {"prompt": None}]
    for changes in faulty:
        with pytest.raises(InputError, match=r"set\.jsonl line 2"):
            read(tmp_path, row, {**row, **changes})


@pytest.mark.parametrize(
    "changes", [{"chosen": 5}, {"chosen": [5]}, {"prompt": [{"role": "user"}]}, {"preference_strength": "much"}]
)
def test_a_cell_that_is_no_text_is_named_by_its_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"set\.jsonl line 2"):
        read(tmp_path, PLAIN, {**PLAIN, **changes})
    with pytest.raises(InputError):
        read(tmp_path)


def test_an_unknown_layout_has_to_be_imported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set\.jsonl line 1: .*import-preferences"):
        read(tmp_path, {"prompt": "Hi.", "response_0": "a", "response_1": "b", "better_response_id": 1})


TURNS = [SYSTEM, USER, answer("Go on."), {"role": "user", "content": "I am tired."}]
HISTORY = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Go on."))


def test_the_layouts_of_rmb_in_a_folder_of_arrays(tmp_path: Path) -> None:
    good, bad = {"llm_name": "x", "answer": "Good."}, {"llm_name": "y", "answer": "Bad."}
    shared = {"conversation_input": TURNS, "category_path": "Helpfulness/Chat"}
    pairwise = [{**shared, "pair_uid": "7", "chosen": {**good, "score": 2.5}, "reject": {**bad, "score": 1.5}}]
    best_of_n = [{**shared, "bon_uid": "9", "bon_best": good, "loser_list": [bad, bad]}]
    expected = BestOfK("7", "Helpfulness/Chat", "I am tired.", ("Good.",), ("Bad.",), HISTORY)
    for name, rows in (("Pairwise_set", pairwise), ("BoN_set", best_of_n)):
        (tmp_path / name / "Chat").mkdir(parents=True)
        (tmp_path / name / "Chat" / "support.json").write_text(json.dumps(rows), encoding="utf-8")
    assert read_outside(str(tmp_path / "Pairwise_set"), "test", None) == [expected]
    best = expected._replace(id="9", rejected=("Bad.", "Bad."))
    assert read_outside(str(tmp_path / "BoN_set"), "test", None) == [best]
    with pytest.raises(InputError) as refused:
        read_outside(str(tmp_path), "test", None)
    assert "folder" in refused.value.remedy


def test_columns_name_what_is_where_in_another_layout(tmp_path: Path) -> None:
    row = {"context": TURNS, "best": "Good.", "others": [{"text": "Bad."}], "session": 3}
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    columns = ResponseColumns(prompt="context", chosen="best", rejected="others", subset="session")
    found = read_outside(str(path), "test", None, columns)
    assert found == [BestOfK("other.jsonl line 1", "3", "I am tired.", ("Good.",), ("Bad.",), HISTORY)]
    with pytest.raises(InputError, match="bests"):
        read_outside(str(path), "test", None, columns.model_copy(update={"chosen": "bests"}))
    path.write_text(json.dumps({**row, "context": TURNS[:3]}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="best-of-k"):  # nobody asks
        read_outside(str(path), "test", None, columns)


@pytest.mark.parametrize("content", ["3", "[1]", "[", "", "{"])
def test_a_json_file_holds_objects(tmp_path: Path, content: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError):
        read_outside(str(path), "test", None)
