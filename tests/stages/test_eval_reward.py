"""eval-reward: models from here and from elsewhere, on pairs and on best-of-k rows."""

import shutil
from pathlib import Path

import pytest

from miniature import write_rows
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.metrics import BestOfKMetrics, PairEvaluationMetrics, RewardModelMetrics, metrics_of
from psychocounsel.store.schemas import read_scores, read_table
from psychocounsel.store.store import Store
from running import Cli


def newest(store: Path, kind: str) -> Artifact:
    return [each for each in Store(store).artifacts() if each.kind == kind][-1]


@pytest.fixture
def outside_model(store: Path, tmp_path: Path) -> Path:
    """Return a reward model that is no artifact."""
    artifact = newest(store, "reward-models")
    return Path(shutil.copytree(artifact.folder, tmp_path / "Outside-RM", ignore=shutil.ignore_patterns("manifest*")))


def test_the_test_split_gives_what_training_measured(cli: Cli, store: Path, outside_model: Path) -> None:
    trained = newest(store, "reward-models")
    own = metrics_of(trained)
    assert isinstance(own, RewardModelMetrics)
    for model, name, is_known in (("mini", "mini", True), (str(outside_model), "outside-rm", False)):
        command = ("eval-reward", model, "--on", "mini", "--store", store)
        ended = cli(*command)
        assert ended.code == 0, ended.err
        artifact = newest(store, "reward-evaluations")
        found = metrics_of(artifact)
        assert isinstance(found, PairEvaluationMetrics)
        assert artifact.name == name
        assert found.test_margins == pytest.approx(own.test_margins, abs=1e-5)
        assert (found.test.accuracy, found.baselines) == (own.test.accuracy, own.baselines)
        assert found.slices == own.slices
        rewards = [each.reward for each in read_scores(artifact)]
        assert rewards == pytest.approx([each.reward for each in read_scores(trained)], abs=1e-4)
        assert (found.leakage is not None) == is_known
        assert ("trained on is not known" in ended.out) != is_known
        assert {parent.kind for parent in artifact.parents} == {"preferences", *(["reward-models"] * is_known)}
        assert "up to date" in cli(*command).out


def test_training_pairs_are_refused_and_allowed(cli: Cli, store: Path) -> None:
    command = ("eval-reward", "mini", "--on", "mini", "--set", "split=train", "--store", store)
    refused = cli(*command)
    assert refused.code == 4
    assert "--allow-leakage" in refused.err
    allowed = cli(*command, "--allow-leakage")
    assert allowed.code == 0, allowed.err
    found = metrics_of(newest(store, "reward-evaluations"))
    assert isinstance(found, PairEvaluationMetrics)
    assert found.leakage is not None and found.leakage.leaked == found.leakage.speeches


def test_pairs_of_a_file(cli: Cli, store: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"How is {at}?", "chosen": "Well.", "rejected": "No.", "subset": "chat"} for at in range(22)]
    write_rows(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "rejected": "Well."}])
    ended = cli("eval-reward", "mini", "--on", tmp_path / "pairs.jsonl", "--store", store)
    assert ended.code == 0, ended.err
    found = metrics_of(newest(store, "reward-evaluations"))
    assert isinstance(found, PairEvaluationMetrics)
    assert (found.test.accuracy.n, found.on, found.dropped) == (22, "pairs.jsonl", {"equal_texts": 1})
    assert [(each.label, each.n) for each in found.slices["topic"]] == [("chat", 22)]
    assert (found.slices["gap"], found.principles) == ((), {})


def test_texts_longer_than_the_model_takes_are_counted(
    cli: Cli, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": f"How is {at}?", "chosen": "Well.", "rejected": "No."} for at in range(22)]
    write_rows(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "prompt": "Why?", "chosen": "So and so. " * 600}])
    ended = cli("eval-reward", "mini", "--on", tmp_path / "pairs.jsonl", "--store", store)
    assert ended.code == 0, ended.err
    said = "1 of 46 responses are with their prompts longer than the 1024 tokens"
    artifact = newest(store, "reward-evaluations")
    assert any(each.startswith(said) for each in artifact.warnings)
    assert said in " ".join((ended.out + ended.err).split())
    assert not [each for each in caplog.messages if "sequence length is longer" in each]


def test_best_of_k_rows_from_a_config(cli: Cli, store: Path, outside_model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": str(at), "prompt": f"{at} + 1?", "chosen": [str(at + 1)], "rejected": ["7", "8", "9"], "subset": "Math"}
        for at in range(20, 42)
    ]
    answers = {"ref:1": ["Red."], "tied:1": ["Red.", "Blue."]}
    for name, chosen in answers.items():
        rows.append({"id": name, "prompt": "A colour?", "chosen": chosen, "rejected": ["Dog."], "subset": "Ties"})
    write_rows(tmp_path / "bench.jsonl", rows)
    config = tmp_path / "eval-reward.yaml"
    config.write_text(f"name: bench\nmodel: {outside_model}\non: {tmp_path / 'bench.jsonl'}\n", encoding="utf-8")
    ended = cli("eval-reward", config, "--store", store)
    assert ended.code == 0, ended.err
    artifact = newest(store, "reward-evaluations")
    found = metrics_of(artifact)
    assert isinstance(found, BestOfKMetrics)
    table = list(read_table(artifact, "best_of_k.parquet"))
    assert [(len(row["chosen"]), len(row["rejected"])) for row in table] == [(1, 3)] * 22 + [(1, 1), (2, 1)]
    right = [row["chosen"][0] > max(row["rejected"]) for row in table[:22]]
    assert found.accuracy is not None
    assert found.accuracy.estimate == pytest.approx(sum(right) / 22)
    assert found.ties is not None
    assert found.mean == pytest.approx((found.accuracy.estimate + found.ties.score) / 2)
    for shown in ("Math", "Ties", "mean of the subsets"):
        assert shown in ended.out


def test_pairs_after_several_turns(cli: Cli, store: Path, tmp_path: Path) -> None:
    def row(at: int, said: str) -> dict[str, object]:
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "Go on."}]
        turns.append({"role": "user", "content": "I am tired of this."})
        return {"id": str(at), "context": turns, "good": {"answer": "Tired of what?"}, "bad": {"answer": "Sleep."}}

    write_rows(tmp_path / "turns.jsonl", [row(at, f"It is {at // 2}.") for at in range(40)])
    columns = "columns={prompt: context, chosen: good, rejected: bad}"
    ended = cli("eval-reward", "mini", "--on", tmp_path / "turns.jsonl", "--set", columns, "--store", store)
    assert ended.code == 0, ended.err
    artifact = newest(store, "reward-evaluations")
    rows = list(read_table(artifact, "best_of_k.parquet"))
    assert len({each["prompt_id"] for each in rows}) == 20
    assert len({each["chosen"][0] for each in rows}) > 10  # what was said before matters
    assert rows[0]["chosen"] == rows[1]["chosen"]


def test_the_report_shows_an_evaluation(cli: Cli, store: Path, tmp_path: Path) -> None:
    assert cli("eval-reward", "mini", "--on", "mini", "--name", "again", "--store", store).code == 0
    config = tmp_path / "report.yaml"
    config.write_text("name: r\nartifacts: [reward-models/mini, reward-evaluations/again]\n", encoding="utf-8")
    ended = cli("report", config, "--store", store)
    assert ended.code == 0, ended.err
    page = newest(store, "reports").file("report.html").read_text(encoding="utf-8")
    assert page.count("PsychoCounsel-Llama3-8B-Reward") == 2
    assert "reward evaluation" in page


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("mini",), 2),
        (("nowhere", "--on", "mini"), 2),
        (("mini", "--on", "nowhere"), 2),
        (("mini", "--on", "mini", "--set", "split=dew"), 2),
        (("mini", "--on", "mini", "--set", "split=dew", "--dry-run"), 2),
    ],
)
def test_what_cannot_be_measured(cli: Cli, store: Path, words: tuple[str, ...], code: int) -> None:
    assert cli("eval-reward", *words, "--store", store).code == code
