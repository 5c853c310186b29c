"""Measure how fast this package and other clients judge: requests/s, CPU, memory, and replies paid for twice.

    python scripts/bench/judge.py --work /tmp/judge
    python scripts/bench/judge.py --work /tmp/judge --clients ceiling plain ours --rounds 3 --kills 3

Every client runs in its own process and sends the same requests to the same server, which replies after a fixed
latency. The clients take turns, and the table gives medians over the rounds that succeeded. `start s` is how much
longer than the latency a single request takes; `requests/s` include it, `after start` does not. CPU and memory
count the client's process and its children; CPU per request excludes what a run of one request takes. `ceiling`
uses bare sockets: no client can be faster. For `--kills`, the process is killed some time after a random share of
1,000 requests is billed, and started again; `avoidable` counts repeats of replies that the server had sent at least
50 ms before the kill.

A failed run keeps its folder. Other packages get their own environments under `--work`, created on first use
(PEERS in `judge_runs.py`).
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

from psychocounsel.judging.rubric import load_rubric
from psychocounsel.judging.scorers import SamplingParams, TextScorer
from psychocounsel.types import Candidate, Speech

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
COLUMNS = (
    "client",
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
"""The outcome of each round; None where it failed."""


def write_requests(work: Path, count: int) -> Path:
    """Write `count` distinct rating requests, as the bodies of HTTP requests, one per line."""
    scorer, sampling = TextScorer(load_rubric("seven-principles")), SamplingParams()
    samples = (SAMPLES / "speeches.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in samples]
    path = work / f"requests-{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            speech = Speech(texts[number % len(texts)])
            candidate = Candidate(speech.id, "bench", f"{texts[-1 - number % len(texts)]} ({number})")
            request = scorer.rating_request(speech, candidate, sampling).request
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
    """The clients with their environments, and the folder that their runs write to."""

    def __init__(self, clients: Sequence[str], work: Path) -> None:
        self.clients = tuple(clients)
        self._work = work
        self._pythons = {client: interpreter(client, work) for client in clients}

    def _run(self, client: str, requests: Path) -> Run:
        folder = self._work / "runs" / f"{client}-{requests.stem}-{time.time_ns()}"
        return Run(client, self._pythons[client], requests, folder)

    def outcome(self, client: str, case: Case) -> Outcome | None:
        """Return the outcome of a run; if it fails, print why and return None."""
        run = self._run(client, write_requests(self._work, case.requests))
        try:
            measured = measure(run, case)
        except RuntimeError as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            return None
        shutil.rmtree(run.folder)
        return measured

    def paid_twice(self, client: str, kill: Kill) -> str:
        """Return how many replies were paid for twice, or why the run failed."""
        run = self._run(client, write_requests(self._work, KILL_REQUESTS))
        try:
            repeats = paid_twice(run, KILL_REQUESTS, kill)
        except RuntimeError as error:
            return f"failed: {error}"
        shutil.rmtree(run.folder)
        return f"{repeats.total} ({repeats.avoidable} avoidable)"


def compare(bench: Bench, cases: Sequence[Case], rounds: int) -> None:
    """Measure every case and print its table."""
    singles = {client: bench.outcome(client, SINGLE) for client in bench.clients}
    for case in cases:
        outcomes: dict[str, Rounds] = {client: [] for client in bench.clients}
        for _ in range(rounds):
            for client in bench.clients:
                outcomes[client].append(bench.outcome(client, case))
        print("\n".join(table(case, outcomes, singles)), flush=True)


def table(case: Case, outcomes: Mapping[str, Rounds], singles: Mapping[str, Outcome | None]) -> list[str]:
    """Return the table of a case, with a row for each client."""
    plain = outcomes.get("plain", [])
    rows = [cells(case, client, runs, plain, singles[client]) for client, runs in outcomes.items()]
    return [
        f"{case.in_flight} in flight, {case.latency_seconds:g} s latency, {case.requests} requests, "
        f"at most {case.bound:.0f}/s:",
        "",
        *(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)),
        "",
    ]


def cells(case: Case, client: str, runs: Rounds, plain: Rounds, single: Outcome | None) -> list[str]:
    """Return a client's row: medians over its rounds; `times plain` is the ratio to the plain client."""
    done = [run for run in runs if run]
    if not done or not single:
        return [client, *["failed"] * (len(COLUMNS) - 2), f"{len(done)} of {len(runs)}"]
    rate = statistics.median(case.requests / run.seconds for run in done)
    start_seconds = single.seconds - SINGLE.latency_seconds
    shortest_seconds = case.requests / case.bound
    steady_seconds = statistics.median(max(run.seconds - start_seconds, shortest_seconds) for run in done)
    times = [p.seconds / run.seconds for p, run in zip(plain, runs, strict=False) if p and run]
    cpu_seconds = statistics.median(run.cpu_seconds for run in done) - single.cpu_seconds
    return [
        client,
        f"{rate:.0f}",
        f"{case.requests / steady_seconds:.0f}",
        f"{rate / case.bound:.2f}",
        f"{statistics.median(times):.1f}" if times else "",
        f"{cpu_seconds / case.requests * 1000:.2f}",
        f"{max(run.peak_mib for run in done):.0f}",
        f"{max(run.bill.most_in_flight for run in done)}",
        f"{max(run.bill.by_status.get('429', 0) for run in done)}",
        f"{start_seconds:.1f}",
        f"{len(done)} of {len(runs)}",
    ]


def parse_case(text: str) -> Case:
    """Parse IN_FLIGHT:LATENCY:REQUESTS[:PER_MINUTE]; the last is the server's rate limit."""
    in_flight, latency_seconds, requests, *limit = text.split(":")
    return Case(int(in_flight), float(latency_seconds), int(requests), *map(int, limit))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clients", nargs="+", default=[*OWN_ENVIRONMENT], choices=[*OWN_ENVIRONMENT, *PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0, help="how often each client is killed")
    parser.add_argument(
        "--cases", nargs="*", type=parse_case, default=CASES, metavar="IN_FLIGHT:LATENCY:REQUESTS[:PER_MINUTE]"
    )
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.clients, work)
    compare(bench, arguments.cases, arguments.rounds)
    generator = random.Random(0)  # noqa: S311
    kills = [
        Kill(generator.uniform(0.1, 0.9), generator.uniform(0, KILL_LATENCY_SECONDS)) for _ in range(arguments.kills)
    ]
    for client in bench.clients if kills else ():
        counts = ", ".join(bench.paid_twice(client, kill) for kill in kills)
        print(f"{client}: of {KILL_REQUESTS} paid twice, killed {len(kills)} times: {counts}", flush=True)


if __name__ == "__main__":
    main()
