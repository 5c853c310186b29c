"""Results to stdout, everything else to stderr; a bar on a terminal only."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from psychocounsel.errors import ConfigError
from psychocounsel.reporting import console
from running import SOURCE


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_results_go_to_stdout_and_notes_and_errors_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("created: policies talk@12345678")
    console.note("resuming\nstep 3")
    console.error(ConfigError("a.yaml line 1: x\na.yaml line 2: y"))
    out, err = capsys.readouterr()
    assert out == "created: policies talk@12345678\n"
    assert err == "  resuming\n  step 3\nerror: a.yaml line 1: x\nerror: a.yaml line 2: y\n"


def test_a_warning_is_shown_once_however_often_it_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("psychocounsel.training")
    console.show_log()
    for _ in range(2):
        log.info("resumes")
        for kind in ("phi", "gemma"):
            log.warning("%s runs without packing", kind)
    notes = ["  resumes", "  phi runs without packing", "  gemma runs without packing", "  resumes"]
    assert capsys.readouterr().err.splitlines() == notes


class Clock:
    """A clock that a test sets."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_short_progress_is_one_closing_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.progress("judging", 5, clock=clock) as advance:
        advance(2)
        advance(3)
        assert capsys.readouterr().err == ""
    with console.step_progress("training", clock) as show:  # work that learns its total
        show(1, 10)
        show(12, 12)
    with console.progress("auditing", 5, clock=clock):  # nothing was done
        pass
    assert capsys.readouterr().err.splitlines() == ["  judging: 5 of 5 in 0.0 s", "  training: 12 of 12 in 0.0 s"]


def test_long_work_shows_its_rate_at_intervals(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.step_progress("training", clock) as show:
        for step in range(500, 601):  # resumed at step 500: one step takes 4 s
            show(step, 600)
            clock.seconds += 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  training: 508 of 600, 15.0 per minute, 0:06:08 left"
    assert lines[1] == "  training: 516 of 600, 15.0 per minute, 0:05:36 left"
    assert len(lines) == 12 + 1  # 100 steps of 4 s are 12 times 32 s
    assert lines[-1] == "  training: 600 of 600 in 404.0 s"


def test_lines_show_the_status_and_say_where_nothing_moves(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    status = [""]
    with console.progress("judging", 900, lambda: status[0], clock) as advance:
        for count, words in ((300, ""), (60, "2 failed, $0.10 spent"), (0, "")):
            status[0] = words
            advance(count)
            clock.seconds += console.LINE_EVERY_SECONDS
        status[0] = "3 failed"
    assert capsys.readouterr().err.splitlines() == [
        "  judging: 360 of 900, 2.0 per second, 0:04:30 left, 2 failed, $0.10 spent",
        "  judging: 360 of 900, no progress",
        "  judging: 360 of 900 in 90.0 s, 3 failed",
    ]


def test_progress_that_raises_has_no_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.progress("judging", 5) as advance:
        advance(2)
        raise KeyError
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_with_the_rate_of_this_run(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    with console.progress("judging", 900, lambda: "2 failed, $0.10 spent", clock) as advance:
        advance(300)
        clock.seconds += 10
        advance(50)
    with console.step_progress("training") as show:
        show(3, 12)
    shown = terminal.getvalue()
    assert "judging" in shown
    assert "350/900" in shown
    assert "5.0 per second, 2 failed, $0.10 spent" in shown
    assert "3/12" in shown


@pytest.mark.parametrize("columns", [40, 80])
def test_a_bar_fits_the_terminal(columns: int) -> None:
    """In a terminal of its own, for the library asks it for its size."""
    script = """
import sys
from psychocounsel.reporting import console
with console.progress("rating responses", 1920, lambda: "12 failed, $0.1234 of $50.00 spent") as advance:
    for _ in range(4):
        advance(480)
with console.step_progress("measuring drift") as show:
    show(3, 5)
"""
    command = [sys.executable, "-c", script]
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env={**environment, "PYTHONPATH": SOURCE}) as run:
        os.close(terminal)
        shown = b"".join(iter(lambda: read_or_end(main), b"")).decode()
    os.close(main)
    assert run.returncode == 0, shown
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    assert max(map(len, lines)) <= columns
    assert any("rating responses" in line and "1920/1920" in line for line in lines)
    assert any("12 failed" in line for line in lines)


def read_or_end(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says so when the last writer is gone
        return b""
