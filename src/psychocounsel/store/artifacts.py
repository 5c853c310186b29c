"""ArtifactSpec -> Artifact: what is to be made, and what was made with its manifest."""

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from psychocounsel.errors import StoreError
from psychocounsel.store.files import (
    TEMPORARY_SUFFIX,
    digest_of,
    digest_of_file,
    sync,
    write_bytes,
    write_faults,
)

Kind = Literal[
    "base-models",
    "speeches",
    "candidates",
    "judgements",
    "audits",
    "preferences",
    "reward-models",
    "reference-logps",
    "scores",
    "policies",
    "comparisons",
    "annotations",
    "reports",
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]

FORMAT = 1
MANIFEST = "manifest.json"
METRICS = "metrics.json"
CARD = "README.md"
SHORT_ID = 8


class Parent(NamedTuple):
    """An artifact that another one is made from; only role and id enter the child's id."""

    role: str
    kind: str
    name: str
    id: str

    @property
    def ref(self) -> str:
        """`name@id8`."""
        return f"{self.name}@{self.id[:SHORT_ID]}"


def parent_in(parents: Iterable[Parent], role: str, child: str) -> Parent:
    """Return the parent that plays a role for the artifact `child`.

    Raises:
        StoreError: there is none.
    """
    for parent in parents:
        if parent.role == role:
            return parent
    raise StoreError(f"has no {role}", where=child, remedy="make it again with this version")


@dataclass(frozen=True)
class ArtifactSpec:
    """An artifact before it exists: everything that decides its content, and so its id."""

    kind: Kind
    name: str
    stage: str
    version: int
    settings: Mapping[str, Any]
    parents: tuple[Parent, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({parent.role for parent in self.parents}) < len(self.parents):
            raise ValueError("two parents share a role, so one of them would not be part of the id")

    @cached_property
    def id(self) -> str:
        """SHA-256 over kind, stage, version, settings and the ids of the parents."""
        parents = {parent.role: parent.id for parent in self.parents}
        return digest_of([self.kind, self.stage, self.version, dict(self.settings), parents])

    @property
    def folder_name(self) -> str:
        """`name-id8`."""
        return f"{self.name}-{self.id[:SHORT_ID]}"

    @property
    def ref(self) -> str:
        """`name@id8`."""
        return f"{self.name}@{self.id[:SHORT_ID]}"

    def as_parent(self, role: str) -> Parent:
        """Return this plan in the role it plays for a child."""
        return Parent(role, self.kind, self.name, self.id)


@dataclass(frozen=True)
class Artifact:
    """A sealed folder: its manifest exists, so it is complete."""

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)
    is_new: bool = field(default=False, compare=False)

    @property
    def id(self) -> str:
        """The full content id."""
        return self.manifest["id"]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.manifest["kind"]

    @property
    def name(self) -> str:
        """The name that its config gave it."""
        return self.manifest["name"]

    @property
    def ref(self) -> str:
        """`name@id8`, which resolves to exactly this artifact."""
        return f"{self.name}@{self.id[:SHORT_ID]}"

    @property
    def parents(self) -> tuple[Parent, ...]:
        """The artifacts it was made from."""
        return tuple(Parent(**parent) for parent in self.manifest["parents"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that must head everything made from it."""
        return tuple(self.manifest["warnings"])

    def as_parent(self, role: str) -> Parent:
        """Return this artifact in the role it plays for a child."""
        return Parent(role, self.kind, self.name, self.id)

    def parent(self, role: str) -> Parent:
        """Return the parent in a role.

        Raises:
            StoreError: there is none.
        """
        return parent_in(self.parents, role, self.ref)

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Every number that a report shows."""
        path = self.folder / METRICS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclass(frozen=True)
class ArtifactWriter:
    """An artifact in the making: its folder, a scratch folder that survives a crash, its notes."""

    spec: ArtifactSpec
    folder: Path
    rows: dict[str, int] = field(default_factory=dict[str, int])
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def work(self) -> Path:
        """Scratch kept until the artifact is sealed: checkpoints and the like."""
        path = self.folder / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def parent(self, role: str) -> Parent:
        """Return the parent in a role.

        Raises:
            StoreError: the plan has none.
        """
        return parent_in(self.spec.parents, role, self.spec.ref)

    def file(self, name: str) -> Path:
        """Return the path at which to write one of its files; folders on the way are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_card(self, text: str) -> None:
        """Write `README.md`: the card that whoever opens the folder, or the Hub, reads first."""
        write_bytes(self.folder / CARD, text.encode("utf-8"))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`: every number of this artifact that a report may show."""
        text = json.dumps(metrics, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        write_bytes(self.folder / METRICS, (text + "\n").encode("utf-8"))


_REPORTED_PACKAGES = ("psychocounsel", "torch", "transformers", "trl", "datasets", "peft", "openai")


def commit(writer: ArtifactWriter, warnings: list[str], seconds: float) -> Artifact:
    """Write the manifest of a finished writer: from here on the artifact is complete.

    Args:
        writer: what was built; its scratch folder is removed.
        warnings: sentences that head the artifact and everything made from it.
        seconds: how long building took.
    """
    shutil.rmtree(writer.folder / "work", ignore_errors=True)
    for partial in writer.folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        partial.unlink()
    entries = sorted(writer.folder.rglob("*"))
    # A manifest that outlives a power cut must not vouch for bytes that did not.
    with write_faults(writer.folder):
        for entry in (*entries, writer.folder, writer.folder.parent):
            sync(entry)
    files = [path for path in entries if path.is_file() and path.name != MANIFEST]
    manifest = {"warnings": warnings, **_manifest(writer, files, seconds)}
    return _with_manifest(writer.folder, manifest, is_new=True)


def alias(found: Artifact, name: str, folder: Path) -> Artifact:
    """Keep a sealed artifact under a second name: its files are linked, or copied where links cannot be.

    Args:
        found: an artifact with the wanted id.
        name: the other name.
        folder: where it is to stand; an unfinished build there is removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with write_faults(folder):
        for file_name in found.manifest["files"]:
            target = folder / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(found.file(file_name), target)
    manifest = {**found.manifest, "name": name, "created_at": _now()}
    return _with_manifest(folder, manifest, is_new=False)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _with_manifest(folder: Path, manifest: dict[str, Any], is_new: bool) -> Artifact:
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / MANIFEST, (text + "\n").encode("utf-8"))
    return Artifact(folder, manifest, is_new)


def _manifest(writer: ArtifactWriter, files: list[Path], seconds: float) -> dict[str, Any]:
    plan = writer.spec
    return {
        "format": FORMAT,
        "id": plan.id,
        "kind": plan.kind,
        "name": plan.name,
        "stage": plan.stage,
        "version": plan.version,
        "settings": json.loads(json.dumps(plan.settings)),
        "parents": [parent._asdict() for parent in plan.parents],
        "rows": writer.rows,
        "notes": writer.notes,
        "files": {
            str(path.relative_to(writer.folder)): {
                "sha256": digest_of_file(path),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
        "created_at": _now(),
        "seconds": round(seconds, 3),
        "made_with": {"python": platform.python_version(), **_versions()},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _REPORTED_PACKAGES if _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
