"""Runs in batches, killed at seeded instants -> how many requests were paid twice.

    python scripts/bench/batch_kills.py --kills 100

Each trial has a journal of its own. A run is killed with SIGKILL somewhere between its first moment and its
last, by turns while it submits, waits and collects; the same command then goes on to its end. The provider
is in a process of its own and keeps the bill of every request. All replies must be those of a run that
nobody killed.
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
    """Runs in forks of one process that has imported everything."""

    def __init__(self, server: ServedBatches, items: int, folder: Path) -> None:
        self._server, self._items, self._result = server, items, folder / "result.json"
        command = [sys.executable, str(TESTS / "llm" / "batch_runs.py")]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._orders, self._told = cast("IO[str]", self._child.stdin), cast("IO[str]", self._child.stdout)

    def start(self, journal: Path) -> int:
        """Return the pid of a run that has begun."""
        order = {
            "base_url": self._server.base_url,
            "journal": str(journal),
            "count": self._items,
            "limits": LIMITS,
            "result": str(self._result),
        }
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return self.number()

    def number(self) -> int:
        """Return what the process tells next: a pid, or how a run ended."""
        return int(self._told.readline())

    def finish(self, journal: Path) -> str:
        """Return the replies of a run that goes to its end."""
        self.start(journal)
        if self.number() != 0:
            sys.exit("a run that nobody killed has failed")
        return self._result.read_text(encoding="utf-8")

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()


class Trial(NamedTuple):
    """One kill and what came of it."""

    at_seconds: float
    was_killed: bool
    was_equal: bool


def main() -> None:
    """Print the counts; exit with 1 where anything was paid twice or a reply differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-seconds", type=float, default=0.2, help="how long a batch takes")
    options = parser.parse_args()
    drawn = random.Random(options.seed)  # noqa: S311
    trials: list[Trial] = []
    paid_twice = 0
    with (
        tempfile.TemporaryDirectory() as name,
        serving(options.work_seconds, list_lag_seconds=0.1) as server,
    ):
        folder = Path(name)
        runs = Runs(server, options.items, folder)
        runs.finish(folder / "warm.sqlite")
        began = time.monotonic()
        whole = runs.finish(folder / "whole.sqlite")
        seconds = time.monotonic() - began
        for number in range(options.kills):
            journal = folder / f"{number}.sqlite"
            before = Counter(server.bill())
            at_seconds = drawn.uniform(0, seconds)
            pid = runs.start(journal)
            time.sleep(at_seconds)
            with suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, signal.SIGKILL)
            was_killed = runs.number() == signal.SIGKILL
            trials.append(Trial(at_seconds, was_killed, runs.finish(journal) == whole))
            paid_twice += sum(times - 1 for times in (server.bill() - before).values())
        runs.close()
    _tell(trials, paid_twice, seconds, options.items)


def _tell(trials: list[Trial], paid_twice: int, seconds: float, items: int) -> None:
    killed = sum(trial.was_killed for trial in trials)
    different = sum(not trial.was_equal for trial in trials)
    sys.stdout.write(
        f"{len(trials)} runs of {items} requests in batches of 10, {seconds:.2f} s each; "
        f"{killed} killed at instants of that, {len(trials) - killed} had ended before\n"
        f"requests paid twice: {paid_twice} of {len(trials) * items}\n"
        f"runs whose replies differ: {different}\n"
    )
    sys.exit(1 if paid_twice or different else 0)


if __name__ == "__main__":
    main()
