"""The command line for every room, and one whole miniature run to look at."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "servers"))

from miniature import write_recipe
from psychocounsel.cli.main import main
from running import ENVIRONMENT, Cli, Ended, Miniature, Warm

# How long one example takes depends on who else uses the machine; which ones are tried must depend on nobody.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run commands in this process, as `psychocounsel` would; environment and signals come back after."""

    def run(*argv: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["psychocounsel", *map(str, argv)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ending:
            code = int(ending.code or 0)
        return Ended(code, *capsys.readouterr())

    environment, handler, mask = dict(os.environ), signal.getsignal(signal.SIGTERM), os.umask(0o022)
    yield run
    os.umask(mask)
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "warm.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    with child:
        yield Warm(child, tmp_path_factory.mktemp("warm"))
        child.kill()


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """The whole road once, by the command that a user types."""
    folder = tmp_path_factory.mktemp("miniature")
    recipe, store = write_recipe(folder / "recipe"), folder / "store"
    command = [sys.executable, "-m", "psychocounsel", "run", str(recipe), "--store", str(store)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        umask=0o022,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Miniature(recipe, store, Ended(done.returncode, done.stdout, done.stderr))


@pytest.fixture
def no_way_out(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse, and return, every address beyond this machine that anybody tries to reach."""
    tried: list[object] = []

    def guarded(name: str) -> Callable[..., Any]:
        reach = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1")):
                tried.append(address)
                raise OSError(f"beyond this machine: {address}")
            return reach(self, address)

        return connect

    def resolve(host: str | None, *rest: Any, **more: Any) -> Any:
        if host not in (None, "localhost") and not str(host).startswith(("127.", "::1")):
            tried.append(host)
            raise OSError(f"beyond this machine: {host}")
        return look_up(host, *rest, **more)

    look_up = socket.getaddrinfo
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return tried
