"""train-reward with heads, margins and pairs of other sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from miniature import write_rows
from psychocounsel.stages.train_reward import pair_source
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.metrics import RewardModelMetrics, metrics_of
from psychocounsel.store.schemas import read_pairs, read_scores
from psychocounsel.store.store import Store
from running import Cli, Ended, Miniature


def train(cli: Cli, miniature: Miniature, store: Path, **changes: Any) -> Ended:
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return cli("train-reward", miniature.recipe / "train-reward.yaml", "--store", store, "--set", "name=other", *sets)


def made(store: Path, ended: Ended) -> tuple[Artifact, RewardModelMetrics]:
    assert ended.code == 0, ended.err
    artifact = next(each for each in Store(store).artifacts("reward-models") if each.name == "other")
    metrics = metrics_of(artifact)
    assert isinstance(metrics, RewardModelMetrics)
    return artifact, metrics


def write_set(path: Path, count: int) -> Path:
    rows = [{"prompt": f"How do I fry {at} eggs?", "chosen": "In butter.", "rejected": "No."} for at in range(count)]
    write_rows(path, [*rows, {**rows[0], "rejected": "In butter."}])
    return path


def test_heads_and_margins_and_mixed_pairs(miniature: Miniature, cli: Cli, store: Path, tmp_path: Path) -> None:
    outside = write_set(tmp_path / "eggs.jsonl", 9)
    mix = [{"preferences": str(outside), "count": 5}, {"preferences": str(outside), "ratio": 0.25}]
    ended = train(cli, miniature, store, heads="principles", margin="score_gap", max_pairs=8, mix=mix)
    artifact, metrics = made(store, ended)
    preferences = Store(store).open(artifact.parent("preferences"))
    principles = list(read_pairs(preferences, "train")[0].chosen.ratings)
    sources = [(each.source, each.pairs, each.used, dict(each.dropped)) for each in metrics.sources]
    of_own = (preferences.ref, len(read_pairs(preferences, "train")), 8, {})
    assert sources == [of_own, *(("eggs.jsonl", 9, used, {"equal_texts": 1}) for used in (5, 2))]
    assert metrics.pairs["train"] == metrics.training.lengths["kept"] == 15
    assert sorted(metrics.principles) == sorted(principles)
    assert all(list(score.principles) == principles for score in read_scores(artifact))
    config = json.loads(artifact.file("config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == principles
    assert sum(each["weight"] for each in config["reward_principles"].values()) == pytest.approx(1)
    card = artifact.file("README.md").read_text(encoding="utf-8")
    assert "eggs.jsonl" in card and "one for each principle" in card
    assert "eggs.jsonl" in ended.out
    again = train(cli, miniature, store, heads="principles", margin="score_gap", max_pairs=8, mix=mix)
    assert f"up to date: reward-models {artifact.ref}" in again.out


def test_an_artifact_is_mixed_in_and_its_speeches_count_as_leakage(miniature: Miniature, cli: Cli, store: Path) -> None:
    build = miniature.recipe / "build-preferences.yaml"
    resplit = ["--set", "corpus.split.seed=7", "--set", "name=resplit", "--store", str(store)]
    assert cli("build-preferences", build, *resplit).code == 0
    mix = [{"preferences": "resplit", "count": 3}]
    refused = train(cli, miniature, store, preferences="mini", mix=mix)
    assert refused.code == 4
    assert "were trained on" in refused.err
    allowed = train(cli, miniature, store, preferences="mini", mix=mix, allow_leakage=True)
    artifact, metrics = made(store, allowed)
    assert metrics.leakage.leaked > 0
    assert metrics.sources[1].source == artifact.parent("mixed preferences 1").ref


def test_mixed_speeches_that_are_test_speeches_leak(
    miniature: Miniature, cli: Cli, store: Path, tmp_path: Path
) -> None:
    preferences = next(each for each in Store(store).artifacts("preferences") if each.name == "mini")
    tested = read_pairs(preferences, "test")[0].speech.text
    write_rows(tmp_path / "set.jsonl", [{"prompt": tested, "chosen": "A.", "rejected": "B."}])
    eggs = write_set(tmp_path / "eggs.jsonl", 9)
    mix = [{"preferences": str(each), "count": 1} for each in (eggs, tmp_path / "set.jsonl")]
    refused = train(cli, miniature, store, mix=mix)
    refused.says(4, "1 of ", "were trained on", "preferences set.jsonl")
    assert "eggs.jsonl" not in refused.err and preferences.ref not in refused.err


def test_a_benchmark_is_measured_on_and_not_trained_on(
    miniature: Miniature, cli: Cli, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    write_set(folder / "test.jsonl", 9)
    terms = ("--set", "licence=mit", "--set", "data_class=public")
    ended = cli("import-preferences", folder, "--name", "bench", *terms, "--store", store)
    assert "next: psychocounsel eval-reward MODEL --on preferences/bench" in ended.out
    for stage, config in (("train-reward", "train-reward.yaml"), ("align", "align-dpo.yaml")):
        command = (stage, miniature.recipe / config, "--set", "preferences=bench", "--store", store)
        for more in ([], ["--dry-run"]):
            cli(*command, *more).says(4, "bench@", "no training pairs")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"mix": [{"preferences": "SET", "count": 10}]}, 4, "there are 9 new ones"),
        ({"mix": [{"preferences": "SET"}]}, 2, "exactly one of ratio and count"),
        ({"mix": [{"preferences": "nowhere", "count": 1}]}, 2, "nowhere"),
        ({"heads": "principle"}, 2, "heads"),
    ],
)
def test_what_cannot_be_mixed(
    miniature: Miniature, cli: Cli, store: Path, tmp_path: Path, changes: dict[str, Any], code: int, words: str
) -> None:
    outside = str(write_set(tmp_path / "eggs.jsonl", 9))
    if "mix" in changes:
        changes = {"mix": [{**changes["mix"][0], **({"preferences": outside} if "SET" in str(changes) else {})}]}
    ended = train(cli, miniature, store, **changes)
    assert ended.code == code, ended
    assert words in ended.err


def test_an_artifacts_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    built = store.make(ArtifactSpec("preferences", "eggs", "stage", 1, {}), lambda writer: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eggs").mkdir()
    write_set(tmp_path / "eggs" / "train.jsonl", 2)
    assert pair_source(store, "eggs", "train", None, "pairs").parent == built.as_parent("pairs")
    outside = pair_source(store, "./eggs", "train", None, "pairs")
    assert (outside.parent, len(outside.fingerprint or [])) == (None, 1)
    assert pair_source(Store(tmp_path / "other"), "eggs", "train", None, "pairs") == outside
