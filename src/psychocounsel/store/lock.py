"""One run per artifact: a lock that names its holder and dies with it."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psychocounsel.errors import StoreError


@contextmanager
def held(path: Path, what: str) -> Generator[None]:
    """Hold the lock file at `path`; the kernel frees it when the process ends, however it ends.

    Raises:
        StoreError: another live process holds it; the message names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise StoreError(
                f"{what} is being made by {holder}",
                where=str(path),
                remedy="wait for it to end, or stop it and run this command again",
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        yield
