"""Requests of several runs that share a journal -> each is in flight for one of them, and paid for once.

A claim is a lock on one byte of a file beside the journal, at a place that the request's digest gives. The
kernel frees it when its process ends, however it ends. Within one process runs come one after another, and
claims say nothing.
"""

import fcntl
import os
import sqlite3
from contextlib import suppress
from errno import EACCES, EAGAIN
from pathlib import Path

CLAIMS_FILE = "claims.lock"

_HEX_DIGITS = 15  # 60 bits: a place that every file system takes


class Claims:
    """The claims of one run on requests to the journal at `journal_path`."""

    def __init__(self, journal_path: Path) -> None:
        path = journal_path.with_name(CLAIMS_FILE)
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # A connection of its own: the journal's waits while a commit reaches the disk.
        self._kept = sqlite3.connect(journal_path, isolation_level=None)

    def take(self, digest: str) -> bool:
        """Claim a request; return whether it is ours, and not in flight for another process."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(digest))
        except OSError as fault:
            # A file system that knows no locks keeps nobody from asking.
            return fault.errno not in (EACCES, EAGAIN)
        return True

    def drop(self, digest: str) -> None:
        """Give a claim back; the reply, if there was one, is on disk."""
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(digest))

    def replies_kept(self, digest: str) -> int:
        """Return how many replies to a request the journal holds at this moment, damaged ones included."""
        try:
            query = "SELECT COUNT(*) FROM replies WHERE digest = ?"
            (count,) = self._kept.execute(query, (digest,)).fetchone()
        except sqlite3.Error:
            return 0  # whoever reads or writes it next tells what is wrong
        return int(count)

    def close(self) -> None:
        """Give everything back."""
        self._kept.close()
        os.close(self._file)


def _place(digest: str) -> int:
    return int(digest[:_HEX_DIGITS], 16)
