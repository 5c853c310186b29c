"""The numbers that a command prints are those of `metrics.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.cli.headlines import headlines
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
    for name in ("author_identity", "longer_wins", "same_tier"):
        assert percent(metrics["baselines"][name]) in text


def test_win_rate_with_interval(store: Store) -> None:
    text, metrics = told(store, "verdicts", "mini")
    assert f"win rate {percent(metrics['win_rate'])}" in text
    assert percent(metrics["flip_rate"]) in text
    assert f"{metrics['wins']} wins" in text
    assert "of the family that rated" in text  # the offline judge, twice


def test_online_policy_tells_every_rounds_dev_reward(store: Store) -> None:
    text, metrics = told(store, "policies", "mini-online")
    rewards = [f"{each['dev']['reward']['mean']:+.3f}" for each in metrics["rounds"]]
    assert len(rewards) == 2
    assert " -> ".join(rewards) in text


def test_dpo_policy_tells_its_loss(store: Store) -> None:
    text, metrics = told(store, "policies", "mini-dpo")
    assert "loss 0.693 -> " in text  # ln 2 before the first step
    assert f"{metrics['pairs']} pairs, 3 steps" in text


def test_base_model_tells_its_size(store: Store) -> None:
    text, metrics = told(store, "base-models", "mini-base")
    assert f"{metrics['warm_up']['parameters']:,} parameters" in text


def test_kinds_without_numbers_stay_silent(store: Store) -> None:
    assert told(store, "speeches", "mini")[0] == ""
