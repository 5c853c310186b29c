"""A model server of our own: started for some requests, and stopped whatever happens to the run that started it.

Between the run and the server stands this module as a process. It stops the server when its stdin ends, which it does
when the run is done with it, fails, or is killed.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from psychocounsel.errors import IncompleteError
from psychocounsel.llm.cancel import CancelToken

HOST = "127.0.0.1"
STOP_SECONDS = 20.0
"""From SIGTERM to SIGKILL."""
POLL_SECONDS = 0.1
ENDING_SECONDS = 5.0
"""From its last answer to the end of a server that fails."""
LOG_LINES = 12
_CAUSE = re.compile(r"(?:^|\] )([\w.]+(?:Error|Exception): .+)")

log = logging.getLogger(__name__)


def free_port() -> int:
    """Return a port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str], name: str, port: int, log_file: Path, cancel: CancelToken, start_seconds: float
) -> Generator[str]:
    """Start a server that speaks the OpenAI protocol on a port of this machine, yield its base URL, and stop it.

    What it prints goes to `log_file`. It is yielded once it lists the model `name`: another program may have taken the
    port before it.

    Raises:
        IncompleteError: the server ended, then or in the block, or did not answer within `start_seconds`.
        Preempted: the run was cancelled while it started.
    """
    log.info(f"starting {command[0]}, which prints to {log_file}")
    words = [sys.executable, "-m", __name__, str(STOP_SECONDS), *command]
    with log_file.open("wb") as printed:
        # A session of its own: Ctrl-C in a terminal reaches the run, which stops the server when it is done.
        keeper = subprocess.Popen(  # noqa: S603
            words, stdin=subprocess.PIPE, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + start_seconds
        while not _lists(name, port):
            cancel.raise_if_cancelled(f"server at port {port}")
            if keeper.poll() is not None:
                raise _failed("the server ended", log_file, "correct sampler.serve")
            if time.monotonic() > deadline:
                what = f"the server lists no model {name} after {start_seconds:g} s"
                raise _failed(what, log_file, "correct sampler.serve, or raise sampler.start_seconds")
            time.sleep(POLL_SECONDS)
        try:
            yield f"http://{HOST}:{port}/v1"
        except IncompleteError as fault:
            with suppress(subprocess.TimeoutExpired):
                keeper.wait(ENDING_SECONDS)
            what = "the server ended" if keeper.poll() is not None else fault.what
            raise _failed(what, log_file, "look there for what is wrong") from fault
    finally:
        keeper.communicate()  # closes its stdin, and waits until the server is gone


def _failed(what: str, log_file: Path, remedy: str) -> IncompleteError:
    """Return the error with the errors that a server printed, and its last lines.

    The cause need not be among these: vLLM's traceback ends with "see root cause above".
    """
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    causes = dict.fromkeys(found[1] for line in lines[:-LOG_LINES] if (found := _CAUSE.search(line)))
    shown = "\n".join([*list(causes)[:LOG_LINES], *lines[-LOG_LINES:]])
    return IncompleteError(
        f"{what}:\n{shown}", where=str(log_file), remedy=f"{remedy}; then run the same command again"
    )


def _lists(name: str, port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return name.encode() in connection.getresponse().read()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def main(stop_seconds: float, command: Sequence[str]) -> int:
    """Run a server until stdin ends; return its exit code."""
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    except OSError as fault:
        sys.stderr.write(f"{command[0]}: {fault.strerror}\n")
        return 127

    def stop() -> None:
        while os.read(0, 64):
            pass
        _signal(server, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(stop_seconds)
        _signal(server, signal.SIGKILL)

    threading.Thread(target=stop, daemon=True).start()
    code = server.wait()
    _signal(server, signal.SIGKILL)  # what it started and left behind
    return code


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
