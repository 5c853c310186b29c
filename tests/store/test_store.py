"""ArtifactSpec -> sealed artifact: made once, found again by content, never half."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import ExitCode, IncompleteError, StoreError
from psychocounsel.store import files as atomic
from psychocounsel.store.artifacts import MANIFEST, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.references import resolve
from psychocounsel.store.store import (
    Store,
    artifact_keys,
    damaged_files,
    differing_keys,
    flatten,
    open_artifact,
)


def spec_of(name: str = "talk", parents: tuple[Parent, ...] = (), **settings: Any) -> ArtifactSpec:
    return ArtifactSpec("speeches", name, "read-corpus", 1, settings or {"seed": 0}, parents)


def write_text(text: str = "hello") -> Callable[[ArtifactWriter], None]:
    def build(writer: ArtifactWriter) -> None:
        writer.file("data/text.txt").write_text(text, encoding="utf-8")
        writer.rows["data/text.txt"] = 1
        writer.write_metrics({"rate": {"estimate": 0.5}})

    return build


def must_not_build(writer: ArtifactWriter) -> None:
    raise AssertionError(f"{writer.folder} is built a second time")


json_settings = st.dictionaries(
    st.text(max_size=6),
    st.integers() | st.booleans() | st.text(max_size=6) | st.lists(st.integers(), max_size=3),
)


@given(json_settings, json_settings)
def test_equal_settings_and_only_they_give_equal_ids(left: dict[str, Any], right: dict[str, Any]) -> None:
    ids = [ArtifactSpec("speeches", "a", "stage", 1, settings).id for settings in (left, right)]
    assert (ids[0] == ids[1]) == (json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True))


@given(st.permutations(["alpha", "beta", "gamma"]))
def test_the_order_of_settings_and_parents_is_not_in_the_id(order: list[str]) -> None:
    parents = {name: Parent(name, "speeches", name, f"{at}" * 64) for at, name in enumerate(sorted(order))}
    settings = dict.fromkeys(order, 1)
    made = ArtifactSpec("candidates", "a", "stage", 1, settings, tuple(parents[name] for name in order))
    sorted_plan = ArtifactSpec("candidates", "a", "stage", 1, dict.fromkeys(sorted(order), 1), tuple(parents.values()))
    assert made.id == sorted_plan.id


def test_whatever_decides_the_content_is_in_the_id_and_the_name_is_not() -> None:
    parent = Parent("speeches", "speeches", "talk", "a" * 64)
    base = ArtifactSpec("candidates", "one", "stage", 1, {"a": {"b": 1}}, (parent,))
    assert ArtifactSpec("candidates", "two", "stage", 1, {"a": {"b": 1}}, (parent,), ("a notice",)).id == base.id
    assert ArtifactSpec("candidates", "one", "stage", 1, {"a": {"b": 1}}, (parent._replace(name="x"),)).id == base.id
    others = [
        ArtifactSpec("judgements", "one", "stage", 1, {"a": {"b": 1}}, (parent,)),
        ArtifactSpec("candidates", "one", "other", 1, {"a": {"b": 1}}, (parent,)),
        ArtifactSpec("candidates", "one", "stage", 2, {"a": {"b": 1}}, (parent,)),
        ArtifactSpec("candidates", "one", "stage", 1, {"a": {"b": 2}}, (parent,)),
        ArtifactSpec("candidates", "one", "stage", 1, {"a": {"b": 1}}),
        ArtifactSpec("candidates", "one", "stage", 1, {"a": {"b": 1}}, (parent._replace(id="b" * 64),)),
        ArtifactSpec("candidates", "one", "stage", 1, {"a": {"b": 1}}, (parent._replace(role="other"),)),
    ]
    assert len({base.id, *(other.id for other in others)}) == 1 + len(others)


def test_two_parents_in_one_role_are_refused() -> None:
    parents = (Parent("model", "policies", "a", "a" * 64), Parent("model", "policies", "b", "b" * 64))
    with pytest.raises(ValueError, match="share a role"):
        ArtifactSpec("candidates", "one", "stage", 1, {}, parents)


def test_a_sealed_artifact_says_what_it_is(tmp_path: Path) -> None:
    plan = spec_of()
    made = Store(tmp_path).make(plan, write_text())
    assert made.is_new
    assert made.folder == tmp_path / "speeches" / f"talk-{plan.id[:8]}"
    assert (made.id, made.kind, made.name, made.ref) == (plan.id, "speeches", "talk", f"talk@{plan.id[:8]}")
    assert made.metrics == {"rate": {"estimate": 0.5}}
    assert set(made.manifest["files"]) == {"data/text.txt", "metrics.json"}
    assert made.manifest["files"]["data/text.txt"] == {
        "bytes": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }
    assert open_artifact(made.folder) == Store(tmp_path).find(plan)
    assert damaged_files(made) == {}


def test_the_second_make_owes_nothing(tmp_path: Path) -> None:
    Store(tmp_path).make(spec_of(), write_text())
    again = Store(tmp_path).make(spec_of(), must_not_build)
    assert not again.is_new
    assert again.file("data/text.txt").read_text(encoding="utf-8") == "hello"


def test_a_build_that_dies_is_not_found_and_is_resumed_in_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = Store(tmp_path)

    def die(writer: ArtifactWriter) -> None:
        writer.file("half.txt").write_text("kept", encoding="utf-8")
        (writer.work / "step-1").write_text("checkpoint", encoding="utf-8")
        writer.file("table.parquet.partial").write_text("torn", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make(spec_of(), die)
    assert store.find(spec_of()) is None
    assert store.artifacts() == []

    def finish(writer: ArtifactWriter) -> None:
        assert (writer.work / "step-1").read_text(encoding="utf-8") == "checkpoint"
        assert writer.file("half.txt").read_text(encoding="utf-8") == "kept"

    made = store.make(spec_of(), finish)
    assert set(made.manifest["files"]) == {"half.txt"}
    assert sorted(path.name for path in made.folder.iterdir()) == ["half.txt", MANIFEST]
    assert caplog.messages == [f"speeches {spec_of().ref}: resumes an unfinished build"]


def test_the_manifest_is_written_after_everything_else_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real_fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    folder = Store(tmp_path).make(spec_of(), write_text()).folder
    manifest_at = flushed.index(MANIFEST + atomic.TEMPORARY_SUFFIX)
    assert {"text.txt", "data", "metrics.json", folder.name, "speeches"} <= set(flushed[:manifest_at])
    assert flushed[manifest_at + 1 :] == [folder.name]


def test_a_file_of_another_size_is_set_aside_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store = Store(tmp_path)
    made = store.make(spec_of(), write_text())
    made.file("data/text.txt").write_text("hell", encoding="utf-8")
    assert store.find(spec_of()) is None
    assert made.folder.exists(), "looking must not move anything"
    again = store.make(spec_of(), write_text())
    assert again.is_new
    assert damaged_files(again) == {}
    aside = [path for path in made.folder.parent.iterdir() if path.name.startswith(".damaged-talk-")]
    assert [(path / "data" / "text.txt").read_text(encoding="utf-8") for path in aside] == ["hell"]
    assert "damaged, moved to .damaged-talk-" in caplog.text
    assert store.artifacts() == [again]


def test_verify_finds_a_flipped_byte_and_a_lost_file(tmp_path: Path) -> None:
    made = Store(tmp_path).make(spec_of(), write_text())
    made.file("data/text.txt").write_text("hellO", encoding="utf-8")
    assert damaged_files(made) == {"data/text.txt": "has other bytes than the manifest says"}
    made.file("data/text.txt").unlink()
    assert damaged_files(made) == {"data/text.txt": "is missing"}


BROKEN = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"{}",
    b'{"format": 2}',
    b"[" * 100_000,
    b'{"format": 1, "id": "a", "kind": "speeches", "name": "talk"}',
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_manifest_is_one_clear_error_and_no_end_of_the_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    caplog.set_level("INFO")
    store = Store(tmp_path)
    sound = store.make(spec_of(name="sound", seed=1), write_text())
    broken = store.make(spec_of(), write_text())
    (broken.folder / MANIFEST).write_bytes(content)
    with pytest.raises(StoreError) as fault:
        open_artifact(broken.folder)
    assert fault.value.where == str(broken.folder / MANIFEST)
    assert "move the folder away" in fault.value.remedy
    assert [store.artifacts() for _ in range(3)] == [[sound]] * 3
    assert caplog.messages.count(f"left out: {fault.value}") == 1
    again = store.make(spec_of(), write_text("other"))
    assert again.is_new
    assert again.file("data/text.txt").read_text(encoding="utf-8") == "other"
    assert {each.name for each in store.artifacts()} == {"sound", "talk"}


def test_every_cut_of_a_manifest_is_refused(tmp_path: Path) -> None:
    made = Store(tmp_path).make(spec_of(), write_text())
    whole = (made.folder / MANIFEST).read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        (made.folder / MANIFEST).write_bytes(whole[:length])
        with pytest.raises(StoreError):
            open_artifact(made.folder)


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a complete artifact"):
        open_artifact(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_unfinished_run_whoever_meets_it(tmp_path: Path, number: int) -> None:
    def fill(writer: ArtifactWriter) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(IncompleteError, match="free some space") as fault:
        Store(tmp_path).make(spec_of(), fill)
    assert fault.value.exit_code == ExitCode.INCOMPLETE


def test_another_system_error_of_a_build_is_ours_and_passes(tmp_path: Path) -> None:
    def lose_the_network(writer: ArtifactWriter) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        Store(tmp_path).make(spec_of(), lose_the_network)


def test_a_disk_that_fills_while_sealing_leaves_earlier_artifacts_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    earlier = store.make(spec_of(name="earlier", seed=1), write_text())

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(IncompleteError, match="could not write: No space left on device"):
            store.make(spec_of(), write_text())
    assert store.artifacts() == [earlier]
    assert damaged_files(earlier) == {}
    assert store.make(spec_of(), write_text()).is_new


@pytest.mark.parametrize("failing", ["open", "fsync"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "metrics.json"
    atomic.write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(IncompleteError, match=r"metrics\.json: could not write: No space left"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_store_that_cannot_be_written_to_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(StoreError, match="the store cannot be written to"):
        Store(tmp_path / "file").make(spec_of(), write_text())


def test_notices_are_inherited_once_and_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.make(ArtifactSpec("speeches", "a", "s", 1, {}, (), ("offline judge",)), write_text())
    second = store.make(ArtifactSpec("speeches", "b", "s", 1, {"x": 1}, (), ("samples", "offline judge")), write_text())
    parents = (first.as_parent("one"), second.as_parent("two"))
    child = store.make(ArtifactSpec("candidates", "c", "s", 1, {}, parents, ("own", "samples")), write_text())
    assert child.warnings == ("offline judge", "samples", "own")
    assert child.parent("two") == second.as_parent("two")
    with pytest.raises(StoreError, match="has no third"):
        child.parent("third")


def test_a_renamed_config_gives_its_artifact_a_second_name_and_costs_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = store.make(spec_of(name="old"), write_text())
    new = store.make(spec_of(name="new"), must_not_build)
    assert (new.name, new.id, new.is_new) == ("new", old.id, False)
    assert damaged_files(new) == {}
    assert resolve(store, "new") == store.find(spec_of(name="new")) == open_artifact(new.folder)
    assert resolve(store, "old") == old
    assert store.make(spec_of(name="new"), must_not_build).folder == new.folder


def test_a_child_finds_its_parent_by_id_whatever_its_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.make(spec_of(), write_text())
    assert store.open(made.as_parent("x")._replace(name="forgotten")) == made
    with pytest.raises(StoreError, match=r"speeches talk@ffffffff is not in the store"):
        store.open(Parent("x", "speeches", "talk", "f" * 64))


def test_a_changed_config_shows_the_keys_that_differ_from_the_nearest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = Store(tmp_path)
    store.make(spec_of(a={"x": 1, "y": 2}, b=1), write_text())
    near = store.make(spec_of(a={"x": 1, "y": 3}, b=1), write_text())
    changed = store.make(spec_of(a={"x": 1, "y": 3}, b=2), write_text())
    store.make(spec_of(name="unlike", b=9), write_text())
    assert caplog.messages[1:] == [f"speeches {changed.ref}: new, differs from {near.ref} in b"]


def test_flattening_keeps_empty_blocks_and_lists() -> None:
    nested = {"a": {"b": [1, {"c": 2}], "d": {}}, "e": [], "f": None, "g": (3,)}
    assert flatten(nested) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": {}, "e": [], "f": None, "g.0": 3}


def test_keys_tell_settings_parents_and_version_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = store.make(spec_of(), write_text())
    other = store.make(spec_of(seed=1), write_text())
    left = store.make(ArtifactSpec("candidates", "c", "s", 1, {"a": None}, (parent.as_parent("talk"),)), write_text())
    right = store.make(ArtifactSpec("candidates", "c", "s", 2, {}, (other.as_parent("talk"),)), write_text())
    keys = differing_keys(artifact_keys(left), artifact_keys(right))
    assert keys == ("a", "parent talk", "stage version")
    assert differing_keys(artifact_keys(left), artifact_keys(left)) == ()


def test_metrics_refuse_what_json_has_no_word_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).make(spec_of(), lambda writer: writer.write_metrics({"loss": float("nan")}))


def test_artifacts_come_oldest_first_and_by_kind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.make(spec_of(seed=5), write_text())
    second = store.make(ArtifactSpec("scores", "z", "s", 1, {}), write_text())
    third = store.make(spec_of(seed=3), write_text())
    assert store.artifacts() == [first, second, third]
    assert store.artifacts("speeches") == [first, third]
    assert Store(tmp_path / "nothing").artifacts() == []
