"""Trackers: TensorBoard, trackio or Weights & Biases show the figures of a run while it computes.

A training is a run of its own in the tracker, as are the probes of an online run. Figures, settings and paths on this
machine go there, and no text of a speech or an answer.
"""

import importlib
import importlib.util
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psychocounsel.errors import ConfigError
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from transformers import Trainer

PROJECT = "psychocounsel"
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL")
"""Variables that have trackio send what it otherwise keeps on this machine."""


def prepare_tracker(tracker: str, store: Store) -> None:
    """Set the environment of a tracker, for this process and those that it starts; "none" needs nothing.

    What it keeps on this machine is in the folder `trackers` of the store; trackio has a place of its own. Offline,
    wandb keeps everything there, for `wandb sync`.

    Raises:
        ConfigError: its package is not installed; or offline, and trackio would send to another machine.
    """
    if tracker == "none":
        return
    if importlib.util.find_spec(tracker) is None:
        raise ConfigError(
            f"tracker: {tracker} needs a package that is not installed",
            where="tracker",
            remedy=f"pip install {tracker}",
        )
    folder = store.root.absolute() / "trackers"
    os.environ |= {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"), "WANDB_DIR": str(folder)}
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    if store.offline:
        os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
        if tracker == "trackio" and (given := [name for name in _ELSEWHERE if os.environ.get(name)]):
            raise ConfigError(
                f"offline, but {', '.join(given)} has trackio send to another machine",
                where="tracker",
                remedy="unset it, or leave --offline out",
            )


def tracker_arguments(tracker: str) -> dict[str, Any]:
    """Return the `TrainingArguments` that name the tracker."""
    return {"report_to": tracker, "project": PROJECT}


@contextmanager
def tracked_training(trainer: "Trainer", run: str) -> Generator[None]:
    """Have the tracker that the trainer reports to take what is trained within the block as one run of this name.

    A training that is resumed goes on with its run.
    """
    from transformers.integrations import TensorBoardCallback  # imports torch

    trainer.args.run_name = run
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(_tensorboard_folder(run))
    # The library's callback for wandb takes a run that has begun, and never ends one.
    wandb = (
        _begin("wandb", run) if "wandb" in (trainer.args.report_to or ()) and trainer.is_world_process_zero() else None
    )
    try:
        yield
    finally:
        if wandb is not None:
            wandb.finish()


def track(tracker: str, run: str, values: Mapping[str, float], step: int) -> None:
    """Send the values of a step to a run of the tracker, which is begun if there is none of this name."""
    if tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        with SummaryWriter(_tensorboard_folder(run)) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
    else:
        module = _begin(tracker, run)
        module.log(dict(values), step=step)
        module.finish()


def _begin(tracker: str, run: str) -> Any:
    """Begin a run of wandb or trackio, whose interfaces are nearly the same, and return the module."""
    module: Any = importlib.import_module(tracker)
    if tracker == "trackio":
        module.init(project=PROJECT, name=run, resume="allow")
    else:
        Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
        module.init(id=run, name=run, resume="allow")
    return module


def _tensorboard_folder(run: str) -> Path:
    return Path(os.environ["TENSORBOARD_LOGGING_DIR"]) / run
