"""Run the quickstart with several seeds and check that its outcome does not depend on the seed.

    python scripts/bench/seeds.py --seeds 0 1 2 3 4 --store /tmp/seeds

Each seed gets its own store and a whole run of the recipe in its own process: base model, pool answers, reward model
and policies differ; tokenizer and splits are the same. Prints a Markdown table with the time and the peak resident
memory of each run, and exits with 1 if an expectation does not hold.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

CHANCE = 0.5
HEADER = (
    "| seed | reward accuracy | longer wins | author identity | DPO win rate | online win rate "
    "| online, length-controlled | test speeches | run | peak memory |\n" + "|---" * 10 + "|"
)


class Run(NamedTuple):
    """One finished run: its metrics, wall time and peak memory."""

    seed: int
    reward: dict[str, Any]
    offline: dict[str, Any]
    online: dict[str, Any]
    seconds: float
    peak_gib: float


def run_seed(recipe: str, seed: int, store: Path) -> Run:
    """Run the recipe with a seed and read its metrics."""
    options = ["--set", f"seed={seed}", "--store", str(store)]
    command = [sys.executable, "-m", "psychocounsel", "run", recipe, *options]
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"seed {seed} ended with status {os.waitstatus_to_exitcode(status)}")
    reward = _metrics(store, "reward-models/quickstart-*")
    offline, online = (_metrics(store, f"comparisons/quickstart-{name}-*") for name in ("dpo", "online"))
    return Run(seed, reward, offline, online, seconds, usage.ru_maxrss / 2**20)


def _metrics(store: Path, pattern: str) -> dict[str, Any]:
    (path,) = store.glob(f"{pattern}/metrics.json")
    return json.loads(path.read_text(encoding="utf-8"))


def percent(rate: dict[str, float]) -> str:
    """Return a rate as `81.2 [70.8, 90.6]`."""
    return f"{100 * rate['estimate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def row(run: Run) -> str:
    """Return a run's row of the table."""
    cells = [
        str(run.seed),
        percent(run.reward["test"]["accuracy"]),
        percent(run.reward["baselines"]["longer_wins"]),
        percent(run.reward["baselines"]["author_identity"]),
        percent(run.offline["win_rate"]),
        percent(run.online["win_rate"]),
        percent(run.online["length_controlled"]["rate"]),
        str(run.online["win_rate"]["n"]),
        f"{run.seconds:.0f} s",
        f"{run.peak_gib:.2f} GiB",
    ]
    return f"| {' | '.join(cells)} |"


def failed_expectations(run: Run) -> list[str]:
    """Return the expectations that a run does not meet."""
    accuracy = run.reward["test"]["accuracy"]
    longer = run.reward["baselines"]["longer_wins"]
    expectations = {
        "reward accuracy above chance": accuracy["low"] > CHANCE,
        "reward accuracy above 'longer wins'": accuracy["low"] > longer["high"],
        "online policy beats its base": run.online["win_rate"]["low"] > CHANCE,
        "at least 40 test speeches": run.online["win_rate"]["n"] >= 40,
    }
    return [f"seed {run.seed}: {expectation}" for expectation, holds in expectations.items() if not holds]


def main() -> None:
    """Run every seed, print the table, and fail if an expectation is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    failed: list[str] = []
    for seed in arguments.seeds:
        run = run_seed(arguments.recipe, seed, arguments.store / f"seed-{seed}")
        print(row(run), flush=True)
        failed += failed_expectations(run)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
