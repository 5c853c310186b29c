"""The released columns -> rows, or an error that names file, row and column."""

from pathlib import Path
from typing import Any

import pytest

from psychocounsel.corpus import sources
from psychocounsel.corpus.sources import read_released, released_identity
from psychocounsel.errors import ExitCode, InputError
from release_files import Row, speech, write_columns, write_release

ROWS = (Row("test", speech(2)), Row("train", speech(1), chosen_ratings=(4, None)))


def fault_of(source: Path | str) -> InputError:
    with pytest.raises(InputError) as fault:
        list(read_released(str(source)))
    assert fault.value.exit_code == ExitCode.USER_ERROR
    assert fault.value.remedy
    return fault.value


def test_rows_are_read_train_first_and_know_their_place(tmp_path: Path) -> None:
    train, test = read_released(str(write_release(tmp_path, ROWS)))
    assert (train.split, train.question) == ("train", speech(1))
    assert train.where == "train-00000-of-00001.parquet row 1"
    assert (test.split, test.question) == ("test", speech(2))
    assert train.chosen == (ROWS[1].chosen, "large", {"empathy": 4, "safety": None})
    assert train.rejected == (ROWS[1].rejected, "small", {"empathy": 2, "safety": 2})


def test_every_file_of_a_split_is_read_in_order(tmp_path: Path) -> None:
    write_release(tmp_path, ROWS)
    write_columns(tmp_path / "data" / "train-00001-of-00002.parquet", [Row("train", speech(3)).columns])
    assert [row.question for row in read_released(str(tmp_path))] == [speech(1), speech(3), speech(2)]


def test_identity_is_the_content_of_the_files(tmp_path: Path) -> None:
    here, there = (write_release(tmp_path / name, ROWS) for name in ("a", "b"))
    assert released_identity(str(here), None) == released_identity(str(there), None)
    write_release(there, [*ROWS, Row("test", speech(3))])
    changed = released_identity(str(there), None)
    assert changed["train"] == released_identity(str(here), None)["train"]
    assert changed["test"] != released_identity(str(here), None)["test"]


def test_identity_of_the_hub_is_name_revision_and_configuration() -> None:
    found = released_identity("hub:owner/name@abc", "small")
    assert found["train"] == [{"hub": "owner/name@abc", "split": "train", "config": "small"}]
    assert found["test"] == [{"hub": "owner/name@abc", "split": "test", "config": "small"}]


def test_the_hub_is_asked_for_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, split: str, config: str | None) -> list[dict[str, Any]]:
        assert (name, config) == ("owner/name@abc", None)
        return [row.columns for row in ROWS if row.split == split]

    monkeypatch.setattr(sources, "hub_rows", rows)
    found = list(read_released("hub:owner/name@abc"))
    assert [(row.split, row.question) for row in found] == [("train", speech(1)), ("test", speech(2))]
    assert found[0].where == "hub:owner/name@abc row 1"


@pytest.mark.parametrize("splits", [(), ("train",), ("test",)])
def test_a_folder_without_a_split_is_refused(tmp_path: Path, splits: tuple[str, ...]) -> None:
    write_release(tmp_path, [row for row in ROWS if row.split in splits], splits)
    fault = fault_of(tmp_path)
    missing = "train" if "train" not in splits else "test"
    assert fault.what == f"there is no {missing}*.parquet"
    assert fault.where == str(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*\.parquet"):
        released_identity(str(tmp_path), None)


@pytest.mark.parametrize("column", ["question", "rejected_model", "rejected_safety_rating", "chosen_empathy_rating"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    rows = [row.columns for row in ROWS]
    without = [{name: value for name, value in row.items() if name != column} for row in rows]
    write_columns(tmp_path / "train.parquet", rows if column.startswith("chosen_") else without)
    write_columns(tmp_path / "test.parquet", without)
    assert fault_of(tmp_path).what == f"there is no column {column}"


def test_a_dataset_without_ratings_is_refused(tmp_path: Path) -> None:
    unrated = [{name: value for name, value in row.columns.items() if "_rating" not in name} for row in ROWS]
    write_columns(tmp_path / "train.parquet", unrated)
    write_columns(tmp_path / "test.parquet", unrated)
    assert fault_of(tmp_path).what == "there is no column chosen_PRINCIPLE_rating"


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("chosen_empathy_rating", 4.0, "'chosen_empathy_rating' is 4.0, not a whole number"),
        ("rejected_safety_rating", float("nan"), "'rejected_safety_rating' is nan, not a whole number"),
        ("chosen_safety_rating", "5", "'chosen_safety_rating' is '5', not a whole number"),
        ("chosen_safety_rating", True, "'chosen_safety_rating' is True, not a whole number"),
        ("question", 7, "'question' is int, not text"),
        ("chosen_model", 7.5, "'chosen_model' is float, not text"),
    ],
)
def test_a_cell_of_another_type_is_refused(tmp_path: Path, column: str, value: object, what: str) -> None:
    write_columns(tmp_path / "train.parquet", [{**ROWS[1].columns, column: value}])
    write_columns(tmp_path / "test.parquet", [ROWS[0].columns])
    fault = fault_of(tmp_path)
    assert (fault.what, fault.where) == (what, "train.parquet row 1")


def test_a_null_text_is_an_empty_one(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.parquet", [{**ROWS[1].columns, "chosen": None}, ROWS[1].columns])
    write_columns(tmp_path / "test.parquet", [ROWS[0].columns])
    assert next(read_released(str(tmp_path))).chosen.text == ""
