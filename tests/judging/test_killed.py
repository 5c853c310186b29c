"""A few of the kills of `scripts/bench/judge_kills.py`, which kills two hundred times."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "scripts" / "bench" / "judge_kills.py"
FEW = ["--kills", "6", "--requests", "90", "--in-flight", "16", "--latency-seconds", "0.03", "--seed", "3"]
# Other work on the machine may hold up the process that is killed.
BUSY = ["--allowance-ms", "500"]


def test_a_kill_repeats_at_most_what_was_in_flight_and_every_run_ends_alike() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), *FEW, *BUSY], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 6
    assert told["most_asked_again_after_one_kill"] <= 16
    assert told["kills_with_more_repeats_than_in_flight"] == 0
    assert told["replies_asked_again_beyond_the_allowance"] == 0
    assert told["different_endings"] == 1
