"""A line that breaks -> who asked hears of it at once: the server may charge for an answer that never came.

The client knows that a line broke, and whoever asked knows what for. Between them stand layers that ask in
another way or ask more than once, so the news takes a way of its own, one for each task.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

_Listener = Callable[[], Awaitable[None]]
_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def hearing_of_broken_lines(listener: _Listener) -> Generator[None]:
    """Have `listener` called for every line that breaks in this task until the block ends."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


async def line_broke() -> None:
    """Tell whoever asked that a request was sent and no answer came; returns once that is kept."""
    listener = _listener.get()
    if listener is not None:
        await listener()
