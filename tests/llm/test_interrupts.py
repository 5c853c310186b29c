"""The first signal asks, the second ends; afterwards everything is as it was."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from psychocounsel.errors import ExitCode, Preempted
from psychocounsel.llm.cancel import raise_if_cancelled, stop_requests, stoppable

LOOP = """
import time
from psychocounsel.llm.cancel import stop_requests

with stop_requests() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop():
            print("asked", flush=True)
            time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_earlier_handler_comes_back(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(number) is earlier
    assert f"{number.name}: saving after the present step" in capsys.readouterr().err


def test_handlers_come_back_after_an_error() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_requests():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is earlier


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == b"asked\n"
        child.send_signal(second)
        assert child.wait(timeout=5) == ExitCode.PREEMPTED


def test_outside_the_main_thread_nothing_is_caught() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(stop())

    earlier = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=5)
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_go_on_until_asked_to_stop() -> None:
    raise_if_cancelled(lambda: False, "here")
    with pytest.raises(Preempted, match="here: stopped as asked") as caught:
        raise_if_cancelled(lambda: True, "here")
    assert caught.value.exit_code == ExitCode.PREEMPTED


def test_stoppable_reports_first_and_lets_the_last_step_finish() -> None:
    told: list[tuple[int, int]] = []
    report = stoppable(lambda done, total: told.append((done, total)), lambda: True, "here")
    with pytest.raises(Preempted):
        report(1, 2)
    report(2, 2)
    assert told == [(1, 2), (2, 2)]
