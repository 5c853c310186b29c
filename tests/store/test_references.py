"""A reference -> the artifact or model it means, or the nearest name."""

import json
from pathlib import Path

import pytest

from psychocounsel.errors import ConfigError, StoreError
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind
from psychocounsel.store.references import ancestors, resolve, resolve_model, resolve_parent
from psychocounsel.store.store import Store
from psychocounsel.types import Policy


def made(store: Store, kind: Kind, name: str, seed: int = 0) -> Artifact:
    return store.make(ArtifactSpec(kind, name, "stage", 1, {"seed": seed}), lambda writer: None)


def test_a_name_is_its_newest_and_an_id_is_exactly_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = made(store, "policies", "talk", 1), made(store, "policies", "talk", 2)
    assert resolve(store, "talk") == new
    assert resolve(store, f"talk@{old.id[:8]}") == resolve(store, old.ref) == old
    assert resolve(store, f"policies/{old.ref}") == old
    assert resolve(store, str(old.folder)) == old
    with pytest.raises(ConfigError, match="there is no artifact 'talk@00000000'"):
        resolve(store, "talk@00000000")


def test_one_name_of_two_kinds_asks_which(tmp_path: Path) -> None:
    store = Store(tmp_path)
    policy, scores = made(store, "policies", "talk"), made(store, "scores", "talk")
    with pytest.raises(ConfigError, match="'talk' names policies, scores; write policies/talk"):
        resolve(store, "talk")
    assert resolve(store, "talk", "scores") == resolve(store, "scores/talk") == scores
    assert resolve_parent(store, "talk", "policies", "start").role == "start"
    assert resolve(store, "policies/talk") == policy


def test_a_reference_to_another_kind_than_is_wanted_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    policy = made(store, "policies", "talk")
    for ref in ("policies/talk", str(policy.folder)):
        with pytest.raises(ConfigError, match="is one of policies; name one of preferences"):
            resolve(store, ref, "preferences")


def test_an_unknown_name_offers_a_near_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="run the stage that makes it first"):
        resolve(store, "quickstart", "policies")
    made(store, "policies", "quickstart")
    with pytest.raises(ConfigError, match=r"did you mean 'quickstart'\?") as fault:
        resolve(store, "quikstart", "policies")
    assert fault.value.where == str(tmp_path)
    with pytest.raises(ConfigError, match="known names: quickstart"):
        resolve(store, "zzz")


def test_best_is_what_its_stage_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    best = made(store, "policies", "round-3")

    def name_best(writer: ArtifactWriter) -> None:
        writer.notes["best"] = best.as_parent("best")._asdict()

    last = store.make(ArtifactSpec("policies", "online", "align", 1, {}), name_best)
    assert resolve(store, "online@best") == resolve(store, f"{last.ref}@best") == best
    assert resolve_model(store, "online@best", ("policies", "base-models")).parent == best.as_parent("model")
    for ref in ("round-3@best", f"policies/{best.ref}@best"):
        with pytest.raises(ConfigError, match=r"policies round-3@\w{8} names no best"):
            resolve(store, ref)


def test_a_pin_wins_over_a_newer_artifact_of_its_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = made(store, "policies", "talk", 1)
    made(store, "policies", "talk", 2)
    plan = ArtifactSpec("scores", "talk", "stage", 1, {})
    pinned = store.pinned(old, plan)
    assert resolve(pinned, "talk", "policies") == old
    assert resolve(pinned, "talk", "scores") == plan
    with pytest.raises(ConfigError, match="known once it is made"):
        resolve(pinned, "scores/talk@best")


def test_a_hub_model_is_named_with_its_revision(tmp_path: Path) -> None:
    found = resolve_model(Store(tmp_path), "hub:owner/name@abc", ("policies",))
    assert found.parent is None
    assert found.parents("policy") == ()
    assert found.fingerprint == {"hub": "owner/name", "revision": "abc"}
    assert found.policy(Store(tmp_path)) == Policy("owner/name", "abc")
    assert resolve_model(Store(tmp_path), "hub:owner/name", ()).fingerprint["revision"] is None


def test_a_folder_of_weights_is_named_by_their_digest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "notes.md").write_text("no part of the model", encoding="utf-8")
    first = resolve_model(store, str(folder), ("policies",))
    assert first.policy(store) == Policy(str(folder))
    (folder / "notes.md").write_text("other notes", encoding="utf-8")
    assert resolve_model(store, str(folder), ("policies",)).fingerprint == first.fingerprint
    (folder / "model.safetensors").write_bytes(b"Weights")
    assert resolve_model(store, str(folder), ("policies",)).fingerprint != first.fingerprint


def test_a_model_is_looked_for_among_the_kinds_in_their_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = made(store, "base-models", "tiny")
    kinds: tuple[Kind, ...] = ("policies", "base-models")
    found = resolve_model(store, "tiny", kinds)
    assert found.parents("start") == (base.as_parent("start"),)
    assert found.policy(store) == Policy(str(base.folder))
    policy = made(store, "policies", "tiny")
    assert resolve_model(store, "tiny", kinds).parent == policy.as_parent("model")
    assert resolve_model(store, "base-models/tiny", kinds).parent == base.as_parent("model")
    with pytest.raises(ConfigError, match=r"there is no policies or base-models 'tinny'; did you mean 'tiny'\?"):
        resolve_model(store, "tinny", kinds)


def test_an_artifact_of_another_store_is_a_parent_like_any(tmp_path: Path) -> None:
    theirs, ours = Store(tmp_path / "theirs"), Store(tmp_path / "ours")
    origin = theirs.make(ArtifactSpec("speeches", "talk", "stage", 1, {}, (), ("a warning",)), lambda writer: None)
    planned = ArtifactSpec("policies", "talk", "stage", 1, {}, (origin.as_parent("speeches"),))
    policy = theirs.make(planned, lambda writer: None)
    found = resolve(ours, str(policy.folder), "policies")
    assert found == policy
    child = ours.make(
        ArtifactSpec("candidates", "talk", "stage", 1, {}, (found.as_parent("model"),)), lambda writer: None
    )
    assert child.warnings == ("a warning",)
    assert [each.artifact for each in ancestors(ours, child)] == [child, policy, origin]
    model = resolve_model(ours, str(policy.folder), ("base-models", "policies"))
    assert model.parent == policy.as_parent("model")
    assert model.policy(ours) == Policy(str(policy.folder))


def test_a_damaged_model_of_another_store_is_left_where_it_stands(tmp_path: Path) -> None:
    def write(writer: ArtifactWriter) -> None:
        writer.file("model.safetensors").write_bytes(b"weights")

    theirs, ours = Store(tmp_path / "theirs"), Store(tmp_path / "ours")
    policy = theirs.make(ArtifactSpec("policies", "talk", "stage", 1, {}), write)
    policy.file("model.safetensors").write_bytes(b"weightS")
    model = resolve_model(ours, str(policy.folder), ("policies",))
    with pytest.raises(StoreError, match=r"model\.safetensors has other bytes") as fault:
        model.policy(ours)
    assert fault.value.remedy == "put an intact copy there"
    assert policy.folder.is_dir()


def test_a_planned_model_has_no_weights_yet(tmp_path: Path) -> None:
    store = Store(tmp_path).pinned(ArtifactSpec("policies", "talk", "stage", 1, {}))
    with pytest.raises(StoreError, match="is not in the store"):
        resolve_model(store, "talk", ("policies",)).policy(store)
