"""Checkpoints that can be trusted: which one to resume from, and which to delete.

A checkpoint is trusted when its list of digests, which is written last, agrees with every file in it and names the run
that asks. transformers resumes from one that lacks a file with an error, or silently with other weights.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psychocounsel.store.files import digest_of_file, write_bytes
from psychocounsel.types import PreferencePair, content_id

log = logging.getLogger(__name__)

DIGESTS_NAME = "SHA256SUMS.json"
KEPT_CHECKPOINTS = 2


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
    """Write the digest of every file of `checkpoint` into it, then delete all but the newest complete ones, by step."""
    payload = {"fingerprint": fingerprint, "sha256": _digests(checkpoint)}
    write_bytes(checkpoint / DIGESTS_NAME, json.dumps(payload, indent=1, sort_keys=True).encode())
    finished = [each for each in _newest_first(checkpoint.parent) if (each / DIGESTS_NAME).is_file()]
    for each in finished[KEPT_CHECKPOINTS:]:
        shutil.rmtree(each)


def newest_verified(work: Path, fingerprint: str) -> Path | None:
    """Return the checkpoint with the highest step that is complete, undamaged and of this run, if there is one.

    Newer ones that are not are logged and renamed, so that new checkpoints of the same step do not mix with their
    files. Order is by step, not by time of modification: a clock that was set back must not hide the newest.
    """
    for checkpoint in _newest_first(work):
        reason = _fault(checkpoint, fingerprint)
        if reason is None:
            return checkpoint
        log.warning("skipped %s: %s", checkpoint, reason)
        target = checkpoint.with_name(f"broken-{checkpoint.name}")
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)
    return None


def _newest_first(work: Path) -> list[Path]:
    found = work.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    folders = [path for path in found if path.is_dir() and path.name.rpartition("-")[2].isdecimal()]
    return sorted(folders, key=step_of, reverse=True)


def _fault(checkpoint: Path, fingerprint: str) -> str | None:
    """Return why a checkpoint cannot be resumed from, None if it can."""
    try:
        payload = json.loads((checkpoint / DIGESTS_NAME).read_text(encoding="utf-8"))
        promised, owner = dict(payload["sha256"]), payload["fingerprint"]
    except FileNotFoundError:
        return f"it has no {DIGESTS_NAME}, so it was not written to the end"
    except (ValueError, TypeError, KeyError):
        return f"its {DIGESTS_NAME} cannot be read"
    if owner != fingerprint:
        return "it belongs to a run on other data or settings"
    found = _digests(checkpoint)
    for name in sorted(promised.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in promised:
            return f"{name} does not belong to it"
        if promised[name] != found[name]:
            return f"{name} differs from its digest"
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS_NAME]
    return {path.relative_to(folder).as_posix(): digest_of_file(path) for path in files}
