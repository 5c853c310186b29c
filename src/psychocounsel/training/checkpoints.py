"""checkpoint-N -> ResumePoint: seal checkpoints, and find the newest one that can be trusted.

A checkpoint is trusted when its list of digests, written last, agrees with every file in it and names the
run that asks. Whatever lacks a file resumes with an error, or silently with other weights, if it is taken.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psychocounsel.store.files import digest_of_file, write_bytes
from psychocounsel.types import PreferencePair, content_id

log = logging.getLogger(__name__)

SEAL_NAME = "SHA256SUMS.json"
KEPT_CHECKPOINTS = 2


class SkippedCheckpoint(NamedTuple):
    """A checkpoint that must not be resumed from, and why."""

    path: Path
    reason: str


class ResumePoint(NamedTuple):
    """Where training goes on (`path` is None: at the start) and what was passed over on the way there."""

    path: Path | None
    skipped: tuple[SkippedCheckpoint, ...]

    @property
    def step(self) -> int:
        """Number of steps that are already done."""
        return 0 if self.path is None else step_of(self.path)


def run_fingerprint(pairs: Sequence[PreferencePair], settings: object) -> str:
    """Return what tells one run's checkpoints from another's: a hash of its pairs, in order, and settings."""
    return content_id("training", json.dumps(settings, sort_keys=True), *(pair.id for pair in pairs))


def step_of(checkpoint: Path) -> int:
    """Return the number in `checkpoint-N`."""
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def seal(checkpoint: Path, fingerprint: str) -> None:
    """Write the digest of every file of `checkpoint` beside them; from now on it counts as complete."""
    payload = {"fingerprint": fingerprint, "sha256": _digests(checkpoint)}
    write_bytes(checkpoint / SEAL_NAME, json.dumps(payload, indent=1, sort_keys=True).encode())


def newest_verified(work: Path, fingerprint: str) -> ResumePoint:
    """Return the checkpoint with the highest step that is sealed, whole and of this run.

    Order is by step, never by time of modification: a clock that was set back must not hide the newest.
    """
    skipped: list[SkippedCheckpoint] = []
    for checkpoint in _by_step(work):
        reason = _fault(checkpoint, fingerprint)
        if reason is None:
            return ResumePoint(checkpoint, tuple(skipped))
        log.warning("skipped %s: %s", checkpoint, reason)
        skipped.append(SkippedCheckpoint(checkpoint, reason))
    return ResumePoint(None, tuple(skipped))


def set_aside(skipped: Sequence[SkippedCheckpoint]) -> None:
    """Rename checkpoints that cannot be used, lest new ones of the same step mix with their files."""
    for checkpoint, _ in skipped:
        target = checkpoint.with_name(f"broken-{checkpoint.name}")
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)


def prune(work: Path) -> None:
    """Delete all but the newest sealed checkpoints, by step."""
    sealed = [checkpoint for checkpoint in _by_step(work) if (checkpoint / SEAL_NAME).is_file()]
    for checkpoint in sealed[KEPT_CHECKPOINTS:]:
        shutil.rmtree(checkpoint)


class SealingCallback(TrainerCallback):
    """Seals each checkpoint that the trainer wrote into `work`, then deletes the ones no longer needed."""

    def __init__(self, work: Path, fingerprint: str) -> None:
        self.work = work
        self.fingerprint = fingerprint

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal the checkpoint of the present step."""
        if state.is_world_process_zero:
            seal(self.work / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", self.fingerprint)
            prune(self.work)


def _by_step(work: Path) -> list[Path]:
    folders = [
        path
        for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()
    ]
    return sorted(folders, key=step_of, reverse=True)


def _fault(checkpoint: Path, fingerprint: str) -> str | None:
    try:
        payload = json.loads((checkpoint / SEAL_NAME).read_text(encoding="utf-8"))
        promised = dict(payload["sha256"])
        owner = payload["fingerprint"]
    except FileNotFoundError:
        return f"it has no {SEAL_NAME}, so its writing was cut short"
    except (ValueError, TypeError, KeyError):
        return f"its {SEAL_NAME} cannot be read"
    if owner != fingerprint:
        return "it belongs to a run on other data or settings"
    return _difference(promised, _digests(checkpoint))


def _difference(promised: dict[str, str], found: dict[str, str]) -> str | None:
    for name in sorted(promised.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in promised:
            return f"{name} does not belong to it"
        if promised[name] != found[name]:
            return f"{name} differs from its digest"
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL_NAME]
    return {path.relative_to(folder).as_posix(): digest_of_file(path) for path in files}
