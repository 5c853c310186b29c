"""The tiny model learns from training speeches only; other texts of the corpus leave no trace in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miniature import rows, write_recipe, write_rows
from psychocounsel.store.schemas import read_speeches
from psychocounsel.store.store import Store
from running import Cli, Miniature, Warm

Rows = list[dict[str, Any]]


def weights(warm: Warm, folder: Path, change: Callable[[Rows], Rows]) -> dict[str, bytes]:
    """Return what a model is made of, with the responses of its corpus changed."""
    recipe = write_recipe(folder / "recipe")
    write_rows(recipe / "candidates.jsonl", change(rows(recipe / "candidates.jsonl")))
    ended = warm.run("make-base-model", recipe / "make-base-model.yaml", "--store", folder / "store")
    assert ended.code == 0, ended.err
    model = Store(folder / "store").artifacts("base-models")[0].folder
    return {name: (model / name).read_bytes() for name in ("model.safetensors", "tokenizer.json")}


@pytest.mark.parametrize(("split", "is_seen"), [("test", False), ("dev", False), ("train", True)])
def test_only_answers_to_training_speeches_shape_the_model(
    miniature: Miniature, warm: Warm, tmp_path: Path, split: str, is_seen: bool
) -> None:
    store = Store(miniature.store)
    texts = {each.speech.text for each in read_speeches(store.artifacts("speeches")[0]) if each.split == split}
    keys = {row["key"] for row in rows(miniature.recipe / "speeches.jsonl") if row["text"] in texts}
    assert keys

    def garbled(candidates: Rows) -> Rows:
        return [{**row, "text": row["text"].swapcase()} if row["speech"] in keys else row for row in candidates]

    changed = weights(warm, tmp_path, garbled)
    model = store.artifacts("base-models")[0].folder
    as_before = {name: (model / name).read_bytes() == content for name, content in changed.items()}
    assert as_before == dict.fromkeys(changed, not is_seen)


def test_corpus_without_responses(miniature: Miniature, cli: Cli, tmp_path: Path) -> None:
    none = ["--set", "corpus.candidates=[]"]
    ended = cli("make-base-model", miniature.recipe / "make-base-model.yaml", "--store", tmp_path, *none)
    assert ended.code == 2
    assert "corpus.candidates: the corpus has no ready responses" in ended.err
