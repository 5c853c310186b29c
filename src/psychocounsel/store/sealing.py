"""Draft -> Artifact: every file durable and hashed, then the manifest that makes the folder complete."""

import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from psychocounsel.store.artifacts import FORMAT, MANIFEST, Artifact, Draft
from psychocounsel.store.atomic import TEMPORARY_SUFFIX, sync, write_bytes, write_faults
from psychocounsel.store.digests import digest_of_file

_REPORTED_PACKAGES = ("psychocounsel", "torch", "transformers", "trl", "datasets", "peft", "openai")


def seal(draft: Draft, notices: list[str], seconds: float) -> Artifact:
    """Write the manifest of a finished draft: from here on the artifact is complete.

    Args:
        draft: what was built; its scratch folder is removed.
        notices: sentences that head the artifact and everything made from it.
        seconds: how long building took.
    """
    shutil.rmtree(draft.folder / "work", ignore_errors=True)
    for partial in draft.folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        partial.unlink()
    entries = sorted(draft.folder.rglob("*"))
    # A manifest that outlives a power cut must not vouch for bytes that did not.
    with write_faults(draft.folder):
        for entry in (*entries, draft.folder, draft.folder.parent):
            sync(entry)
    files = [path for path in entries if path.is_file() and path.name != MANIFEST]
    manifest = {"notices": notices, **_manifest(draft, files, seconds)}
    return _with_manifest(draft.folder, manifest, is_new=True)


def adopt(found: Artifact, name: str, folder: Path) -> Artifact:
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
