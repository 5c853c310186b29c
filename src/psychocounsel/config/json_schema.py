"""JSON schemas of config files, for editors that complete keys and mark mistakes while one writes.

They allow all that is read, and some that is not: which values fit together is checked when a command reads the file.
"""

import json
from typing import Any

from psychocounsel.config.base import Settings

_FILE = {"type": "string", "pattern": r"\.yaml$", "description": "A YAML file beside this one that holds the block."}


def json_schema(model: type[Settings]) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the YAML file of a config."""
    schema = model.model_json_schema()
    blocks: dict[str, Any] = {schema["title"]: schema, **schema.get("$defs", {})}
    for block in blocks.values():
        for name, value in block["properties"].items():
            if "$ref" in json.dumps(value):
                block["properties"][name] = {"anyOf": [value, _FILE]}
    if judge := blocks.get("JudgeConfig"):
        del blocks["EndpointConfig"]["required"]  # that of a judge has a default model
        judge["properties"] |= blocks["RatingTable"]["properties"]  # of backend: table, written beside the backend
    if schema["title"] == "EvalWinrateConfig":
        schema["properties"]["policies"] = {"type": "array", "items": schema["properties"]["policy"]}
        schema["required"].remove("policy")
    return schema
