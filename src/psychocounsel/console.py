"""Events -> lines on stderr: progress, notes and errors; results alone go to stdout."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from psychocounsel.errors import PsychoCounselError

Advance = Callable[[int], None]


def note(text: str) -> None:
    """Tell the user something about the run."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


def result(text: str) -> None:
    """Print a result to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def error(fault: PsychoCounselError) -> None:
    """Show what, where and how to mend, without a traceback."""
    sys.stderr.write("".join(f"error: {line}\n" for line in str(fault).splitlines()))
    sys.stderr.flush()


@contextmanager
def progress(label: str, total: int) -> Generator[Advance]:
    """Show a bar on a terminal, one closing line elsewhere; yields `advance(count)`."""
    started = time.monotonic()
    if sys.stderr.isatty():
        with _bar(label, total) as show:
            counted = 0

            def count_on(count: int) -> None:
                nonlocal counted
                counted += count
                show(counted, total)

            yield count_on
    else:
        done = [0]

        def count_up(count: int) -> None:
            done[0] += count

        yield count_up
        note(f"{label}: {done[0]} of {total} in {time.monotonic() - started:.1f} s")


@contextmanager
def step_progress(label: str) -> Generator[Callable[[int, int], None]]:
    """Yield `report(done, total)` for work that learns its total as it goes."""
    if sys.stderr.isatty():
        with _bar(label, 1) as show:
            yield show
        return
    started = time.monotonic()
    last = (0, 0)

    def remember(done: int, total: int) -> None:
        nonlocal last
        last = (done, total)

    yield remember
    note(f"{label}: {last[0]} of {last[1]} in {time.monotonic() - started:.1f} s")


@contextmanager
def _bar(label: str, total: int) -> Generator[Callable[[int, int], None]]:
    from rich.console import Console  # rich takes 50 ms: loaded when a bar is drawn, not for --help
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
