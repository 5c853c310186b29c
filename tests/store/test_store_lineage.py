"""Artifact -> its ancestors, each once."""

from pathlib import Path

import pytest

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import Artifact, Draft, Kind, Plan
from psychocounsel.store.lineage import ancestors, labelling_judges
from psychocounsel.store.store import Store


def made(store: Store, kind: Kind, *parents: Artifact, judge: str = "") -> Artifact:
    def note_judge(draft: Draft) -> None:
        draft.notes.update({"judge": judge} if judge else {})

    roles = tuple(parent.as_parent(f"the {parent.kind}") for parent in parents)
    return store.make(Plan(kind, kind, "stage", 1, {"judge": judge}, roles), note_judge)


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
        Plan("verdicts", "v", "stage", 1, {}, tuple(each.as_parent(each.id) for each in (second, third))),
        lambda draft: None,
    )
    assert labelling_judges(store, last) == ("a", "b")


def test_a_lost_ancestor_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    speeches = made(store, "speeches")
    candidates = made(store, "candidates", speeches)
    speeches.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"speeches {speeches.ref} is not in the store"):
        list(ancestors(store, candidates))
