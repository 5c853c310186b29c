"""Results to stdout, everything else to stderr; a bar on a terminal only."""

import io
import sys

import pytest

from psychocounsel import console
from psychocounsel.errors import ConfigError


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


def test_progress_without_a_terminal_is_one_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_progress_that_breaks_off_claims_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.progress("judging", 5) as advance:
        advance(2)
        raise KeyError
    with pytest.raises(KeyError), console.step_progress("training"):
        raise KeyError
    assert capsys.readouterr().err == ""


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
