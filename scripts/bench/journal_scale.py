"""Measure how long a journal of a million replies takes to find the pending ones of a million requests.

    python scripts/bench/journal_scale.py --work /tmp/journal-scale
    python scripts/bench/journal_scale.py --work /tmp/journal-scale --requests 100000

The requests are ratings, as a judging stage builds them; the replies are about 700 bytes each. One request in a
thousand has no reply. Each step runs in its own process, whose peak memory is printed:

    build           build the requests and compute their digests
    fill            write the journal, as a run that completed the requests does
    pending-memo    open the journal and find the pending requests, given their digests, by what the journal
                    remembers of this reader
    pending-anew    the same for another reader, who reads every reply
    pending-parsed  the same, with every reply parsed
    stage           all that a second run waits for: requests, digests, journal, pending requests
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from psychocounsel.judging.parsing import PARSER_VERSION, ParsedRatings, parse_ratings
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.judging.scorers import JudgeRequest, SamplingParams, TextScorer
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.runner import pending_indices
from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import Candidate, ReplyStatus, Speech

SAMPLES = Path(__file__).parents[2] / "data" / "samples" / "speeches.jsonl"
IDENTITY = {"model": "gpt-4o-2024-08-06", "base_url": "https://api.openai.com/v1"}
RUBRIC = load_rubric("seven-principles")
READER = f"judge {PARSER_VERSION} {RUBRIC.digest}"
PENDING_EVERY = 1000
COMMIT = 5000
STEPS = ("build", "fill", "pending-memo", "pending-anew", "pending-parsed", "stage")
REASONS = "The counsellor names the feeling and stays with it, asks one open question and leaves the choice. "


class Known:
    """A request that only has its digest, so that only the work of the journal is measured."""

    __slots__ = ("_digest",)

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def digest(self, identity: object) -> str:
        """Return the digest."""
        del identity
        return self._digest


def rating_requests(count: int) -> Iterator[JudgeRequest]:
    """Yield distinct rating requests."""
    texts = [json.loads(line)["text"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    speeches = [Speech(text) for text in texts]
    scorer, sampling = TextScorer(RUBRIC), SamplingParams()
    for number in range(count):
        speech = speeches[number % len(speeches)]
        answer = Candidate(speech.id, "bench", f"{texts[-1 - number % len(texts)]} ({number})")
        yield scorer.rating_request(speech, answer, sampling)


def reply_to(item: JudgeRequest) -> ChatReply:
    """Return a reply of a common size."""
    ratings = dict.fromkeys(RUBRIC.principle_ids, 4)
    text = json.dumps({"item_id": item.item_id, "reasons": REASONS * 5, "ratings": ratings})
    return ChatReply(ReplyStatus.VALID, text, IDENTITY["model"], 1900, 160, cached_tokens=1792)


def fill(path: Path, count: int) -> None:
    """Write the journal, and next to it the digests and item ids in the order of the requests."""
    path.unlink(missing_ok=True)
    completed: list[str] = []
    with Journal(path) as journal, path.with_suffix(".ids").open("w", encoding="ascii") as ids:
        entries: list[Entry] = []
        for number, item in enumerate(rating_requests(count)):
            digest = item.request.digest(IDENTITY)
            ids.write(f"{digest} {item.item_id}\n")
            if number % PENDING_EVERY:
                entries.append(Entry(digest, reply_to(item)))
                completed.append(digest)
            if len(entries) == COMMIT:
                journal.record_many(entries)
                entries = []
        journal.record_many(entries)
        journal.mark_accepted(READER, completed)


def pending(path: Path, step: str) -> tuple[float, int]:
    """Open the journal and find the pending requests; return the seconds and their number."""
    lines = [line.split() for line in path.with_suffix(".ids").read_text(encoding="ascii").splitlines()]
    requests: Sequence[ChatRequest] = [Known(digest) for digest, _ in lines]  # type: ignore[list-item]
    item_ids = [item_id for _, item_id in lines]

    def accept_parsed(index: int, reply: ChatReply) -> bool:
        return isinstance(parse_ratings(reply.text, RUBRIC, item_ids[index]), ParsedRatings)

    def accept(index: int, reply: ChatReply) -> bool:
        del index
        return reply.status is ReplyStatus.VALID

    started_at = time.perf_counter()
    with Journal(path) as journal:
        reader = READER if step == "pending-memo" else ""
        found = pending_indices(
            requests, IDENTITY, journal, accept_parsed if step == "pending-parsed" else accept, reader
        )
    return time.perf_counter() - started_at, len(found)


def build(count: int) -> str:
    """Build all requests, then compute their digests."""
    started_at = time.perf_counter()
    requests = [item.request for item in rating_requests(count)]
    built_at = time.perf_counter()
    digests = [request.digest(IDENTITY) for request in requests]
    done_at = time.perf_counter()
    return f"{built_at - started_at:.1f} s to build, {done_at - built_at:.1f} s for {len(digests):,} digests"


def stage(path: Path, count: int) -> str:
    """Do everything that precedes the first call of a second run."""
    started_at = time.perf_counter()
    requests = [item.request for item in rating_requests(count)]
    with Journal(path) as journal:
        found = pending_indices(requests, IDENTITY, journal, reader=READER)
    return f"{time.perf_counter() - started_at:.1f} s, {len(found):,} pending"


def run_step(step: str, path: Path, count: int) -> str:
    """Run one step in this process and return what to print."""
    if step == "build":
        return build(count)
    if step == "stage":
        return stage(path, count)
    if step == "fill":
        started_at = time.perf_counter()
        fill(path, count)
        took = time.perf_counter() - started_at
        return f"{took:.1f} s, including requests and digests; {path.stat().st_size / 2**20:,.0f} MiB"
    seconds, found = pending(path, step)
    return f"{seconds:.2f} s, {found:,} pending"


def main() -> None:
    """Run each step in its own process and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--step", choices=STEPS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / f"journal-{given.requests}.sqlite"
    if given.step:
        print(run_step(given.step, path, given.requests))
        return
    for step in STEPS:
        if step == "fill" and path.is_file():
            continue
        command = [sys.executable, __file__, "--work", str(given.work), "--requests", str(given.requests)]
        done = subprocess.Popen([*command, "--step", step], stdout=subprocess.PIPE, text=True)
        output = done.stdout.read().strip() if done.stdout else ""
        _, status, used = os.wait4(done.pid, 0)
        print(f"{step:14s} {output}; peak {used.ru_maxrss / 1024:,.0f} MiB", flush=True)
        if status:
            raise SystemExit(f"{step} failed")


if __name__ == "__main__":
    main()
