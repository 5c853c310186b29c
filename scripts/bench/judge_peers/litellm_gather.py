"""Send rating requests with litellm: `acompletion` under gather, with its disk cache for a restart.

python litellm_gather.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", AIOHTTP_CONNECTOR_LIMIT_PER_HOST=sys.argv[3])

import litellm
from litellm.caching.caching import Cache
from litellm.types.caching import LiteLLMCacheType

litellm.telemetry = False


async def run_requests(bodies: list[dict[str, Any]], base_url: str, in_flight: int) -> list[str]:
    """Return the text of every reply."""
    gate = asyncio.Semaphore(in_flight)

    async def ask(body: dict[str, Any]) -> str:
        named = {**body, "model": f"openai/{body['model']}"}
        async with gate:
            reply = await litellm.acompletion(
                **named, api_base=base_url, api_key="sk-benchmark", timeout=60, caching=True
            )
        return reply.choices[0].message.content or ""

    return await asyncio.gather(*map(ask, bodies))


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, work = sys.argv[1:5]
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    started = time.monotonic()
    litellm.cache = Cache(type=LiteLLMCacheType.DISK, disk_cache_dir=str(Path(work) / "cache"))
    replies = asyncio.run(run_requests(bodies, base_url, int(in_flight)))
    answered = sum(bool(json.loads(reply)) for reply in replies)
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
