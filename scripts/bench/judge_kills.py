"""Rating runs that are killed at drawn instants -> what was asked twice, and whether every run ends alike.

    python scripts/bench/judge_kills.py
    python scripts/bench/judge_kills.py --kills 6 --requests 120 --in-flight 16

A run rates a few hundred answers over real sockets; the server is a process of its own that writes down when
each request was there and when its reply was wholly sent. A run is killed with SIGKILL several times at drawn
instants, from before its first request to its end, each time started again, and at last let through. An item
that was asked before a kill and again after it is a repeat of that kill. It may be one only if its reply was
not sent yet, or so shortly before the kill that it could not be on disk (`--allowance-ms`). In the end
judgements and journal must hold what they hold after a run that nobody killed.
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
from psychocounsel.judging.judges import ChatJudge, ChatJudgeSettings
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.journal import Journal
from psychocounsel.types import Candidate, Speech

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from servers.rating_server import Bill, serving  # noqa: E402

SAMPLES = ROOT / "data" / "samples" / "speeches.jsonl"
KILLS_PER_RUN = 4
# What the killed process had written may still lie before the server.
SETTLE_SECONDS = 0.03


class Case(NamedTuple):
    """What is rated, and how."""

    items: Sequence[tuple[Speech, Candidate]]
    rubric: Rubric
    in_flight: int
    latency_seconds: float
    allowance_seconds: float


class Session(NamedTuple):
    """One process from its start to its end, and whether it was killed there."""

    started_at: float
    ended_at: float
    was_killed: bool


class Repeats(NamedTuple):
    """What one kill cost.

    Attributes:
        in_flight: requests that the server had received and not wholly answered, or within the allowance.
        items: asked before the kill and again after it.
        ages_seconds: of those, how long before the kill their reply had been sent; of sent ones only.
    """

    in_flight: int
    items: int
    ages_seconds: list[float]


def items_to_rate(count: int) -> list[tuple[Speech, Candidate]]:
    """Return distinct answers to the speeches of the samples."""
    texts = [json.loads(line)["text"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    speeches = [Speech(texts[number % len(texts)]) for number in range(count)]
    return [(speech, Candidate(speech.id, "bench", f"Number {n}.")) for n, speech in enumerate(speeches)]


def start(case: Case, base_url: str, folder: Path) -> int:
    """Return the process id of a run that rates everything and then writes its judgements down."""
    pid = os.fork()
    if pid == 0:
        try:
            endpoint = EndpointConfig(model="judge", base_url=base_url, concurrency=case.in_flight)
            settings = ChatJudgeSettings(concurrency=case.in_flight)
            with Journal(folder / "journal.sqlite") as journal:
                judge = ChatJudge(OpenAIChatModel(endpoint), case.rubric, journal, settings)
                lines = [json.dumps(asdict(each)) for each in judge.rate(case.items, lambda _: None)]
            (folder / "judgements.jsonl").write_text("\n".join(lines), encoding="utf-8")
        except Exception:
            traceback.print_exc()
            raise
        finally:
            os._exit(0 if (folder / "judgements.jsonl").is_file() else 1)
    return pid


def run_until(case: Case, base_url: str, folder: Path, seconds: float) -> Session:
    """Run a process and kill it after some seconds, unless it has ended."""
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
    """Return the digest of what a run left: its judgements, and its journal but for order and times.

    A request's own digest holds the port of the server, which is another one in each run.
    """
    hashed = hashlib.sha256((folder / "judgements.jsonl").read_bytes())
    with Journal(folder / "journal.sqlite") as journal:
        rows = sorted(repr(row[1:3]) for row in journal.rows())
    hashed.update("\n".join(rows).encode())
    return hashed.hexdigest()


def repeats(sessions: Sequence[Session], bill: Bill, allowance_seconds: float) -> list[Repeats]:
    """Return what each kill cost, by the server's books."""
    told: list[Repeats] = []
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
        told.append(Repeats(in_flight, len(again), ages))
    return told


class Ending(NamedTuple):
    """What the kills of a run cost, how long its last process took, and the digest of what it left."""

    repeats: list[Repeats]
    seconds: float
    content: str


def killed_run(case: Case, draw: random.Random, kills: int, whole_seconds: float, folder: Path) -> Ending:
    """Kill a run several times and let it through.

    Raises:
        RuntimeError: the last process failed.
    """
    folder.mkdir(parents=True)
    with serving(case.latency_seconds) as server:
        sessions: list[Session] = []
        for number in range(kills):
            # Later processes have less to do, so their instants are drawn from less time.
            sessions.append(run_until(case, server.base_url, folder, draw.random() * whole_seconds / (number + 1)))
        sessions.append(run_until(case, server.base_url, folder, 120.0))
        bill = server.bill()
    if sessions[-1].was_killed or not (folder / "judgements.jsonl").is_file():
        raise RuntimeError(f"the last process did not rate everything; see {folder}")
    seconds = sessions[-1].ended_at - sessions[-1].started_at
    return Ending(repeats(sessions, bill, case.allowance_seconds), seconds, content(folder))


def summary(told: Sequence[Repeats], contents: Counter[str], case: Case) -> dict[str, float]:
    """Return what is printed, and what decides whether the promise is kept."""
    ages = [age for each in told for age in each.ages_seconds]
    return {
        "kills": len(told),
        "kills_that_cost_something": sum(each.items > 0 for each in told),
        "retry_spec": sum(each.items for each in told),
        "most_asked_again_after_one_kill": max((each.items for each in told), default=0),
        "most_in_flight_at_a_kill": max((each.in_flight for each in told), default=0),
        "kills_with_more_repeats_than_in_flight": sum(
            each.items > min(each.in_flight, case.in_flight) for each in told
        ),
        "oldest_reply_asked_again_ms": round(max(ages, default=0.0) * 1000, 1),
        "replies_asked_again_beyond_the_allowance": sum(age > case.allowance_seconds for age in ages),
        "runs": contents.total(),
        "different_endings": len(contents),
    }


def main() -> int:
    """Kill, count, and print; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description="rating runs killed at drawn instants")
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
    draw = random.Random(given.seed)  # noqa: S311
    told: list[Repeats] = []
    with tempfile.TemporaryDirectory() as work:
        alone = killed_run(case, draw, 0, 0.0, Path(work) / "alone")
        contents = Counter([alone.content])
        while len(told) < given.kills:
            kills = min(KILLS_PER_RUN, given.kills - len(told))
            ending = killed_run(case, draw, kills, alone.seconds, Path(work) / str(contents.total()))
            told += ending.repeats
            contents[ending.content] += 1
    result = summary(told, contents, case)
    print(json.dumps(result, indent=1))
    broken = ("kills_with_more_repeats_than_in_flight", "replies_asked_again_beyond_the_allowance")
    return int(any(result[name] for name in broken) or result["different_endings"] != 1)


if __name__ == "__main__":
    sys.exit(main())
