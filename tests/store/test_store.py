"""The store: artifacts are built once, found by content, never half, locked by one run at a time."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import ExitCode, IncompleteError, StoreError
from psychocounsel.store.artifacts import MANIFEST, ArtifactSpec, ArtifactWriter, Parent, drop_superseded
from psychocounsel.store.files import TEMPORARY_SUFFIX, link_or_copy, write_bytes
from psychocounsel.store.references import resolve
from psychocounsel.store.schemas import SplitSpeech, write_speeches
from psychocounsel.store.store import (
    Store,
    artifact_keys,
    damaged_files,
    differing_keys,
    flatten,
    hold_lock,
    is_held,
    note_failed,
    open_artifact,
    retry_spec,
)
from psychocounsel.types import Speech

TEXT = "data/text.txt"
SPEECHES = [SplitSpeech(Speech("I lie awake at four."), "train", "c")]
PARENT = Parent("speeches", "speeches", "talk", "a" * 64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


def spec_of(name: str = "talk", parents: tuple[Parent, ...] = (), **settings: Any) -> ArtifactSpec:
    return ArtifactSpec("speeches", name, "read-corpus", 1, settings or {"seed": 0}, parents)


def build(writer: ArtifactWriter) -> None:
    writer.file(TEXT).write_text("hello", encoding="utf-8")


def must_not_build(writer: ArtifactWriter) -> None:
    raise AssertionError(f"{writer.folder} is built a second time")


json_settings = st.dictionaries(
    st.text(max_size=6), st.integers() | st.booleans() | st.text(max_size=6) | st.lists(st.integers(), max_size=3)
)


@given(json_settings, json_settings)
def test_ids_are_equal_exactly_if_settings_are(left: dict[str, Any], right: dict[str, Any]) -> None:
    ids = [ArtifactSpec("speeches", "a", "stage", 1, settings).id for settings in (left, right)]
    assert (ids[0] == ids[1]) == (json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True))


def test_the_order_of_settings_and_parents_is_not_in_the_id() -> None:
    first, second = (Parent(role, "speeches", role, digit * 64) for role, digit in (("one", "1"), ("two", "2")))
    made = ArtifactSpec("candidates", "a", "stage", 1, {"x": 1, "y": 2}, (first, second))
    assert made.id == ArtifactSpec("candidates", "a", "stage", 1, {"y": 2, "x": 1}, (second, first)).id


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"name": "two"}, True),
        ({"warnings": ("a warning",)}, True),
        ({"parents": (PARENT._replace(name="x"),)}, True),
        ({"kind": "judgements"}, False),
        ({"stage": "other"}, False),
        ({"version": 2}, False),
        ({"settings": {"a": {"b": 2}}}, False),
        ({"parents": ()}, False),
        ({"parents": (PARENT._replace(id="b" * 64),)}, False),
        ({"parents": (PARENT._replace(role="other"),)}, False),
    ],
)
def test_what_decides_the_content_is_in_the_id(change: dict[str, Any], is_same: bool) -> None:
    fields: dict[str, Any] = {"kind": "candidates", "name": "one", "stage": "stage", "version": 1}
    fields |= {"settings": {"a": {"b": 1}}, "parents": (PARENT,)}
    assert (ArtifactSpec(**fields).id == ArtifactSpec(**{**fields, **change}).id) == is_same


def test_two_parents_with_one_role_are_refused() -> None:
    with pytest.raises(ValueError, match="share a role"):
        ArtifactSpec("candidates", "one", "stage", 1, {}, (PARENT, PARENT._replace(id="b" * 64)))


def test_a_complete_artifact_describes_itself_and_is_built_once(store: Store) -> None:
    spec = spec_of()
    made = store.make(spec, build)
    assert made.is_new
    assert made.folder == store.root / "speeches" / f"talk-{spec.id[:8]}"
    assert (made.id, made.kind, made.name, made.ref) == (spec.id, "speeches", "talk", f"talk@{spec.id[:8]}")
    assert made.manifest["files"] == {
        TEXT: {"bytes": 5, "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}
    }
    assert open_artifact(made.folder) == store.find(spec) == store.make(spec, must_not_build)
    assert not store.make(spec, must_not_build).is_new
    assert damaged_files(made) == {}


def test_an_interrupted_build_is_not_found_and_is_resumed(store: Store, log: pytest.LogCaptureFixture) -> None:
    def die(writer: ArtifactWriter) -> None:
        writer.file("half.txt").write_text("kept", encoding="utf-8")
        (writer.work / "step-1").write_text("checkpoint", encoding="utf-8")
        writer.file(f"table.parquet{TEMPORARY_SUFFIX}").write_text("torn", encoding="utf-8")
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
    assert "resumes" in log.text


@pytest.mark.parametrize(("written", "is_left"), [("", False), (f"rows{TEMPORARY_SUFFIX}", False), ("row", True)])
def test_a_failed_build_leaves_no_empty_folder(store: Store, written: str, is_left: bool) -> None:
    def fail(writer: ArtifactWriter) -> None:
        if written:
            (writer.work / written).touch()
        raise IncompleteError(f"nothing can be read into {writer.work}")

    with pytest.raises(IncompleteError):
        store.make(spec_of(), fail)
    assert bool([*(store.root / "speeches").iterdir()]) == is_left


def test_everything_is_on_the_disk_before_the_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real_fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    folder = store.make(spec_of(), build).folder
    manifest_at = flushed.index(MANIFEST + TEMPORARY_SUFFIX)
    assert {"text.txt", "data", folder.name, "speeches"} <= set(flushed[:manifest_at])
    assert flushed[manifest_at + 1 :] == [folder.name]


def test_a_file_of_another_size_is_set_aside_and_made_again(store: Store, log: pytest.LogCaptureFixture) -> None:
    made = store.make(spec_of(), build)
    made.file(TEXT).write_text("hell", encoding="utf-8")
    assert store.find(spec_of()) is None
    assert made.folder.exists(), "looking must not move anything"
    again = store.make(spec_of(), build)
    assert again.is_new
    assert damaged_files(again) == {}
    (aside,) = made.folder.parent.glob(".damaged-talk-*")
    assert (aside / TEXT).read_text(encoding="utf-8") == "hell"
    assert aside.name in log.text
    assert store.artifacts() == [again]


def test_metrics_with_another_digit_are_not_shown(store: Store) -> None:
    made = store.make(spec_of(), lambda writer: write_bytes(writer.file("metrics.json"), b'{"rate": 0.85}'))
    assert store.open(made.as_parent("")).metrics == {"rate": 0.85}
    made.file("metrics.json").write_bytes(b'{"rate": 0.95}')
    with pytest.raises(StoreError, match=r"metrics.json.*damaged"):
        _ = store.open(made.as_parent("")).metrics


def test_a_flipped_byte_and_a_lost_file_are_found(store: Store) -> None:
    made = store.make(spec_of(), build)
    made.file(TEXT).write_text("hellO", encoding="utf-8")
    assert damaged_files(made) == {TEXT: "has other bytes than the manifest says"}
    made.file(TEXT).unlink()
    assert damaged_files(made) == {TEXT: "is missing"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"{}", b'{"format": 2}', b"[" * 100_000),
        b'{"format": 1, "id": "a", "kind": "speeches", "name": "talk"}',
    ],
    ids=range(9),
)
def test_a_broken_manifest_is_left_out_of_the_list(store: Store, log: pytest.LogCaptureFixture, content: bytes) -> None:
    intact = store.make(spec_of(name="intact", seed=1), build)
    broken = store.make(spec_of(), build)
    (broken.folder / MANIFEST).write_bytes(content)
    with pytest.raises(StoreError) as fault:
        open_artifact(broken.folder)
    assert fault.value.where == str(broken.folder / MANIFEST)
    assert [store.artifacts() for _ in range(3)] == [[intact]] * 3
    assert log.messages.count(f"left out: {fault.value}") == 1
    assert store.make(spec_of(), build).is_new
    assert {each.name for each in store.artifacts()} == {"intact", "talk"}


def test_a_truncated_or_missing_manifest_is_refused(store: Store) -> None:
    made = store.make(spec_of(), build)
    whole = (made.folder / MANIFEST).read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        (made.folder / MANIFEST).write_bytes(whole[:length])
        with pytest.raises(StoreError):
            open_artifact(made.folder)
    (made.folder / MANIFEST).unlink()
    with pytest.raises(StoreError):
        open_artifact(made.folder)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def quota_used_up(_: ArtifactWriter) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize(
    ("failing", "fill"),
    [
        ("os.fsync", build),
        ("pathlib.Path.write_text", build),  # of the lock
        ("pyarrow.parquet.ParquetWriter.write_table", lambda writer: write_speeches(writer, SPEECHES)),
        ("", no_space),
        ("", quota_used_up),
    ],
)
def test_a_full_disk_leaves_the_run_incomplete_and_earlier_artifacts_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: str, fill: Callable[[ArtifactWriter], None]
) -> None:
    earlier = store.make(spec_of(name="earlier", seed=1), build)
    with (
        monkeypatch.context() as patched,
        pytest.raises(IncompleteError, match=r"could not write: (No space|Disk qu)") as fault,
    ):
        if failing:
            patched.setattr(failing, no_space)
        store.make(spec_of(), fill)
    assert fault.value.exit_code == ExitCode.INCOMPLETE == 3
    assert fault.value.remedy.startswith("free some space")
    assert fault.value.remedy.endswith("run the same command again")
    assert store.artifacts() == [earlier]
    assert damaged_files(earlier) == {}
    assert store.make(spec_of(), build).is_new


def test_another_fault_of_the_system_is_no_full_disk(store: Store) -> None:
    def fail(_: ArtifactWriter) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        store.make(spec_of(), fail)


@pytest.mark.parametrize("failing", ["open", "fsync"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "metrics.json"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, failing, no_space)
    with pytest.raises(IncompleteError) as fault:
        write_bytes(path, b"new")
    assert fault.value.where == str(path)
    assert path.read_bytes() == b"old"


def test_a_store_that_is_not_writable_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written to"):
        Store(tmp_path / "file").make(spec_of(), build)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_user_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    for use in (lambda: store.make(spec_of(), build), store.in_use().__enter__):
        with pytest.raises(StoreError, match=os.strerror(number)) as fault:
            use()
        assert "locks" in fault.value.remedy


def test_warnings_are_inherited_once_and_in_order(store: Store) -> None:
    first = store.make(ArtifactSpec("speeches", "a", "s", 1, {}, (), ("offline judge",)), build)
    second = store.make(ArtifactSpec("speeches", "b", "s", 1, {"x": 1}, (), ("samples", "offline judge")), build)
    parents = (first.as_parent("one"), second.as_parent("two"))
    child = store.make(ArtifactSpec("candidates", "c", "s", 1, {}, parents, ("own", "samples")), build)
    assert child.warnings == ("offline judge", "samples", "own")
    assert child.parent("two") == second.as_parent("two")
    with pytest.raises(StoreError, match="has no third"):
        child.parent("third")


def test_a_renamed_config_gives_its_artifact_a_second_name(store: Store) -> None:
    old = store.make(spec_of(name="old"), build)
    new = store.make(spec_of(name="new"), must_not_build)
    assert (new.name, new.id, new.is_new) == ("new", old.id, False)
    assert damaged_files(new) == {}
    assert resolve(store, "new") == store.find(spec_of(name="new")) == open_artifact(new.folder)
    assert resolve(store, "old") == old
    assert store.make(spec_of(name="new"), must_not_build).folder == new.folder


def test_a_parent_is_found_by_its_id_under_any_name(store: Store) -> None:
    made = store.make(spec_of(), build)
    assert store.open(made.as_parent("x")._replace(name="forgotten")) == made
    with pytest.raises(StoreError, match=r"speeches talk@ffffffff is not in the store"):
        store.open(Parent("x", "speeches", "talk", "f" * 64))


def test_a_changed_config_is_compared_with_the_nearest(store: Store, log: pytest.LogCaptureFixture) -> None:
    store.make(spec_of(a={"x": 1, "y": 2}, b=1), build)
    near = store.make(spec_of(a={"x": 1, "y": 3}, b=1), build)
    changed = store.make(spec_of(a={"x": 1, "y": 3}, b=2), build)
    store.make(spec_of(name="unlike", b=9), build)
    assert log.messages[1:] == [f"speeches {changed.ref}: new, differs from {near.ref} in b"]
    store.make(spec_of(**dict.fromkeys("abcdefghij", 1)), build)
    assert log.messages[-1].endswith("e and 5 more")


def test_two_artifacts_differ_in_settings_parents_and_version(store: Store) -> None:
    nested = {"a": {"b": [1, {"c": 2}], "d": {}}, "e": [], "f": None, "g": (3,)}
    assert flatten(nested) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": {}, "e": [], "f": None, "g.0": 3}
    parent, other = store.make(spec_of(), build), store.make(spec_of(seed=1), build)
    left = store.make(ArtifactSpec("candidates", "c", "s", 1, {"a": None}, (parent.as_parent("talk"),)), build)
    right = store.make(ArtifactSpec("candidates", "c", "s", 2, {}, (other.as_parent("talk"),)), build)
    assert differing_keys(artifact_keys(left), artifact_keys(right)) == ("a", "parent talk", "stage version")
    assert differing_keys(artifact_keys(left), artifact_keys(left)) == ()


def test_metrics_refuse_what_json_cannot_express(store: Store) -> None:
    with pytest.raises(ValueError):
        store.make(spec_of(), lambda writer: writer.write_metrics({"loss": float("nan")}))


def test_artifacts_come_oldest_first_and_by_kind(store: Store) -> None:
    first = store.make(spec_of(seed=5), build)
    second = store.make(ArtifactSpec("scores", "z", "s", 1, {}), build)
    third = store.make(spec_of(seed=3), build)
    assert store.artifacts() == [first, second, third]
    assert store.artifacts("speeches") == [first, third]
    assert Store(store.root / "nothing").artifacts() == []


def test_failures_are_retried_in_new_artifacts_that_stand_for_the_first_once_they_are_complete(store: Store) -> None:
    spec = spec_of()
    assert retry_spec(spec, store, again=True) is spec
    store.make(spec, lambda writer: note_failed(writer, 2))
    first = retry_spec(spec, store, again=True)
    assert first.settings["retried_from"] == spec.id != first.id
    assert retry_spec(spec, store, again=True) == first, "an unfinished retry is resumed"
    assert retry_spec(spec, store, again=False) == spec
    store.make(first, lambda writer: note_failed(writer, 1))
    second = retry_spec(spec, store, again=True)
    assert second.settings["retried_from"] == first.id
    assert retry_spec(spec, store, again=False) == first
    store.make(second, lambda writer: note_failed(writer, 0))
    assert retry_spec(spec, store, again=True) == second == retry_spec(spec, store, again=False)


def test_a_name_goes_back_to_what_a_run_found(store: Store) -> None:
    first, changed = spec_of(seed=1), spec_of(seed=2)
    for spec in (first, changed):
        store.make(spec, build)
    assert resolve(store, "talk").id == changed.id
    store.name_again([first])
    assert resolve(store, "talk").id == first.id == store.artifacts("speeches")[-1].id


def test_a_second_name_means_what_took_it_last(store: Store) -> None:
    old, other = spec_of(name="old", seed=1), spec_of(name="old", seed=2)
    for spec in (old, other):
        store.make(spec, build)
    store.name_again([old])
    store.make(spec_of(name="new", seed=3), build)
    alias = store.make(spec_of(name="new", seed=1), must_not_build)
    assert resolve(store, "new") == alias


def test_a_name_means_what_was_made_last_though_another_machine_has_a_clock_that_is_ahead(store: Store) -> None:
    ahead, later = store.make(spec_of(seed=1), build), spec_of(seed=2)
    manifest = {**ahead.manifest, "created_at": "2999-01-01T00:00:00.000000+00:00"}
    write_bytes(ahead.file(MANIFEST), json.dumps(manifest).encode())
    store.make(later, build)
    for spec in (later, spec_of(seed=1), later):
        store.name_again([spec])
        assert resolve(store, "talk").id == spec.id


def test_a_name_stays_where_another_process_is_at_work(store: Store, log: pytest.LogCaptureFixture) -> None:
    first, last = (store.make(spec_of(seed=seed), build) for seed in (1, 2))
    with store.in_use(alone=True):
        store.name_again([spec_of(seed=1)])
    assert resolve(store, "talk") == last
    assert "still means" in log.text
    store.name_again([spec_of(seed=1), spec_of(seed=3)])
    assert resolve(store, "talk").id == first.id


HOLD = """
import sys, time
from pathlib import Path
from psychocounsel.store.artifacts import ArtifactSpec
from psychocounsel.store.store import Store

def build(writer):
    writer.file("half.txt").write_text("half", encoding="utf-8")
    print("building", flush=True)
    time.sleep(60)

Store(Path(sys.argv[1])).make(ArtifactSpec("speeches", "talk", "read-corpus", 1, {"seed": 0}), build)
"""


def test_a_second_run_names_the_first_and_a_killed_one_is_forgotten(store: Store) -> None:
    def finish(writer: ArtifactWriter) -> None:
        assert writer.file("half.txt").read_text(encoding="utf-8") == "half"

    with subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"building\n"
        with pytest.raises(StoreError, match=f"process {first.pid} on {platform.node()}") as fault:
            store.make(spec_of(), finish)
        assert fault.value.exit_code == ExitCode.USER_ERROR
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert set(store.make(spec_of(), finish).manifest["files"]) == {"half.txt"}


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_lock(tmp_path / "a.lock", "a thing"):
        raise KeyError
    second = hold_lock(tmp_path / "a.lock", "a thing")
    with hold_lock(tmp_path / "a.lock", "a thing"), pytest.raises(StoreError, match="a thing is being created"):
        second.__enter__()


def test_a_process_that_was_forked_meanwhile_does_not_go_on_holding_a_lock(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "a.lock", "a thing"):
        ours, its = os.pipe()
        if not (forked := os.fork()):
            os.close(its)
            os.read(ours, 1)
            os._exit(0)
    try:
        assert not is_held(tmp_path / "a.lock")
    finally:
        os.close(its)
        os.waitpid(forked, 0)


def test_another_run_may_drop_the_files_of_a_round_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ArtifactSpec("policies", "mini", "align", 1, {})
    policy = Store(tmp_path).make(spec, lambda writer: writer.file("model.safetensors").touch())
    drop_superseded(policy, weights=True, optimizer=False)
    monkeypatch.setattr(Path, "exists", lambda path: True)  # so it was a moment ago
    drop_superseded(open_artifact(policy.folder), weights=True, optimizer=False)
    assert not policy.file("model.safetensors").is_file()


def test_an_overlay_shows_the_store_below_and_never_changes_it(tmp_path: Path) -> None:
    below = Store(tmp_path / "store")
    spec = ArtifactSpec("reports", "one", "test", 1, {})
    other = ArtifactSpec("reports", "two", "test", 1, {"other": True})
    below.make(spec, lambda writer: write_bytes(writer.file("page"), b"one"))
    before = sorted(below.root.rglob("*"))
    overlay = below.overlay(tmp_path / "overlay")
    assert overlay.find(spec) == below.find(spec)
    made = overlay.make(other, lambda writer: write_bytes(writer.file("page"), b"two"))
    assert made.folder.is_relative_to(tmp_path / "overlay")
    assert {each.name for each in overlay.artifacts("reports")} == {"one", "two"}
    (below.folder_of(spec) / "page").write_bytes(b"damaged")
    overlay.make(spec, lambda writer: write_bytes(writer.file("page"), b"one"))
    assert sorted(below.root.rglob("*")) == before


def test_file_is_linked_again_over_what_a_killed_run_left(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("whole")
    for _ in range(2):
        link_or_copy(source, target)
        assert target.samefile(source)
    target.unlink()
    target.write_text("wh")
    link_or_copy(source, target)
    assert (source.read_text(), target.read_text()) == ("whole", "whole")
