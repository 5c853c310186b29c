"""Send rating requests with inspect_ai: `Model.generate` under gather, cached for a restart.

python inspect_model.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["INSPECT_CACHE_DIR"] = str(Path(sys.argv[4]) / "cache")

from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ResponseSchema,
    get_model,
)
from inspect_ai.util import JSONSchema

KINDS = {"system": ChatMessageSystem, "user": ChatMessageUser}


def model_for(body: dict[str, Any], base_url: str, in_flight: int) -> Model:
    """Return the model with the settings of the first request; the others differ only in their messages."""
    schema = body["response_format"]["json_schema"]
    config = GenerateConfig(
        max_connections=in_flight,
        temperature=body["temperature"],
        top_p=body["top_p"],
        max_tokens=body["max_tokens"],
        response_schema=ResponseSchema(
            name=schema["name"], json_schema=JSONSchema(**schema["schema"]), strict=schema["strict"]
        ),
    )
    return get_model(f"openai-api/bench/{body['model']}", config=config, base_url=base_url, api_key="sk-benchmark")


async def run_requests(model: Model, bodies: list[dict[str, Any]]) -> list[str]:
    """Return the text of every reply."""
    async with model:

        async def ask(body: dict[str, Any]) -> str:
            turns: list[ChatMessage] = [KINDS[turn["role"]](content=turn["content"]) for turn in body["messages"]]
            return (await model.generate(turns, cache=True)).completion

        return await asyncio.gather(*map(ask, bodies))


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, _ = sys.argv[1:5]
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    # Most imports happen here; they do not count as requests.
    model = model_for(bodies[0], base_url, int(in_flight))
    started = time.monotonic()
    replies = asyncio.run(run_requests(model, bodies))
    answered = sum(bool(json.loads(reply)) for reply in replies)
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
