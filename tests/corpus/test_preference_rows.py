"""Preference datasets of others: every known layout, columns by config, splits by file name, row or share, ratings."""

import json
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.config.loading import config_of
from psychocounsel.config.schema import ImportPreferencesConfig
from psychocounsel.corpus.preferences import PreferenceRow, PreferenceSide, preference_fingerprint, read_preference_rows
from psychocounsel.corpus.sources import read_rows
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.stages.import_preferences import import_preferences
from psychocounsel.store.schemas import read_pairs, read_speeches
from psychocounsel.store.store import Store
from release_files import Row, speech, write_columns, write_release

ROWS = (Row("test", speech(2)), Row("train", speech(1), chosen_ratings=(4, None)))
TERMS = {"licence": "mit", "data_class": "public"}
USER = {"role": "user", "content": "Hi."}
CHOSEN, REJECTED = ({"role": "assistant", "content": text} for text in ("Good.", "Bad."))
HH = "\n\nHuman: Hi.\n\nAssistant: "


def config(source: Path | str, **changed: Any) -> ImportPreferencesConfig:
    return config_of(ImportPreferencesConfig, {"name": "r", "source": str(source), **TERMS, **changed})


def read(source: Path | str, **changed: Any) -> list[PreferenceRow]:
    return read_preference_rows(config(source, **changed))


def write(folder: Path, *rows: dict[str, Any], name: str = "set.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def fault_of(source: Path, **changed: Any) -> str:
    with pytest.raises(InputError) as fault:
        read(source, **changed)
    return str(fault.value)


def test_every_file_of_a_split_is_read_in_order_train_first(tmp_path: Path) -> None:
    write_release(tmp_path, ROWS)
    row = {**Row("train", speech(3)).columns, "chosen": None}
    write_columns(tmp_path / "data" / "train-00001-of-00002.parquet", [row, row | {"chosen": "Yes."}])
    train, null, *found = read(tmp_path)
    assert (train.split, train.question) == ("train", speech(1))
    assert train.where == "train-00000-of-00001.parquet row 1"
    assert train.chosen == (ROWS[1].chosen, "large", {"empathy": 4, "safety": None}, None)
    assert train.rejected == (ROWS[1].rejected, "small", {"empathy": 2, "safety": 2}, None)
    assert (null.question, null.chosen.text) == (speech(3), "")
    assert [(row.split, row.question) for row in found] == [("train", speech(3)), ("test", speech(2))]


def test_a_release_is_identified_by_the_content_of_its_files(tmp_path: Path) -> None:
    here, there = (write_release(tmp_path / name, ROWS) for name in ("a", "b"))
    assert preference_fingerprint(config(here)) == preference_fingerprint(config(there))
    write_release(there, [*ROWS, Row("test", speech(3))])
    changed = preference_fingerprint(config(there))
    assert changed["train"] == preference_fingerprint(config(here))["train"]
    assert changed["test"] != preference_fingerprint(config(here))["test"]
    found = preference_fingerprint(config("hub:owner/name@abc", config="small", splits={"dev": "val_prefs"}))
    assert found["dev"] == [{"hub": "owner/name@abc", "split": "val_prefs", "config": "small"}]
    assert preference_fingerprint(config(here, scale=[0, 9])) != preference_fingerprint(config(here))


def test_rows_of_the_hub_know_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: Any, split: str, **options: Any) -> list[dict[str, Any]]:
        assert names == ("owner/name", "small")
        return [row.columns for row in ROWS if row.split == split]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (row,) = read_rows("hub:owner/name@abc", "test", "small")
    assert (row.where, row.values) == ("hub:owner/name@abc row 1", ROWS[0].columns)
    found = read("hub:owner/name@abc", config="small")
    assert [(row.split, row.question) for row in found] == [("train", speech(1)), ("test", speech(2))]
    assert found[0].where == "hub:owner/name@abc row 1"


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"prompt": "Hi.", "chosen": "Good.", "rejected": "Bad."}, {}),
        ({"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, {}),
        ({"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]}, {}),
        ({"chosen": HH + "Good.", "rejected": HH + "Bad."}, {}),
        ({"prompt": "Hi.", "response_1": "Bad.", "response_2": "Good.", "preference_strength": 2}, {}),
        (
            {"instruction": "Hi.", "best": {"text": "Good."}, "others": ["Bad."]},
            {"columns": {"speech": "instruction", "chosen": "best.text", "rejected": "others[0]"}},
        ),
    ],
)
def test_a_layout_without_ratings(tmp_path: Path, row: dict[str, Any], settings: dict[str, Any]) -> None:
    (found,) = read(write(tmp_path, row), **settings)
    assert (found.question, found.chosen.text, found.rejected.text) == ("Hi.", "Good.", "Bad.")
    assert (found.split, found.fault, found.chosen.ratings) == ("train", None, {})


@pytest.mark.parametrize(
    ("swap", "tie", "given"),
    [
        ("better_response_id == 1", None, [{"better_response_id": 0}, {"better_response_id": 1}]),
        ("labels == 0", None, [{"labels": 1}, {"labels": 0}]),
        ("score_B > score_A", "score_A == score_B", [{"score_A": a, "score_B": 2} for a in (3, 1, 2)]),
        ('winner == "b"', 'winner not in ["a", "b"]', [{"winner": each} for each in ("a", "b", "tie (bothbad)")]),
    ],
)
def test_a_column_may_say_which_response_is_preferred(
    tmp_path: Path, swap: str, tie: str | None, given: list[dict[str, Any]]
) -> None:
    row = {"q": "Hi.", "a": "A.", "b": "B.", "by_a": "x", "by_b": "y", "r": [2, 4]}
    row |= {"pair_id": "p", "fine_topic": "", "crisis": False, "chosen_score": 9.0, "rejected_score": 1.0}  # as of ours
    rows = [{**row, **each} for each in given]
    columns: dict[str, Any] = {"speech": "q", "chosen": "a", "rejected": "b", "swap": swap, "tie": tie}
    columns |= {"chosen_author": "by_a", "rejected_author": "by_b", "ratings": {"warm": ["r[0]", "r[1]"]}}
    first, second, *ties = read(write(tmp_path, *rows), columns=columns)
    assert (first.chosen, first.rejected) == (second.rejected, second.chosen)
    assert first.chosen == PreferenceSide("A.", "x", {"warm": 2}, 9)
    assert [row.fault for row in ties] == ["no_preference"] * (tie is not None)


ULTRAFEEDBACK = {"prompt": "Hi.", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED], "score_chosen": 8.5}


def test_ratings_are_floats_texts_or_missing_and_on_the_scale(tmp_path: Path) -> None:
    path = write(tmp_path, {**ULTRAFEEDBACK, "score_rejected": 3.0})
    (found,) = read(path, scale=[1, 10])
    assert (found.chosen.ratings, found.rejected.ratings) == ({"score": 8.5}, {"score": 3})
    assert "8.5 is off the scale; " in fault_of(path).replace("'", "")
    columns = {"ratings": {"warm": ["c", "r"], "safety": ["s[0]", "s[1]"]}}
    row = {"chosen": HH + "Good.", "rejected": HH + "Bad.", "c": "4.5", "r": "2", "s": [None, 3]}
    (found,) = read(write(tmp_path, row), columns=columns)
    assert found.chosen.ratings == {"warm": 4.5, "safety": None}
    assert found.rejected.ratings == {"warm": 2, "safety": 3}
    for value in ("four", True, [4], 0, 5.5, 1e999):
        assert "set.jsonl line 1: the rating" in fault_of(write(tmp_path, {**row, "c": value}), columns=columns)


def test_rows_that_are_no_pair_are_kept_with_their_reason(tmp_path: Path) -> None:
    pair = {"prompt": "Hi.", "response_1": "Good.", "response_2": "Bad.", "preference_strength": -1}
    path = write(
        tmp_path,
        pair,
        {**pair, "preference_strength": 0},
        {**pair, "prompt": [USER, CHOSEN]},
        {**pair, "response_2": 3},
    )
    assert "set.jsonl line 4" in fault_of(path)
    assert [row.fault for row in read(path, on_bad_row="drop")] == [None, "no_preference", "not_an_exchange", "bad_row"]
    assert len(read(path, where='row["response_2"] != 3')) == 3


@pytest.mark.parametrize(
    ("names", "settings", "expected"),
    [
        (("train.jsonl", "validation.jsonl", "test.jsonl"), {}, ["train", "dev", "test"]),
        (("a.jsonl", "b.jsonl"), {}, ["train", "train"]),
        (("train_prefs.jsonl", "train_sft.jsonl"), {"splits": {"train": "train_prefs"}}, ["train"]),
        (("a.jsonl", "test.jsonl"), {"split_column": "part"}, ["dev", "dev"]),
    ],
)
def test_a_split_is_said_by_names_of_files_or_by_rows(
    tmp_path: Path, names: tuple[str, ...], settings: dict[str, Any], expected: list[str]
) -> None:
    for name in names:
        write(tmp_path, {"prompt": "Hi.", "chosen": "Good.", "rejected": "Bad.", "part": "validation"}, name=name)
    assert [row.split for row in read(tmp_path, **settings)] == expected
    assert "no file begins with 'x'" in fault_of(tmp_path, splits={"test": "x"})


@pytest.mark.parametrize("gone", ["rejected_safety_rating", "chosen_empathy_rating", "rejected"])
def test_a_missing_column_is_named(tmp_path: Path, gone: str) -> None:
    rows = [row.columns for row in ROWS]
    write_columns(tmp_path / "train.parquet", rows)
    write_columns(tmp_path / "test.parquet", [{name: value for name, value in rows[0].items() if name != gone}])
    assert f"there is no column '{gone}'" in fault_of(tmp_path)


@pytest.mark.parametrize("missing", ["licence", "data_class"])
def test_nothing_is_stamped_unasked(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"{missing}: is missing"):
        given = {"name": "r", "source": "x", **TERMS}
        config_of(ImportPreferencesConfig, {key: value for key, value in given.items() if key != missing})
    assert config("x").labelled_by is None


def test_a_history_that_ends_with_the_client_is_a_bad_row(tmp_path: Path) -> None:
    said = [USER, {"role": "assistant", "content": "Go on."}, {"role": "user", "content": "I am tired."}]
    row = {"q": "I am tired.", "chosen": "Good.", "rejected": "Bad."}
    path = write(tmp_path, {**row, "said": said[:2]}, {**row, "said": said})
    settings = {"columns": {"speech": "q", "chosen": "chosen", "rejected": "rejected", "history": "said"}}
    assert "set.jsonl line 2: 'said' ends with the client" in fault_of(path, **settings)
    found = read(path, **settings, on_bad_row="drop")
    assert [(row.fault, len(row.session)) for row in found] == [(None, 3), ("bad_row", 1)]


def test_the_turns_of_one_conversation_are_in_one_split(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(30):
        session = ""
        for at in (0, 1, 2):
            session += HH.replace("Hi.", speech(3 * number + at))
            rows.append({"chosen": session + "Good.", "rejected": session + "Bad."})
            session += "Go on."
    settings = {"test_share": 0.2, "dev_share": 0.2}
    store = Store(tmp_path / "store")
    made = import_preferences(config(write(tmp_path, *rows), **settings), store)
    found = read_speeches(store.open(made.parent("speeches")))
    place = {each.speech.text: (each.cluster, each.split) for each in found}
    assert len(place) == len(rows)
    assert all(len({place[speech(3 * number + at)] for at in range(3)}) == 1 for number in range(30))
    assert {split for _, split in place.values()} == {"train", "dev", "test"}


@pytest.mark.parametrize("shape", ["hh", "sessions", "ultrafeedback", "helpsteer2", "mixed"])
def test_any_layout_imports_and_comes_back_as_it_is(tmp_path: Path, shape: str) -> None:
    """`mixed` has rows without all their ratings, which are kept; in `sessions` a turn comes before the speech."""
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"test_share": 0.2, "dev_share": 0.2}
    for number in range(30):
        asked, good, bad = speech(number), f"Good {number}.", f"Bad {number}."
        user, transcript = {"role": "user", "content": asked}, HH.replace("Hi.", asked)
        sides = [{"role": "assistant", "content": text} for text in (good, bad)]
        chat = {"prompt": asked, "chosen": [user, sides[0]], "rejected": [user, sides[1]]}
        session = HH.replace("Hi.", f"Hello {number}.") + f"Go on.{transcript}"
        rows.append(
            {
                "sessions": {"chosen": session + good, "rejected": session + bad},
                "hh": {"chosen": transcript + good, "rejected": transcript + bad},
                "ultrafeedback": {**chat, "score_chosen": 8.5, "score_rejected": 8.0},
                "helpsteer2": {"prompt": asked, "response_1": good, "response_2": bad, "preference_strength": -1},
                "mixed": {**chat, "score_chosen": None if number % 2 else 4, "score_rejected": 2.5},
            }[shape]
        )
    settings |= {"ultrafeedback": {"scale": [1, 10]}, "mixed": {"unrated": "keep"}}.get(shape, {})
    store = Store(tmp_path / "store")
    made = import_preferences(config(write(tmp_path, *rows), **settings), store)
    kept = {split: by["kept"] for split, by in made.metrics["pairing"].items()}
    assert kept == {"train": 19, "dev": 5, "test": 6}
    found = [pair for split in kept for pair in read_pairs(made, split)]
    assert all(pair.chosen.candidate.text.startswith("Good") for pair in found)
    assert sum(bool(pair.chosen.ratings) for pair in found) == {"ultrafeedback": 30, "mixed": 15}.get(shape, 0)
    assert {len(pair.speech.history) for pair in found} == {2 if shape == "sessions" else 0}
    flaws = made.metrics["flaws"]["train"]
    assert (flaws["missing_ratings"], flaws["not_preferred"]) == (15 if shape == "mixed" else 0, 0)
    again = import_preferences(config(made.folder, name="again", **settings), store)
    for split in kept:
        assert [pair.id for pair in read_pairs(again, split)] == [pair.id for pair in read_pairs(made, split)]
