"""Artifact -> its ancestors, each once."""

from pathlib import Path

import pytest

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind
from psychocounsel.store.references import ancestors, labelling_judges, models_behind
from psychocounsel.store.store import Store


def made(store: Store, kind: Kind, *parents: Artifact, judge: str = "") -> Artifact:
    def note_judge(writer: ArtifactWriter) -> None:
        writer.notes.update({"judge": judge} if judge else {})

    roles = tuple(parent.as_parent(f"the {parent.kind}") for parent in parents)
    return store.make(ArtifactSpec(kind, kind, "stage", 1, {"judge": judge}, roles), note_judge)


def test_a_diamond_is_walked_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    speeches = made(store, "speeches")
    candidates = made(store, "candidates", speeches)
    judgements = made(store, "judgements", speeches, candidates, judge="stand-in")
    preferences = made(store, "preferences", judgements, speeches, candidates)
    walked = [(each.artifact.kind, each.depth, each.role) for each in ancestors(store, preferences)]
    assert walked == [
        ("preferences", 0, ""),
        ("judgements", 1, "the judgements"),
        ("speeches", 2, "the speeches"),
        ("candidates", 2, "the candidates"),
    ]
    assert labelling_judges(store, preferences) == ("stand-in",)
    assert labelling_judges(store, candidates) == ()


def test_two_judges_are_both_named_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = made(store, "judgements", judge="b")
    second = made(store, "judgements", first, judge="a")
    third = made(store, "judgements", first, judge="b")
    last = store.make(
        ArtifactSpec("comparisons", "v", "stage", 1, {}, tuple(each.as_parent(each.id) for each in (second, third))),
        lambda writer: None,
    )
    assert labelling_judges(store, last) == ("a", "b")


def test_a_lost_ancestor_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    speeches = made(store, "speeches")
    candidates = made(store, "candidates", speeches)
    speeches.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"speeches {speeches.ref} is not in the store"):
        list(ancestors(store, candidates))


def answered_by(store: Store, responder: dict[str, object], *parents: Artifact) -> Artifact:
    roles = tuple(parent.as_parent("model") for parent in parents)
    return store.make(
        ArtifactSpec("candidates", "answers", "stage", 1, {"responder": responder}, roles), lambda writer: None
    )


def test_the_models_behind_answers_are_those_of_an_endpoint_a_file_or_the_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    online = {"initial_policy": {"hub": "meta-llama/Llama-3.1-8B-Instruct", "revision": None}}
    policy = store.make(ArtifactSpec("policies", "tuned", "align", 1, online), lambda writer: None)
    asked = answered_by(store, {"author": "a", "endpoint": {"model": "gpt-4o-2024-08-06"}})
    collected = answered_by(store, {"author": "chatgpt", "file": {"sha256": "0"}})
    tuned = answered_by(store, {"author": "tuned", "endpoint": None, "model": {}}, policy)
    fetched = answered_by(store, {"author": "b", "model": {"hub": "Qwen/Qwen2.5-7B", "revision": None}})
    assert models_behind(store, asked) == ("gpt-4o-2024-08-06",)
    assert models_behind(store, collected) == ("chatgpt",)
    assert models_behind(store, tuned) == ("meta-llama/Llama-3.1-8B-Instruct",)
    assert models_behind(store, fetched) == ("Qwen/Qwen2.5-7B",)
