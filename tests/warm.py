"""Fork runs of the command line from a process that has already imported everything (see `running.Warm`).

Reads one JSON line per run from stdin. Prints the pid of the fork, and its wait status when it has ended.
"""

import json
import os
import signal
import sys
import traceback

import openai  # noqa: F401

import psychocounsel.stages.align
import psychocounsel.stages.base_model
import psychocounsel.stages.build_preferences
import psychocounsel.stages.eval_winrate
import psychocounsel.stages.report
import psychocounsel.stages.train_reward
import psychocounsel.training.dpo
import psychocounsel.training.generate
import psychocounsel.training.reward
import psychocounsel.training.tiny_llama  # noqa: F401
from psychocounsel.cli.main import main


def run(order):
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    os.environ.update(order["env"])
    sys.argv = ["psychocounsel", *order["argv"]]
    try:
        main()
    except SystemExit as ending:
        return ending.code or 0
    except Exception:  # noqa: BLE001, a bug must reach the test as a traceback
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
