"""Run a client in its own process and watch it to its end, or kill it and start it again.

A client is a script in `judge_peers/`, called with REQUESTS.jsonl BASE_URL IN_FLIGHT WORK in its own environment. It
sends every request, stores what it needs for a second start under WORK, and prints `{"seconds": ..., "answered": ...}`.
A script must not have the name of a package, because it would shadow that package.
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
# Each peer with the packages that it imports without requiring them: litellm to read its cache, distilabel to start.
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
DURABLE_SECONDS = 0.05


class Case(NamedTuple):
    """How many requests are in flight, their latency and number, and the server's rate limit (0: none)."""

    in_flight: int
    latency_seconds: float
    requests: int
    requests_per_minute: int = 0

    @property
    def bound(self) -> float:
        """The highest possible number of requests per second."""
        most = self.in_flight / self.latency_seconds
        return min(most, self.requests_per_minute / 60) if self.requests_per_minute else most


class Outcome(NamedTuple):
    """One run: seconds of requests, CPU seconds and peak memory of its processes, and the server's bill."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    bill: Bill


def interpreter(client: str, work: Path) -> Path:
    """Return the Python that a client runs in; create its environment if necessary."""
    if client in OWN_ENVIRONMENT:
        return Path(sys.executable)
    place, pins = work / "environments" / client, " ".join(PEERS[client])
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.is_file() or ready.read_text(encoding="utf-8") != pins:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[client]], check=True)
        ready.write_text(pins, encoding="utf-8")
    return python


class Run(NamedTuple):
    """A client, the file of its requests, and the folder that it may write to."""

    client: str
    python: Path
    requests: Path
    folder: Path

    def start(self, base_url: str, in_flight: int) -> subprocess.Popen[bytes]:
        """Start the client in its own process session; its output goes to files, because a pipe can fill up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runner = str(RUNNERS / f"{self.client}.py")
        command = [str(self.python), runner, str(self.requests), base_url, str(in_flight), str(self.folder)]
        with (self.folder / "stdout.txt").open("w") as out, (self.folder / "stderr.txt").open("a") as errors:
            return subprocess.Popen(
                command,
                stdout=out,
                stderr=errors,
                start_new_session=True,
                cwd=self.folder,
                env=self._environment(),
            )

    def _environment(self) -> Mapping[str, str]:
        # Clients cache under the home folder, and each run must only find its own cache.
        ours = self.client in OWN_ENVIRONMENT
        kept = {name: value for name, value in os.environ.items() if ours or name != "PYTHONPATH"}
        return {**kept, "HOME": str(self.folder)}

    def result(self) -> dict[str, Any]:
        """Return the JSON that the client printed, or {}; libraries may print after it."""
        lines = (self.folder / "stdout.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in lines if line.startswith('{"seconds"')]
        return json.loads(found[-1]) if found else {}


def measure(run: Run, case: Case) -> Outcome:
    """Run a client to its end against a fresh server.

    Raises:
        RuntimeError: the client failed or did not complete every request.
    """
    with serving(case.latency_seconds, requests_per_minute=case.requests_per_minute) as server:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = run.start(server.base_url, case.in_flight)
        peak_mib = watch(process, LIMIT_SECONDS)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        bill = server.bill()
    result = run.result()
    if process.returncode or result.get("answered") != case.requests:
        raise RuntimeError(f"{run.client}: status {process.returncode}, {result}, see {run.folder}/stderr.txt")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(result["seconds"], cpu, peak_mib, bill)


def watch(process: subprocess.Popen[bytes], limit_seconds: float) -> float:
    """Wait for a process, kill it at the limit, and return the peak memory of its session in MiB."""
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
    """Kill a process and its children, and wait for it."""
    for pid in session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def session(leader: int) -> list[int]:
    """Return the process ids of a session, the leader first."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(place.name)) == leader:
                found.append(int(place.name))
    return sorted(found, key=lambda pid: pid != leader)


def session_mib(leader: int) -> float:
    """Return the memory of a session in MiB (PSS: a page shared by n processes counts 1/n in each)."""
    kib = 0
    for pid in session(leader):
        # The file of a process that has just ended is empty or gone.
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


class Kill(NamedTuple):
    """When a run is killed: some seconds after the server has billed a share of the requests.

    Replies come in bursts; without the delay every kill would hit one.
    """

    billed_share: float
    delay_seconds: float


class Repeats(NamedTuple):
    """Replies paid for twice, and how many of them the server had sent well before the kill."""

    total: int
    avoidable: int


def paid_twice(run: Run, requests: int, kill: Kill) -> Repeats:
    """Kill a run, start it again, and count the replies that were paid for twice.

    Raises:
        RuntimeError: the second start failed, did not end, or did not complete every request.
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
    repeated = repeats(bill, killed_at)
    answered = run.result().get("answered", 0)
    if process.returncode or answered != requests:
        why = f"status {process.returncode} and {answered} replies within {RESUME_LIMIT_SECONDS:g} s"
        raise RuntimeError(f"{run.client}: {why} of the second start, {repeated.total} paid twice, see {run.folder}")
    return repeated


def repeats(bill: Bill, killed_at: float) -> Repeats:
    """Count the items that were answered twice; a request without an item is a peer that probes the server."""
    first: dict[str, float] = {}
    again = [item for item, at in bill.sent if item and first.setdefault(item, at) != at]
    avoidable = sum(first[item] < killed_at - DURABLE_SECONDS for item in again)
    return Repeats(len(again), avoidable)
