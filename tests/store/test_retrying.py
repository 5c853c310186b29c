"""What failed in a sealed artifact is asked again in a new one."""

from pathlib import Path

from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.store import Store, note_failed, retry_spec

PLAN = ArtifactSpec("candidates", "pool", "stage", 1, {"seed": 0})


def made(store: Store, plan: ArtifactSpec, failed: int) -> Artifact:
    return store.make(plan, lambda writer: note_failed(writer, failed))


def test_what_is_not_sealed_or_did_not_fail_is_not_retried(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert retry_spec(PLAN, store) is PLAN
    made(store, PLAN, 0)
    assert retry_spec(PLAN, store) is PLAN


def test_each_retry_follows_the_one_before_until_nothing_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made(store, PLAN, 2)
    first = retry_spec(PLAN, store)
    assert first.settings["retried_from"] == PLAN.id != first.id
    assert retry_spec(PLAN, store) == first  # unfinished, it is gone on with
    made(store, first, 1)
    second = retry_spec(PLAN, store)
    assert second.settings["retried_from"] == first.id
    made(store, second, 0)
    assert retry_spec(PLAN, store) == second
    assert len(store.artifacts("candidates")) == 3


def test_an_artifact_that_noted_nothing_has_nothing_to_retry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make(PLAN, lambda writer: None)
    assert retry_spec(PLAN, store) is PLAN
