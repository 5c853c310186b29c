"""A full disk, as the libraries that write weights tell it -> an unfinished run that can go on.

They raise errors of their own where Python raises `OSError`.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from psychocounsel.errors import IncompleteError

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
