"""One token stops everything: by a signal, from another thread, or because a run failed."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from psychocounsel.errors import ExitCode
from psychocounsel.llm.cancel import CancelToken, RunCancelledError, cancelled_by_signals, interruptible

SLEEPING_PROCESS = """
import time
from psychocounsel.llm.cancel import cancelled_by_signals

with cancelled_by_signals() as cancel:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if cancel.is_cancelled():
            print("cancelled", flush=True)
            time.sleep(60)
"""


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_a_child_is_cancelled_with_its_parent_and_alone_without_it_and_says_where() -> None:
    parent = CancelToken()
    first, second = CancelToken(parent), CancelToken(parent)
    parent.raise_if_cancelled("here")
    first.cancel()
    assert (first.is_cancelled(), second.is_cancelled(), parent.is_cancelled()) == (True, False, False)
    parent.cancel()
    assert second.is_cancelled()
    with pytest.raises(RunCancelledError) as caught:
        CancelToken(parent).raise_if_cancelled("here")
    assert (caught.value.where, caught.value.exit_code) == ("here", ExitCode.PREEMPTED)


@pytest.mark.parametrize("from_another_thread", [False, True])
def test_waits_end_and_clean_up_once_the_token_or_its_parent_is_cancelled(from_another_thread: bool) -> None:
    cleaned: list[int] = []

    async def waiter(token: CancelToken, number: int) -> None:
        async with token.interrupting():
            try:
                await wait_for_ever()
            finally:
                cleaned.append(number)

    async def work() -> list[BaseException | None]:
        parent = CancelToken()
        token = CancelToken(parent)
        tasks = [asyncio.create_task(waiter(token, number)) for number in range(20)]
        await asyncio.sleep(0)
        if from_another_thread:
            threading.Thread(target=parent.cancel).start()
        else:
            token.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(RunCancelledError):
            async with token.interrupting():
                cleaned.append(-1)
        return outcomes

    assert {type(outcome) for outcome in asyncio.run(work())} == {RunCancelledError}
    assert sorted(cleaned) == list(range(20))


def test_a_wait_that_ended_before_and_what_comes_after_it_are_left_alone() -> None:
    async def waiter(token: CancelToken, sent: asyncio.Event) -> str:
        async with token.interrupting():
            await asyncio.sleep(0)
        await sent.wait()
        return "answered"

    async def work() -> str:
        token, sent = CancelToken(), asyncio.Event()
        task = asyncio.create_task(waiter(token, sent))
        await asyncio.sleep(0.005)
        token.cancel()
        await asyncio.sleep(0.005)
        sent.set()
        return await task

    assert asyncio.run(work()) == "answered"


def test_a_time_limit_and_a_cancelled_task_within_keep_their_meaning() -> None:
    async def limited(token: CancelToken) -> None:
        async with token.interrupting(), asyncio.timeout(0):
            await wait_for_ever()

    async def cancelled(token: CancelToken) -> None:
        async with token.interrupting():
            await wait_for_ever()

    async def work() -> None:
        token = CancelToken()
        with pytest.raises(TimeoutError):
            await limited(token)
        task = asyncio.create_task(cancelled(token))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(work())


def test_interruptible_progress_reports_first_and_lets_the_last_step_finish() -> None:
    reported, token = list[tuple[int, int]](), CancelToken()
    token.cancel()
    progress = interruptible(lambda done, total: reported.append((done, total)), token, "here")
    with pytest.raises(RunCancelledError):
        progress(1, 2)
    progress(2, 2)
    assert reported == [(1, 2), (2, 2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_cancels_and_the_earlier_handler_comes_back(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = signal.getsignal(number)
    with cancelled_by_signals() as token:
        assert not token.is_cancelled()
        os.kill(os.getpid(), number)
        assert token.is_cancelled()
    assert signal.getsignal(number) is earlier
    assert number.name in caplog.text


def test_a_signal_ends_a_wait_in_an_event_loop() -> None:
    async def work(token: CancelToken) -> None:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        async with token.interrupting():
            await wait_for_ever()

    with cancelled_by_signals() as token, pytest.raises(RunCancelledError):
        asyncio.run(work(token))


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    command = [sys.executable, "-c", SLEEPING_PROCESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == b"cancelled\n"
        child.send_signal(second)
        assert child.wait() == ExitCode.PREEMPTED


AT_A_TERMINAL = """
import os, signal, sys, time
from pathlib import Path
from psychocounsel.llm.cancel import cancelled_by_signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
os.open(os.ttyname(0), os.O_RDWR)
with cancelled_by_signals() as token:
    print("ready", flush=True)
    while not token.is_cancelled():
        time.sleep(0.01)
    for _ in range(2):
        print("saving", flush=True)
        time.sleep(0.1)
    Path(sys.argv[1]).touch()
"""


def test_a_terminal_that_is_closed_cancels_and_what_is_printed_then_goes_nowhere(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", AT_A_TERMINAL, str(tmp_path / "saved")]
    streams = {"stdin": end, "stdout": end, "stderr": end}
    with subprocess.Popen(command, **streams, start_new_session=True) as child, os.fdopen(terminal, "rb", 0) as ours:
        os.close(end)
        assert ours.readline() == b"ready\r\n"
    assert child.returncode == 0
    assert (tmp_path / "saved").exists()


def test_a_closed_terminal_that_is_ignored_stays_ignored() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cancelled_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_outside_the_main_thread_no_handler_is_set() -> None:
    def handler_within() -> object:
        with cancelled_by_signals():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(handler_within).result() is signal.getsignal(signal.SIGTERM)
