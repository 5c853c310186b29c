"""The terminal: results go to stdout; notes, progress and errors to stderr."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO

from psychocounsel.errors import VERBOSE, PsychoCounselError
from psychocounsel.reporting.tables import Table, as_text, fit

Advance = Callable[[int], None]
Show = Callable[[int, int], None]
"""Shows how many are done of how many in total."""
Clock = Callable[[], float]

COLUMNS_WITH_BAR = 60
LINE_EVERY_SECONDS = 30.0
"""Between two lines of progress where there is no terminal, as in the log of a batch job."""


def note(text: str) -> None:
    """Print a message about the run to stderr."""
    room = _columns(sys.stderr)
    sys.stderr.write("".join(f"{fit(f'  {line}', room)}\n" for line in text.splitlines()))
    sys.stderr.flush()


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._warned = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING or text not in self._warned:  # each phase of a run would repeat it
            note(text)
        self._warned.add(text)


class _LibraryNotes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.name}: {record.getMessage()}")


def show_log(*, is_verbose: bool = False) -> None:
    """Print what the package logs, from INFO upwards, as notes on stderr; verbose, also what libraries log."""
    logger = logging.getLogger("psychocounsel")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Notes()]
    logger.propagate = False
    if is_verbose:
        os.environ[VERBOSE] = "1"
        logging.captureWarnings(capture=True)
        logging.basicConfig(level=logging.INFO, handlers=[_LibraryNotes()], force=True)


def is_verbose() -> bool:
    """Return whether more is to be shown than a user needs who watches a run."""
    return bool(os.environ.get(VERBOSE))


def result(text: str) -> None:
    """Print a result to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def width() -> int | None:
    """Return how many columns the terminal has to which results go; None for a file or a pipe."""
    return _columns(sys.stdout)


def _columns(stream: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if stream.isatty() else None


def show(*tables: Table) -> None:
    """Print tables to stdout as wide as the terminal allows, an empty line between them."""
    result("\n\n".join(as_text(table, width()) for table in tables))


def prose(text: str) -> None:
    """Print a result in sentences to stdout; on a terminal, lines break between words."""
    result(fit(text, width()))


def error(fault: PsychoCounselError) -> None:
    """Print an error to stderr, without a traceback."""
    sys.stderr.write("".join(f"error: {line}\n" for line in str(fault).splitlines()))
    sys.stderr.flush()


@contextmanager
def progress(
    label: str, total: int, status: Callable[[], str] = str, clock: Clock = time.monotonic
) -> Generator[Advance]:
    """Show a bar on a terminal, or else a line at intervals and at the end; yields `advance(count)`.

    `status` returns more to show, such as failures and the cost so far.
    """
    counted = 0
    with _display(label, total, status, clock) as show:

        def advance(count: int) -> None:
            nonlocal counted
            counted += count
            show(counted, total)

        yield advance


@contextmanager
def step_progress(label: str, clock: Clock = time.monotonic) -> Generator[Show]:
    """Yield `show(done, total)` for work that learns its total as it goes."""
    with _display(label, 0, str, clock) as show:
        yield show


@contextmanager
def _display(label: str, total: int, status: Callable[[], str], clock: Clock) -> Generator[Show]:
    if sys.stderr.isatty():
        with _bar(label, total or 1, status, clock) as show:
            yield show
    else:
        lines = _Lines(label, status, clock)
        yield lines.show
        lines.end()


class _Lines:
    """Progress in a log. Work that was done before the first call says nothing about the rate."""

    def __init__(self, label: str, status: Callable[[], str], clock: Clock) -> None:
        self._label, self._status, self._clock = label, status, clock
        self._started = clock()
        self._done = self._total = 0
        self._last_line: tuple[int, float] | None = None

    def show(self, done: int, total: int) -> None:
        now = self._clock()
        self._done, self._total = done, total
        if self._last_line is None:
            self._last_line = done, now
            return
        before, then = self._last_line
        if done < total and now - then >= LINE_EVERY_SECONDS:
            speed = "no progress"
            if (rate := (done - before) / (now - then)) > 0:
                shown = f"{rate:.1f} per second" if rate >= 1 else f"{60 * rate:.1f} per minute"
                speed = f"{shown}, {timedelta(seconds=round((total - done) / rate))} left"
            self._note(f"{done} of {total}, {speed}")
            self._last_line = done, now

    def end(self) -> None:
        if self._last_line is not None:  # else nothing was done, as in a dry run
            self._note(f"{self._done} of {self._total} in {self._clock() - self._started:.1f} s")

    def _note(self, text: str) -> None:
        status = self._status()
        note(f"{self._label}: {text}{f', {status}' if status else ''}")


@contextmanager
def _bar(label: str, total: int, status: Callable[[], str], clock: Clock) -> Generator[Show]:
    from rich.console import Console, RenderableType  # rich takes 50 ms to import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        """The status has a line of its own: on a narrow terminal it would push out the counts."""

        def get_renderables(self) -> Generator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if status := task.fields["status"]:
                    yield Text(f"    {status}", no_wrap=True, overflow="ellipsis")

    terminal = Console(stderr=True)
    bars = [BarColumn()] if terminal.width >= COLUMNS_WITH_BAR else []
    columns = (TextColumn("  {task.description}"), *bars, MofNCompleteColumn(), TimeRemainingColumn())
    started, before = clock(), -1
    with Bar(*columns, console=terminal) as bar:
        task = bar.add_task(label, total=total, status="")

        def show(done: int, total: int) -> None:
            nonlocal before
            before = done if before < 0 else before  # what was done before says nothing about the rate
            seconds = clock() - started
            rate = f"{(done - before) / seconds:.1f} per second" if seconds >= 1 else ""
            bar.update(task, completed=done, total=total, status=", ".join(filter(None, (rate, status()))))

        yield show
