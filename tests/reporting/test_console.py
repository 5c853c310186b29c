"""Results to stdout, everything else to stderr; a bar on a terminal only."""

import io
import sys

import pytest

from psychocounsel.errors import ConfigError
from psychocounsel.reporting import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("made: policies talk@12345678")
    console.note("going on where it was left")
    out, err = capsys.readouterr()
    assert out == "made: policies talk@12345678\n"
    assert err == "  going on where it was left\n"


def test_every_fault_of_an_error_stands_on_its_line_without_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.error(ConfigError("a.yaml line 1: x\na.yaml line 2: y"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: a.yaml line 1: x\nerror: a.yaml line 2: y\n"


def test_short_progress_without_a_terminal_is_one_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("judging", 5) as advance:
        advance(2)
        advance(3)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.startswith("  judging: 5 of 5 in ")


def test_work_that_learns_its_total_tells_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    with console.step_progress("training") as report:
        report(1, 10)
        report(12, 12)
    assert capsys.readouterr().err.startswith("  training: 12 of 12 in ")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


def test_long_work_tells_at_intervals_how_far_it_is_how_fast_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.step_progress("training") as report:
        for step in range(500, 601):  # resumed at step 500: one step takes 4 s
            report(step, 600)
            clock.seconds += 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  training: 508 of 600, 15.0 per minute, 0:06:08 left"
    assert lines[1] == "  training: 516 of 600, 15.0 per minute, 0:05:36 left"
    assert len(lines) == 12 + 1  # 100 steps of 4 s are 12 times 32 s
    assert lines[-1] == "  training: 600 of 600 in 404.0 s"


def test_work_that_hardly_moves_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.progress("judging", 900) as advance:
        for count in (300, 0, 90):
            advance(count)
            clock.seconds += console.LINE_EVERY_SECONDS
    assert capsys.readouterr().err.splitlines()[:-1] == [
        "  judging: 300 of 900, standing still",
        "  judging: 390 of 900, 3.0 per second, 0:02:50 left",
    ]


def test_lines_tell_what_else_there_is_to_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, standing = Clock(), [""]
    monkeypatch.setattr(console, "time", clock)
    with console.progress("judging", 900, lambda: standing[0]) as advance:
        for count, told in ((300, ""), (60, "2 failed, $0.10 spent"), (0, "")):
            standing[0] = told
            advance(count)
            clock.seconds += console.LINE_EVERY_SECONDS
        standing[0] = "3 failed"
    assert capsys.readouterr().err.splitlines() == [
        "  judging: 360 of 900, 2.0 per second, 0:04:30 left, 2 failed, $0.10 spent",
        "  judging: 360 of 900, standing still",
        "  judging: 360 of 900 in 90.0 s, 3 failed",
    ]


def test_progress_that_breaks_off_claims_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.progress("judging", 5) as advance:
        advance(2)
        raise KeyError
    with pytest.raises(KeyError), console.step_progress("training"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_a_bar_tells_the_rate_of_this_run_and_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, terminal = Clock(), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(console, "time", clock)
    with console.progress("judging", 900, lambda: "2 failed, $0.10 spent") as advance:
        advance(300)
        clock.seconds += 10
        advance(50)
    assert "350/900" in terminal.getvalue()
    assert "5.0 per second, 2 failed, $0.10 spent" in terminal.getvalue()


def test_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress("judging", 5) as advance:
        advance(2)
        advance(3)
    with console.step_progress("training") as report:
        report(3, 12)
    assert "judging" in terminal.getvalue()
    assert "5/5" in terminal.getvalue()
    assert "3/12" in terminal.getvalue()
