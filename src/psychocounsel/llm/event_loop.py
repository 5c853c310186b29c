"""Coroutine -> its result, in the fastest event loop that this machine has."""

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_SWITCH_SECONDS = 0.001

_Result = TypeVar("_Result")


def run_to_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `work` in an event loop of its own; errors and Ctrl-C as for `asyncio.run`."""
    # Every full collection would look at all libraries and requests again, for a tenth of a second and more,
    # while replies that were paid for wait to be read.
    gc.freeze()
    # The thread that writes replies to disk waits for its turn at the interpreter several times in a commit.
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(work)
    finally:
        sys.setswitchinterval(switch_seconds)
        gc.unfreeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return None
    return uvloop.new_event_loop
