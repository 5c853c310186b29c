"""Rating requests -> replies, by this package: `ask_all` with its journal, as a judging stage asks.

python ours.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import json
import os
import sys
import time
from pathlib import Path

from psychocounsel.config.models import EndpointConfig
from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatRequest, Message
from psychocounsel.llm.engine import AskPolicy, ask_all
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.openai_client import OpenAIChatModel


def main() -> None:
    """Ask everything once and print the seconds that it took."""
    path, base_url, in_flight, work = sys.argv[1:5]
    os.environ.setdefault("OPENAI_API_KEY", "sk-benchmark")
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    schema = bodies[0]["response_format"]["json_schema"]
    requests = [
        ChatRequest(
            tuple(Message(turn["role"], turn["content"]) for turn in body["messages"]),
            body["temperature"],
            body["top_p"],
            body["max_tokens"],
            schema["schema"],
            schema["name"],
        )
        for body in bodies
    ]
    endpoint = EndpointConfig(model=bodies[0]["model"], base_url=base_url, concurrency=int(in_flight))
    started = time.monotonic()
    with Journal(Path(work) / "journal.sqlite") as journal:
        policy = AskPolicy(concurrency=endpoint.concurrency)
        replies = ask_all(OpenAIChatModel(endpoint), requests, journal, policy)
    answered = sum(reply.status is ReplyStatus.VALID for reply in replies)
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
