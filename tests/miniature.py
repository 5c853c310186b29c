"""A recipe that a test can run in seconds: a few sample speeches and a model of one layer.

It is written for every session, so that the shipped configs do not influence these tests.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
SPEECHES_PER_TOPIC = 4

SHAPE = {
    **{"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "layers": 1, "max_positions": 1024},
    **{"attention_heads": 4, "key_value_heads": 2},
}
OPTIMISATION = {
    **{"learning_rate": 1.0e-3, "precision": "fp32", "save_every_steps": 1000},
    **{"global_batch_size": 8, "per_device_batch_size": 4},
}
LENGTH = {"max_length_tokens": 1024}
SAMPLING = {"temperature": 1.0, "max_new_tokens": 24, "batch_size": 64}


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of every config by file name without extension."""
    online = {
        **{"speeches": "mini", "reward_model": "mini", "unfinished": "penalise", "sampling": SAMPLING},
        **{"rounds": 2, "steps_per_round": 2, "speeches_per_round": 8, "candidates_per_speech": 3},
    }
    shown = ["audits/mini", "reward-models/mini", "comparisons/mini"]
    shared = {"optimisation": OPTIMISATION, "length": LENGTH}
    columns = {"text": "text", "topic": "topic", "crisis": "crisis", "key": "key"}
    terms = {"licence": "cc-by-4.0", "data_class": "public"}
    speeches = {"path": str(folder / "speeches.jsonl"), "columns": columns, **terms}
    columns = {"text": "text", "author": "author", "speech_key": "speech"}
    dpo = {"mode": "dpo", "policy": "mini-base", "preferences": "mini", "max_steps": 3, **shared}
    return {
        "corpus": {
            "name": "mini",
            "speeches": [speeches],
            "candidates": [{"path": str(folder / "candidates.jsonl"), "columns": columns, **terms}],
            "split": {"test_share": 0.25, "dev_share": 0.15},
        },
        "make-base-model": {
            "name": "mini-base",
            "corpus": "corpus.yaml",
            "shape": SHAPE,
            "sft": {"epochs": 1, "batch_size": 16, "max_length_tokens": 1024},
        },
        "build-preferences": {"name": "mini", "corpus": "corpus.yaml", "pairing": {"min_gap": 0.5}},
        "train-reward": {"name": "mini", "base_model": "mini-base", "preferences": "mini", "epochs": 1, **shared},
        "align-dpo": {"name": "mini-dpo", **dpo},
        "align": {"name": "mini-online", "mode": "online", "policy": "mini-base", "online": online, **shared},
        "eval-winrate": {
            **{"name": "mini", "speeches": "mini", "split": "test"},
            "policy": {"author": "online", "model": "mini-online", "sampling": SAMPLING},
            "reference": {"author": "base", "model": "mini-base", "sampling": SAMPLING},
        },
        "report": {"name": "mini", "artifacts": shown, "examples": 2},
    }


STEPS = ("make-base-model", "build-preferences", "train-reward", "align-dpo", "align", "eval-winrate", "report")


def write_recipe(folder: Path) -> Path:
    """Write the first speeches of every topic, the responses to them, the configs and `recipe.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    speeches = rows(SAMPLES / "speeches.jsonl")
    kept = [row for row in speeches if int(row["key"].rpartition("-")[2]) <= SPEECHES_PER_TOPIC]
    keys = {row["key"] for row in kept}
    write_rows(folder / "speeches.jsonl", kept)
    write_rows(
        folder / "candidates.jsonl", [row for row in rows(SAMPLES / "candidates.jsonl") if row["speech"] in keys]
    )
    for name, content in configs(folder).items():
        write_yaml(folder / f"{name}.yaml", content)
    steps = [{"stage": name.removesuffix("-dpo"), "config": f"{name}.yaml"} for name in STEPS]
    write_yaml(folder / "recipe.yaml", {"description": "the whole pipeline, tiny", "steps": steps})
    return folder


def write_build_config(recipe: Path, **changes: Any) -> Path:
    """Write a config of build-preferences that audits nothing; return its path."""
    audit = {"retest": 0, "one_principle": 0, "canaries": 0}
    path = recipe / "changed.yaml"
    write_yaml(path, {"name": "mini", "corpus": "corpus.yaml", "pairing": {"min_gap": 0.5}, "audit": audit, **changes})
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, content: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
