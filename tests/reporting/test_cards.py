"""Cards: what the README.md of a dataset and of a model says, from made-up artifacts and from a small store."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import OFFLINE, artifact, probe_metrics, reward_metrics, training

from psychocounsel.config.schema import AlignConfig
from psychocounsel.reporting.cards import (
    PEOPLE,
    REWARD_MODEL,
    AuthorScores,
    DatasetFacts,
    dataset_card,
    gather_dataset_facts,
    model_card,
    write_dataset_card,
)
from psychocounsel.reporting.licences import HUB_LICENCES
from psychocounsel.stages.dpo import write_policy_card
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind
from psychocounsel.store.store import Store
from released_store import (
    ANSWERS,
    JUDGE,
    NOTICE,
    RUBRIC,
    SPEECH_METRICS,
    judgement_metrics,
    make_dataset,
    pairs,
    preference_metrics,
)

NO_FLAWS = ("missing_ratings", "not_preferred", "equal_texts", "repeated", "leaks_exactly", "leaks_nearly")
FLAWS = {
    **{"rows": 9, "speeches": 8, "safety_inverted": 7, "chosen_is_longer": 4, **dict.fromkeys(NO_FLAWS, 0)},
    **{"too_long_chosen": None, "too_long_rejected": None, "mean_words_chosen": 20.25, "mean_words_rejected": 20.0},
}


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
        "warnings": (NOTICE,),
    }
    return DatasetFacts(**{**facts, **changes})


def test_the_card_counts_its_rows_lists_its_columns_and_names_one_pattern_per_split() -> None:
    card = dataset_card(dataset_facts())
    front, text = front_matter(card), body(card)
    assert front["task_categories"] == ["text-generation"]
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "test")]
    assert front["configs"] == [{"config_name": "default", "data_files": files}]
    first, second, *_ = filter(None, text.splitlines())
    assert first.startswith("# ")
    assert second == f"> **Warning.** {NOTICE}"
    assert "3 in `train`, 2 in `test`" in text
    assert "`{chosen,rejected}_{empathy,safety}_rating`" in text
    assert "_rating`" not in dataset_card(dataset_facts(principles=()))


@pytest.mark.parametrize(
    ("licences", "declared"),
    [
        (["CC-BY-4.0"], "cc-by-4.0"),
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
        "rubric": RUBRIC,
        "artifacts": (PREFERENCES, JUDGEMENTS, SPEECHES, CANDIDATES),
        "judges": {"judge-2025-01-01": 6},
        "scores_by_author": (AuthorScores("small|model", 3, 1.5, 0.4),),
        "lengths": {"train": {"chosen": Counter({10: 1, 20: 3}), "rejected": Counter({2: 4})}},
    }
    return dataset_facts(**whole | changes)


def section(card: str, title: str) -> str:
    return body(card).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def with_corpus(metrics: dict[str, Any] | None = None, **settings: Any) -> str:
    speeches = artifact("speeches", "small", {**SPEECH_METRICS, **(metrics or {})}, settings=settings)
    return dataset_card(whole_facts(artifacts=(PREFERENCES, JUDGEMENTS, speeches, CANDIDATES)))


def test_the_card_has_the_sections_of_a_datasheet_in_order() -> None:
    titles = [line.removeprefix("## ") for line in body(dataset_card(whole_facts())).splitlines() if line[:3] == "## "]
    assert titles == [
        *("Motivation", "Composition", "Collection", "Cleaning", "De-identification", "Splits and leakage"),
        *("Labels", "Uses", "Known limits", "Licence", "Maintenance", "Lineage"),
    ]


def test_topics_by_cue_words_are_a_stand_in_and_unnamed_ones_not_shown() -> None:
    assert "a rough stand-in for a reader" in with_corpus(topics={"backend": "offline"})
    assert "a rough stand-in for a reader" not in with_corpus(topics={"backend": "endpoint"})
    assert "Fine topics" in dataset_card(whole_facts())
    assert "Fine topics" not in with_corpus({"fine_topics": {"": 3}})


LINES = {
    "Cleaning": [
        "`min_chars: 100`",
        "| markup | 5 | 5 | 2 |",
        "| length | 5 | 4 | 0 | 1 too short |",
        "| together | 5 | 3 |  | 1 too short, 1 repeated speech |",
        "| responses of the pool | 10 | 6 | 60.0 % | 1 repeated text, 3 cut |",
        f"From speeches `{SPEECHES.ref}`.",
        f"From candidates `{CANDIDATES.ref}`.",
    ],
    "De-identification": [
        "Engine: patterns.",
        "| PERSON | 2 | 20 | 75.0 % | 75.0 % |",
        "| together | 2 | 24 | 70.8 % | 77.3 % |",
        "| EMAIL | 0 | 4 | 50.0 % | 100.0 % |",
    ],
    "Labels": [
        *("version 2026.1", RUBRIC.digest, "`min_gap: 1.0`, `weights: {safety: 2.0}`"),
        "| judge-2025-01-01 | 6 |",
        "| responses judged | 6 | 5 | 83.3 % | 1 refusal |",
        "| crisis | 1 | 2 | 50.0 % |",
        *("| principle | 1 | 2 | 3 | 4 | 5 |", "| empathy | 3 | 0 | 0 | 0 | 2 |"),
        "| small\\|model | 3 | 1.50 | 0.40 |",
    ],
    "Composition": ["| train | chosen | 17.5 | 20 | 20 |", "| train | rejected | 2.0 | 2 | 2 |"],
    "Collection": ["| b.csv | cc-by-nc-4.0 | deidentified | 1 |"],
    "Licence": ["| cc-by-nc-4.0 | name the source; no commercial use |"],
}


@pytest.mark.parametrize(("title", "lines"), LINES.items())
def test_every_number_stands_in_its_section(title: str, lines: list[str]) -> None:
    text = section(dataset_card(whole_facts()), title).replace("\N{NO-BREAK SPACE}", " ")
    assert [line for line in lines if line not in text] == []
    assert "vetoes" not in text


def test_the_card_has_what_a_methods_paragraph_needs() -> None:
    """The words of the rubric, how each model was asked for answers, and how every judge was asked for ratings."""
    sampling = {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 512}
    prompts = {"gpt": "Answer as a counsellor.", "hub": "", "tiny": ""}
    models = {"gpt": {"endpoint": {"model": "gpt-4o-2024-08-06", "base_url": "http://10.0.0.7/v1"}, "model": None}}
    models["hub"] = {"endpoint": None, "model": {"hub": "meta-llama/Llama-3.2-3B-Instruct", "revision": "0123abc"}}
    models["tiny"] = {"endpoint": None, "model": {}}
    responders = [
        {"author": author, **models[author], "file": None, "sampling": sampling, "chat": {"system_prompt": prompt}}
        for author, prompt in prompts.items()
    ]
    base = artifact("base-models", "tiny", {})
    pool = artifact(
        "candidates",
        "pool",
        {"kept": 6, "repeated_text": 0, "failed": {}},
        parents={"responder tiny": base},
        settings={"responders": responders},
    )
    member = {"model": "judge-a", "temperature": 0.0, "max_tokens": 600, "samples": 1, "base_url": "http://10.0.0.7/v1"}
    panel = {"judge": {"panel": [member, {**member, "model": "judge-b", "samples": 5}]}}
    judged = artifact("judgements", "small", judgement_metrics(), parents={"asked": pool}, settings=panel)
    card = dataset_card(whole_facts(artifacts=(PREFERENCES, judged, SPEECHES, pool)))
    how = "temperature: 0.7, top_p: 0.95, max_new_tokens: 512"
    for row in (
        f"| gpt | gpt-4o-2024-08-06 | {how} | Answer as a counsellor. |",
        f"| hub | meta-llama/Llama-3.2-3B-Instruct@0123abc | {how} |  |",
        f"| tiny | {base.ref} | {how} |  |",
    ):
        assert row in section(card, "Collection")
    labels = section(card, "Labels")
    assert all(words in labels for each in RUBRIC.principles for words in (each.description, *each.anchors.values()))
    assert all(f"`model: {name}`" in labels for name in ("judge-a", "judge-b"))
    assert "`samples: 5`" in labels
    assert "10.0.0.7" not in card, "an address of our own is nobody's business"


def test_imported_leakage_is_shown_and_benchmarks_whose_texts_were_dropped_are_named() -> None:
    leaking = with_corpus({"clusters_across_splits": 3}, exclude=[{"name": "exam.csv"}], exclude_span_words=12)
    found, clean = (section(card, "Splits and leakage") for card in (leaking, with_corpus()))
    assert "more than one split: 3." in found
    assert "share 12 words in a row with a text of exam.csv were dropped" in found
    assert "no speech occurs in two splits" not in found
    assert "no speech occurs in two splits" in clean
    assert "words in a row" not in clean


def test_flaws_of_an_imported_dataset_are_listed_by_split() -> None:
    flaws = {"test": {**FLAWS, "safety_inverted": 1}, "train": FLAWS}
    imported = artifact(
        "preferences", "small", {**preference_metrics(), "flaws": flaws}, settings={"labelled_by": "gpt-4o"}
    )
    card = dataset_card(whole_facts(artifacts=(imported,), judges={}))
    assert "| of the rows | train | test |" in card
    assert "| safety inverted | 7 | 1 |" in card
    assert "| too long chosen | not counted | not counted |" in card
    assert "| mean words chosen | 20.2 | 20.2 |" in card
    assert "by `gpt-4o`" in section(card, "Labels")


def test_text_of_sources_stays_in_its_cell_and_many_rows_are_cut_visibly() -> None:
    assert "| \\<b>a \\| b | 1 |" in with_corpus({"topics": {"<b>a\n| b": 1}})
    assert "| and 10 more |  |  |" in with_corpus({"topics": {f"topic {number:02}": 1 for number in range(60)}})


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
    assert "language" not in front_matter(with_corpus(cleaning={"languages": []}))


def trained(folder: Path, kind: Kind, metrics: dict[str, Any], **settings: Any) -> tuple[Store, ArtifactWriter]:
    """Return a store with a small dataset, and the writer of a model that is trained on it."""
    store = Store(folder)
    data = make_dataset(store, lambda writer: None)
    spec = ArtifactSpec(kind, "small", "align", 1, settings, (data.as_parent("preferences"),))
    writer = ArtifactWriter(spec, folder / "model")
    writer.write_metrics(metrics)
    return store, writer


LLAMA = {"hub": "meta-llama/Llama-3.1-8B-Instruct", "revision": "abc"}


def test_the_card_of_a_reward_model_has_what_the_hub_reads_and_every_figure_with_its_interval(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    mixed = {"mix": [{"count": 5, "source": [{"hub": "owner/general@r1", "split": "train"}]}]}
    base = {"weights": "0" * 64}
    store, writer = trained(tmp_path, "reward-models", reward_metrics(), base_model=base, epochs=2, **mixed)
    card = model_card(store, writer, REWARD_MODEL, (OFFLINE,))
    data = ModelCard(card).data
    (accuracy,) = data.eval_results or ()
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.814)
    assert (data.pipeline_tag, data.base_model, data.datasets) == ("text-classification", None, ["owner/general"])
    assert (data.license, data["license_name"], data.language) == ("other", "terms-of-the-sources", ["en"])
    assert body(card).split("\n\n")[:2] == ["\n# small", f"> **Warning.** {OFFLINE}"]
    assert set(re.findall(r"AutoModel\w+", card)) == {"AutoModelForSequenceClassification"}
    assert "| accuracy, test | 81.4 % |" in section(card, "Measurements")
    assert "| epochs | 2 |" in section(card, "Settings")


def test_the_card_of_a_policy_says_from_what_it_came_and_what_never_to_do(tmp_path: Path) -> None:
    metrics = {"training": training(30, is_policy=True, kept=2), "pairs": 2}
    store, writer = trained(tmp_path, "policies", metrics, initial_policy=LLAMA, beta=0.1, optimisation={"lora": None})
    card = model_card(store, writer, "policy aligned by DPO", ())
    front = front_matter(card)
    assert (front["base_model"], front["license"], front["pipeline_tag"]) == (LLAMA["hub"], "other", "text-generation")
    assert "model-index" not in front
    assert set(re.findall(r"AutoModel\w+", card)) == {"AutoModelForCausalLM"}
    assert all(f"| {each.kind} | {each.ref} |" in section(card, "Data") for each in store.artifacts())
    assert "| beta | 0.1 |" in section(card, "Settings")
    assert "lora" not in section(card, "Settings")
    assert f"{LLAMA['hub']}@abc" in section(card, "Licence").replace("\\", "")
    assert "| cc-by-nc-4.0 | name the source; no commercial use |" in section(card, "Licence")
    assert "never for autonomous care" in section(card, "Limits")


@pytest.mark.parametrize(("loss", "how"), [("sigmoid", "DPO"), ("ipo", "DPO (ipo loss)")])
def test_the_card_of_a_policy_names_the_loss_if_it_is_not_that_of_dpo(tmp_path: Path, loss: str, how: str) -> None:
    config = AlignConfig.model_validate(
        {
            **{"name": "small", "mode": "dpo", "policy": "tiny", "preferences": "pairs", "loss": loss},
            "optimisation": {"learning_rate": 1e-3, "global_batch_size": 8, "per_device_batch_size": 8},
        }
    )
    metrics = {"training": training(30, is_policy=True, kept=2), "pairs": 2}
    store, writer = trained(tmp_path, "policies", metrics, initial_policy=LLAMA)
    write_policy_card(config, store, writer, store.artifacts("preferences")[-1])
    assert f"A policy aligned by {how} for psychological counselling" in writer.file("README.md").read_text("utf-8")


def test_the_card_of_an_online_policy_has_what_the_probe_of_its_weights_measured(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    rows = [
        {"probe": probe_metrics(number), "pairs": 2, "trained_on": 2, "logps_chosen": -1.0, "logps_rejected": -2.0}
        for number in (1, 2)
    ]
    metrics = {"training": training(30, is_policy=True, kept=2), "pairs": 2, "rounds": rows, "best": 1}
    metrics |= {"initial": probe_metrics(0)}
    store, writer = trained(tmp_path, "policies", metrics, initial_policy=LLAMA, weights_of_round=2)
    card = model_card(store, writer, "policy aligned by online DPO", ())
    (measured,) = ModelCard(card).data.eval_results or ()
    rate = rows[1]["probe"]["win_rate"]
    assert (measured.metric_type, measured.metric_value) == ("win rate", rate["estimate"])
    shown = section(card, "Measurements").replace("\N{NO-BREAK SPACE}", " ")
    interval = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %"
    assert f"| win rate over the initial policy | {100 * rate['estimate']:.1f} % | {interval} |" in shown


def gathered(folder: Path) -> tuple[DatasetFacts, Artifact]:
    kept: list[DatasetFacts] = []
    store = Store(folder)

    def gather(writer: ArtifactWriter) -> None:
        kept.append(gather_dataset_facts(store, writer, pairs(), RUBRIC, ()))

    made = make_dataset(store, gather)
    return kept[0], made


def test_facts_are_counted_from_the_store(tmp_path: Path) -> None:
    facts, made = gathered(tmp_path)
    assert facts.rows == {"train": 2, "test": 1}
    assert facts.licences == ["cc-by-nc-4.0", "mit"]
    assert facts.warnings == (NOTICE,)
    assert facts.judges == {JUDGE: 6}
    assert [each.kind for each in facts.artifacts] == ["preferences", "judgements", "speeches", "candidates"]
    assert facts.artifacts[0].id == made.id
    assert facts.artifacts[0].manifest["rows"] == made.manifest["rows"]
    assert facts.lengths["train"] == {"chosen": Counter({10: 2}), "rejected": Counter({2: 2})}
    # The response that the judge did not rate is left out.
    assert facts.scores_by_author == (
        AuthorScores("small-model", 3, 1.5, 0.0),
        AuthorScores("large-model", 2, 4.5, 0.0),
    )


def test_people_are_one_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("https://example.org/therapists/anna", "person-0123abcd")
    people = tuple((name, *rest) for name, (_, *rest) in zip(names, ANSWERS, strict=True))
    monkeypatch.setattr("released_store.ANSWERS", people)
    facts, _ = gathered(tmp_path)
    assert [each[:4] for each in facts.scores_by_author] == [(PEOPLE, 5, 2.7, pytest.approx(2.16**0.5))]


def test_the_dataset_folder_holds_its_card_and_loads(tmp_path: Path) -> None:
    from datasets import load_dataset

    store = Store(tmp_path / "store")
    made = make_dataset(store, lambda writer: write_dataset_card(store, writer, pairs(), RUBRIC))
    card = made.file("README.md").read_text(encoding="utf-8")
    assert all(each.id in card for each in (made, *store.artifacts()))
    loaded = load_dataset(str(made.folder), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 2, "test": 1}
    assert loaded["train"]["prefID"][:] == [0, 1]
    small, large = ANSWERS
    row = loaded["test"][0]
    assert (row["chosen"], row["rejected"], row["chosen_model"]) == (large[1], small[1], large[0])
    assert (row["chosen_empathy_rating"], row["rejected_empathy_rating"]) == (5, 1)
