"""Artifact -> its ancestors: where every number came from, back to the raw files."""

from collections.abc import Iterator
from typing import NamedTuple

from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store, flatten

_OUTSIDE = ("sha256", "hub", "weights")
"""Keys under which settings name what lies outside the store."""


class Ancestor(NamedTuple):
    """An artifact on the way back, how far it is, and the role it plays for its child."""

    artifact: Artifact
    depth: int
    role: str


def ancestors(store: Store, artifact: Artifact) -> Iterator[Ancestor]:
    """Yield the artifact itself, then each ancestor once, depth first, parents in their order.

    Raises:
        StoreError: an ancestor is not in the store.
    """
    yield from _walk(store, artifact, 0, "", set())


def _walk(store: Store, artifact: Artifact, depth: int, role: str, seen: set[str]) -> Iterator[Ancestor]:
    seen.add(artifact.id)
    yield Ancestor(artifact, depth, role)
    for parent in artifact.parents:
        if parent.id not in seen:
            yield from _walk(store, store.open(parent), depth + 1, parent.role, seen)


def raw_sources(artifact: Artifact) -> tuple[str, ...]:
    """Return what an artifact was made from that is no artifact: files by digest, names on the Hub."""
    outside = flatten(artifact.manifest["settings"])
    return tuple(
        f"{key.rpartition('.')[0]}: {key.rpartition('.')[2]} {value}"
        for key, value in outside.items()
        if key.rpartition(".")[2] in _OUTSIDE and isinstance(value, str)
    )


def labelling_judges(store: Store, artifact: Artifact) -> tuple[str, ...]:
    """Return the judges whose ratings an artifact was made from."""
    named = [
        str(each.artifact.manifest["notes"].get("judge", ""))
        for each in ancestors(store, artifact)
        if each.artifact.kind == "judgements"
    ]
    return tuple(dict.fromkeys(name for name in named if name))
