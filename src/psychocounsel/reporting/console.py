"""Events -> lines on stderr: progress, notes and errors; results alone go to stdout."""

import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from psychocounsel.errors import PsychoCounselError

Advance = Callable[[int], None]
Standing = Callable[[], str]

LINE_EVERY_SECONDS = 30.0
"""Between two lines of progress where there is no terminal, as in the log of a batch job."""


def note(text: str) -> None:
    """Tell the user something about the run."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def show_log() -> None:
    """Print what the package logs, from INFO upwards, as notes on stderr."""
    logger = logging.getLogger("psychocounsel")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Notes()]
    logger.propagate = False


def result(text: str) -> None:
    """Print a result to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def error(fault: PsychoCounselError) -> None:
    """Show what, where and how to mend, without a traceback."""
    sys.stderr.write("".join(f"error: {line}\n" for line in str(fault).splitlines()))
    sys.stderr.flush()


@contextmanager
def progress(label: str, total: int, standing: Standing = lambda: "") -> Generator[Advance]:
    """Show a bar on a terminal, a line now and then elsewhere; yields `advance(count)`.

    Args:
        label: what is done.
        total: of how many.
        standing: tells what else there is to know at present, such as failures and what was spent.
    """
    counted = 0
    with _shown(label, total, standing) as show:

        def advance(count: int) -> None:
            nonlocal counted
            counted += count
            show(counted, total)

        yield advance


@contextmanager
def step_progress(label: str) -> Generator[Callable[[int, int], None]]:
    """Yield `report(done, total)` for work that learns its total as it goes."""
    with _shown(label, 0, lambda: "") as show:
        yield show


@contextmanager
def _shown(label: str, total: int, standing: Standing) -> Generator[Callable[[int, int], None]]:
    if sys.stderr.isatty():
        with _bar(label, total or 1, standing) as show:
            yield show
        return
    lines = _Lines(label, total, standing)
    yield lines.show
    lines.end()


class _Lines:
    """Progress in a log: a line at intervals, if the work takes that long, and one at its end."""

    def __init__(self, label: str, total: int, standing: Standing) -> None:
        self._label = label
        self._standing = standing
        self._done, self._total = 0, total
        self._started = time.monotonic()
        self._told: _Told | None = None

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._done, self._total = done, total
        if self._told is None:
            self._told = _Told(done, now)  # what was there already says nothing about the rate
        elif done < total and now - self._told.at >= LINE_EVERY_SECONDS:
            per_second = (done - self._told.done) / (now - self._told.at)
            note(f"{self._label}: {done} of {total}, {_pace(per_second, total - done)}{self._more()}")
            self._told = _Told(done, now)

    def end(self) -> None:
        if self._told is None:
            return  # nothing was done, as in a dry run
        seconds = time.monotonic() - self._started
        note(f"{self._label}: {self._done} of {self._total} in {seconds:.1f} s{self._more()}")

    def _more(self) -> str:
        return f", {told}" if (told := self._standing()) else ""


class _Told(NamedTuple):
    """How much was done, and when, as of the last line."""

    done: int
    at: float


def _pace(per_second: float, remaining: int) -> str:
    if per_second <= 0:
        return "standing still"
    rate = f"{per_second:.1f} per second" if per_second >= 1 else f"{60 * per_second:.1f} per minute"
    return f"{rate}, {timedelta(seconds=round(remaining / per_second))} left"


@contextmanager
def _bar(label: str, total: int, standing: Standing) -> Generator[Callable[[int, int], None]]:
    from rich.console import Console  # rich takes 50 ms: loaded when a bar is drawn, not for --help
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    started, before = time.monotonic(), -1
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, told="")

        def show(done: int, total: int) -> None:
            nonlocal before
            before = done if before < 0 else before  # what was there already says nothing about the rate
            seconds = time.monotonic() - started
            rate = f"{(done - before) / seconds:.1f} per second" if seconds >= 1 else ""
            told = ", ".join(part for part in (rate, standing()) if part)
            bar.update(task, completed=done, total=total, told=told)

        yield show
