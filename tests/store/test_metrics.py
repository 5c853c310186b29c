"""The models of `metrics.json`: what stages write fits, and nothing else does."""

import pytest

from psychocounsel.store.artifacts import KINDS
from psychocounsel.store.metrics import FunnelStep, PolicyMetrics, RewardModelMetrics, metrics_of, parse_metrics
from psychocounsel.store.store import Store
from psychocounsel.types import Rate
from running import Miniature

NOT_IN_THE_RECIPE = {
    *("reward-evaluations", "annotation-tasks", "annotations"),
    *("anchors", "judge-calibrations", "crisis-evaluations"),
}


def test_every_artifact_of_a_run_has_typed_metrics(miniature: Miniature) -> None:
    found = {(each.kind, each.name): metrics_of(each) for each in Store(miniature.store).artifacts()}
    assert {kind for kind, _ in found} == {*KINDS} - NOT_IN_THE_RECIPE
    model, policy = found["reward-models", "mini"], found["policies", "mini-online"]
    assert isinstance(model, RewardModelMetrics)
    assert isinstance(model.test.accuracy, Rate)
    assert isinstance(policy, PolicyMetrics)
    assert len(policy.rounds) == 2


@pytest.mark.parametrize(
    ("kind", "metrics", "key"),
    [
        ("scores", {"scored": 1, "reward": {"mean": 0.1, "std": 1.0, "n": 1}, "extra": 1}, "extra"),
        ("scores", {"scored": 1}, "reward"),
        ("base-models", {"sft": {}, "training_speeches": 3}, "sft.first_loss"),
    ],
)
def test_other_metrics_are_refused_by_key(kind: str, metrics: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        parse_metrics(kind, metrics)


def test_steps_of_older_artifacts_list_examples() -> None:
    step = {"step": "length", "rows_in": 3, "rows_out": 2, "changed": 0, "dropped": {"too short": 1}}
    assert FunnelStep.model_validate(step | {"examples": {"too short": ["ab"]}}) == FunnelStep.model_validate(step)


def test_older_reports_copied_more_figures() -> None:
    rate = {"estimate": 0.6, "low": 0.5, "high": 0.7, "n": 9, "missing": 0}
    compared = {"win_rate": rate, "length_controlled": None, "position_inconsistent_rate": rate}
    older = {"win_rates": {"a@1": compared}, "reward_models": {}, "pairs": {}, "audits": {"b@2": {"kappa": 0.9}}}
    now = {"win_rates": {"a@1": {"win_rate": rate}}, "reward_models": {}, "pairs": {}}
    assert parse_metrics("reports", older) == parse_metrics("reports", now)
