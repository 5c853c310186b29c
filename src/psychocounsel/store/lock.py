"""One run per artifact: a lock that names its holder and dies with it."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from psychocounsel.errors import StoreError


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="ascii")
    except OSError as fault:
        raise StoreError(
            f"the store cannot be written to: {fault.strerror}",
            where=str(path.parent),
            remedy="name a folder of yours with --store, or mend the permissions",
        ) from fault


@contextmanager
def held(path: Path, what: str) -> Generator[None]:
    """Hold the lock file at `path`; the kernel frees it when the process ends, however it ends.

    Raises:
        StoreError: another live process holds it; the message names that process.
    """
    with _opened(path) as stream:
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
