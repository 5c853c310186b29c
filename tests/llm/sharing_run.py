"""A run that shares its journal with another: asks numbered requests and notes each one that it sends.

python sharing_run.py JOURNAL NOTES COUNT CONCURRENCY
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.types import ChatReply, ChatRequest, Message, RequestContext
from psychocounsel.types import ReplyStatus


class Noting:
    """Answers after a moment, and notes what it was asked before."""

    fingerprint: Mapping[str, str] = {"model": "fake-1", "base_url": "memory"}

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        text = request.messages[0].content
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        await asyncio.sleep(0.02)
        return ChatReply(ReplyStatus.VALID, f"to {text}", "fake-1", 1, 1)


def numbered(count: int) -> list[ChatRequest]:
    """Return requests that differ in their number alone."""
    return [ChatRequest((Message("user", str(number)),), 0.0, 1.0, 10) for number in range(count)]


def main() -> None:
    """Ask everything, and print the texts of the replies."""
    journal_path, notes, count, concurrency = sys.argv[1:5]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    with Journal(Path(journal_path)) as journal:
        policy = RunPolicy(concurrency=int(concurrency))
        replies = run_requests(Noting(Path(notes)), numbered(int(count)), journal, policy)
    sys.stdout.write(" ".join(reply.text for reply in replies))


if __name__ == "__main__":
    main()
