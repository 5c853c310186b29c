"""Kill rating runs at random instants; count the requests sent twice and compare the results of all runs.

    python scripts/bench/judge_kills.py
    python scripts/bench/judge_kills.py --kills 6 --requests 120 --in-flight 16

A run rates a few hundred responses over real sockets; the server is a separate process that records when it had
received each request and when it had sent the whole reply. A run is killed with SIGKILL several times at random
instants between its start and its end, started again each time, and finally completed. An item that was requested
before a kill and again after it is a repeat. A repeat is allowed only if the reply was not sent yet, or so shortly
before the kill that it could not be on disk (`--allowance-ms`). Judgements and journal must then equal those of a run
that was not killed.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from psychocounsel.config.components import EndpointConfig
from psychocounsel.judging.judges import ChatJudge
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.session import JournalledModel
from psychocounsel.types import Candidate, Speech

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from servers.rating_server import Bill, serving  # noqa: E402

SAMPLES = ROOT / "data" / "samples" / "speeches.jsonl"
KILLS_PER_RUN = 4
# The server may not have read yet what the killed process wrote.
SETTLE_SECONDS = 0.03


class Case(NamedTuple):
    """The items to rate, and the limits."""

    items: Sequence[tuple[Speech, Candidate]]
    rubric: Rubric
    in_flight: int
    latency_seconds: float
    allowance_seconds: float


class Session(NamedTuple):
    """One process from its start to its end."""

    started_at: float
    ended_at: float
    was_killed: bool


class Repeats(NamedTuple):
    """What one kill cost.

    Attributes:
        in_flight: requests whose reply was not sent yet, or sent within the allowance before the kill.
        items: requested before the kill and again after it.
        ages_seconds: how long before the kill the replies to these had been sent; replies not sent are left out.
    """

    in_flight: int
    items: int
    ages_seconds: list[float]


def items_to_rate(count: int) -> list[tuple[Speech, Candidate]]:
    """Return distinct responses to the sample speeches."""
    texts = [json.loads(line)["text"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    speeches = [Speech(texts[number % len(texts)]) for number in range(count)]
    return [(speech, Candidate(speech.id, "bench", f"Number {n}.")) for n, speech in enumerate(speeches)]


def start(case: Case, base_url: str, folder: Path) -> int:
    """Fork a run that rates everything and then writes its judgements; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            endpoint = EndpointConfig(model="judge", base_url=base_url, concurrency=case.in_flight)
            with Journal(folder / "journal.sqlite") as journal:
                client = JournalledModel(OpenAIChatModel(endpoint), lambda: journal, concurrency=case.in_flight)
                judge = ChatJudge(client, case.rubric)
                lines = [json.dumps(asdict(each)) for each in judge.rate(case.items, lambda _: None)]
            (folder / "judgements.jsonl").write_text("\n".join(lines), encoding="utf-8")
        except Exception:
            traceback.print_exc()
            raise
        finally:
            os._exit(0 if (folder / "judgements.jsonl").is_file() else 1)
    return pid


def run_until(case: Case, base_url: str, folder: Path, seconds: float) -> Session:
    """Run a process and kill it after some seconds, unless it ends before."""
    started_at = time.monotonic()
    pid = start(case, base_url, folder)
    while time.monotonic() < started_at + seconds:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return Session(started_at, time.monotonic(), was_killed=False)
        time.sleep(0.0005)
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    was_killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    time.sleep(SETTLE_SECONDS)
    return Session(started_at, killed_at, was_killed)


def content(folder: Path) -> str:
    """Return the digest of a run's judgements and of its journal, without order and times.

    Request digests are left out: they contain the port of the server, which differs in each run.
    """
    hashed = hashlib.sha256((folder / "judgements.jsonl").read_bytes())
    with Journal(folder / "journal.sqlite") as journal:
        rows = sorted(repr(row[1:3]) for row in journal.rows())
    hashed.update("\n".join(rows).encode())
    return hashed.hexdigest()


def repeats(sessions: Sequence[Session], bill: Bill, allowance_seconds: float) -> list[Repeats]:
    """Return what each kill cost, by the records of the server."""
    found: list[Repeats] = []
    for number, session in enumerate(sessions[:-1]):
        if not session.was_killed:
            continue
        until = sessions[number + 1].started_at
        asked = {item for item, at in bill.asked if session.started_at <= at < until}
        later = {item for item, at in bill.asked if at >= until}
        sent = {item: at for item, at in bill.sent if session.started_at <= at < until}
        in_flight = sum(sent.get(item, until) > session.ended_at - allowance_seconds for item in asked)
        again = asked & later
        ages = [session.ended_at - sent[item] for item in again if item in sent]
        found.append(Repeats(in_flight, len(again), ages))
    return found


class Ending(NamedTuple):
    """What the kills of a run cost, the seconds of its last process, and the digest of its results."""

    repeats: list[Repeats]
    seconds: float
    content: str


def killed_run(case: Case, generator: random.Random, kills: int, whole_seconds: float, folder: Path) -> Ending:
    """Kill a run several times, then complete it.

    Raises:
        RuntimeError: the last process failed.
    """
    folder.mkdir(parents=True)
    with serving(case.latency_seconds) as server:
        sessions: list[Session] = []
        for number in range(kills):
            # Later processes have less to do, so they are killed earlier.
            seconds = generator.random() * whole_seconds / (number + 1)
            sessions.append(run_until(case, server.base_url, folder, seconds))
        sessions.append(run_until(case, server.base_url, folder, 120.0))
        bill = server.bill()
    if sessions[-1].was_killed or not (folder / "judgements.jsonl").is_file():
        raise RuntimeError(f"the last process did not rate everything; see {folder}")
    seconds = sessions[-1].ended_at - sessions[-1].started_at
    return Ending(repeats(sessions, bill, case.allowance_seconds), seconds, content(folder))


def summary(repeated: Sequence[Repeats], contents: Counter[str], case: Case) -> dict[str, float]:
    """Return the numbers to print, some of which decide whether the benchmark passes."""
    ages = [age for each in repeated for age in each.ages_seconds]
    return {
        "kills": len(repeated),
        "kills_with_requests_sent_twice": sum(each.items > 0 for each in repeated),
        "requests_sent_twice": sum(each.items for each in repeated),
        "most_sent_twice_after_one_kill": max((each.items for each in repeated), default=0),
        "most_in_flight_at_a_kill": max((each.in_flight for each in repeated), default=0),
        "kills_with_more_repeats_than_in_flight": sum(
            each.items > min(each.in_flight, case.in_flight) for each in repeated
        ),
        "oldest_reply_requested_again_ms": round(max(ages, default=0.0) * 1000, 1),
        "replies_requested_again_beyond_the_allowance": sum(age > case.allowance_seconds for age in ages),
        "runs": contents.total(),
        "distinct_results": len(contents),
    }


def main() -> int:
    """Kill, count and print; return 1 if a guarantee is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency-seconds", type=float, default=0.1)
    parser.add_argument("--allowance-ms", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "sk-benchmark")
    items = items_to_rate(given.requests)
    rubric = load_rubric("seven-principles")
    case = Case(items, rubric, given.in_flight, given.latency_seconds, given.allowance_ms / 1000)
    generator = random.Random(given.seed)  # noqa: S311
    repeated: list[Repeats] = []
    with tempfile.TemporaryDirectory() as work:
        alone = killed_run(case, generator, 0, 0.0, Path(work) / "alone")
        contents = Counter([alone.content])
        while len(repeated) < given.kills:
            kills = min(KILLS_PER_RUN, given.kills - len(repeated))
            ending = killed_run(case, generator, kills, alone.seconds, Path(work) / str(contents.total()))
            repeated += ending.repeats
            contents[ending.content] += 1
    result = summary(repeated, contents, case)
    print(json.dumps(result, indent=1))
    broken = ("kills_with_more_repeats_than_in_flight", "replies_requested_again_beyond_the_allowance")
    return int(any(result[name] for name in broken) or result["distinct_results"] != 1)


if __name__ == "__main__":
    sys.exit(main())
