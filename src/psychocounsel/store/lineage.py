"""Artifact -> its ancestors: where every number came from, back to the raw files."""

from collections.abc import Iterator
from typing import Any, NamedTuple

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
    """Return the judges whose ratings an artifact was made from, here or before they were imported."""
    named = [
        str(each.artifact.manifest["notes"].get("judge", ""))
        for each in ancestors(store, artifact)
        if each.artifact.kind in ("judgements", "preferences")
    ]
    return tuple(dict.fromkeys(name for name in named if name))


def models_behind(store: Store, answers: Artifact) -> tuple[str, ...]:
    """Return the names of the models behind one side's answers, as far as they are known.

    That is the model of an endpoint, the author of a file, or the Hub names of weights on this machine and of
    those that they were trained from.
    """
    responder: dict[str, Any] = answers.manifest["settings"]["responder"]
    if responder.get("endpoint"):
        return (str(responder["endpoint"]["model"]),)
    if responder.get("file"):
        return (str(responder["author"]),)
    made_from = (each.artifact for each in ancestors(store, answers))
    policies = [each.manifest["settings"] for each in made_from if each.kind == "policies"]
    weights: list[dict[str, Any] | None] = [responder.get("model")]
    weights += [settings.get("initial_policy") for settings in policies]
    return tuple(dict.fromkeys(str(each["hub"]) for each in weights if each and "hub" in each))
