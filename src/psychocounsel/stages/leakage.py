"""Leakage: evaluated speeches that a model was trained on, they themselves or near-duplicates of them.

A name means what was made or run last. After the corpus is split anew, a model made before is easily measured on its
own training speeches.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.corpus.deduplicate import cluster_ids, with_conversations
from psychocounsel.errors import DataQualityError
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.references import ancestors
from psychocounsel.store.schemas import read_pairs, speeches_in
from psychocounsel.store.store import Store
from psychocounsel.types import Speech

ALIGN = "align"
"""The stage that makes the pairs of online rounds."""


def training_speeches(store: Store, models: Iterable[Artifact]) -> list[Speech]:
    """Return the distinct speeches on which some artifacts, or any of their ancestors, were trained.

    These are the speeches of all training pairs, and those that a base model made here was fine-tuned on.

    Raises:
        StoreError: an ancestor is not in the store.
    """
    found: dict[str, Speech] = {}
    for artifact in {each.artifact.id: each.artifact for model in models for each in ancestors(store, model)}.values():
        if artifact.kind == "preferences":
            found |= {pair.speech.id: pair.speech for pair in read_pairs(artifact, "train")}
        elif artifact.kind == "base-models":
            found |= {each.id: each for each in speeches_in(store.open(artifact.parent("speeches")), "train")}
    return list(found.values())


def training_answers(store: Store, artifact: Artifact) -> list[str] | None:
    """Return the distinct answers of the preference datasets that an artifact came from; None where there are none.

    Pairs of online rounds do not count: their answers are the policy's own, and every policy resembles itself.

    Raises:
        StoreError: an ancestor is not in the store.
    """
    found: dict[str, None] = {}
    for each in ancestors(store, artifact):
        if each.artifact.kind == "preferences" and each.artifact.manifest["stage"] != ALIGN:
            for pair in read_pairs(each.artifact, "train"):
                found |= {pair.chosen.candidate.text: None, pair.rejected.candidate.text: None}
    return list(found) or None


def leaked_speeches(evaluated: Sequence[Speech], trained_on: Sequence[Speech], similarity: float) -> list[Speech]:
    """Return the evaluated speeches that share a cluster with one that was trained on: near-duplicates and sessions."""
    speeches = list({speech.id: speech for speech in (*evaluated, *trained_on)}.values())
    ids = np.array([int(speech.id, 16) for speech in speeches], dtype=np.uint64)
    alike = cluster_ids(ids, [speech.text for speech in speeches], similarity)
    clusters = with_conversations(alike, speeches).tolist()
    cluster_of = {speech.id: cluster for speech, cluster in zip(speeches, clusters, strict=True)}
    trained = {cluster_of[speech.id] for speech in trained_on}
    return [speech for speech in evaluated if cluster_of[speech.id] in trained]


def count_leakage(
    store: Store,
    evaluated: Sequence[Speech],
    source: Artifact | None,
    models: Sequence[Artifact],
    is_allowed: bool,
    also_trained_on: Sequence[tuple[str, Sequence[Speech]]] = (),
) -> dict[str, int]:
    """Return `speeches` and `leaked` of an evaluation, for `metrics.json`.

    The corpus behind `source`, the artifact with these speeches if there is one, says what a near-duplicate is.
    `also_trained_on` are the names of sets of pairs, and training speeches of them that no ancestor of the models has.

    Raises:
        DataQualityError: a model was trained on some of the speeches, and that is not allowed.
    """
    lineage = ancestors(store, source) if source else ()
    corpora = (each.artifact for each in lineage if each.artifact.kind == "speeches")
    splits = (each.manifest["settings"].get("split", {}) for each in corpora)
    usual = SplitConfig().near_duplicate_similarity
    similarity = next((split["near_duplicate_similarity"] for split in splits if split), usual)
    distinct = list({speech.id: speech for speech in evaluated}.values())
    others = [speech for _, speeches in also_trained_on for speech in speeches]
    leaked = leaked_speeches(distinct, [*training_speeches(store, models), *others], similarity)
    if leaked and not is_allowed:
        trained_on = [(f"{each.kind} {each.ref}", training_speeches(store, [each])) for each in models]
        named = [*trained_on, *also_trained_on]
        holding = [name for name, speeches in named if leaked_speeches(leaked, speeches, similarity)]
        raise DataQualityError(
            f"{len(leaked)} of {len(distinct)} evaluated speeches, or near-duplicates of them, were trained on",
            where=", ".join(dict.fromkeys(holding or [name for name, _ in named])),  # none: alike through a third one
            remedy="evaluate on the corpus version that the model was trained with (NAME@ID), or train it again; "
            "--allow-leakage measures anyway and says so in the result",
        )
    return {"speeches": len(distinct), "leaked": len(leaked)}


def leakage_warning(leakage: dict[str, int]) -> str:
    """Return the sentence that heads a result with leakage."""
    return (
        f"{leakage['leaked']} of {leakage['speeches']} evaluated speeches, or near-duplicates of them, were trained "
        "on: this result does not show how a model does on speeches that are new to it."
    )
