"""A process that forks runs of `run_requests` to be killed: imports are paid once, threads are none.

Reads one JSON line per run, writes the pid of the fork, then (when it ends by itself) its replies.
"""

import json
import os
import sys
from pathlib import Path

from psychocounsel.config.components import EndpointConfig
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.types import ChatRequest, Message


def run(order):
    model = OpenAIChatModel(EndpointConfig(model="judge", base_url=order["base_url"]))
    requests = [ChatRequest((Message("user", text),), 0.0, 1.0, 20) for text in order["texts"]]
    with Journal(Path(order["journal"])) as journal:
        policy = RunPolicy(concurrency=order["concurrency"])
        return [reply.text for reply in run_requests(model, requests, journal, policy)]


def main():
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            Path(order["result"]).write_text(json.dumps(run(order)))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
