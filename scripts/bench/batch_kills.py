"""Kill runs that judge in batches at random instants; count the requests that were paid for twice.

    python scripts/bench/batch_kills.py --kills 100

Each trial has its own journal. A run is killed with SIGKILL at some instant between its start and its end, while it
submits, waits or collects; the same command then completes it. The provider runs in a separate process and keeps the
bill of every request. All replies must equal those of a run that was not killed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, cast

TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(TESTS / "servers"))
sys.path.insert(0, str(TESTS / "llm"))

from batch_server import ServedBatches, serving  # noqa: E402

LIMITS = {"confirm_seconds": 0.3}


class Runs:
    """Runs in forks of one process that has already imported everything."""

    def __init__(self, server: ServedBatches, items: int, folder: Path) -> None:
        self._server, self._items, self._result = server, items, folder / "result.json"
        command = [sys.executable, str(TESTS / "llm" / "batch_runs.py")]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stdin, self._stdout = cast("IO[str]", self._child.stdin), cast("IO[str]", self._child.stdout)

    def start(self, journal: Path) -> int:
        """Start a run and return its pid."""
        order = {
            "base_url": self._server.base_url,
            "journal": str(journal),
            "count": self._items,
            "limits": LIMITS,
            "result": str(self._result),
        }
        self._stdin.write(json.dumps(order) + "\n")
        self._stdin.flush()
        return self.number()

    def number(self) -> int:
        """Return the next number that the process prints: a pid, or the wait status of a run."""
        return int(self._stdout.readline())

    def finish(self, journal: Path) -> str:
        """Return the replies of a run that is not killed."""
        self.start(journal)
        if self.number() != 0:
            sys.exit("a run that was not killed has failed")
        return self._result.read_text(encoding="utf-8")

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()


class Trial(NamedTuple):
    """One kill and its outcome."""

    at_seconds: float
    was_killed: bool
    was_equal: bool


def main() -> None:
    """Print the counts; exit with 1 if anything was paid for twice or a reply differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-seconds", type=float, default=0.2, help="how long a batch takes")
    options = parser.parse_args()
    generator = random.Random(options.seed)  # noqa: S311
    trials: list[Trial] = []
    paid_twice = 0
    with (
        tempfile.TemporaryDirectory() as name,
        serving(options.work_seconds, list_lag_seconds=0.1) as server,
    ):
        folder = Path(name)
        runs = Runs(server, options.items, folder)
        runs.finish(folder / "warm.sqlite")
        started = time.monotonic()
        whole = runs.finish(folder / "whole.sqlite")
        seconds = time.monotonic() - started
        for number in range(options.kills):
            journal = folder / f"{number}.sqlite"
            before = Counter(server.bill())
            at_seconds = generator.uniform(0, seconds)
            pid = runs.start(journal)
            time.sleep(at_seconds)
            with suppress(ProcessLookupError):  # it has already ended
                os.kill(pid, signal.SIGKILL)
            was_killed = runs.number() == signal.SIGKILL
            trials.append(Trial(at_seconds, was_killed, runs.finish(journal) == whole))
            paid_twice += sum(times - 1 for times in (server.bill() - before).values())
        runs.close()
    print_counts(trials, paid_twice, seconds, options.items)


def print_counts(trials: list[Trial], paid_twice: int, seconds: float, items: int) -> None:
    """Print how many runs were killed, what was paid twice, and whether the replies differ; exit accordingly."""
    killed = sum(trial.was_killed for trial in trials)
    different = sum(not trial.was_equal for trial in trials)
    sys.stdout.write(
        f"{len(trials)} runs of {items} requests in batches of 10, {seconds:.2f} s each; "
        f"{killed} killed, {len(trials) - killed} had already ended\n"
        f"requests paid twice: {paid_twice} of {len(trials) * items}\n"
        f"runs whose replies differ: {different}\n"
    )
    sys.exit(1 if paid_twice or different else 0)


if __name__ == "__main__":
    main()
