"""Send rating requests with the plain `openai` client: as many tasks as requests in flight, no journal.

python plain.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI


async def run_requests(bodies: list[dict[str, Any]], base_url: str, in_flight: int) -> list[str]:
    """Return the text of every reply."""
    gate = asyncio.Semaphore(in_flight)
    async with AsyncOpenAI(base_url=base_url, api_key="sk-benchmark", timeout=60) as client:

        async def ask(body: dict[str, Any]) -> str:
            async with gate:
                reply = await client.chat.completions.create(**body)
            return reply.choices[0].message.content or ""

        return await asyncio.gather(*map(ask, bodies))


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, _ = sys.argv[1:5]
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    started = time.monotonic()
    replies = asyncio.run(run_requests(bodies, base_url, int(in_flight)))
    answered = sum(bool(json.loads(reply)) for reply in replies)
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
