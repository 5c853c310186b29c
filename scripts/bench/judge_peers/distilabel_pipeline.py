"""Send rating requests with distilabel: a pipeline of one task, with its cache for a restart.

python distilabel_pipeline.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK

The schema goes in as `extra_body`, because its own `response_format` takes only flat texts and its structured output
uses tool calls. A step sends a batch at once and waits for all of it, so the batch size is the number in flight.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(Path(sys.argv[4]) / "huggingface"))

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import ChatGeneration


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, work = sys.argv[1:5]
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    first, batch = bodies[0], int(in_flight)
    asked = {
        "temperature": first["temperature"],
        "top_p": first["top_p"],
        "max_new_tokens": first["max_tokens"],
        "extra_body": {"response_format": first["response_format"]},
    }
    started = time.monotonic()
    with Pipeline(name="judge", cache_dir=str(Path(work) / "cache")) as pipeline:
        rows = LoadDataFromDicts(data=[{"messages": body["messages"]} for body in bodies], batch_size=batch)
        llm = OpenAILLM(model=first["model"], base_url=base_url, api_key="sk-benchmark", generation_kwargs=asked)
        rows >> ChatGeneration(llm=llm, input_batch_size=batch)
    replies = pipeline.run(use_cache=True)["default"]["train"]["generation"]
    answered = sum(bool(json.loads(reply)) for reply in replies)
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
