"""Runs through batches for tests and benchmarks; as a program, a process that forks runs to be killed.

The program reads one JSON line per run, writes the pid of the fork, then (however it ends) its wait status.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psychocounsel.config.components import BatchConfig, EndpointConfig
from psychocounsel.llm.batch.client import BatchTransport, OpenAIBatches
from psychocounsel.llm.batch.run import run_in_batches
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.rate_limit import RetryPolicy
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.structured_output import Capabilities, OutputMode, StructuredOutputModel
from psychocounsel.llm.types import ChatReply, ChatRequest, Message

QUICK = {"max_lines": 10, "first_poll_seconds": 0.02, "longest_poll_seconds": 0.05, "confirm_seconds": 0.3}
IN_A_HURRY = RetryPolicy(first_wait_seconds=0.01, longest_wait_seconds=0.05)


def questions(count: int) -> list[ChatRequest]:
    return [ChatRequest((Message("user", f"item {number}"),), 0.0, 1.0, 20) for number in range(count)]


def endpoint_at(base_url: str, **changes: Any) -> EndpointConfig:
    return EndpointConfig(model="judge", base_url=base_url, timeout_seconds=5.0, **changes)


def transport_to(
    endpoint: EndpointConfig, report: Callable[[str], None] = lambda text: None, **limits: Any
) -> BatchTransport:
    batch = BatchConfig(enabled=True, **{**QUICK, **limits})
    return BatchTransport(lambda: OpenAIBatches(endpoint, retry=IN_A_HURRY), batch, report)


def model_at(endpoint: EndpointConfig, mode: OutputMode | None = OutputMode.JSON_SCHEMA) -> StructuredOutputModel:
    return StructuredOutputModel(OpenAIChatModel(endpoint), Capabilities(Path(os.devnull)), mode)


def run(base_url: str, path: Path, count: int, policy: RunPolicy | None = None, **limits: Any) -> list[ChatReply]:
    """Run so many questions in batches, in a journal of its own."""
    endpoint = endpoint_at(base_url)
    with Journal(path) as journal:
        transport = transport_to(endpoint, **limits)
        return run_in_batches(transport, model_at(endpoint), questions(count), journal, policy or RunPolicy())


def reported(replies: list[ChatReply]) -> str:
    return json.dumps([[reply.status, reply.text, reply.model, reply.reason] for reply in replies])


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            replies = run(order["base_url"], Path(order["journal"]), order["count"], **order["limits"])
            Path(order["result"]).write_text(reported(replies), encoding="utf-8")
            os._exit(0)
        for number in (pid, None):
            sys.stdout.write(f"{os.waitpid(pid, 0)[1] if number is None else number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
