"""Send rating requests with curator: an `LLM` with a response format; its folder is kept for a restart.

python curator_llm.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import json
import os
import sys
import time
from pathlib import Path
from sysconfig import get_path
from typing import Any, Literal

os.environ.update(
    TELEMETRY_ENABLED="0",
    HF_HUB_OFFLINE="1",
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    HF_HOME=str(Path(sys.argv[4]) / "huggingface"),
    # It counts tokens before a request and would download the tokenizer that litellm contains.
    TIKTOKEN_CACHE_DIR=str(Path(get_path("purelib"), "litellm", "litellm_core_utils", "tokenizers")),
)

from bespokelabs import curator
from pydantic import BaseModel, create_model

PER_MINUTE = 1_000_000
TOKENS_PER_MINUTE = PER_MINUTE * 10_000


def reply_type(schema: dict[str, Any], name: str = "Reply") -> type[BaseModel]:
    """Return the pydantic model for a schema of objects, texts and enumerated numbers."""
    fields: dict[str, Any] = {}
    for key, part in schema["properties"].items():
        if part["type"] == "object":
            fields[key] = (reply_type(part, key.capitalize()), ...)
        else:
            fields[key] = (Literal[tuple(part["enum"])] if "enum" in part else str, ...)
    return create_model(name, **fields)


class Judge(curator.LLM):
    """Sends the messages of a row and stores the reply as a row."""

    def prompt(self, input: dict[str, Any]) -> list[dict[str, str]]:
        """Return a row's messages."""
        return input["messages"]

    def parse(self, input: dict[str, Any], response: BaseModel) -> dict[str, Any]:
        """Return the reply."""
        return {"reply": response.model_dump_json()}


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, work = sys.argv[1:5]
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    first = bodies[0]
    # Most imports happen here; they do not count as requests.
    judge = Judge(
        model_name=first["model"],
        response_format=reply_type(first["response_format"]["json_schema"]["schema"]),
        backend="openai",
        generation_params={key: first[key] for key in ("temperature", "top_p", "max_tokens")},
        backend_params={
            "base_url": base_url,
            "api_key": "sk-benchmark",
            "max_concurrent_requests": int(in_flight),
            "max_requests_per_minute": PER_MINUTE,
            "max_tokens_per_minute": TOKENS_PER_MINUTE,
        },
    )
    started = time.monotonic()
    rows = judge([{"messages": body["messages"]} for body in bodies], working_dir=str(Path(work) / "cache"))
    answered = sum(bool(json.loads(reply)) for reply in rows.dataset["reply"])
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
