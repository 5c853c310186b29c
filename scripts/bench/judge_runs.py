"""A way of asking, requests -> its outcome: a process that is watched, or killed and started again.

A way is a script in `judge_peers/`, called with REQUESTS.jsonl BASE_URL IN_FLIGHT WORK, in an environment of
its own. It asks everything, keeps what it needs for a second start under WORK, and ends with a line of JSON:
`{"seconds": ..., "answered": ...}`. No way's name is that of a package, which it would hide from all ways.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from servers.rating_server import Bill, serving  # noqa: E402

RUNNERS = HERE / "judge_peers"
OWN_ENVIRONMENT = ("ceiling", "plain", "ours")
# Beside each peer: what it imports and does not ask for, litellm to read its cache, distilabel to start.
PEERS: dict[str, tuple[str, ...]] = {
    "litellm_gather": (
        "litellm[caching]==1.106.2",
        "openai==2.54.0",
        "diskcache==5.6.3",
        "fastapi==0.165.0",
        "orjson==3.13.0",
        "soundfile==0.14.0",
    ),
    "inspect_model": ("inspect-ai==0.3.285", "openai==3.52.0"),
    "curator_llm": ("bespokelabs-curator==0.1.31", "litellm==1.83.7", "openai==2.30.0", "datasets==3.6.0"),
    "distilabel_pipeline": (
        "distilabel[openai]==1.5.3",
        "openai==3.52.0",
        "datasets==5.2.0",
        "requests==2.34.2",
    ),
}
LIMIT_SECONDS = 300.0
RESUME_LIMIT_SECONDS = 120.0
SAMPLE_SECONDS = 0.25
BILL_SECONDS = 0.01
KILL_IN_FLIGHT = 64
KILL_LATENCY_SECONDS = 0.1
SETTLED_SECONDS = 0.05


class Case(NamedTuple):
    """How many requests are in flight, how long each takes, how many are asked; the limit, if any."""

    in_flight: int
    latency_seconds: float
    requests: int
    requests_per_minute: int = 0

    @property
    def bound(self) -> float:
        """Requests per second that no client can pass."""
        most = self.in_flight / self.latency_seconds
        return min(most, self.requests_per_minute / 60) if self.requests_per_minute else most


class Outcome(NamedTuple):
    """One run: seconds of asking, CPU seconds and peak memory of the processes, and the server's bill."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    bill: Bill


def interpreter(way: str, work: Path) -> Path:
    """Return the Python that a way runs in, its environment made if it does not stand yet."""
    if way in OWN_ENVIRONMENT:
        return Path(sys.executable)
    place, pins = work / "environments" / way, " ".join(PEERS[way])
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.is_file() or ready.read_text(encoding="utf-8") != pins:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[way]], check=True)
        ready.write_text(pins, encoding="utf-8")
    return python


class Run(NamedTuple):
    """A way, the requests that it asks, and the folder that it may write to."""

    way: str
    python: Path
    requests: Path
    folder: Path

    def start(self, base_url: str, in_flight: int) -> subprocess.Popen[bytes]:
        """Start the way's process, in a session of its own; its output goes to files, for a pipe can fill."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runner = str(RUNNERS / f"{self.way}.py")
        command = [str(self.python), runner, str(self.requests), base_url, str(in_flight), str(self.folder)]
        with (self.folder / "stdout.txt").open("w") as out, (self.folder / "stderr.txt").open("a") as said:
            return subprocess.Popen(
                command,
                stdout=out,
                stderr=said,
                start_new_session=True,
                cwd=self.folder,
                env=self._environment(),
            )

    def _environment(self) -> Mapping[str, str]:
        # Their caches lie under the home folder, and a way must find those of its own runs only.
        ours = self.way in OWN_ENVIRONMENT
        kept = {name: value for name, value in os.environ.items() if ours or name != "PYTHONPATH"}
        return {**kept, "HOME": str(self.folder)}

    def told(self) -> dict[str, Any]:
        """Return the JSON that the way ended with, or nothing; others may print after it."""
        lines = (self.folder / "stdout.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in lines if line.startswith('{"seconds"')]
        return json.loads(found[-1]) if found else {}


def measure(run: Run, case: Case) -> Outcome:
    """Run a way to its end against a fresh server.

    Raises:
        RuntimeError: it failed, or did not answer everything.
    """
    with serving(case.latency_seconds, requests_per_minute=case.requests_per_minute) as server:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = run.start(server.base_url, case.in_flight)
        peak_mib = watch(process, LIMIT_SECONDS)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        bill = server.bill()
    told = run.told()
    if process.returncode or told.get("answered") != case.requests:
        raise RuntimeError(f"{run.way}: status {process.returncode}, {told}, see {run.folder}/stderr.txt")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(told["seconds"], cpu, peak_mib, bill)


def watch(process: subprocess.Popen[bytes], limit_seconds: float) -> float:
    """Wait for a process, killed at the limit; return the peak memory of its whole session in MiB."""
    peak, deadline = 0.0, time.monotonic() + limit_seconds
    try:
        while process.poll() is None and time.monotonic() < deadline:
            peak = max(peak, session_mib(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_SECONDS)
    finally:
        end(process)
    return peak


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started, and wait for it."""
    for pid in session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def session(leader: int) -> list[int]:
    """Return the processes of a session, its leader first."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(place.name)) == leader:
                found.append(int(place.name))
    return sorted(found, key=lambda pid: pid != leader)


def session_mib(leader: int) -> float:
    """Return the memory of a session in MiB, a page that n processes share counted as 1/n in each."""
    kib = 0
    for pid in session(leader):
        # A process that has ended in the meantime gives an empty text or none.
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


class Kill(NamedTuple):
    """When a run is killed: a delay after the server has billed a share of the requests.

    Replies come in bursts, and without the delay every kill would fall into one.
    """

    billed_share: float
    delay_seconds: float


class Repeats(NamedTuple):
    """How many answers were paid for twice, and how many of them were sent well before the kill."""

    all: int
    settled: int


def paid_twice(run: Run, requests: int, kill: Kill) -> Repeats:
    """Kill a run, start it again, and count the answers that were paid for again.

    Raises:
        RuntimeError: the second start failed, did not end, or did not answer everything.
    """
    with serving(KILL_LATENCY_SECONDS) as server:
        process = run.start(server.base_url, KILL_IN_FLIGHT)
        while server.bill().billed < kill.billed_share * requests and process.poll() is None:
            time.sleep(BILL_SECONDS)
        time.sleep(kill.delay_seconds)
        killed_at = time.monotonic()
        end(process)
        process = run.start(server.base_url, KILL_IN_FLIGHT)
        watch(process, RESUME_LIMIT_SECONDS)
        bill = server.bill()
    told = repeats(bill, killed_at)
    answered = run.told().get("answered", 0)
    if process.returncode or answered != requests:
        why = f"status {process.returncode} and {answered} answers within {RESUME_LIMIT_SECONDS:g} s"
        raise RuntimeError(f"{run.way}: {why} of the second start, {told.all} paid twice, see {run.folder}")
    return told


def repeats(bill: Bill, killed_at: float) -> Repeats:
    """Count the items that were answered again; what bears no item is a peer that tries the server out."""
    first: dict[str, float] = {}
    again = [item for item, at in bill.sent if item and first.setdefault(item, at) != at]
    settled = sum(first[item] < killed_at - SETTLED_SECONDS for item in again)
    return Repeats(len(again), settled)
