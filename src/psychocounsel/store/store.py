"""One run per artifact: a lock that names its holder and dies with it."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from psychocounsel.errors import IncompleteError, StoreError
from psychocounsel.store.artifacts import (
    FORMAT,
    KINDS,
    MANIFEST,
    SHORT_ID,
    Artifact,
    ArtifactSpec,
    ArtifactWriter,
    Kind,
    Parent,
    alias,
    commit,
)
from psychocounsel.store.files import cached_digest, digest_of_file, full_disk_faults


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="ascii")
    except OSError as fault:
        raise StoreError(
            f"the store cannot be written to: {fault.strerror}",
            where=str(path.parent),
            remedy="name a folder of yours with --store, or mend the permissions",
        ) from fault


@contextmanager
def held(path: Path, what: str) -> Generator[None]:
    """Hold the lock file at `path`; the kernel frees it when the process ends, however it ends.

    Raises:
        StoreError: another live process holds it; the message names that process.
    """
    with _opened(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise StoreError(
                f"{what} is being made by {holder}",
                where=str(path),
                remedy="wait for it to end, or stop it and run this command again",
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        yield


_MANIFEST_TYPES: dict[str, type] = {
    "id": str,
    "kind": str,
    "name": str,
    "version": int,
    "settings": dict,
    "parents": list,
    "warnings": list,
    "rows": dict,
    "notes": dict,
    "files": dict,
    "created_at": str,
}


class Nearest(NamedTuple):
    """The most similar earlier artifact and the settings or parents in which a plan differs."""

    artifact: Artifact
    differing_keys: tuple[str, ...]


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Store:
    """All artifacts below one folder, `root/<kind>/<name>-<id8>/`."""

    root: Path
    notify: Callable[[str], None] = _silent
    offline: bool = False
    pins: tuple[ArtifactSpec | Artifact, ...] = field(default=(), repr=False)
    _told: set[str] = field(default_factory=set[str], repr=False, compare=False)
    _roots: list[Path] = field(default_factory=list[Path], repr=False, compare=False)

    def pinned(self, *pins: ArtifactSpec | Artifact) -> "Store":
        """Return a store in which these win over newer artifacts of the same kind and name."""
        return replace(self, pins=(*pins, *self.pins))

    def make(self, plan: ArtifactSpec, build: Callable[[ArtifactWriter], None]) -> Artifact:
        """Return the artifact of a plan, building it only if it does not exist.

        An unfinished folder of the same id is handed to `build` as it was left, so that only what is owed
        is done again. A damaged one is set aside and built anew. The manifest is written last.

        Raises:
            StoreError: another run is making it.
            IncompleteError: the disk is full.
        """
        folder = self.folder_of(plan)
        with self._lock(plan), full_disk_faults(folder):
            found = self.find(plan)
            if found is not None:
                return found if found.name == plan.name else alias(found, plan.name, folder)
            self._set_damaged_aside(plan)
            self._announce(plan)
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            writer = ArtifactWriter(plan, folder)
            build(writer)
            return commit(writer, self._warnings(plan), time.monotonic() - started)

    def _warnings(self, plan: ArtifactSpec) -> list[str]:
        inherited = [warning for parent in plan.parents for warning in self.open(parent).warnings]
        return list(dict.fromkeys([*inherited, *plan.warnings]))

    def _lock(self, plan: ArtifactSpec) -> AbstractContextManager[None]:
        return held(self.root / ".locks" / f"{plan.kind}-{plan.id[:16]}.lock", f"{plan.kind} {plan.ref}")

    def _announce(self, plan: ArtifactSpec) -> None:
        if self.folder_of(plan).exists():
            self.notify(f"{plan.kind} {plan.ref}: going on where it was left")
            return
        nearest = self.nearest(plan)
        if nearest is not None and nearest.differing_keys:
            keys = ", ".join(nearest.differing_keys[:6])
            self.notify(f"{plan.kind} {plan.ref}: new, differs from {nearest.artifact.ref} in {keys}")

    def folder_of(self, plan: ArtifactSpec) -> Path:
        """Return the folder in which a plan's artifact stands or will stand."""
        return self.root / plan.kind / plan.folder_name

    def find(self, plan: ArtifactSpec) -> Artifact | None:
        """Return the sealed artifact with the plan's id, or None; one of the plan's name comes first.

        One whose files are gone or of another size is not found.
        """
        same_id = [artifact for artifact in self.artifacts(plan.kind) if artifact.id == plan.id]
        sound = [artifact for artifact in same_id if _sizes_fit(artifact)]
        return min(sound, key=lambda artifact: artifact.name != plan.name, default=None)

    def require_intact(self, artifact: Artifact) -> None:
        """Check every file of an artifact that other libraries are about to read, which check nothing.

        Raises:
            IncompleteError: a file is damaged; the artifact is set aside, so that its stage makes it again.
            StoreError: it is damaged, and stands in another store.
        """
        damage = damaged_files(artifact, cached_digest)
        if not damage:
            return
        told = ", ".join(f"{name} {fault}" for name, fault in sorted(damage.items()))
        if not artifact.folder.is_relative_to(self.root):
            raise StoreError(told, where=str(artifact.folder), remedy="put a sound copy there")
        aside = self._set_aside(artifact.folder)
        raise IncompleteError(
            f"{artifact.kind} {artifact.ref} is damaged: {told}",
            where=str(aside),
            remedy="it was set aside there; run the recipe, or the stage that makes it, again",
        )

    def _set_damaged_aside(self, plan: ArtifactSpec) -> None:
        """Rename the folders in which a plan's artifact is damaged, so that they are kept but not found."""
        folders = {artifact.folder for artifact in self.artifacts(plan.kind) if artifact.id == plan.id}
        if (self.folder_of(plan) / MANIFEST).exists():
            folders.add(self.folder_of(plan))
        for folder in sorted(folders):
            aside = self._set_aside(folder)
            self.notify(f"{plan.kind} {plan.ref}: damaged, set aside as {aside.name}, made again")

    def _set_aside(self, folder: Path) -> Path:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        return folder.rename(folder.with_name(f".damaged-{folder.name}-{stamp}"))

    def artifacts(self, kind: Kind | None = None) -> list[Artifact]:
        """Return the sealed artifacts, oldest first; an unreadable one is left out and told once."""
        kinds = KINDS if kind is None else (kind,)
        found = [artifact for each in kinds for artifact in self._of_kind(each)]
        return sorted(found, key=lambda artifact: (artifact.manifest["created_at"], artifact.id))

    def _of_kind(self, kind: Kind) -> Iterator[Artifact]:
        for manifest in sorted((self.root / kind).glob(f"[!.]*/{MANIFEST}")):
            try:
                yield open_artifact(manifest.parent)
            except StoreError as fault:
                self.notify_once(f"left out: {fault}")

    def notify_once(self, text: str) -> None:
        """Tell the user something that would otherwise be told at every look."""
        if text not in self._told:
            self._told.add(text)
            self.notify(text)

    def open(self, parent: Parent) -> Artifact:
        """Return the artifact that a parent entry names.

        Raises:
            StoreError: it is not in this store.
        """
        for pin in self.pins:
            if isinstance(pin, Artifact) and pin.id == parent.id:
                return pin
        for root in (self.root, *self._roots):
            for manifest in (root / parent.kind).glob(f"[!.]*-{parent.id[:SHORT_ID]}/{MANIFEST}"):
                artifact = open_artifact(manifest.parent)
                if artifact.id == parent.id:
                    return artifact
        raise StoreError(
            f"{parent.kind} {parent.ref} is not in the store",
            where=str(self.root),
            remedy="run the stage that makes it first",
        )

    def open_at(self, folder: Path) -> Artifact:
        """Return the artifact in a folder of this store or another; its own parents are found from then on.

        Raises:
            StoreError: the folder is not a sealed artifact.
        """
        artifact = open_artifact(folder)
        root = folder.resolve().parent.parent
        if root != self.root.resolve() and root not in self._roots:
            self._roots.append(root)
        return artifact

    def nearest(self, plan: ArtifactSpec) -> Nearest | None:
        """Return the artifact of the same kind and name that differs in the fewest keys."""
        named = [artifact for artifact in self.artifacts(plan.kind) if artifact.name == plan.name]
        wanted = flatten(_identity(plan.settings, plan.parents, plan.version))
        compared = [Nearest(artifact, differing_keys(wanted, artifact_keys(artifact))) for artifact in named]
        return min(compared, key=lambda nearest: len(nearest.differing_keys), default=None)


def open_artifact(folder: Path) -> Artifact:
    """Open a sealed artifact's folder.

    Raises:
        StoreError: the folder has no manifest, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError("is not a sealed artifact", where=str(folder), remedy="run its stage again") from None
    except (OSError, ValueError, RecursionError):
        manifest = None
    if manifest is None or not _is_manifest(manifest):
        raise StoreError(
            "is no manifest that this version can read",
            where=str(path),
            remedy="move the folder away and run its stage again",
        )
    return Artifact(folder, manifest)


def _is_manifest(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        return False
    manifest: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if not all(isinstance(manifest.get(key), wanted) for key, wanted in _MANIFEST_TYPES.items()):
        return False
    parents_fit = all(set(parent) == set(Parent._fields) for parent in manifest["parents"])
    return parents_fit and all({"sha256", "bytes"} <= set(entry) for entry in manifest["files"].values())


def damaged_files(artifact: Artifact, digest: Callable[[Path], str] = digest_of_file) -> dict[str, str]:
    """Return, by file name, what is wrong with each file whose SHA-256 is not the manifest's."""
    damage: dict[str, str] = {}
    for name, entry in artifact.manifest["files"].items():
        path = artifact.file(name)
        if not path.is_file():
            damage[name] = "is missing"
        elif digest(path) != entry["sha256"]:
            damage[name] = "has other bytes than the manifest says"
    return damage


def artifact_keys(artifact: Artifact) -> dict[str, Any]:
    """Return settings, parents and version of an artifact as dotted keys."""
    manifest = artifact.manifest
    return flatten(_identity(manifest["settings"], artifact.parents, manifest["version"]))


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> tuple[str, ...]:
    """Return the dotted keys whose values differ or that only one side has."""
    absent = object()
    return tuple(key for key in sorted(left | right) if left.get(key, absent) != right.get(key, absent))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping with dotted keys."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    else:
        return {prefix: value}
    if not items:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _identity(settings: Any, parents: tuple[Parent, ...], version: int) -> dict[str, Any]:
    by_role = {f"parent {parent.role}": parent.id[:SHORT_ID] for parent in parents}
    return {**settings, **by_role, "stage version": version}


def _sizes_fit(artifact: Artifact) -> bool:
    return all(
        artifact.file(name).is_file() and artifact.file(name).stat().st_size == entry["bytes"]
        for name, entry in artifact.manifest["files"].items()
    )


_FAILED = "failed"


def note_failed(writer: ArtifactWriter, count: int) -> None:
    """Note in the manifest how many items of a writer another attempt may mend."""
    writer.notes[_FAILED] = count


def retry_spec(plan: ArtifactSpec, store: Store) -> ArtifactSpec:
    """Return the plan itself, or, where it is sealed with failures, that of the artifact that retries them.

    The retries of a plan form a chain, whose end is returned: the same call goes on with an unfinished one.
    """
    while (sealed := store.find(plan)) is not None and sealed.manifest["notes"].get(_FAILED):
        plan = replace(plan, settings={**plan.settings, "retried_from": plan.id})
    return plan
