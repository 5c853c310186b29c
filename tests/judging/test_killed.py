"""A few of the kills of `scripts/bench/judge_kills.py`, which kills two hundred times and measures the delays, too."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "scripts" / "bench" / "judge_kills.py"
FEW = ["--kills", "6", "--requests", "90", "--in-flight", "16", "--latency-seconds", "0.03", "--seed", "3"]
ANY_DELAY = ["--allowance-ms", "60000"]


def test_a_kill_repeats_at_most_what_was_in_flight_and_every_run_gives_the_same_result() -> None:
    command = [sys.executable, str(BENCH), *FEW, *ANY_DELAY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 6
    assert result["most_sent_twice_after_one_kill"] <= 16
    assert result["kills_with_more_repeats_than_in_flight"] == 0
    assert result["distinct_results"] == 1
