"""SIGINT, SIGTERM -> a polite request to stop; a second one ends the process at once."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from psychocounsel.errors import ExitCode, Preempted

log = logging.getLogger(__name__)


def go_on(stop: Callable[[], bool], where: str) -> None:
    """Return unless a stop was requested; asked between two pieces of work that are kept whole.

    Raises:
        Preempted: it was.
    """
    if stop():
        raise Preempted(
            "stopped as asked", where=where, remedy="run the same command again to go on from there"
        )


def stoppable(
    report: Callable[[int, int], None], stop: Callable[[], bool], where: str
) -> Callable[[int, int], None]:
    """Return `report` for work that nothing saves half-way: it raises Preempted once a stop is requested."""

    def report_or_stop(done: int, total: int) -> None:
        report(done, total)
        if done < total:
            go_on(stop, where)

    return report_or_stop


@contextmanager
def stop_requests() -> Generator[Callable[[], bool]]:
    """Yield `stop()`, which turns true at the first signal; earlier handlers come back at the end.

    Outside the main thread, where Python takes no signals, `stop()` stays false.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def handle(signum: int, _: FrameType | None) -> None:
        if requested.is_set():
            os._exit(ExitCode.PREEMPTED)
        requested.set()
        log.warning(f"{signal.Signals(signum).name}: saving after the present step; once more ends at once")

    earlier = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
