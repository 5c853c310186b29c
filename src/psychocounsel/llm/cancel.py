"""A run that stops or fails -> nothing more is sent for it, and who waits to send gives up at once.

A wish to stop, or a failure, is known to whoever asks; turns and back-offs are waited for in the client, some
layers below. So the run's halt takes a way of its own there, one for each run. A client that does not look
for it is asked nothing new all the same.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import FrameType

from psychocounsel.errors import ExitCode, Preempted

_LOOK_EVERY_SECONDS = 0.05


class RunCancelledError(Preempted):
    """The run that asks has halted; the request was not sent, or not again."""

    def __init__(self) -> None:
        super().__init__("the run ends, and this request was not sent", remedy="run the same command again to go on")


class CancelScope:
    """Whether one run in one event loop has halted.

    Args:
        wished: says whether somebody wishes that it stops; true once is true for ever.
    """

    def __init__(self, wished: Callable[[], bool]) -> None:
        self._wished = wished
        self._is_called = False
        self._waits: set[asyncio.Timeout] = set()

    @property
    def is_called(self) -> bool:
        """Whether the run has halted."""
        if not self._is_called and self._wished():
            self.call()
        return self._is_called

    def call(self) -> None:
        """CancelScope the run."""
        self._is_called = True
        now = asyncio.get_running_loop().time()
        while self._waits:
            self._waits.pop().reschedule(now)

    @contextmanager
    def watched(self) -> Generator[None]:
        """Have everybody who asks within the block know this halt, and look for the wish in its course."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            nonlocal watch
            if not self.is_called:
                watch = loop.call_later(_LOOK_EVERY_SECONDS, look)

        watch = loop.call_later(_LOOK_EVERY_SECONDS, look)
        token = _halt.set(self)
        try:
            yield
        finally:
            _halt.reset(token)
            watch.cancel()

    @asynccontextmanager
    async def ending_waits(self) -> AsyncGenerator[None]:
        """End the waits within the block, as a cancellation does, once the run halts.

        Raises:
            RunCancelledError: it has, before the block or while something in it waited.
        """
        self.require_going()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._waits.add(limit)
                try:
                    yield
                finally:
                    self._waits.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise RunCancelledError from None
            raise

    def require_going(self) -> None:
        """Return unless the run has halted.

        Raises:
            RunCancelledError: it has.
        """
        if self.is_called:
            raise RunCancelledError


def present_halt() -> CancelScope:
    """Return the halt of the run that asks; one that is never called where no run asks."""
    return _halt.get(_NEVER)


_NEVER = CancelScope(lambda: False)
_halt: ContextVar[CancelScope] = ContextVar("halt")


log = logging.getLogger(__name__)


def raise_if_cancelled(stop: Callable[[], bool], where: str) -> None:
    """Return unless a stop was requested; asked between two pieces of work that are kept whole.

    Raises:
        Preempted: it was.
    """
    if stop():
        raise Preempted("stopped as asked", where=where, remedy="run the same command again to go on from there")


def stoppable(report: Callable[[int, int], None], stop: Callable[[], bool], where: str) -> Callable[[int, int], None]:
    """Return `report` for work that nothing saves half-way: it raises Preempted once a stop is requested."""

    def report_or_stop(done: int, total: int) -> None:
        report(done, total)
        if done < total:
            raise_if_cancelled(stop, where)

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
