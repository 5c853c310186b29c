"""The facts of a card are those of the store, counted by hand on a small one."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.reporting.card_facts import AuthorScores, DatasetFacts
from psychocounsel.reporting.cards import (
    PEOPLE,
    _author_scores,  # pyright: ignore[reportPrivateUsage]
    gather_dataset_facts,
    write_dataset_card,
)
from psychocounsel.store.artifacts import Artifact, ArtifactWriter
from psychocounsel.store.store import Store
from released_store import ANSWERS, JUDGE, NOTICE, RUBRIC, SPEECH_METRICS, make_dataset, pairs


def gathered(folder: Path, **changes: Any) -> tuple[DatasetFacts, Artifact]:
    kept: list[DatasetFacts] = []
    store = Store(folder)

    def gather(writer: ArtifactWriter) -> None:
        kept.append(gather_dataset_facts(store, writer, pairs(), RUBRIC))

    made = make_dataset(store, gather, **changes)
    return kept[0], made


def test_facts_are_counted_from_the_store(tmp_path: Path) -> None:
    facts, made = gathered(tmp_path)
    assert facts.rows == {"train": 2, "test": 1}
    assert facts.licences == ["cc-by-nc-4.0", "mit"]
    assert facts.notices == (NOTICE,)
    assert facts.judges == {JUDGE: 6}
    assert facts.rubric is not None
    assert (facts.rubric.version, facts.rubric.digest) == (RUBRIC.version, RUBRIC.digest)
    assert [each.kind for each in facts.artifacts] == ["preferences", "judgements", "speeches", "candidates"]
    assert facts.artifacts[0].id == made.id
    assert facts.artifacts[0].rows == made.manifest["rows"]
    assert facts.words["train"] == {"chosen": Counter({10: 2}), "rejected": Counter({2: 2})}


def test_scores_by_author_leave_out_what_the_judge_did_not_rate(tmp_path: Path) -> None:
    facts, _ = gathered(tmp_path)
    assert facts.scores_by_author == (
        AuthorScores("small-model", (0, 3, 0, 0, 0, 0, 0, 0), 1.5),
        AuthorScores("large-model", (0, 0, 0, 0, 0, 0, 0, 2), 4.5),
    )


def test_people_are_one_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("https://example.org/therapists/anna", "person-0123abcd")
    people = [(name, text, rated) for name, (_, text, rated) in zip(names, ANSWERS, strict=True)]
    monkeypatch.setattr("released_store.ANSWERS", tuple(people))
    facts, _ = gathered(tmp_path)
    assert [(each.author, each.responses) for each in facts.scores_by_author] == [(PEOPLE, 5)]


def test_without_judgements_metrics_or_rubric_the_card_is_shorter(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def build(writer: ArtifactWriter) -> None:
        facts = gather_dataset_facts(store, writer, pairs(), None, ("empathy",))
        assert facts.rubric is None
        assert facts.principles == ("empathy",)
        assert facts.scores_by_author == ()
        write_dataset_card(writer, facts)

    card = make_dataset(store, build, speech_metrics={}).file("README.md").read_text(encoding="utf-8")
    assert "Rubric:" not in card
    assert "## De-identification" not in card
    assert "## Labels" in card


def test_the_dataset_folder_holds_the_figures_that_its_card_shows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_dataset(
        store, lambda writer: write_dataset_card(writer, gather_dataset_facts(store, writer, pairs(), RUBRIC))
    )
    card = made.file("README.md").read_text(encoding="utf-8")
    figures = sorted(name for name in made.manifest["files"] if name.startswith("figures/"))
    assert figures == [f"figures/{key}.png" for key in ("authors", "lengths", "ratings", "topics")]
    assert all(f"]({name})" in card for name in figures)
    assert all(each.id in card for each in (made, *store.artifacts()))


def test_figures_hide_nothing_from_the_loader_of_data_sets(tmp_path: Path) -> None:
    from datasets import load_dataset

    store = Store(tmp_path / "store")
    made = make_dataset(
        store, lambda writer: write_dataset_card(writer, gather_dataset_facts(store, writer, pairs(), RUBRIC))
    )
    loaded = load_dataset(str(made.folder), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 2, "test": 1}
    assert loaded["test"][0]["chosen_empathy_rating"] == 5


@given(st.dictionaries(st.integers(2, 10), st.integers(1, 9), min_size=1))
def test_every_response_falls_into_one_bin(by_total: dict[int, int]) -> None:
    scores = _author_scores("a", by_total, RUBRIC)
    assert scores.responses == sum(by_total.values())
    assert 1 <= scores.mean <= 5
    lowest = next(place for place, count in enumerate(scores.counts) if count)
    assert 1 + lowest / 2 <= min(by_total) / 2 <= 1 + (lowest + 1) / 2


def test_metrics_of_the_small_store_add_up() -> None:
    funnel = SPEECH_METRICS["funnel"]
    assert funnel["rows_in"] == funnel["kept"] + sum(funnel["dropped"].values())
