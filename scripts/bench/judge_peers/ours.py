"""Send rating requests with this package, as a judging stage does: journalled, counted and parsed.

python ours.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import psychocounsel.llm.client  # noqa: F401  # imported when an endpoint opens; here the import is not timed
from psychocounsel.config.components import EndpointConfig
from psychocounsel.judging.parsing import ParseFailure, parse_ratings
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.llm.cost import budget_of
from psychocounsel.llm.endpoints import open_endpoint, open_journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.types import ChatReply, ChatRequest, Message
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus

RUBRIC = load_rubric("seven-principles")
_ITEM_ID = re.compile(r'"item_id": "([^"]+)"')


def item_id(request: ChatRequest) -> str:
    """Return the id that the reply must echo."""
    found = _ITEM_ID.search(request.messages[-1].content)
    return found[1] if found else ""


def read_requests(path: Path) -> list[ChatRequest]:
    """Return the requests; what they have in common is stored once, as in a judging stage."""
    shared: dict[str, Any] = {}
    requests: list[ChatRequest] = []
    for line in path.open(encoding="utf-8"):
        body = json.loads(line)
        schema = shared.setdefault("schema", body["response_format"]["json_schema"])
        system, user = (Message(turn["role"], turn["content"]) for turn in body["messages"])
        turns = (shared.setdefault(system.content, system), user)
        limits = shared.setdefault("limits", (body["temperature"], body["top_p"], body["max_tokens"]))
        requests.append(ChatRequest(turns, *limits, schema["schema"], schema["name"]))
    return requests


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, work = sys.argv[1:5]
    os.environ.setdefault("OPENAI_API_KEY", "sk-benchmark")
    requests = read_requests(Path(path))
    endpoint = EndpointConfig(model="judge", base_url=base_url, concurrency=int(in_flight))

    def accept(index: int, reply: ChatReply) -> bool:
        read = parse_ratings(reply.text, RUBRIC, item_id(requests[index]))
        return reply.status is ReplyStatus.VALID and not isinstance(read, ParseFailure)

    started = time.monotonic()
    store = Store(Path(work) / "store", offline=True)
    with open_journal(store) as journal:
        policy = RunPolicy(accept, concurrency=endpoint.concurrency, reader="bench", budget=budget_of(endpoint))
        replies = run_requests(open_endpoint(endpoint, store), requests, journal, policy)
    answered = sum(reply.status is ReplyStatus.VALID for reply in replies)
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
