"""A release with known flaws -> artifacts in which each flaw is counted and every row stands once."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.config.loading import config_of, load_config
from psychocounsel.config.recipe import stage_config
from psychocounsel.config.schema import ImportPreferencesConfig, TrainRewardConfig
from psychocounsel.errors import DataQualityError, InputError, StoreError
from psychocounsel.stages.import_preferences import import_preferences, specs
from psychocounsel.store import hub
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.references import labelling_judges
from psychocounsel.store.schemas import read_pairs, read_speeches
from psychocounsel.store.store import Store
from release_files import Row, near_copy, speech, write_release
from running import Cli, Ended

INVERTED: dict[str, Any] = {"chosen_ratings": (5, 2), "rejected_ratings": (1, 4)}
SOUND = tuple(Row("train", speech(n)) for n in range(1, 13))
FLAWED = (
    *SOUND,
    Row("train", speech(1), chosen="Another answer to the first."),
    Row("train", speech(2)),
    Row("train", speech(13), **INVERTED),
    Row("train", speech(14), **INVERTED),
    Row("train", speech(15), rejected=Row("", "").chosen),
    Row("train", speech(16), chosen_ratings=(3, 3), rejected_ratings=(4, 2)),
    Row("train", speech(17), rejected_ratings=(None, 1)),
    Row("train", speech(18), chosen="NUL \x00."),
    Row("train", speech(19), rejected=" "),
    Row("train", ""),
    Row("train", "NUL \x00."),
    Row("train", speech(101)),
    Row("train", near_copy(102)),
    Row("test", speech(101)),
    Row("test", speech(102)),
    Row("test", speech(103)),
    Row("test", speech(103), rejected="word " * 600),
    Row("test", speech(104), **INVERTED),
)
TERMS: dict[str, Any] = {"licence": "cc-by-nc-4.0", "data_class": "public"}
SET = [word for key, value in TERMS.items() for word in ("--set", f"{key}={value}")]
TWICE, ONCE = ("empty", "leaks_into_test", "safety_inverted", "unreadable"), ("equal_texts", "missing_ratings")
TRAIN_DROPPED = dict.fromkeys(TWICE, 2) | dict.fromkeys((*ONCE, "not_preferred", "repeated"), 1)


def settings(source: Path | str, **changed: Any) -> ImportPreferencesConfig:
    given = {"name": "r", "source": str(source), "dev_share": 0.2, **TERMS, "labelled_by": "gpt-4o"}
    return config_of(ImportPreferencesConfig, {**given, **changed})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("flawed"), FLAWED)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def made(folder: Path, store: Store) -> Artifact:
    return import_preferences(settings(folder), store)


@pytest.fixture(scope="module")
def speeches(made: Artifact, store: Store) -> Artifact:
    return store.open(made.parent("speeches"))


class TestFlaws:
    def test_are_counted_by_the_split_of_the_release(self, made: Artifact) -> None:
        train, test = (made.metrics["flaws"][split] for split in ("train", "test"))
        names = ("missing_ratings", "not_preferred", "equal_texts", "repeated")
        leaks = {"leaks_exactly": 1, "leaks_nearly": 2}
        expected = {"rows": 25, "speeches": 21, "safety_inverted": 2, **leaks, **dict.fromkeys(names, 1)}
        assert expected.items() <= train.items()
        expected = {"rows": 5, "speeches": 4, "safety_inverted": 1, **leaks, **dict.fromkeys(names, 0)}
        assert expected.items() <= test.items()
        assert (test["mean_words_rejected"], test["chosen_is_longer"]) == ((4 * 2 + 600) / 5, 4)

    def test_every_row_is_kept_or_dropped_for_one_reason(self, made: Artifact) -> None:
        pairing = made.metrics["pairing"]
        train, dev = pairing["train"], pairing["dev"]
        assert Counter(train["dropped"]) + Counter(dev["dropped"]) == TRAIN_DROPPED
        assert train["combinations"] + dev["combinations"] == 25
        assert train["kept"] + dev["kept"] == 25 - sum(TRAIN_DROPPED.values()) == 13
        assert pairing["test"] == {"combinations": 5, "kept": 4, "dropped": {"safety_inverted": 1}}
        assert [len(read_pairs(made, split)) for split in pairing] == [each["kept"] for each in pairing.values()]


class TestSpeeches:
    def test_metrics_tell_what_the_table_holds(self, speeches: Artifact) -> None:
        metrics = speeches.metrics
        rows = read_speeches(speeches)
        assert metrics["splits"] == {"train": 15, "dev": 4, "test": 4}
        assert metrics["splits"] == {split: sum(row.split == split for row in rows) for split in metrics["splits"]}
        assert (metrics["clusters"], metrics["near_duplicates"], metrics["crisis"]) == (23, 0, 0)
        assert metrics["clusters_across_splits"] == 0
        source = {"licence": "cc-by-nc-4.0", "data_class": "public", "speeches": 23}
        assert source.items() <= metrics["sources"][0].items()

    def test_a_leak_that_is_kept_is_counted(self, folder: Path, store: Store) -> None:
        kept = import_preferences(settings(folder, leakage="keep"), store)
        metrics = store.open(kept.parent("speeches")).metrics
        assert (metrics["clusters_across_splits"], metrics["near_duplicates"]) == (2, 1)
        assert kept.metrics["pairing"]["test"]["kept"] == 4
        texts = {pair.speech.text for split in ("train", "dev") for pair in read_pairs(kept, split)}
        assert {speech(101), near_copy(102)} <= texts


class TestArtifact:
    def test_comes_back_as_it_is_with_its_dev_split(self, made: Artifact, store: Store) -> None:
        again = import_preferences(settings(made.folder, name="again", labelled_by=None), store)
        kept = {split: counts["kept"] for split, counts in made.metrics["pairing"].items()}
        assert {split: counts["kept"] for split, counts in again.metrics["pairing"].items()} == kept
        assert all(counts["dropped"] == {} for counts in again.metrics["pairing"].values())
        for split in kept:
            found, expected = ([(pair.id, pair.margin) for pair in read_pairs(each, split)] for each in (again, made))
            assert found == expected

    def test_train_reward_reads_it(self, made: Artifact, store: Store, tmp_path: Path) -> None:
        from psychocounsel.stages.train_reward import specs as training_specs

        named = {"name": "r", "base_model": "hub:owner/base@abc", "preferences": made.ref}
        optimisation = {"learning_rate": 1e-5, "global_batch_size": 8}
        config = config_of(TrainRewardConfig, {**named, "optimisation": optimisation})
        assert training_specs(config, store).parents[0].id == made.id

    def test_its_labeller_reaches_whatever_is_made_from_it(self, made: Artifact, store: Store) -> None:
        parents = (made.as_parent("preferences"),)
        policy = store.make(ArtifactSpec("policies", "p", "test", 1, {}, parents), lambda writer: None)
        assert labelling_judges(store, policy) == ("gpt-4o",)

    def test_the_card_names_licence_labeller_and_flaws(self, made: Artifact) -> None:
        card = made.file("README.md").read_text(encoding="utf-8")
        assert "license: cc-by-nc-4.0" in card
        assert "gpt-4o" in card
        assert "| safety inverted | 2 | 1 |" in card


class TestIdentity:
    def test_does_not_hang_on_the_place_of_the_files(self, made: Artifact, tmp_path: Path, store: Store) -> None:
        name = store.open(made.parent("speeches")).metrics["sources"][0]["name"]
        assert specs(settings(write_release(tmp_path / name, FLAWED)), store).preferences.id == made.id

    @pytest.mark.parametrize(
        ("changed", "is_of_speeches"),
        [
            ({"leakage": "keep"}, True),
            ({"dev_share": 0.3}, True),
            ({"near_duplicate_similarity": 0.7}, True),
            ({"seed": 1}, True),
            ({"data_class": "restricted"}, True),
            ({"licence": "mit"}, True),
            ({"labelled_by": "claude"}, False),
            ({"drop_safety_inverted": False}, False),
            ({"safety": None}, False),
        ],
    )
    def test_holds_every_setting(
        self, made: Artifact, folder: Path, store: Store, changed: dict[str, Any], is_of_speeches: bool
    ) -> None:
        planned = specs(settings(folder, **changed), store)
        assert planned.preferences.id != made.id
        assert (planned.speeches.id != made.parent("speeches").id) == is_of_speeches


class TestLength:
    def test_long_rows_are_dropped_and_counted_by_side(self, folder: Path, store: Store, tmp_path: Path) -> None:
        from psychocounsel.training.tiny_llama import train_tokenizer

        train_tokenizer([speech(n) for n in range(50)], 400, 2048).save_pretrained(tmp_path / "tokenizer")
        length = {"tokenizer": str(tmp_path / "tokenizer"), "max_length_tokens": 600}
        made = import_preferences(settings(folder, length=length), store)
        flaws = made.metrics["flaws"]
        counts = {(s, side): flaws[s][f"too_long_{side}"] for s in flaws for side in ("chosen", "rejected")}
        assert [key for key, count in counts.items() if count] == [("test", "rejected")]
        assert made.metrics["pairing"]["test"]["dropped"] == {"safety_inverted": 1, "too_long": 1}


class TestRefusals:
    @pytest.mark.parametrize(
        ("rows", "split"),
        [
            (FLAWED[-1:] + SOUND, "test"),
            ([Row("train", speech(103)), Row("test", speech(103))], "train"),
            ([*SOUND[:2], Row("test", speech(103))], "dev"),
        ],
    )
    def test_a_split_without_a_pair(self, rows: list[Row], split: str, tmp_path: Path) -> None:
        folder = write_release(tmp_path / "release", rows)
        with pytest.raises(DataQualityError, match=f"no pair is left in {split}"):
            import_preferences(settings(folder), Store(tmp_path / "store"))

    def test_a_benchmark_is_all_test(self, tmp_path: Path) -> None:
        folder = write_release(tmp_path / "release", [Row("test", speech(n)) for n in (101, 102)])
        made = import_preferences(settings(folder), Store(tmp_path / "store"))
        assert [len(read_pairs(made, split)) for split in ("train", "dev", "test")] == [0, 0, 2]

    def test_no_rows(self, folder: Path, tmp_path: Path) -> None:
        import pyarrow.parquet as pq

        for path in (folder / "data").iterdir():
            pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / path.name)
        with pytest.raises(InputError, match="has no rows"):
            import_preferences(settings(tmp_path), Store(tmp_path / "store"))

    def test_a_hub_data_set_that_changed_on_the_way(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        rows = [*FLAWED]

        def hub_rows(name: str, split: str, config: str | None) -> list[dict[str, Any]]:
            return [row.columns for row in rows if row.split == split]

        monkeypatch.setattr(hub, "hub_rows", hub_rows)
        store = Store(tmp_path)
        first = import_preferences(settings("hub:owner/name"), store)
        assert "no revision" in caplog.text
        rows.append(Row("train", speech(50)))
        with pytest.raises(StoreError, match=rf"hub:owner/name: has changed since speeches {first.name}@"):
            import_preferences(settings("hub:owner/name", labelled_by=None), store)


def pending(ended: Ended) -> list[str]:
    return [line.split()[0] for line in ended.out.splitlines() if line.endswith("pending")]


class TestCommand:
    @pytest.mark.parametrize("name", ["released", "mine"])
    def test_tells_the_counts_and_what_comes_next(self, cli: Cli, folder: Path, tmp_path: Path, name: str) -> None:
        more = [] if name == "released" else ["--name", name]
        ended = cli("import-preferences", folder, "--store", tmp_path, "--set", "dev_share=0.2", *SET, *more)
        assert ended.code == 0, ended.err
        assert f"created: preferences {name}@" in ended.out
        assert re.search(r"speeches read +30 +23 ", ended.out)
        assert re.search(r"safety inverted +2 ", ended.out)
        command = ended.out.splitlines()[-1].partition("next: psychocounsel train-reward ")[2].split(" --store ")[0]
        config, *change = command.split()
        overrides = [word for word in change if word != "--set"]
        assert load_config(TrainRewardConfig, stage_config("train-reward", config), overrides).preferences == name

    def test_reads_a_config(self, cli: Cli, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "import-preferences.yaml"
        path.write_text(json.dumps({"name": "filed", "source": str(folder), **TERMS}), encoding="utf-8")
        (tmp_path / "train-reward.yaml").write_text("name: x\n", encoding="utf-8")
        ended = cli("import-preferences", path, "--store", tmp_path / "store")
        assert "created: preferences filed@" in ended.out
        assert f"train-reward {tmp_path / 'train-reward.yaml'}" in ended.out.splitlines()[-1]
        renamed = cli("import-preferences", path, "--store", tmp_path / "store", "--name", "2024")
        assert "up to date: preferences 2024@" in renamed.out

    def test_a_dry_run_writes_nothing(self, cli: Cli, folder: Path, tmp_path: Path, no_way_out: list[object]) -> None:
        for source in (str(folder), "hub:owner/name@abc"):
            ended = cli("import-preferences", source, "--store", tmp_path / "store", "--dry-run", "--offline", *SET)
            assert ended.code == 0, ended.err
            assert pending(ended) == ["speeches", "preferences"]
        assert not (tmp_path / "store").exists()
        assert no_way_out == []

    def test_the_bundled_recipe_is_planned_offline(self, cli: Cli, tmp_path: Path, no_way_out: list[object]) -> None:
        few = ("--set", "import-preferences.expected_test_speeches=20")
        ended = cli("run", "released", "--store", tmp_path / "store", "--dry-run", *few)
        assert ended.code == 0, ended.err
        assert set(pending(ended)) >= {"speeches", "preferences", "reward-models", "policies"}
        assert pending(ended)[-1] == "reports"
        assert no_way_out == []

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["nowhere"], "nowhere: no such file"),
            (["FOLDER", "--set", "licence=null"], "licence"),
            (["nowhere.yaml"], "nowhere.yaml: no such file"),
            (["FOLDER", "--name", "A B"], "--set name: name: must be of lower-case letters"),
            (["FOLDER", "--set", "leakage=drop"], "--set leakage: leakage: Input should be"),
            (["FOLDER", "--set", "lekage=keep"], "did you mean 'leakage'?"),
            (["FOLDER", "--set", "safety=safe"], "there are no ratings of 'safe'; did you mean 'safety'?"),
            (["FOLDER", "--set", "dev_share=1"], "dev_share"),
            (["FOLDER", "--set", "length={tokenizer: none}"], "'none'"),
        ],
    )
    def test_user_errors(self, cli: Cli, folder: Path, tmp_path: Path, argv: list[str], expected: str) -> None:
        words = [str(folder) if word == "FOLDER" else word for word in argv]
        ended = cli("import-preferences", *SET, *words, "--store", tmp_path)
        assert not list(tmp_path.glob("*/*/manifest.json"))
        ended.says(2, expected)
