"""A server of our own: it runs as long as the run that needs it, and no longer, however that ends."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from psychocounsel.errors import IncompleteError, Preempted
from psychocounsel.llm import serving as serving_module
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.serving import HOST, free_port, serving

SERVER = str(Path(__file__).parents[1] / "servers" / "policy_server.py")
NAME = "policy"
LIMIT_SECONDS = 60.0


@pytest.fixture
def port() -> int:
    return free_port()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def command(port: int, *options: str) -> list[str]:
    return [sys.executable, SERVER, str(port), NAME, *options]


@pytest.mark.parametrize("options", [(), ("--stubborn",)])
def test_a_server_is_gone_after_its_block_also_when_that_fails(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(serving_module, "STOP_SECONDS", 0.2)
    for fault in (None, KeyboardInterrupt):
        try:
            with serving(
                command(port, *options), NAME, port, tmp_path / "log", CancelToken(), LIMIT_SECONDS
            ) as base_url:
                assert base_url == f"http://{HOST}:{port}/v1"
                assert listens(port)
                if fault:
                    raise fault
        except KeyboardInterrupt:
            pass
        assert not listens(port)


def test_a_server_ends_with_a_run_that_was_killed(port: int, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from psychocounsel.llm.cancel import CancelToken\n"
        "from psychocounsel.llm.serving import serving\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        f"with serving({command(port)!r}, {NAME!r}, {port}, log, CancelToken(), {LIMIT_SECONDS}):\n"
        "    print('up', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        run.kill()
    wait_until(lambda: not listens(port))


def test_a_server_that_does_not_start_shows_what_it_printed(port: int, tmp_path: Path) -> None:
    def start(words: list[str], cancel: CancelToken, seconds: float) -> None:
        with serving(words, NAME, port, tmp_path / "log", cancel, seconds):
            raise AssertionError

    with pytest.raises(IncompleteError, match="out of memory, say"):
        start(command(port, "--broken"), CancelToken(), LIMIT_SECONDS)
    with pytest.raises(IncompleteError, match="no-such-program"):
        start(["no-such-program"], CancelToken(), LIMIT_SECONDS)
    never = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(IncompleteError, match="lists no model policy"):
        start(never, CancelToken(), 0.5)
    cancelled = CancelToken()
    cancelled.cancel()
    with pytest.raises(Preempted):
        start(never, cancelled, LIMIT_SECONDS)


def test_another_server_that_took_the_port_is_not_asked(port: int, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, SERVER, str(port), "another"]) as other, ExitStack() as ended:
        ended.callback(other.kill)  # which is waited for, however this ends
        wait_until(lambda: listens(port))
        with (
            pytest.raises(IncompleteError, match="Address already in use"),
            serving(command(port), NAME, port, tmp_path / "log", CancelToken(), LIMIT_SECONDS),
        ):
            raise AssertionError


def test_the_cause_is_shown_however_much_a_server_prints_after_it(port: int, tmp_path: Path) -> None:
    cause = "(EngineCore pid=7) ERROR [core.py:15] torch.OutOfMemoryError: 80 GiB are not enough"
    program = f"print({cause!r}); print('and so on\\n' * 50); raise SystemExit('see root cause above')"
    words = [sys.executable, "-c", program]
    with (
        pytest.raises(IncompleteError, match="80 GiB are not enough") as failed,
        serving(words, NAME, port, tmp_path / "log", CancelToken(), LIMIT_SECONDS),
    ):
        raise AssertionError
    assert "see root cause above" in failed.value.what
    assert failed.value.where == str(tmp_path / "log")


def test_a_server_that_ends_in_the_middle_is_told_from_one_that_gives_no_answer(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_ended in (False, True):
        monkeypatch.setattr(serving_module, "ENDING_SECONDS", LIMIT_SECONDS if has_ended else 0.1)
        with (
            pytest.raises(IncompleteError) as failed,
            serving(command(port), NAME, port, tmp_path / "log", CancelToken(), LIMIT_SECONDS) as base_url,
        ):
            if has_ended:
                with closing(HTTPConnection(HOST, port)) as connection:
                    connection.request("DELETE", "/")
                    connection.getresponse().read()
            raise IncompleteError("no answer within 600 s", where=base_url)
        assert ("the server ended" in failed.value.what) == has_ended
        assert ("no answer within 600 s" in failed.value.what) != has_ended
        assert failed.value.where == str(tmp_path / "log")
