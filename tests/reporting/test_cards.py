from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from psychocounsel.reporting.cards import DatasetFacts, ModelFacts, dataset_card, model_card

NOTICE = "Rated by a stand-in: no evidence about counselling."


def front_matter(card: str) -> dict[str, Any]:
    opening, head, _ = card.split("---\n", maxsplit=2)
    assert opening == ""
    return yaml.safe_load(head)


def body(card: str) -> str:
    return card.split("---\n", maxsplit=2)[2]


def dataset_facts(**changes: Any) -> DatasetFacts:
    facts: dict[str, Any] = {
        "name": "quickstart",
        "licences": ["cc-by-4.0"],
        "rows": {"train": 3, "test": 2},
        "principles": ("empathy", "safety"),
        "notices": (NOTICE,),
    }
    return DatasetFacts(**{**facts, **changes})


def test_front_matter_names_licence_task_and_one_pattern_per_split() -> None:
    front = front_matter(dataset_card(dataset_facts()))
    assert front["license"] == "cc-by-4.0"
    assert front["task_categories"] == ["text-generation"]
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("licences", "declared"),
    [
        (["CC-BY-4.0"], "cc-by-4.0"),
        (["our own terms"], "other"),
        (["cc-by-4.0", "cc-by-nc-4.0"], ["cc-by-4.0", "cc-by-nc-4.0"]),
        (["our own terms", "mit", "their own terms"], ["other", "mit"]),
        ([], "unknown"),
    ],
)
def test_no_licence_is_declared_away(licences: list[str], declared: str | list[str]) -> None:
    card = dataset_card(dataset_facts(licences=licences))
    assert front_matter(card)["license"] == declared
    assert all(f"- {licence}\n" in body(card) for licence in licences)


@pytest.mark.parametrize("name", ["no", "1e5", "a: b", "- x"])
def test_a_name_that_means_something_in_yaml_stays_a_name(name: str) -> None:
    assert front_matter(dataset_card(dataset_facts(name=name)))["pretty_name"] == name


def test_notices_come_before_everything_but_the_title() -> None:
    for card in (dataset_card(dataset_facts()), model_card(ModelFacts("m", "reward model", (NOTICE,)))):
        lines = [line for line in body(card).splitlines() if line]
        assert lines[0].startswith("# ")
        assert lines[1] == f"> **Notice.** {NOTICE}"


def test_the_dataset_card_counts_its_rows_and_lists_its_columns() -> None:
    text = body(dataset_card(dataset_facts()))
    assert "| train | 3 |" in text
    assert "| test | 2 |" in text
    assert "| together | 5 |" in text
    assert "`{chosen,rejected}_{empathy,safety}_rating`" in text


def test_pairs_without_ratings_have_no_rating_columns() -> None:
    assert "_rating`" not in dataset_card(dataset_facts(principles=()))


def test_a_folder_with_the_card_and_other_files_beside_it_loads(tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    for split, rows in {"train": 3, "test": 2}.items():
        table = pa.table({"question": [f"{split} {number}" for number in range(rows)]})
        pq.write_table(table, folder / f"data/{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(dataset_card(dataset_facts()), encoding="utf-8")
    (folder / "metrics.json").write_text('{"pairing": {}}', encoding="utf-8")
    (folder / "manifest.json").write_text('{"id": "x"}', encoding="utf-8")
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 3, "test": 2}
    assert loaded["test"].column_names == ["question"]


@pytest.mark.parametrize(
    ("what", "loader", "other_loader"),
    [
        ("reward model", "AutoModelForSequenceClassification", "AutoModelForCausalLM"),
        ("policy aligned by dpo", "AutoModelForCausalLM", "AutoModelForSequenceClassification"),
    ],
)
def test_a_model_card_tells_how_to_load_and_what_never_to_do(
    what: str, loader: str, other_loader: str
) -> None:
    card = model_card(ModelFacts("quickstart", what, ()))
    assert front_matter(card)["library_name"] == "transformers"
    assert f"{loader}.from_pretrained" in card
    assert other_loader not in card
    assert f"A {what} for" in card
    assert "never for autonomous care" in card
