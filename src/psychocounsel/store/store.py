"""Plan -> sealed artifact: versioned folders, made once, found again by content."""

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import KINDS, MANIFEST, SHORT_ID, Artifact, Draft, Kind, Parent, Plan
from psychocounsel.store.atomic import TEMPORARY_SUFFIX, sync_folder, write_bytes
from psychocounsel.store.digests import digest_of_file
from psychocounsel.store.lock import held

FORMAT = 1
_REPORTED_PACKAGES = ("psychocounsel", "torch", "transformers", "trl", "datasets", "peft", "openai")


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
    pins: tuple[Plan | Artifact, ...] = field(default=(), repr=False)

    def pinned(self, *pins: Plan | Artifact) -> "Store":
        """Return a store in which these win over newer artifacts of the same kind and name."""
        return replace(self, pins=(*pins, *self.pins))

    def make(self, plan: Plan, build: Callable[[Draft], None]) -> Artifact:
        """Return the artifact of a plan, building it only if it does not exist.

        An unfinished folder of the same id is handed to `build` as it was left, so that only what is owed
        is done again. The manifest is written last.

        Raises:
            StoreError: another run is making it.
        """
        with self._lock(plan):
            found = self.find(plan)
            if found is not None:
                return found
            self._announce(plan)
            folder = self.folder_of(plan)
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            draft = Draft(plan, folder)
            build(draft)
            return _seal(draft, self._notices(plan), time.monotonic() - started)

    def _notices(self, plan: Plan) -> list[str]:
        inherited = [notice for parent in plan.parents for notice in self.open(parent).notices]
        return list(dict.fromkeys([*inherited, *plan.notices]))

    def _lock(self, plan: Plan) -> AbstractContextManager[None]:
        return held(self.root / ".locks" / f"{plan.kind}-{plan.id[:16]}.lock", f"{plan.kind} {plan.ref}")

    def _announce(self, plan: Plan) -> None:
        if self.folder_of(plan).exists():
            self.notify(f"{plan.kind} {plan.ref}: going on where it was left")
            return
        nearest = self.nearest(plan)
        if nearest is not None and nearest.differing_keys:
            keys = ", ".join(nearest.differing_keys[:6])
            self.notify(f"{plan.kind} {plan.ref}: new, differs from {nearest.artifact.ref} in {keys}")

    def folder_of(self, plan: Plan) -> Path:
        """Return the folder in which a plan's artifact stands or will stand."""
        return self.root / plan.kind / plan.folder_name

    def find(self, plan: Plan) -> Artifact | None:
        """Return the sealed artifact with the plan's id, whatever its name, or None.

        One whose files are gone or of another size is set aside, so that it is made again.
        """
        for artifact in self.artifacts(plan.kind):
            if artifact.id == plan.id:
                if not _sizes_fit(artifact):
                    self.set_aside(artifact)
                    return None
                return artifact
        return None

    def set_aside(self, artifact: Artifact) -> Path:
        """Rename a damaged artifact's folder so that it is kept but no longer found."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = artifact.folder.with_name(f".damaged-{artifact.folder.name}-{stamp}")
        artifact.folder.rename(aside)
        self.notify(f"{artifact.kind} {artifact.ref}: damaged, set aside as {aside.name}, made again")
        return aside

    def artifacts(self, kind: Kind | None = None) -> list[Artifact]:
        """Return the sealed artifacts, oldest first."""
        kinds = KINDS if kind is None else (kind,)
        found = [artifact for each in kinds for artifact in self._of_kind(each)]
        return sorted(found, key=lambda artifact: (artifact.manifest["created_at"], artifact.id))

    def _of_kind(self, kind: Kind) -> Iterator[Artifact]:
        for manifest in sorted((self.root / kind).glob(f"[!.]*/{MANIFEST}")):
            yield open_artifact(manifest.parent)

    def open(self, parent: Parent) -> Artifact:
        """Return the artifact that a parent entry names.

        Raises:
            StoreError: it is not in this store.
        """
        for pin in self.pins:
            if isinstance(pin, Artifact) and pin.id == parent.id:
                return pin
        for manifest in (self.root / parent.kind).glob(f"[!.]*-{parent.id[:SHORT_ID]}/{MANIFEST}"):
            artifact = open_artifact(manifest.parent)
            if artifact.id == parent.id:
                return artifact
        raise StoreError(
            f"{parent.kind} {parent.ref} is not in the store",
            where=str(self.root),
            remedy="run the stage that makes it first",
        )

    def nearest(self, plan: Plan) -> Nearest | None:
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
        return Artifact(folder, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StoreError(
            "is not a sealed artifact", where=str(folder), remedy="run its stage again"
        ) from None
    except ValueError:
        raise StoreError(
            "cannot be read", where=str(path), remedy="move the folder away and run its stage again"
        ) from None


def damaged_files(artifact: Artifact) -> dict[str, str]:
    """Return, by file name, what is wrong with each file whose SHA-256 is not the manifest's."""
    damage: dict[str, str] = {}
    for name, entry in artifact.manifest["files"].items():
        path = artifact.file(name)
        if not path.is_file():
            damage[name] = "is missing"
        elif digest_of_file(path) != entry["sha256"]:
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
    elif isinstance(value, list):
        items = list(enumerate(value))  # pyright: ignore[reportUnknownArgumentType]
    else:
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


def _seal(draft: Draft, notices: list[str], seconds: float) -> Artifact:
    """Write the manifest: from here on the artifact is complete."""
    shutil.rmtree(draft.folder / "work", ignore_errors=True)
    for partial in draft.folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        partial.unlink()
    files = [path for path in sorted(draft.folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    manifest = {"notices": notices, **_manifest(draft, files, seconds)}
    sync_folder(draft.folder)
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(draft.folder / MANIFEST, (text + "\n").encode("utf-8"))
    return Artifact(draft.folder, manifest, is_new=True)


def _manifest(draft: Draft, files: list[Path], seconds: float) -> dict[str, Any]:
    plan = draft.plan
    return {
        "format": FORMAT,
        "id": plan.id,
        "kind": plan.kind,
        "name": plan.name,
        "stage": plan.stage,
        "version": plan.version,
        "settings": json.loads(json.dumps(plan.settings)),
        "parents": [parent._asdict() for parent in plan.parents],
        "rows": draft.rows,
        "notes": draft.notes,
        "files": {
            str(path.relative_to(draft.folder)): {
                "sha256": digest_of_file(path),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seconds": round(seconds, 3),
        "made_with": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _REPORTED_PACKAGES if _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
