"""Stopping: one token for the process, set by SIGINT, SIGTERM or SIGHUP, that everything long-running looks at."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from weakref import WeakSet

from psychocounsel.errors import ExitCode, Preempted

log = logging.getLogger(__name__)


class RunCancelledError(Preempted):
    """The run was cancelled, by a signal or because it failed."""

    def __init__(self, where: str = "") -> None:
        super().__init__("stopped as requested", where=where, remedy="run the same command again to resume")


class CancelToken:
    """Whether work is to stop. Once cancelled, a token stays cancelled, and so do its children.

    A run that fails cancels a child token of its own: it sends nothing more, and its caller continues.
    `cancel` may be called from a signal handler or from any thread.
    """

    def __init__(self, parent: "CancelToken | None" = None) -> None:
        self._is_cancelled = False
        self._children: WeakSet[CancelToken] = WeakSet()
        self._interrupts: set[Callable[[], object]] = set()
        if parent is not None:
            parent._children.add(self)
            if parent.is_cancelled():
                self.cancel()

    def is_cancelled(self) -> bool:
        """Whether work is to stop."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Have all work that looks at this token or at its children stop, and end the waits."""
        self._is_cancelled = True
        for interrupt in list(self._interrupts):
            interrupt()
        for child in list(self._children):
            child.cancel()

    def raise_if_cancelled(self, where: str = "") -> None:
        """Raise RunCancelledError if work is to stop; called between two pieces of work that are kept whole."""
        if self._is_cancelled:
            raise RunCancelledError(where)

    @asynccontextmanager
    async def interrupting(self) -> AsyncGenerator[None]:
        """End the waits within the block, as the cancellation of its task would, once the token is cancelled.

        Raises:
            RunCancelledError: it was, before the block or while something in it waited.
        """
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)

        def end() -> None:
            if interrupt in self._interrupts:
                limit.reschedule(loop.time())

        def interrupt() -> None:
            loop.call_soon_threadsafe(end)

        try:
            async with limit:
                self._interrupts.add(interrupt)
                try:
                    self.raise_if_cancelled()
                    yield
                finally:
                    self._interrupts.discard(interrupt)
        except TimeoutError:
            if limit.expired():
                raise RunCancelledError from None
            raise


def interruptible(progress: Callable[[int, int], None], cancel: CancelToken, where: str) -> Callable[[int, int], None]:
    """Return `progress` for work that saves nothing half-way: it raises RunCancelledError once cancelled."""

    def report_or_raise(done: int, total: int) -> None:
        progress(done, total)
        if done < total:
            cancel.raise_if_cancelled(where)

    return report_or_raise


def _end_now(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    os._exit(ExitCode.PREEMPTED)


@contextmanager
def cancelled_by_signals(on_second: Callable[[int, FrameType | None], object] = _end_now) -> Generator[CancelToken]:
    """Yield a token that SIGINT and SIGTERM cancel; a second signal ends the process at once (exit 75).

    SIGHUP, by which a closed terminal ends a run, cancels it too, however often it comes; under nohup it is ignored.
    Where others live in the process, `on_second` is another handler of that. Earlier handlers come back at the end.
    Outside the main thread, where Python receives no signals, nothing cancels the token.
    """
    token = CancelToken()
    if threading.current_thread() is not threading.main_thread():
        yield token
        return

    terminals = [each for each in (1, 2) if os.isatty(each)]

    def handle(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            for each in terminals:  # they are gone, and writing to them would be an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), each)
        elif token.is_cancelled():
            on_second(signum, frame)
        token.cancel()
        log.warning(f"{signal.Signals(signum).name}: saving after the current step; a second signal ends at once")

    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    earlier = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM, *hang_up)}
    try:
        yield token
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
