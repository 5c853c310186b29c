"""References find the artifact or model, or suggest a name; ancestors are walked once."""

import json
from pathlib import Path

import pytest

from psychocounsel.errors import ConfigError, StoreError
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind, Parent
from psychocounsel.store.references import (
    ancestors,
    labelling_judges,
    models_behind,
    raw_sources,
    resolve,
    resolve_model,
    settings_of,
)
from psychocounsel.store.store import Store
from psychocounsel.types import Policy


def build_nothing(_: ArtifactWriter) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def made(store: Store, kind: Kind, name: str, seed: int = 0) -> Artifact:
    return store.make(ArtifactSpec(kind, name, "stage", 1, {"seed": seed}), build_nothing)


def test_a_name_is_its_newest_and_an_id_is_exactly_one(store: Store) -> None:
    old, new = made(store, "policies", "talk", 1), made(store, "policies", "talk", 2)
    assert resolve(store, "talk") == new
    assert resolve(store, f"talk@{old.id[:8]}") == resolve(store, old.ref) == old
    assert resolve(store, f"policies/{old.ref}") == old
    assert resolve(store, str(old.folder)) == old
    with pytest.raises(ConfigError, match="there is no artifact 'talk@00000000'"):
        resolve(store, "talk@00000000")


@pytest.mark.parametrize("ref", ["a" * 300, "a/" * 3000, "no\0name"])
def test_a_reference_that_can_be_no_path_is_an_unknown_name(store: Store, ref: str) -> None:
    for find in (resolve, lambda *given: resolve_model(*given, ["policies"])):
        with pytest.raises(ConfigError, match="there is no artifact"):
            find(store, ref)


def test_a_name_of_two_kinds_must_be_made_clear(store: Store) -> None:
    policy, scores = made(store, "policies", "talk"), made(store, "scores", "talk")
    with pytest.raises(ConfigError, match="write policies/talk or scores/talk"):
        resolve(store, "talk")
    assert resolve(store, "talk", "scores") == resolve(store, "scores/talk") == scores
    assert resolve(store, "policies/talk") == policy
    for ref in ("policies/talk", str(policy.folder)):
        with pytest.raises(ConfigError, match="is one of policies; name one of preferences"):
            resolve(store, ref, "preferences")


def test_an_unknown_name_suggests_a_similar_one(store: Store) -> None:
    with pytest.raises(ConfigError, match="run the stage that creates it first"):
        resolve(store, "quickstart", "policies")
    made(store, "policies", "quickstart")
    with pytest.raises(ConfigError, match=r"did you mean 'quickstart'\?") as fault:
        resolve(store, "quikstart", "policies")
    assert fault.value.where == str(store.root)
    with pytest.raises(ConfigError, match="psychocounsel list"):
        resolve(store, "zzz")


def test_a_name_that_only_a_project_has_names_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(Store(Path("mine/data")), "preferences", "mine")
    for ref in ("mine", "preferences/mine"):
        with pytest.raises(ConfigError, match=r"--store mine/data$"):
            resolve(Store(Path("data")), ref)
    with pytest.raises(ConfigError, match="psychocounsel list"):
        resolve(Store(Path("data")), "min")


def test_labels_that_are_not_imported_yet_are_told_as_that(store: Store) -> None:
    made(store, "comparisons", "talk")
    for ref in ("talk", "annotations/talk"):
        with pytest.raises(ConfigError, match="annotate import"):
            resolve(store, ref, "annotations")
    made(store, "annotations", "talk")
    with pytest.raises(ConfigError, match="did you mean 'talk'"):
        resolve(store, "tolk", "annotations")


def test_best_is_what_the_stage_noted(store: Store) -> None:
    best = made(store, "policies", "round-3")

    def name_best(writer: ArtifactWriter) -> None:
        writer.notes["best"] = best.as_parent("best")._asdict()

    last = store.make(ArtifactSpec("policies", "online", "align", 1, {}), name_best)
    assert resolve(store, "online@best") == resolve(store, f"{last.ref}@best") == best
    assert resolve_model(store, "online@best", ("policies", "base-models")).parent == best.as_parent("model")
    for ref in ("round-3@best", f"policies/{best.ref}@best"):
        with pytest.raises(ConfigError, match=r"policies round-3@\w{8} names no best"):
            resolve(store, ref)


def test_a_first_round_on_weights_from_elsewhere_has_the_settings_of_its_answers_and_pairs(store: Store) -> None:
    def child(kind: Kind, settings: dict[str, object], *parents: Parent) -> Artifact:
        return store.make(ArtifactSpec(kind, "round-1", "align", 1, settings, parents), build_nothing)

    answers = child("candidates", {"candidates_per_speech": 8})
    pairs = child("preferences", {"unfinished": "penalise"}, answers.as_parent("candidates"))
    policy = child("policies", {"beta": 0.1}, pairs.as_parent("pairs"))
    assert settings_of(store, policy) == {"candidates_per_speech": 8, "unfinished": "penalise", "beta": 0.1}


def test_a_pin_wins_over_a_newer_artifact(store: Store) -> None:
    old = made(store, "policies", "talk", 1)
    made(store, "policies", "talk", 2)
    plan = ArtifactSpec("scores", "talk", "stage", 1, {})
    pinned = store.pinned(old, plan)
    assert resolve(pinned, "talk", "policies") == old
    assert resolve(pinned, "talk", "scores") == plan
    assert resolve(pinned, "scores/talk@best") == plan  # a dry run cannot know the best


def test_a_hub_model_is_named_with_its_revision(store: Store) -> None:
    found = resolve_model(store, "hub:owner/name@abc", ("policies",))
    assert found.parent is None
    assert found.parents("policy") == ()
    assert found.fingerprint == {"hub": "owner/name", "revision": "abc"}
    assert found.policy(store) == Policy("owner/name", "abc")
    assert resolve_model(store, "hub:owner/name", ()).fingerprint["revision"] is None


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


def test_kinds_of_models_are_tried_in_order(store: Store) -> None:
    base = made(store, "base-models", "tiny")
    kinds: tuple[Kind, ...] = ("policies", "base-models")
    found = resolve_model(store, "tiny", kinds)
    assert found.parents("start") == (base.as_parent("start"),)
    assert found.policy(store) == Policy(str(base.folder))
    policy = made(store, "policies", "tiny")
    assert resolve_model(store, "tiny", kinds).parent == policy.as_parent("model")
    assert resolve_model(store, "base-models/tiny", kinds).parent == base.as_parent("model")
    with pytest.raises(ConfigError, match=r"policies or base-models 'tinny'; did you mean 'tiny'\?"):
        resolve_model(store, "tinny", kinds)


def test_an_artifact_of_another_store_can_be_a_parent(tmp_path: Path) -> None:
    theirs, ours = Store(tmp_path / "theirs"), Store(tmp_path / "ours")
    origin = theirs.make(ArtifactSpec("speeches", "talk", "stage", 1, {}, (), ("a warning",)), build_nothing)
    planned = ArtifactSpec("policies", "talk", "stage", 1, {}, (origin.as_parent("speeches"),))
    policy = theirs.make(planned, build_nothing)
    found = resolve(ours, str(policy.folder), "policies")
    assert found == policy
    child = ours.make(ArtifactSpec("candidates", "talk", "stage", 1, {}, (found.as_parent("model"),)), build_nothing)
    assert child.warnings == ("a warning",)
    assert [each.artifact for each in ancestors(ours, child)] == [child, policy, origin]
    model = resolve_model(ours, str(policy.folder), ("base-models", "policies"))
    assert model.parent == policy.as_parent("model")
    assert model.policy(ours) == Policy(str(policy.folder))


def test_a_damaged_model_of_another_store_is_not_moved(tmp_path: Path) -> None:
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


def test_a_model_to_come_has_no_weights(tmp_path: Path) -> None:
    store = Store(tmp_path).pinned(ArtifactSpec("policies", "talk", "stage", 1, {}))
    with pytest.raises(StoreError, match="is not in the store"):
        resolve_model(store, "talk", ("policies",)).policy(store)


def made_from(store: Store, kind: Kind, *parents: Artifact, judge: str = "") -> Artifact:
    def note_judge(writer: ArtifactWriter) -> None:
        writer.notes.update({"judge": judge} if judge else {})

    roles = tuple(parent.as_parent(f"the {parent.kind}") for parent in parents)
    return store.make(ArtifactSpec(kind, kind, "stage", 1, {"judge": judge}, roles), note_judge)


def test_a_diamond_is_walked_once(store: Store) -> None:
    speeches = made_from(store, "speeches")
    candidates = made_from(store, "candidates", speeches)
    judgements = made_from(store, "judgements", speeches, candidates, judge="stand-in")
    preferences = made_from(store, "preferences", judgements, speeches, candidates)
    walked = [(each.artifact.kind, each.depth, each.role) for each in ancestors(store, preferences)]
    assert walked == [
        ("preferences", 0, ""),
        ("judgements", 1, "the judgements"),
        ("speeches", 2, "the speeches"),
        ("candidates", 2, "the candidates"),
    ]
    assert labelling_judges(store, preferences) == ("stand-in",)
    assert labelling_judges(store, candidates) == ()
    speeches.folder.rename(store.root / "elsewhere")
    with pytest.raises(StoreError, match=f"speeches {speeches.ref} is not in the store"):
        list(ancestors(store, candidates))


def test_two_judges_are_both_named_once(store: Store) -> None:
    first = made_from(store, "judgements", judge="b")
    second = made_from(store, "preferences", first, judge="a")
    third = made_from(store, "judgements", first, judge="b")
    assert labelling_judges(store, made_from(store, "comparisons", second, third)) == ("a", "b")


def answered_by(store: Store, responder: dict[str, object], *parents: Artifact) -> Artifact:
    roles = tuple(parent.as_parent("model") for parent in parents)
    return store.make(ArtifactSpec("candidates", "answers", "stage", 1, {"responder": responder}, roles), build_nothing)


def test_models_behind_answers(store: Store) -> None:
    online = {"initial_policy": {"hub": "meta-llama/Llama-3.1-8B-Instruct", "revision": None}}
    policy = store.make(ArtifactSpec("policies", "tuned", "align", 1, online), build_nothing)
    asked = answered_by(store, {"author": "a", "endpoint": {"model": "gpt-4o-2024-08-06"}})
    collected = answered_by(store, {"author": "chatgpt", "file": {"sha256": "0"}})
    tuned = answered_by(store, {"author": "tuned", "endpoint": None, "model": {}}, policy)
    fetched = answered_by(store, {"author": "b", "model": {"hub": "Qwen/Qwen2.5-7B", "revision": None}})
    assert models_behind(store, asked) == ("gpt-4o-2024-08-06",)
    assert models_behind(store, collected) == ("chatgpt",)
    assert models_behind(store, tuned) == ("meta-llama/Llama-3.1-8B-Instruct",)
    assert models_behind(store, fetched) == ("Qwen/Qwen2.5-7B",)


def test_raw_files_are_named_with_their_digests(store: Store) -> None:
    """A digest alone says nobody which file it was; of a source with several files each is one."""
    first, second, ratings = "a" * 64, "b" * 64, "c" * 64
    settings = {
        "speeches": [
            {"path": {"sha256": first}, "name": "forum.csv"},
            {"path": {"files": {"day-1.jsonl": first, "day-2.jsonl": second}}, "name": "day-*.jsonl"},
            {"path": {"hub": "owner/set", "split": "train"}, "name": "hub:owner/set"},
        ],
        "judge": {"path": {"sha256": ratings}, "rubric": second},
    }
    assert raw_sources(store.make(ArtifactSpec("speeches", "mine", "stage", 1, settings), build_nothing)) == (
        f"speeches.0.path: forum.csv, sha256 {first}",
        f"speeches.1.path: day-1.jsonl, sha256 {first}",
        f"speeches.1.path: day-2.jsonl, sha256 {second}",
        "speeches.2.path: hub owner/set",
        f"judge.path: sha256 {ratings}",
    )
