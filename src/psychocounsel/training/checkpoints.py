"""Checkpoints that can be trusted: which one to resume from, and which to delete.

A checkpoint is trusted when its list of sizes and digests, which is written last, agrees with every file in it and
names the run that asks. transformers resumes from one that lacks a file with an error, or silently with other weights.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psychocounsel.store.files import sync, write_bytes, write_faults
from psychocounsel.types import PreferencePair, content_id

log = logging.getLogger(__name__)

DIGESTS_NAME = "SHA256SUMS.json"
KEPT_CHECKPOINTS = 2
REASON_NAME = "reason.txt"
PART_BYTES = 1 << 26
"""Files are hashed in parts, by several threads: one alone takes a minute for the 96 GB of a model of 8B."""
READ_BYTES = 1 << 20


def run_fingerprint(pairs: Sequence[PreferencePair], settings: object) -> str:
    """Return a hash of a run's pairs, in order, and its settings: its checkpoints carry it."""
    return content_id("training", json.dumps(settings, sort_keys=True), *(pair.id for pair in pairs))


def checkpoint_at(work: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return work / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the number in `checkpoint-N`."""
    return int(checkpoint.name.rpartition("-")[2])


def complete(checkpoint: Path, fingerprint: str) -> None:
    """Flush the files of `checkpoint` to the disk, write their sizes and digests last, and delete older checkpoints.

    The newest two by step stay. Until the list is there, the checkpoint counts as unfinished. Digests are, on
    purpose, those of what the system still holds in memory: if the disk has written other bytes, they disagree with
    them when the run is resumed. Read back from the disk, damage would get a digest that fits.

    Raises:
        IncompleteError: the disk is full or refuses.
    """
    with write_faults(checkpoint):
        files = {
            name: {"bytes": (checkpoint / name).stat().st_size, "sha256": digests}
            for name, digests in _digests(checkpoint, _files(checkpoint)).items()
        }
        # After a power cut, the list must not name bytes that were never on the disk.
        for path in (*checkpoint.rglob("*"), checkpoint, checkpoint.parent):
            sync(path)
    payload = {"fingerprint": fingerprint, "files": files}
    write_bytes(checkpoint / DIGESTS_NAME, json.dumps(payload, indent=1, sort_keys=True).encode())
    checkpoints = _newest_first(checkpoint.parent)
    finished = [step_of(each) for each in checkpoints if (each / DIGESTS_NAME).is_file()]
    for each in checkpoints:
        if len(finished) >= KEPT_CHECKPOINTS and step_of(each) < finished[KEPT_CHECKPOINTS - 1]:
            shutil.rmtree(each)


def newest_verified(work: Path, fingerprint: str) -> Path | None:
    """Return the checkpoint with the highest step that is complete, undamaged and of this run, if there is one.

    Newer unfinished ones are deleted, so that new checkpoints of the same step do not mix with their files; damaged
    ones are set aside. Both are logged. Order is by step, not by time of modification: a clock that was set back must
    not hide the newest.
    """
    for checkpoint in _newest_first(work):
        if not (checkpoint / DIGESTS_NAME).exists():
            log.warning(f"skipped {checkpoint}: it was not written to the end")
            shutil.rmtree(checkpoint)
            continue
        damage = _damage(checkpoint, fingerprint)
        if damage is None:
            return checkpoint
        log.warning(f"skipped {checkpoint}: {damage}")
        target = checkpoint.with_name(f"broken-{checkpoint.name}")
        shutil.rmtree(target, ignore_errors=True)
        write_bytes(checkpoint / REASON_NAME, damage.encode())
        checkpoint.rename(target)
    return None


def damage_warnings(work: Path) -> list[str]:
    """Return a sentence about every checkpoint that was set aside because it was damaged."""
    reasons = sorted(work.glob(f"broken-{PREFIX_CHECKPOINT_DIR}-*/{REASON_NAME}"))
    return [
        f"training was resumed without {path.parent.name.removeprefix('broken-')}, which was damaged: "
        + path.read_text(encoding="utf-8")
        for path in reasons
    ]


def _newest_first(work: Path) -> list[Path]:
    found = work.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    folders = [path for path in found if path.is_dir() and path.name.rpartition("-")[2].isdecimal()]
    return sorted(folders, key=step_of, reverse=True)


def _damage(checkpoint: Path, fingerprint: str) -> str | None:
    """Return why a checkpoint with a list of digests cannot be resumed from, None if it can."""
    try:
        payload = json.loads((checkpoint / DIGESTS_NAME).read_text(encoding="utf-8"))
        owner: str = payload["fingerprint"]
        promised: dict[str, Any] = dict(payload["files"])
        sizes = {name: entry["bytes"] for name, entry in promised.items()}
        digests = {name: entry["sha256"] for name, entry in promised.items()}
    except (ValueError, TypeError, KeyError):
        return f"its {DIGESTS_NAME} cannot be read"
    if owner != fingerprint:
        return "it belongs to a run on other data or settings"
    found = _files(checkpoint)
    for name in sorted(sizes.keys() | set(found)):
        if name not in found:
            return f"{name} is missing"
        if name not in sizes:
            return f"{name} does not belong to it"
        if (checkpoint / name).stat().st_size != sizes[name]:
            return f"{name} has another size than was written"
    for name, found_digests in _digests(checkpoint, found).items():
        if found_digests != digests[name]:
            return f"{name} differs from its digest"
    return None


def _files(checkpoint: Path) -> list[str]:
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != DIGESTS_NAME]
    return [path.relative_to(checkpoint).as_posix() for path in files]


def _digests(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the SHA-256 of each part of each file."""
    starts = {name: range(0, (folder / name).stat().st_size, PART_BYTES) for name in names}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        futures = {
            name: [threads.submit(_digest_of_part, folder / name, start) for start in starts[name]] for name in names
        }
        return {name: [future.result() for future in parts] for name, parts in futures.items()}


def _digest_of_part(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        for _ in range(PART_BYTES // READ_BYTES):
            digest.update(stream.read(READ_BYTES))
    return digest.hexdigest()
