"""Fixtures for all tests: the command line, one miniature run of the pipeline, and a guard against network access."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from miniature import write_recipe
from psychocounsel.cli.main import main
from running import ENVIRONMENT, Cli, Ended, Miniature, Warm

TESTS = Path(__file__).parent

# No deadline: an example may be slow because the machine is busy. Derandomized: every run tries the same examples.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("default")

INTEGRATION_FOLDERS = {"bench", "stages", "training"}
INTEGRATION_FILES = {
    "test_batch_cleanup.py",
    "test_batch_run.py",
    "test_item_browser.py",
    "test_killed.py",
    "test_mixed_faults.py",
    "test_notebooks.py",
    "test_wheel.py",
}
INTEGRATION_FIXTURES = {"foreign", "forks", "miniature", "warm"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs stages, trains models, starts processes or waits; `scripts/test --fast` leaves it out."""
    for item in items:
        is_listed = item.path.name in INTEGRATION_FILES or item.path.relative_to(TESTS).parts[0] in INTEGRATION_FOLDERS
        if is_listed or INTEGRATION_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run commands in this process; restore environment, umask, signal handlers and logging afterwards."""

    def run(*argv: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["psychocounsel", *map(str, argv)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ending:
            code = int(ending.code or 0)
        return Ended(code, *capsys.readouterr())

    environment, umask = dict(os.environ), os.umask(0o022)
    root = logging.getLogger()
    loggers = root.handlers[:], root.level
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield run
    os.umask(umask)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    os.environ.clear()
    os.environ.update(environment)
    root.handlers[:], root.level = loggers  # of `--verbose`
    logging.captureWarnings(capture=False)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Start the process that forks runs of the command line (`warm.py`)."""
    server = subprocess.Popen(
        [sys.executable, str(TESTS / "warm.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    with server:
        yield Warm(server, tmp_path_factory.mktemp("warm"))
        server.kill()


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """Run the whole pipeline once, in a process of its own. Tests must not write into its folders."""
    folder = tmp_path_factory.mktemp("miniature")
    recipe, store = write_recipe(folder / "recipe"), folder / "store"
    done = subprocess.run(
        [sys.executable, "-m", "psychocounsel", "run", str(recipe), "--store", str(store)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        umask=0o022,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Miniature(recipe, store, Ended(done.returncode, done.stdout, done.stderr))


@pytest.fixture
def store(miniature: Miniature, tmp_path: Path) -> Path:
    """Return a copy of the store that the miniature run filled."""
    return Path(shutil.copytree(miniature.store, tmp_path / "store"))


@pytest.fixture
def no_way_out(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse connections beyond this machine; return the list of addresses that were tried."""
    tried: list[object] = []

    def is_local(host: object) -> bool:
        return host in (None, "localhost") or str(host).startswith(("127.", "::1"))

    def refuse(address: object) -> None:
        tried.append(address)
        raise OSError(f"beyond this machine: {address}")

    def guarded(name: str) -> Callable[..., Any]:
        method = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and not is_local(address[0]):
                refuse(address)
            return method(self, address)

        return connect

    def resolve(host: str | None, *args: Any, **options: Any) -> Any:
        if not is_local(host):
            refuse(host)
        return getaddrinfo(host, *args, **options)

    getaddrinfo = socket.getaddrinfo
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return tried
