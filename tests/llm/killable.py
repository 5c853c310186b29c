"""A process that forks runs of `ask_all` to be killed: imports are paid once, threads are none.

Reads one JSON line per run, writes the pid of the fork, then (when it ends by itself) its replies.
"""

import json
import os
import sys
from pathlib import Path

from psychocounsel.config.models import EndpointConfig
from psychocounsel.llm.chat import ChatRequest, Message
from psychocounsel.llm.engine import AskPolicy, ask_all
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.openai_client import OpenAIChatModel


def run(order):
    model = OpenAIChatModel(EndpointConfig(model="judge", base_url=order["base_url"]))
    requests = [ChatRequest((Message("user", text),), 0.0, 1.0, 20) for text in order["texts"]]
    with Journal(Path(order["journal"])) as journal:
        policy = AskPolicy(concurrency=order["concurrency"])
        return [reply.text for reply in ask_all(model, requests, journal, policy)]


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
