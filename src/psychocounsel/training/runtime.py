"""Model libraries -> silence: their progress bars and expected warnings stay off the user's terminal."""

import ctypes
import logging
import platform
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from psychocounsel.errors import IncompleteError


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Quiet transformers and trl inside the block; everything is as before after it."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    trl_log = logging.getLogger("trl")
    trl_level = trl_log.level
    trl_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # trl 1.16 asks transformers 5.23 by an old name, at every step.
            warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"`gradient_checkpointing_(en|dis)able` is deprecated", FutureWarning)
            yield
    finally:
        trl_log.setLevel(trl_level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER_BYTES = 2**31 - 1


def prepare_processor() -> None:
    """Make training on a processor repeatable and keep freed memory; no change with an accelerator."""
    if torch.accelerator.is_available():
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)


_SIGNS = ("No space left", "os error 28", "quota exceeded", "os error 122")
_NOTHING_LEFT_BYTES = 1 << 22


@contextmanager
def saving(folder: Path) -> Generator[None]:
    """Tell a disk that is full while weights or checkpoints are written as an unfinished run.

    Raises:
        IncompleteError: no space or quota is left; any other fault of the libraries passes.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as fault:
        if not _is_full(folder, str(fault)):
            raise
        raise IncompleteError(
            f"could not write: {str(fault).splitlines()[0]}",
            where=str(folder),
            remedy="free some space, then run the same command again",
        ) from fault


def _is_full(folder: Path, message: str) -> bool:
    """Whether the message says so, or, for torch's names no cause, the disk itself does."""
    return any(sign in message for sign in _SIGNS) or shutil.disk_usage(folder).free < _NOTHING_LEFT_BYTES
