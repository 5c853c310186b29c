"""The numbers that a command prints are those of `metrics.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.cli.output import headlines
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store
from running import Miniature


@pytest.fixture
def store(miniature: Miniature) -> Store:
    return Store(miniature.store)


def told(store: Store, kind: str, name: str) -> tuple[str, dict[str, Any]]:
    artifact = next(each for each in store.artifacts() if (each.kind, each.name) == (kind, name))
    metrics = json.loads(Path(artifact.file("metrics.json")).read_text(encoding="utf-8"))
    return "\n".join(headlines(artifact, store)), metrics


def percent(rate: dict[str, float]) -> str:
    return f"{100 * rate['estimate']:.1f}% [{100 * rate['low']:.1f}%, {100 * rate['high']:.1f}%]"


def test_reward_model_stands_beside_its_baselines(store: Store) -> None:
    text, metrics = told(store, "reward-models", "mini")
    assert f"test accuracy {percent(metrics['test']['accuracy'])}" in text
    told_beside = [rate for rate in metrics["baselines"].values() if rate is not None]
    assert len(told_beside) >= 2
    assert all(percent(rate) in text for rate in told_beside)


def test_pairs_that_do_not_fit_are_told(store: Store) -> None:
    model = next(each for each in store.artifacts("reward-models"))
    lengths = {"kept": 90, "too_long_chosen": 2, "too_long_rejected": 0, "identical_tokens": 1}
    training = {**model.metrics["training"], "lengths": lengths}
    changed = Artifact(model.folder, model.manifest)
    changed.__dict__["metrics"] = {**model.metrics, "training": training}
    line = "trained on pairs: 93 read, 90 kept, 3 dropped (2 too_long_chosen, 1 identical_tokens)"
    assert headlines(changed, store)[0] == line


def test_win_rate_with_interval(store: Store) -> None:
    text, metrics = told(store, "comparisons", "mini")
    assert f"win rate {percent(metrics['win_rate'])}" in text
    assert percent(metrics["position_inconsistent_rate"]) in text
    assert f"{metrics['wins']} wins" in text
    assert "of the family that rated" in text  # the offline judge, twice


def test_online_policy_tells_every_rounds_dev_reward(store: Store) -> None:
    text, metrics = told(store, "policies", "mini-online")
    rewards = [f"{each['dev']['reward']['mean']:+.3f}" for each in metrics["rounds"]]
    assert len(rewards) == 2
    assert " -> ".join(rewards) in text
    assert "trained on pairs: 8 of 8, 8 of 8" in text


def test_dpo_policy_tells_its_loss(store: Store) -> None:
    text, metrics = told(store, "policies", "mini-dpo")
    assert "3 steps: loss 0.693 -> " in text  # ln 2 before the first step
    assert f"trained on pairs: {metrics['pairs']} read, {metrics['training']['lengths']['kept']} kept" in text


def test_base_model_tells_its_size(store: Store) -> None:
    text, metrics = told(store, "base-models", "mini-base")
    assert f"{metrics['sft']['parameters']:,} parameters" in text


def test_kinds_without_numbers_stay_silent(store: Store) -> None:
    assert told(store, "speeches", "mini")[0] == ""
