"""The store: every artifact below one folder, found by its id, built once under a lock, resumed after a kill."""

import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psychocounsel.errors import ConfigError, IncompleteError, PsychoCounselError, StoreError, first_of
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
    take_name,
)
from psychocounsel.store.files import FULL_DISK, cached_digest, digest_of_file, umask, write_faults

log = logging.getLogger(__name__)

DEFAULT_STORE = Path("data")
STORE_VARIABLE = "PSYCHOCOUNSEL_STORE"
LOCKS = ".locks"
_FEW_KEYS = 6
_MANIFEST_KEYS = {
    *("id", "kind", "name", "stage", "version", "settings", "parents", "warnings", "rows", "notes", "files"),
    *("created_at", "seconds", "made_with"),
}


@dataclass(frozen=True)
class Store:
    """All artifacts below one folder, `root/<kind>/<name>-<id8>/`.

    Args:
        root: the folder.
        offline: whether connections beyond this machine are forbidden.
        pins: artifacts, or specs of artifacts to come, that win over newer ones of the same kind and name.
        base: of an overlay, the store whose artifacts it shows and never changes.
    """

    root: Path
    offline: bool = False
    pins: tuple[ArtifactSpec | Artifact, ...] = field(default=(), repr=False)
    base: Path | None = None
    _shown: set[str] = field(default_factory=set[str], repr=False, compare=False)
    _other_roots: list[Path] = field(default_factory=list[Path], repr=False, compare=False)

    @property
    def _roots(self) -> tuple[Path, ...]:
        return (self.root,) if self.base is None else (self.root, self.base)

    @property
    def planned(self) -> dict[str, ArtifactSpec]:
        """What the present run of a recipe is yet to make, by id."""
        return {pin.id: pin for pin in self.pins if isinstance(pin, ArtifactSpec)}

    def pinned(self, *pins: ArtifactSpec | Artifact) -> "Store":
        """Return a store with more pins; they win over the earlier ones."""
        return replace(self, pins=(*pins, *self.pins))

    def overlay(self, folder: Path) -> "Store":
        """Return a store that makes its artifacts in another folder and shows those of this one as well."""
        return replace(self, root=folder, base=self.root)

    def make(self, spec: ArtifactSpec, build: Callable[[ArtifactWriter], None], *, whole: bool = False) -> Artifact:
        """Return the artifact of a spec, building it only if it does not exist; `whole`, also if files were dropped.

        `build` receives the folder of an unfinished build as it was left, so that it does only what is pending. A
        damaged artifact is set aside and built again. The manifest is written last.

        Raises:
            StoreError: another run is building it.
            IncompleteError: the disk is full.
        """
        found = self.find(spec)
        if found is not None and found.name == spec.name and not (whole and found.dropped):
            return found  # without a lock, so that a store that is read-only can be read
        folder = self.folder_of(spec)
        with write_faults(folder, only=FULL_DISK), self._locked(spec):
            found = self.find(spec)
            is_to_be_restored = whole and found is not None and bool(found.dropped)
            if found is not None and not is_to_be_restored:
                return found if found.name == spec.name else alias(found, spec.name, folder)
            if not is_to_be_restored:
                self._set_damaged_aside(spec)
            self._announce(spec)
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            writer = ArtifactWriter(spec, folder)
            try:
                build(writer)
            except PsychoCounselError:
                with suppress(OSError):
                    writer.remove_partial_files()
                for left in (folder / "work", folder):
                    with suppress(OSError):  # it has written something, from which the next build goes on
                        left.rmdir()
                raise
            # Parents of what an overlay makes may not exist yet.
            parents = spec.parents if self.base is None else ()
            inherited = [warning for parent in parents for warning in self.open(parent).warnings]
            warnings = list(dict.fromkeys([*inherited, *spec.warnings, *writer.warnings]))
            return writer.commit(warnings, time.monotonic() - started)

    def name_again(self, specs: Iterable[ArtifactSpec]) -> None:
        """Have the names of specs mean the artifacts of these specs, also where others of a name were made later."""
        found = self.artifacts()
        ids = {each.id for each in found}
        meant = {(each.kind, each.name): each for each in found}
        for spec in specs:
            last = meant.get((spec.kind, spec.name))
            if spec.id not in ids or last is None or last.id == spec.id:
                continue
            try:
                with self._locked(spec):
                    take_name(open_artifact(self.folder_of(spec)), last.named_at)
            except (IncompleteError, StoreError) as fault:
                self.notify_once(f"{spec.kind}/{spec.name} still means {last.ref}: {fault.what}")

    @contextmanager
    def _locked(self, spec: ArtifactSpec) -> Generator[None]:
        """Keep other runs from writing a spec's artifact, and all artifacts from being removed, meanwhile."""
        lock = self.root / LOCKS / f"{spec.kind}-{spec.id[:16]}.lock"
        with hold_lock(lock, f"{spec.kind} {spec.ref}"), self.in_use():
            yield

    @contextmanager
    def in_use(self, *, alone: bool = False) -> Generator[None]:
        """Keep artifacts from being removed meanwhile; `alone`, keep them from being created.

        Raises:
            StoreError: another process removes artifacts or, if this one wants to be alone, creates some.
        """
        with locked(self.root / LOCKS / "store.lock", shared=not alone) as is_locked:
            if not is_locked:
                raise StoreError(
                    f"another process {'creates' if alone else 'removes'} artifacts in this store",
                    where=str(self.root),
                    remedy="wait for it to end, then run this command again",
                )
            yield

    def _announce(self, spec: ArtifactSpec) -> None:
        """Show that a build resumes, or in which keys it differs from the most similar artifact of its name."""
        if self.base is not None:
            return
        if self.folder_of(spec).exists():
            log.info(f"{spec.kind} {spec.ref}: resumes an unfinished build")
            return
        wanted = _keys(spec.settings, spec.parents, spec.version)
        differences = [
            (differing_keys(wanted, artifact_keys(artifact)), artifact)
            for artifact in self.artifacts(spec.kind)
            if artifact.name == spec.name
        ]
        if differences:
            keys, nearest = min(differences, key=lambda each: len(each[0]))
            log.info(f"{spec.kind} {spec.ref}: new, differs from {nearest.ref} in {first_of(keys, _FEW_KEYS)}")

    def folder_of(self, spec: ArtifactSpec) -> Path:
        """Return the folder of a spec's artifact, whether it exists or not."""
        return self.root / spec.kind / f"{spec.name}-{spec.id[:SHORT_ID]}"

    def find(self, spec: ArtifactSpec) -> Artifact | None:
        """Return the artifact with a spec's id, preferably of the same name, or None.

        An artifact with a missing file, or with a file of another size than its manifest says, is not found.
        """

        def is_whole(artifact: Artifact) -> bool:
            files = [(artifact.file(name), entry["bytes"]) for name, entry in artifact.kept_files.items()]
            return all(path.is_file() and path.stat().st_size == size for path, size in files)

        same_id = [each for each in self.artifacts(spec.kind) if each.id == spec.id and is_whole(each)]
        return min(same_id, key=lambda artifact: artifact.name != spec.name, default=None)

    def require_intact(self, artifact: Artifact) -> None:
        """Check every file of an artifact before a library reads them that checks nothing.

        Raises:
            IncompleteError: a file is damaged; the artifact was set aside, so that its stage creates it again.
            StoreError: a file is damaged, and the artifact is in another store.
        """
        damage = damaged_files(artifact, cached_digest)
        if not damage:
            return
        what = ", ".join(f"{name} {fault}" for name, fault in sorted(damage.items()))
        if not artifact.folder.is_relative_to(self.root):
            raise StoreError(what, where=str(artifact.folder), remedy="put an intact copy there")
        raise IncompleteError(
            f"{artifact.kind} {artifact.ref} is damaged: {what}",
            where=str(_set_aside(artifact.folder)),
            remedy="it was moved there; run the recipe, or the stage that creates it, again",
        )

    def _set_damaged_aside(self, spec: ArtifactSpec) -> None:
        """Rename the folders that hold damaged copies of a spec's artifact: they are kept, but no longer found."""
        copies = [artifact.folder for artifact in self.artifacts(spec.kind) if artifact.id == spec.id]
        folders = {folder for folder in copies if folder.is_relative_to(self.root)}
        if (self.folder_of(spec) / MANIFEST).exists():
            folders.add(self.folder_of(spec))
        for folder in sorted(folders):
            aside = _set_aside(folder)
            log.info(f"{spec.kind} {spec.ref}: damaged, moved to {aside.name}, created again")

    def artifacts(self, kind: Kind | None = None) -> list[Artifact]:
        """Return the artifacts; of several with one name, the last is what the name means, as `named_at` says.

        One with an unreadable manifest is left out and logged.
        """
        found: list[Artifact] = []
        folders = [root / each for root in self._roots for each in (KINDS if kind is None else (kind,))]
        for manifest in sorted(path for folder in folders for path in folder.glob(f"[!.]*/{MANIFEST}")):
            try:
                found.append(open_artifact(manifest.parent))
            except StoreError as fault:
                self.notify_once(f"left out: {fault}")
        return sorted(found, key=lambda artifact: (artifact.named_at, artifact.id))

    def notify_once(self, text: str) -> None:
        """Log a line unless this store has logged it before."""
        if text not in self._shown:
            self._shown.add(text)
            log.info(text)

    def open(self, parent: Parent) -> Artifact:
        """Return the artifact of a parent entry, or raise StoreError if it is not in this store."""
        for pin in self.pins:
            if isinstance(pin, Artifact) and pin.id == parent.id:
                return pin
        for root in (*self._roots, *self._other_roots):
            for manifest in (root / parent.kind).glob(f"[!.]*-{parent.id[:SHORT_ID]}/{MANIFEST}"):
                artifact = open_artifact(manifest.parent)
                if artifact.id == parent.id:
                    return artifact
        raise StoreError(
            f"{parent.kind} {parent.ref} is not in the store",
            where=str(self.base or self.root),
            remedy="run the stage that creates it first",
        )

    def open_at(self, folder: Path) -> Artifact:
        """Return the artifact in a folder. If that is in another store, its parents are looked for there, too."""
        artifact = open_artifact(folder)
        root = folder.resolve().parent.parent
        if root != self.root.resolve() and root not in self._other_roots:
            self._other_roots.append(root)
        return artifact


def open_store(folder: Path | None = None, is_offline: bool = False, recipe: Path | None = None) -> Store:
    """Return the store at a folder; offline, the libraries of the Hub open no connection either.

    Without a folder it is PSYCHOCOUNSEL_STORE or, where that is not set, `data` in the folder of a project's `recipe`,
    or else in the current one.
    """
    from psychocounsel.config.recipe import is_project  # pydantic: not for --help

    if is_offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    if folder is None:
        place = recipe if recipe is not None and is_project(recipe) else Path()
        folder = Path(os.environ.get(STORE_VARIABLE) or place / DEFAULT_STORE)
    if not str(folder).isascii() and os.fsencode(folder) != str(folder).encode("utf-8", "replace"):
        what, remedy = "the path of the store is no UTF-8, and tables cannot be written there", "choose another folder"
        raise ConfigError(what, where=ascii(str(folder)), remedy=f"{remedy} with --store")
    return Store(folder, is_offline)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Generator[bool]:
    """Yield whether a file could be locked. The kernel releases it when the process ends, however it ends.

    Raises:
        StoreError: the file cannot be written, or its file system has no locks.
    """
    with ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666 & ~umask())
            opened.callback(os.close, descriptor)
            is_locked = _locks(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError as fault:
            raise StoreError(
                f"the store cannot be written to or locked: {fault.strerror}",
                where=str(path.parent),
                remedy="correct the permissions, or choose with --store a folder on a file system that has locks "
                "(flock)",
            ) from fault
        if is_locked:  # a process that was forked meanwhile has the file open, too
            opened.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield is_locked


@contextmanager
def hold_lock(path: Path, what: str) -> Generator[None]:
    """Hold a lock file; errors are also those of `locked`.

    Raises:
        StoreError: another live process holds it; the message names the process.
    """
    with locked(path) as is_locked:
        if not is_locked:
            raise StoreError(
                f"{what} is being created by {path.read_text(encoding='utf-8') or 'another process'}",
                where=str(path),
                remedy="wait for it to end, or stop it and run this command again",
            )
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield


def is_held(path: Path) -> bool:
    """Return whether a live process holds a lock file."""
    with path.open("rb") as stream:
        return not _locks(stream.fileno(), fcntl.LOCK_SH)


def _locks(descriptor: int, how: int) -> bool:
    """Return whether a file could be locked; the lock ends when it is closed."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on some network file systems
        return False
    return True


def _set_aside(folder: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return folder.rename(folder.with_name(f".damaged-{folder.name}-{stamp}"))


def open_artifact(folder: Path) -> Artifact:
    """Open the folder of a complete artifact.

    Raises:
        StoreError: the folder has no manifest, or one that cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        is_readable = (
            manifest["format"] == FORMAT
            and manifest.keys() >= _MANIFEST_KEYS
            and all(set(parent) == set(Parent._fields) for parent in manifest["parents"])
            and all({"sha256", "bytes"} <= entry.keys() for entry in manifest["files"].values())
        )
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError("is not a complete artifact", where=str(folder), remedy="run its stage again") from None
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        manifest = {}
        is_readable = False
    if not is_readable:
        raise StoreError(
            "is not a manifest that this version can read",
            where=str(path),
            remedy="move the folder away and run its stage again",
        )
    return Artifact(folder, manifest)


def damaged_files(artifact: Artifact, digest: Callable[[Path], str] = digest_of_file) -> dict[str, str]:
    """Return what is wrong with each file that is missing or whose SHA-256 is not the manifest's, by name."""
    damage: dict[str, str] = {}
    for name, entry in artifact.kept_files.items():
        path = artifact.file(name)
        if not path.is_file():
            damage[name] = "is missing"
        elif digest(path) != entry["sha256"]:
            damage[name] = "has other bytes than the manifest says"
    return damage


def artifact_keys(artifact: Artifact) -> dict[str, Any]:
    """Return settings, parents and stage version of an artifact as dotted keys."""
    manifest = artifact.manifest
    return _keys(manifest["settings"], artifact.parents, manifest["version"])


def _keys(settings: Any, parents: tuple[Parent, ...], version: int) -> dict[str, Any]:
    by_role = {f"parent {parent.role}": parent.id[:SHORT_ID] for parent in parents}
    return flatten({**settings, **by_role, "stage version": version})


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys whose values differ or that only one side has."""
    absent = object()
    return tuple(key for key in sorted(left | right) if left.get(key, absent) != right.get(key, absent))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping: `{"a": [{"b": 1}]}` becomes `{"a.0.b": 1}`."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        items = []
    if not items:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def note_failed(writer: ArtifactWriter, count: int) -> None:
    """Write into the manifest how many items failed, so that `--retry-failed` finds them."""
    writer.notes["failed"] = count


def retry_spec(spec: ArtifactSpec, store: Store, *, again: bool) -> ArtifactSpec:
    """Return what stands for a spec: the last retry of its failed requests that was completed, or else the spec itself.

    Asked for `again`, requests that have failed in that one too get another retry; it is resumed if it is unfinished.
    """
    while (found := store.find(spec)) is not None and found.manifest["notes"].get("failed"):
        retry = replace(spec, settings={**spec.settings, "retried_from": spec.id})
        if not again and store.find(retry) is None:
            break
        spec = retry
    return spec
