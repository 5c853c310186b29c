"""Versioned artifacts: the spec of one to be created, its folder while it is built, and the complete folder."""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from psychocounsel.errors import StoreError
from psychocounsel.store.files import (
    TEMPORARY_SUFFIX,
    cached_digest,
    digest_of,
    link_or_copy,
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
    "reward-evaluations",
    "scores",
    "reference-logps",
    "policies",
    "probes",
    "comparisons",
    "annotation-tasks",
    "annotations",
    "anchors",
    "crisis-evaluations",
    "judge-calibrations",
    "reports",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

FORMAT = 1
MANIFEST = "manifest.json"
METRICS = "metrics.json"
CARD = "README.md"
OPTIMIZER = "optimizer"
"""Folder of an online round's policy with the optimizer state from which the next round goes on."""
ADAPTER = "adapter"
"""Folder of an online round's policy with its adapter on the initial policy, with which the next round goes on."""
ROUND = re.compile(r"-round-\d+$")
"""How the names of an online round's artifacts end."""
SHORT_ID = 8


class Parent(NamedTuple):
    """An artifact that another one is made from. Only `role` and `id` enter the child's id."""

    role: str
    kind: str
    name: str
    id: str

    @property
    def ref(self) -> str:
        """`name@id8`."""
        return f"{self.name}@{self.id[:SHORT_ID]}"


def parent_in(parents: Iterable[Parent], role: str, child: str) -> Parent:
    """Return the parent that has `role` for the artifact `child`, or raise StoreError."""
    for parent in parents:
        if parent.role == role:
            return parent
    raise StoreError(f"has no {role}", where=child, remedy="create it again with this version")


@dataclass(frozen=True)
class ArtifactSpec:
    """Everything that decides the content of an artifact, and so its id. It need not exist yet.

    `name` and `warnings` are not part of the id.
    """

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
    def ref(self) -> str:
        """`name@id8`."""
        return self.as_parent("").ref

    def as_parent(self, role: str) -> Parent:
        """Return the entry under which a child names this artifact."""
        return Parent(role, self.kind, self.name, self.id)


@dataclass(frozen=True)
class Artifact:
    """A folder with a manifest, and therefore complete. `is_new` says whether this run created it."""

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)
    is_new: bool = field(default=False, compare=False)

    @property
    def id(self) -> str:
        """The full id."""
        return self.manifest["id"]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.manifest["kind"]

    @property
    def name(self) -> str:
        """The name from its config."""
        return self.manifest["name"]

    @property
    def ref(self) -> str:
        """`name@id8`, which resolves to exactly this artifact."""
        return self.as_parent("").ref

    @property
    def named_at(self) -> str:
        """When a run made it or, while its name meant another one, found it: of one name, the last is what it means."""
        return self.manifest.get("named_at", self.manifest["created_at"])

    @property
    def parents(self) -> tuple[Parent, ...]:
        """The artifacts it was made from."""
        return tuple(Parent(**parent) for parent in self.manifest["parents"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that are shown first wherever it, or anything made from it, is shown."""
        return tuple(self.manifest["warnings"])

    @property
    def dropped(self) -> tuple[str, ...]:
        """Files that were deleted to save space; the manifest still lists their digests."""
        return tuple(self.manifest.get("dropped", {}).get("files", ()))

    @property
    def kept_files(self) -> dict[str, Mapping[str, Any]]:
        """Digest and size of every file that was not dropped, by name."""
        return {name: entry for name, entry in self.manifest["files"].items() if name not in self.dropped}

    def as_parent(self, role: str) -> Parent:
        """Return the entry under which a child names this artifact."""
        return Parent(role, self.kind, self.name, self.id)

    def parent(self, role: str) -> Parent:
        """Return the parent with a role, or raise StoreError."""
        return parent_in(self.parents, role, self.ref)

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`, empty if there is none.

        Raises:
            StoreError: it is not what the manifest lists; a flipped digit would be shown as a result.
        """
        path = self.folder / METRICS
        content = path.read_bytes() if path.exists() else b"{}"
        listed = self.manifest["files"].get(METRICS)
        if listed is not None and hashlib.sha256(content).hexdigest() != listed["sha256"]:
            raise StoreError(
                "is damaged: it has other bytes than the manifest says",
                where=str(path),
                remedy="restore it, or move its folder away and run the stage again",
            )
        return json.loads(content)


@dataclass(frozen=True)
class ArtifactWriter:
    """An artifact that is being built.

    The builder writes files and fills in `rows` (per table), `notes` and `warnings`, sentences that head the artifact
    and everything made from it.
    """

    spec: ArtifactSpec
    folder: Path
    rows: dict[str, int] = field(default_factory=dict[str, int])
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def work(self) -> Path:
        """A scratch folder, for checkpoints and the like. It survives a crash and is removed on commit."""
        path = self.folder / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def parent(self, role: str) -> Parent:
        """Return the parent with a role, or raise StoreError."""
        return parent_in(self.spec.parents, role, self.spec.ref)

    def file(self, name: str) -> Path:
        """Return the path at which to write one of its files; creates missing folders."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_card(self, text: str) -> None:
        """Write `README.md`, the card of the artifact."""
        write_bytes(self.folder / CARD, text.encode("utf-8"))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`: every number of this artifact that is shown anywhere, parts as JSON or as their types.

        Raises:
            ValueError: the metrics do not fit the model of this kind.
        """
        from pydantic_core import to_jsonable_python  # not for --help

        from psychocounsel.store.metrics import parse_metrics

        parse_metrics(self.spec.kind, metrics)
        text = json.dumps(
            metrics, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False, default=to_jsonable_python
        )
        write_bytes(self.folder / METRICS, (text + "\n").encode("utf-8"))

    def remove_partial_files(self) -> None:
        """Remove files that were not written to their end: no build goes on from them."""
        for partial in self.folder.rglob(f"*{TEMPORARY_SUFFIX}"):
            partial.unlink()

    def commit(self, warnings: list[str], seconds: float) -> Artifact:
        """Complete the artifact: remove scratch, flush every file, hash them and write the manifest last."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        self.remove_partial_files()
        entries = sorted(self.folder.rglob("*"))
        # After a power cut, a manifest must not list bytes that were never on the disk.
        with write_faults(self.folder):
            for entry in (*entries, self.folder, self.folder.parent):
                sync(entry)
        files = [path for path in entries if path.is_file() and path.name != MANIFEST]
        spec = self.spec
        manifest = {
            "warnings": warnings,
            "format": FORMAT,
            "id": spec.id,
            "kind": spec.kind,
            "name": spec.name,
            "stage": spec.stage,
            "version": spec.version,
            "settings": json.loads(json.dumps(spec.settings)),
            "parents": [parent._asdict() for parent in spec.parents],
            "rows": self.rows,
            "notes": self.notes,
            "files": {
                str(path.relative_to(self.folder)): {"sha256": cached_digest(path), "bytes": path.stat().st_size}
                for path in files
            },
            "created_at": _now(),
            "seconds": round(seconds, 3),
            "made_with": {"python": platform.python_version(), **_versions()},
        }
        return _with_manifest(self.folder, manifest, is_new=True)


def alias(found: Artifact, name: str, folder: Path) -> Artifact:
    """Give a complete artifact a second name in another folder; an unfinished build there is removed.

    Its files are linked, or copied where links are impossible.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with write_faults(folder):
        for file_name in found.kept_files:
            link_or_copy(found.file(file_name), folder / file_name)
    manifest = {key: value for key, value in found.manifest.items() if key != "named_at"}
    return _with_manifest(folder, {**manifest, "name": name, "created_at": _now()}, is_new=False)


def take_name(artifact: Artifact, after: str) -> None:
    """Have the name of an artifact mean it, and not one that took it at `after`, perhaps by a clock ahead of ours."""
    just_after = datetime.fromisoformat(after) + timedelta(microseconds=1)
    named_at = max(_now(), just_after.isoformat(timespec="microseconds"))
    _with_manifest(artifact.folder, {**artifact.manifest, "named_at": named_at}, is_new=False)


def drop_superseded(policy: Artifact, *, weights: bool, optimizer: bool) -> None:
    """Delete the weights of an online round's policy, its optimizer state, or both; its adapter stays.

    The manifest, which says how to have them again, is written first: after a kill the next call deletes the files.
    """
    names = sorted({*policy.dropped, *superseded_files(policy, weights=weights, optimizer=optimizer)})
    if list(policy.dropped) != names:
        remedy = "run align with --set online.keep=all again; it trains the rounds again from their pairs"
        dropped = {"files": names, "remedy": remedy}
        _with_manifest(policy.folder, {**policy.manifest, "dropped": dropped}, policy.is_new)
    for path in filter(Path.exists, map(policy.file, names)):  # a store that is read-only may have none of them
        path.unlink(missing_ok=True)  # another run may drop them too


def superseded_files(policy: Artifact, *, weights: bool, optimizer: bool) -> list[str]:
    """Return the names of the files that `drop_superseded` drops."""
    return [
        name
        for name in policy.manifest["files"]
        if (optimizer and name.startswith(f"{OPTIMIZER}/"))
        or (weights and name.endswith(".safetensors") and not name.startswith(f"{ADAPTER}/"))
    ]


def require_kept(artifact: Artifact) -> None:
    """Raise StoreError, with the remedy, if files of the artifact were dropped that are not the optimizer state."""
    if any(not name.startswith(f"{OPTIMIZER}/") for name in artifact.dropped):
        remedy = artifact.manifest["dropped"]["remedy"]
        raise StoreError(f"the weights of {artifact.kind} {artifact.ref} were dropped", remedy=remedy)


def _with_manifest(folder: Path, manifest: dict[str, Any], is_new: bool) -> Artifact:
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / MANIFEST, (text + "\n").encode("utf-8"))
    return Artifact(folder, manifest, is_new)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a result."""
    versions: dict[str, str] = {}
    for name in ("psychocounsel", "torch", "transformers", "trl", "datasets", "peft", "openai"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
