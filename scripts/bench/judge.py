"""Rating requests -> requests per second, CPU, memory and what is paid twice: ours beside what others use.

    python scripts/bench/judge.py --work /tmp/judge
    python scripts/bench/judge.py --work /tmp/judge --ways ceiling plain ours --rounds 3 --kills 3

Every way asks the same requests of the same server, which answers after a fixed latency, in a process of its
own. The ways take turns, round by round, and the table gives medians over the rounds that succeeded. A way
tells how long it asked. `start s` is how much longer than the latency it tells for a single request: its
`requests/s` have that in them, `after start` has not. CPU and memory are those of its process and all that it
starts, the CPU per request, less what a run of one request takes. No figure above that of `ceiling`, bare
sockets, says anything about a client. `paid twice`: 1,000 requests, the process killed some time after a
drawn share is billed, and started again; `settled` are replies sent 50 ms and more before the kill.

A failed run keeps its folder. Peers live in environments of their own under `--work`, made on first use
(see PEERS in `judge_runs`).
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judge_runs import (
    KILL_LATENCY_SECONDS,
    OWN_ENVIRONMENT,
    PEERS,
    Case,
    Kill,
    Outcome,
    Run,
    interpreter,
    measure,
    paid_twice,
)

from psychocounsel.judging.prompts import SamplingParams, rating_request
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.types import Candidate, Speech

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
COLUMNS = (
    "way",
    "requests/s",
    "after start",
    "share of the bound",
    "times plain",
    "CPU ms/request",
    "peak MiB",
    "most in flight",
    "429",
    "start s",
    "rounds",
)
CASES = (Case(64, 0.1, 2_000), Case(256, 0.1, 4_000), Case(512, 2.0, 16_000), Case(64, 0.1, 1_200, 3_000))
SINGLE = Case(1, 0.1, 1)
KILL_REQUESTS = 1_000

Rounds = list[Outcome | None]
"""What each round gave; nothing where it failed."""


def write_requests(work: Path, count: int) -> Path:
    """Write `count` distinct rating requests, as the bodies of HTTP requests, one per line."""
    rubric, sampling = load_rubric("seven-principles"), SamplingParams()
    samples = (SAMPLES / "speeches.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in samples]
    path = work / f"requests-{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            speech = Speech(texts[number % len(texts)])
            candidate = Candidate(speech.id, "bench", f"{texts[-1 - number % len(texts)]} ({number})")
            request = rating_request(speech, candidate, rubric, sampling).request
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
    return path


class Bench:
    """The ways with their environments, and the folder that their runs write to."""

    def __init__(self, ways: Sequence[str], work: Path) -> None:
        self.ways = tuple(ways)
        self._work = work
        self._pythons = {way: interpreter(way, work) for way in ways}

    def _run(self, way: str, requests: Path) -> Run:
        folder = self._work / "runs" / f"{way}-{requests.stem}-{time.time_ns()}"
        return Run(way, self._pythons[way], requests, folder)

    def outcome(self, way: str, case: Case) -> Outcome | None:
        """Return what a run gave, or nothing, the reason printed."""
        run = self._run(way, write_requests(self._work, case.requests))
        try:
            measured = measure(run, case)
        except RuntimeError as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            return None
        shutil.rmtree(run.folder)
        return measured

    def paid_twice(self, way: str, kill: Kill) -> str:
        """Return how many answers were paid for twice, or why that cannot be told."""
        run = self._run(way, write_requests(self._work, KILL_REQUESTS))
        try:
            told = paid_twice(run, KILL_REQUESTS, kill)
        except RuntimeError as error:
            return f"failed: {error}"
        shutil.rmtree(run.folder)
        return f"{told.all} ({told.settled} settled)"


def compare(bench: Bench, cases: Sequence[Case], rounds: int) -> None:
    """Measure every case and print its table."""
    singles = {way: bench.outcome(way, SINGLE) for way in bench.ways}
    for case in cases:
        outcomes: dict[str, Rounds] = {way: [] for way in bench.ways}
        for _ in range(rounds):
            for way in bench.ways:
                outcomes[way].append(bench.outcome(way, case))
        print("\n".join(table(case, outcomes, singles)), flush=True)


def table(case: Case, outcomes: Mapping[str, Rounds], singles: Mapping[str, Outcome | None]) -> list[str]:
    """Return a case's table, a row for each way."""
    plain = outcomes.get("plain", [])
    rows = [cells(case, way, runs, plain, singles[way]) for way, runs in outcomes.items()]
    return [
        f"{case.in_flight} in flight, {case.latency_seconds:g} s latency, {case.requests} requests, "
        f"at most {case.bound:.0f}/s:",
        "",
        *(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)),
        "",
    ]


def cells(case: Case, way: str, runs: Rounds, plain: Rounds, single: Outcome | None) -> list[str]:
    """Return a way's row: medians over its rounds, the speed also as a multiple of the plain client's."""
    done = [run for run in runs if run]
    if not done or not single:
        return [way, *["failed"] * (len(COLUMNS) - 2), f"{len(done)} of {len(runs)}"]
    rate = statistics.median(case.requests / run.seconds for run in done)
    start_seconds = single.seconds - SINGLE.latency_seconds
    shortest_seconds = case.requests / case.bound
    settled_seconds = statistics.median(max(run.seconds - start_seconds, shortest_seconds) for run in done)
    times = [p.seconds / run.seconds for p, run in zip(plain, runs, strict=False) if p and run]
    cpu_seconds = statistics.median(run.cpu_seconds for run in done) - single.cpu_seconds
    return [
        way,
        f"{rate:.0f}",
        f"{case.requests / settled_seconds:.0f}",
        f"{rate / case.bound:.2f}",
        f"{statistics.median(times):.1f}" if times else "",
        f"{cpu_seconds / case.requests * 1000:.2f}",
        f"{max(run.peak_mib for run in done):.0f}",
        f"{max(run.bill.most_in_flight for run in done)}",
        f"{max(run.bill.by_status.get('429', 0) for run in done)}",
        f"{start_seconds:.1f}",
        f"{len(done)} of {len(runs)}",
    ]


def case_of(told: str) -> Case:
    """Read a case from IN_FLIGHT:LATENCY:REQUESTS, or the same with :PER_MINUTE, the server's limit."""
    in_flight, latency_seconds, requests, *limit = told.split(":")
    return Case(int(in_flight), float(latency_seconds), int(requests), *map(int, limit))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="the judge's speed beside others'")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", default=[*OWN_ENVIRONMENT], choices=[*OWN_ENVIRONMENT, *PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0, help="instants at which each way is killed")
    parser.add_argument(
        "--cases", nargs="*", type=case_of, default=CASES, metavar="IN_FLIGHT:LATENCY:REQUESTS[:PER_MINUTE]"
    )
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.ways, work)
    compare(bench, arguments.cases, arguments.rounds)
    draw = random.Random(0)  # noqa: S311
    kills = [Kill(draw.uniform(0.1, 0.9), draw.uniform(0, KILL_LATENCY_SECONDS)) for _ in range(arguments.kills)]
    for way in bench.ways if kills else ():
        told = ", ".join(bench.paid_twice(way, kill) for kill in kills)
        print(f"{way}: of {KILL_REQUESTS} paid twice, killed {len(kills)} times: {told}", flush=True)


if __name__ == "__main__":
    main()
