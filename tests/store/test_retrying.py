"""What failed in a sealed artifact is asked again in a new one."""

from pathlib import Path

from psychocounsel.store.artifacts import Artifact, Plan
from psychocounsel.store.retrying import asked_again, note_failed
from psychocounsel.store.store import Store

PLAN = Plan("candidates", "pool", "stage", 1, {"seed": 0})


def made(store: Store, plan: Plan, failed: int) -> Artifact:
    return store.make(plan, lambda draft: note_failed(draft, failed))


def test_what_is_not_sealed_or_did_not_fail_is_not_retried(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert asked_again(PLAN, store) is PLAN
    made(store, PLAN, 0)
    assert asked_again(PLAN, store) is PLAN


def test_each_retry_follows_the_one_before_until_nothing_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made(store, PLAN, 2)
    first = asked_again(PLAN, store)
    assert first.settings["retried_from"] == PLAN.id != first.id
    assert asked_again(PLAN, store) == first  # unfinished, it is gone on with
    made(store, first, 1)
    second = asked_again(PLAN, store)
    assert second.settings["retried_from"] == first.id
    made(store, second, 0)
    assert asked_again(PLAN, store) == second
    assert len(store.artifacts("candidates")) == 3


def test_an_artifact_that_noted_nothing_has_nothing_to_retry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make(PLAN, lambda draft: None)
    assert asked_again(PLAN, store) is PLAN
