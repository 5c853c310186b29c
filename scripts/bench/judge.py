"""Rating requests -> requests per second, CPU, memory and what is paid twice: ours beside what others use.

    python scripts/bench/judge.py --work /tmp/judge
    python scripts/bench/judge.py --work /tmp/judge --ways ceiling plain ours --rounds 3

Every way asks the same requests of the same server, which answers after a fixed latency, in a process of its
own. The ways take turns, round by round, and the table gives medians. A way tells how long it asked; CPU and
memory are those of its process and their children, the CPU per request, less what a run of one request takes.
`paid twice`: 1,000 requests, the process killed once a drawn share is billed, and started again.

Peers live in environments of their own under `--work`, made on first use (see PEERS).
"""

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.domain import Candidate, Speech
from psychocounsel.judging.prompting import Asking, rating_request
from psychocounsel.judging.rubric import load_rubric

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from servers.rating_server import Bill, serving  # noqa: E402

SAMPLES = HERE.parents[1] / "data" / "samples"
RUNNERS = HERE / "judge_peers"
OWN_ENVIRONMENT = ("ceiling", "plain", "ours")
PEERS: dict[str, tuple[str, ...]] = {
    "litellm": ("litellm==1.80.0",),
    "inspect": ("inspect-ai==0.3.150", "openai>=2"),
    "curator": ("bespokelabs-curator==0.1.31",),
    "distilabel": ("distilabel[openai]==1.5.3",),
}
COLUMNS = (
    "way",
    "requests/s",
    "share of the bound",
    "times plain",
    "CPU ms/request",
    "peak MiB",
    "most in flight",
)
KILL_REQUESTS = 1_000
LIMIT_SECONDS = 300.0


class Case(NamedTuple):
    """How many requests are in flight, how long each takes, and how many are asked."""

    in_flight: int
    latency_seconds: float
    requests: int

    @property
    def bound(self) -> float:
        """Requests per second that no client can pass."""
        return self.in_flight / self.latency_seconds


CASES = (Case(64, 0.1, 2_000), Case(256, 0.1, 4_000), Case(512, 2.0, 4_000))


class Outcome(NamedTuple):
    """One run: seconds of asking, CPU seconds and peak memory of the processes, and the server's bill."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    bill: Bill


def write_requests(path: Path, count: int) -> None:
    """Write `count` distinct rating requests, as the bodies of HTTP requests, one per line."""
    rubric, asking = load_rubric("seven-principles"), Asking()
    texts = [json.loads(line)["text"] for line in (SAMPLES / "speeches.jsonl").open(encoding="utf-8")]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            speech = Speech(texts[number % len(texts)])
            candidate = Candidate(speech.id, "bench", f"{texts[-1 - number % len(texts)]} ({number})")
            request = rating_request(speech, candidate, rubric, asking).request
            schema = {"name": request.schema_name, "strict": True, "schema": request.response_schema}
            body: dict[str, Any] = {
                "model": "judge",
                "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
                "temperature": request.temperature,
                "top_p": request.top_p,
                "max_tokens": request.max_tokens,
                "response_format": {"type": "json_schema", "json_schema": schema},
            }
            file.write(json.dumps(body) + "\n")


def interpreter(way: str, work: Path) -> Path:
    """Return the Python that a way runs in, its environment made if it does not stand yet."""
    if way in OWN_ENVIRONMENT:
        return Path(sys.executable)
    place = work / "environments" / way
    python = place / "bin" / "python"
    if not (place / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[way]], check=True)
        (place / "ready").write_text(" ".join(PEERS[way]), encoding="utf-8")
    return python


class Run(NamedTuple):
    """A way, the requests that it asks, and the folder that it may write to."""

    way: str
    python: Path
    requests: Path
    folder: Path

    def start(self, base_url: str, in_flight: int) -> subprocess.Popen[str]:
        """Start the way's process, in a group of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runner = str(RUNNERS / f"{self.way}.py")
        command = [str(self.python), runner, str(self.requests), base_url, str(in_flight), str(self.folder)]
        said = (self.folder / "stderr.txt").open("w")
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True, cwd=self.folder
        )


def measure(run: Run, case: Case) -> Outcome:
    """Run a way to its end against a fresh server.

    Raises:
        RuntimeError: it failed, or did not answer everything.
    """
    with serving(case.latency_seconds) as server:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = run.start(server.base_url, case.in_flight)
        peak_mib, out = watch(process)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        bill = server.bill()
    told = json.loads(out.strip().splitlines()[-1]) if out.strip() else {}
    if process.returncode or told.get("answered") != case.requests:
        raise RuntimeError(f"{run.way}: status {process.returncode}, {told}, see {run.folder}/stderr.txt")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(told["seconds"], cpu, peak_mib, bill)


def watch(process: subprocess.Popen[str]) -> tuple[float, str]:
    """Wait for a process; return the peak of its tree's resident memory in MiB, and what it printed."""
    peak, deadline = 0.0, time.monotonic() + LIMIT_SECONDS
    while process.poll() is None:
        peak = max(peak, tree_mib(process.pid))
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return peak, process.stdout.read() if process.stdout else ""


def tree_mib(group: int) -> float:
    """Return the resident memory of all processes of a group, in MiB."""
    pages = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group:
                pages += int((place / "statm").read_text().split()[1])
        except (OSError, ValueError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def paid_twice(run: Run, instant_share: float) -> int:
    """Kill a run of 1,000 requests once a share is billed, start it again, and count what was paid again."""
    case = Case(64, 0.1, KILL_REQUESTS)
    with serving(case.latency_seconds) as server:
        process = run.start(server.base_url, case.in_flight)
        while server.bill().billed < instant_share * KILL_REQUESTS and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = run.start(server.base_url, case.in_flight)
        watch(process)
        bill = server.bill()
    if process.returncode:
        raise RuntimeError(f"{run.way}: status {process.returncode} on resume, see {run.folder}/stderr.txt")
    return bill.repeats


def rows(ways: Sequence[str], rounds: int, work: Path) -> list[str]:
    """Measure every case, print its table on the way, and return the lines."""
    lines: list[str] = []
    pythons = {way: interpreter(way, work) for way in ways}
    for case in CASES:
        requests = work / f"requests-{case.requests}.jsonl"
        write_requests(requests, case.requests)
        single = work / "requests-1.jsonl"
        write_requests(single, 1)
        outcomes: dict[str, list[Outcome]] = {way: [] for way in ways}
        idle = {
            way: measure(
                Run(way, pythons[way], single, work / "runs" / f"{way}-idle-{time.time_ns()}"),
                Case(1, 0.1, 1),
            ).cpu_seconds
            for way in ways
        }
        for number in range(rounds):
            for way in ways:
                folder = work / "runs" / f"{way}-{case.in_flight}-{number}-{time.time_ns()}"
                outcomes[way].append(measure(Run(way, pythons[way], requests, folder), case))
        lines += table(case, outcomes, idle)
        print("\n".join(lines[-len(ways) - 4 :]), flush=True)
    return lines


def table(case: Case, outcomes: dict[str, list[Outcome]], idle: dict[str, float]) -> list[str]:
    """Return a case's table: medians over the rounds, the speed also as a multiple of the plain client's."""
    lines = [
        f"{case.in_flight} in flight, {case.latency_seconds:g} s latency, at most {case.bound:.0f}/s:",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    plain = [run.seconds for run in outcomes.get("plain", [])]
    for way, runs in outcomes.items():
        rate = statistics.median(case.requests / run.seconds for run in runs)
        times = statistics.median(p / r.seconds for p, r in zip(plain, runs, strict=True)) if plain else 0.0
        cpu = statistics.median(run.cpu_seconds - idle[way] for run in runs) / case.requests * 1000
        peak = max(run.peak_mib for run in runs)
        most = max(run.bill.most_in_flight for run in runs)
        cells = (way, f"{rate:.0f}", f"{rate / case.bound:.2f}", f"{times:.1f}", f"{cpu:.2f}")
        lines.append(f"| {' | '.join((*cells, f'{peak:.0f}', str(most)))} |")
    return [*lines, ""]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="the judge's speed beside others'")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", default=[*OWN_ENVIRONMENT], choices=[*OWN_ENVIRONMENT, *PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0, help="instants at which each way is killed")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows(arguments.ways, arguments.rounds, arguments.work)
    draw = random.Random(0)  # noqa: S311
    shares = [draw.uniform(0.1, 0.9) for _ in range(arguments.kills)]
    requests = arguments.work / f"requests-{KILL_REQUESTS}.jsonl"
    write_requests(requests, KILL_REQUESTS)
    for way in arguments.ways if shares else ():
        python = interpreter(way, arguments.work)
        repeats = [
            paid_twice(
                Run(way, python, requests, arguments.work / "runs" / f"{way}-kill-{time.time_ns()}"), share
            )
            for share in shares
        ]
        print(f"{way}: paid twice of {KILL_REQUESTS}, killed at {len(shares)} instants: {repeats}")


if __name__ == "__main__":
    main()
