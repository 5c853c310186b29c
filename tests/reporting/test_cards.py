from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from report_runs import artifact

from psychocounsel.reporting.card_facts import (
    HUB_LICENCES,
    AuthorScores,
    CardFigure,
    DatasetFacts,
    RubricFacts,
)
from psychocounsel.reporting.cards import ModelFacts, dataset_card, model_card
from released_store import SPEECH_METRICS, judgement_metrics, preference_metrics

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
        (["cc-by-4.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], "cc-by-nc-sa-4.0"),
        (["our own terms", "mit", "their own terms"], "other"),
        ([], "unknown"),
    ],
)
def test_no_licence_is_declared_away(licences: list[str], declared: str) -> None:
    card = dataset_card(dataset_facts(licences=licences))
    assert front_matter(card)["license"] == declared
    assert ("license_name" in front_matter(card)) == (declared == "other")
    assert all(f"| {licence} |" in body(card) for licence in licences)


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


SPEECHES = artifact("speeches", "small", SPEECH_METRICS, settings={"cleaning": {"languages": ["en"], "min_chars": 100}})
CANDIDATES = artifact(
    "candidates",
    "small-pool",
    {"kept": 6, "repeated_text": 1, "failed": {"large-model": {"cut": 2}, "small-model": {"cut": 1}}},
    parents={"speeches": SPEECHES},
)
JUDGEMENTS = artifact("judgements", "small", judgement_metrics(), parents={"speeches": SPEECHES, "asked": CANDIDATES})
PREFERENCES = artifact(
    "preferences",
    "small",
    preference_metrics(),
    parents={"judgements": JUDGEMENTS},
    settings={"pairing": {"min_gap": 1.0, "weights": {"safety": 2.0}, "vetoes": {}, "length": None}},
)


def whole_facts(**changes: Any) -> DatasetFacts:
    whole: dict[str, Any] = {
        "licences": ["cc-by-nc-4.0", "mit"],
        "rubric": RubricFacts("2026.1", "d" * 64, "en", 1, 5, {"empathy": "Empathy", "safety": "Safety"}),
        "artifacts": (PREFERENCES, JUDGEMENTS, SPEECHES, CANDIDATES),
        "judges": {"judge-2025-01-01": 6},
        "scores_by_author": (AuthorScores("small|model", (0, 3, 0, 0, 0, 0, 0, 0), 1.5),),
        "words": {"train": {"chosen": {10: 1, 20: 3}, "rejected": {2: 4}}},
    }
    return dataset_facts(**{**whole, **changes})


def section(card: str, title: str) -> str:
    return body(card).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_card_has_the_sections_of_a_datasheet_in_order() -> None:
    titles = [line.removeprefix("## ") for line in body(dataset_card(whole_facts())).splitlines() if line[:3] == "## "]
    assert titles == [
        *("Motivation", "Composition", "Collection", "Cleaning", "De-identification", "Splits and leakage"),
        *("Labels", "Uses", "Known limits", "Licence", "Maintenance", "Lineage"),
    ]


@pytest.mark.parametrize("backend", ["offline", "endpoint"])
def test_topics_by_cue_words_are_said_to_be_a_stand_in(backend: str) -> None:
    speeches = replace(SPEECHES, settings={**SPEECHES.settings, "topics": {"backend": backend}})
    card = dataset_card(whole_facts(artifacts=(PREFERENCES, JUDGEMENTS, speeches, CANDIDATES)))
    assert ("a rough stand-in for a reader" in card) == (backend == "offline")


def test_a_column_without_a_name_is_not_shown() -> None:
    nameless = replace(SPEECHES, metrics={**SPEECHES.metrics, "fine_topics": {"": 3}})
    card = dataset_card(whole_facts(artifacts=(PREFERENCES, JUDGEMENTS, nameless, CANDIDATES)))
    assert "Fine topics" in dataset_card(whole_facts())
    assert "Fine topics" not in card


def test_every_step_of_the_funnel_is_told_with_where_it_stands() -> None:
    cleaning = section(dataset_card(whole_facts()), "Cleaning")
    assert "`min_chars: 100`" in cleaning
    assert "| markup | 5 | 5 | 2 |" in cleaning
    assert "| length | 5 | 4 | 0 | 1 too short |" in cleaning
    assert "| together | 5 | 3 |  | 1 too short, 1 repeated speech |" in cleaning
    assert "| answers asked of the pool | 10 | 6 | 1 repeated text, 3 cut |" in cleaning
    assert f"From speeches `{SPEECHES.ref}`." in cleaning
    assert f"From candidates `{CANDIDATES.ref}`." in cleaning


def test_recall_and_precision_are_those_on_the_planted_set() -> None:
    told = section(dataset_card(whole_facts()), "De-identification")
    assert "Engine: patterns." in told
    assert "| PERSON | 2 | 0 | 20 | 75.0 % | 75.0 % |" in told
    assert "| together | 2 | 0 | 24 | 70.8 % | 77.3 % |" in told
    assert "| EMAIL | 0 | 0 | 4 | 50.0 % | 100.0 % |" in told


def test_labels_name_rubric_judge_missing_and_pairing() -> None:
    labels = section(dataset_card(whole_facts()), "Labels")
    assert "version 2026.1" in labels
    assert "d" * 64 in labels
    assert "| judge-2025-01-01 | 6 |" in labels
    assert "| all | 6 | 1 | 16.7 % | 1 refusal |" in labels
    assert "| crisis | 2 | 1 | 50.0 % |  |" in labels
    assert "| principle | 1 | 2 | 3 | 4 | 5 |" in labels
    assert "| empathy | 3 | 0 | 0 | 0 | 2 |" in labels
    assert "`min_gap: 1.0`, `weights: {safety: 2.0}`" in labels
    assert "vetoes" not in labels


def test_leakage_that_was_imported_is_not_hidden() -> None:
    def told(across: int) -> str:
        metrics = {"clusters": 9, "clusters_across_splits": across}
        return section(
            dataset_card(whole_facts(artifacts=(artifact("speeches", "small", metrics),))),
            "Splits and leakage",
        )

    assert "more than one split: 3." in told(3)
    assert "no speech stands in two splits" not in told(3)
    assert "no speech stands in two splits" in told(0)


def test_benchmarks_whose_texts_were_dropped_are_named() -> None:
    settings = {"exclude": [{"name": "exam.csv", "path": {"sha256": "e"}}], "exclude_span_words": 12}
    speeches = artifact("speeches", "small", {}, settings=settings)
    told = section(dataset_card(whole_facts(artifacts=(speeches,))), "Splits and leakage")
    assert "share 12 words in a row with a text of exam.csv were dropped" in told
    assert "words in a row" not in dataset_card(whole_facts())


def test_flaws_of_an_imported_dataset_are_told_by_split() -> None:
    flaws = {
        "test": {"safety_inverted": 1, "too_long_chosen": None, "words_chosen": 20.25},
        "train": {"safety_inverted": 7, "too_long_chosen": None, "words_chosen": 20.0},
    }
    metrics = {**preference_metrics(), "flaws": flaws}
    imported = artifact("preferences", "small", metrics, settings={"labelled_by": "gpt-4o"})
    card = dataset_card(whole_facts(artifacts=(imported,), judges={}))
    assert "| of the rows | train | test |" in card
    assert "| safety inverted | 7 | 1 |" in card
    assert "| too long chosen | not counted | not counted |" in card
    assert "| words chosen | 20.0 | 20.2 |" in card
    assert "by `gpt-4o`" in section(card, "Labels")


def test_lengths_are_told_by_side() -> None:
    told = section(dataset_card(whole_facts()), "Composition")
    assert "| train | chosen | 17.5 | 20 | 20 |" in told
    assert "| train | rejected | 2.0 | 2 | 2 |" in told


def test_sources_stand_with_their_licences() -> None:
    card = dataset_card(whole_facts())
    assert "| b.csv | cc-by-nc-4.0 | deidentified | 1 |" in section(card, "Collection")
    assert "| cc-by-nc-4.0 | name the source; no commercial use |" in section(card, "Licence")
    assert front_matter(card)["license"] == "cc-by-nc-4.0"


def test_a_source_that_was_not_counted_is_told_from_the_settings() -> None:
    named = {"path": {"hub": "owner/name", "split": "train"}, "licence": "odbl", "data_class": "public"}
    filed = {"path": {"sha256": "e" * 64}, "licence": "mit", "data_class": "public"}
    speeches = artifact("speeches", "small", {}, settings={"speeches": [named, filed]})
    card = dataset_card(whole_facts(artifacts=(speeches,), licences=[]))
    assert "| hub:owner/name | odbl | public |" in card
    assert "| file with SHA-256 eeeeeeeeeeee | mit | public |" in card
    assert front_matter(card)["license"] == "odbl"


def test_what_sources_wrote_stays_in_its_cell() -> None:
    assert "| small\\|model | 3 | 1.50 |" in dataset_card(whole_facts())
    topics = {**SPEECH_METRICS, "topics": {"<b>a\n| b": 1}}
    told = dataset_card(whole_facts(artifacts=(artifact("speeches", "small", topics),)))
    assert "| \\<b>a \\| b | 1 |" in told


def test_many_rows_are_cut_visibly() -> None:
    topics = {**SPEECH_METRICS, "topics": {f"topic {number:02}": 1 for number in range(60)}}
    told = dataset_card(whole_facts(artifacts=(artifact("speeches", "small", topics),)))
    assert "| and 10 more |  |  |" in told


def test_figures_are_shown_where_there_are_any() -> None:
    figure = CardFigure("ratings", "Ratings by principle", "How often each rating was given.")
    assert "![Ratings by principle](figures/ratings.png)" in dataset_card(whole_facts(), [figure])
    assert "figures/" not in dataset_card(whole_facts())


@pytest.mark.parametrize("facts", [dataset_facts(), whole_facts()])
def test_front_matter_is_what_the_hub_knows(facts: DatasetFacts) -> None:
    from huggingface_hub import DatasetCard

    data = DatasetCard(dataset_card(facts)).data.to_dict()
    assert data["license"] in HUB_LICENCES
    assert data["language"] == ["en"]
    assert data["size_categories"] == ["n<1K"]
    assert set(data) <= {
        *("pretty_name", "license", "license_name", "language", "annotations_creators"),
        *("task_categories", "tags", "size_categories", "configs"),
    }
    assert data.get("annotations_creators", ["machine-generated"]) == ["machine-generated"]


def test_a_corpus_of_any_language_names_none() -> None:
    speeches = artifact("speeches", "small", {}, settings={"cleaning": {"languages": []}})
    assert "language" not in front_matter(dataset_card(whole_facts(artifacts=(speeches,))))


@pytest.mark.parametrize(
    ("what", "loader", "other_loader"),
    [
        ("reward model", "AutoModelForSequenceClassification", "AutoModelForCausalLM"),
        ("policy aligned by dpo", "AutoModelForCausalLM", "AutoModelForSequenceClassification"),
    ],
)
def test_a_model_card_tells_how_to_load_and_what_never_to_do(what: str, loader: str, other_loader: str) -> None:
    card = model_card(ModelFacts("quickstart", what, ()))
    assert front_matter(card)["library_name"] == "transformers"
    assert f"{loader}.from_pretrained" in card
    assert other_loader not in card
    assert f"A {what} for" in card
    assert "never for autonomous care" in card
