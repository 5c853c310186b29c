"""Jobs for the tests of launching; the processes of a launch import them by name."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import gather_object

from psychocounsel.errors import DataQualityError, Preempted
from psychocounsel.training.trainer import TrainingOutput


def double(numbers: list[int], progress: Callable[[int, int], None]) -> list[int]:
    """Return twice the numbers, and report each."""
    for done, _ in enumerate(numbers, start=1):
        progress(done, len(numbers))
    return [2 * number for number in numbers]


def endless(pids: Path, progress: Callable[[int, int], None]) -> list[int]:
    """Leave a file named by the id of the process, and work until something ends it."""
    (pids / str(os.getpid())).touch()
    while True:
        progress(1, 2)
        time.sleep(0.02)


def training(ending: str, output: TrainingOutput) -> int:
    """Wait for a cancel in the first process, or for ever; the second ends as told."""
    output.progress(1, 9)
    if ending == "cancelled" or os.environ["RANK"] == "0":
        while not output.cancel.is_cancelled():
            time.sleep(0.02)
        raise Preempted("stopped after step 3 of 9", where=str(output.work), remedy="run again")
    if ending == "error":
        raise DataQualityError("too few pairs", where="here", remedy="add some")
    if ending == "bug":
        raise KeyError("a bug")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def ranks(output: TrainingOutput) -> list[tuple[int, int]]:
    """Return rank and local rank of all processes, by a collective call."""
    own = [(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]))]
    return sorted(gather_object(own))


def visible_devices(output: TrainingOutput) -> str:
    """Return the GPUs that a training sees."""
    return os.environ["CUDA_VISIBLE_DEVICES"]


def collective_timeout(output: TrainingOutput) -> float:
    """Return for how many seconds a process waits for the others in a collective call."""
    return torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds()
