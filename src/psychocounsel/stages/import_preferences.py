"""Released preference dataset -> speeches and preferences: what others judged, with its flaws counted.

Nothing is judged or cleaned: the ratings are those of the release, and so are the texts.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from psychocounsel.config.stages import ImportPreferencesConfig
from psychocounsel.dataset_facts import gather_dataset_facts, write_dataset_card
from psychocounsel.errors import DataQualityError, StoreError, counted
from psychocounsel.evaluation.dataset_flaws import flaws
from psychocounsel.pairing import Pairing
from psychocounsel.pairs import length_identity, token_limit, words_by_side
from psychocounsel.released_pairs import pair_rows
from psychocounsel.releases import Release, read_release
from psychocounsel.speeches.splitting import SPLITS
from psychocounsel.store.artifacts import Artifact, Draft, Plan
from psychocounsel.store.references import tell_unless_pinned
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import read_speeches, write_pairs, write_speeches
from psychocounsel.store.tables.released import released_identity
from psychocounsel.store.tables.sources import source_name

VERSION = 1
STAGE = "import-preferences"


class ImportPlans(NamedTuple):
    """What the stage makes, in order."""

    speeches: Plan
    preferences: Plan


def plan(config: ImportPreferencesConfig, store: Store) -> ImportPlans:
    """Return what a config means, without making it.

    Raises:
        InputError: a split of the release has no file.
        ConfigError: nothing answers to the tokenizer's name.
    """
    tell_unless_pinned(store, config.source)
    speeches = Plan("speeches", config.name, STAGE, VERSION, _speech_settings(config))
    pairing = {
        "safety": config.safety,
        "drop_safety_inverted": config.drop_safety_inverted,
        "length": config.length and length_identity(config.length, store),
    }
    settings = {"pairing": pairing, "labelled_by": config.labelled_by}
    parents = (speeches.as_parent("speeches"),)
    return ImportPlans(speeches, Plan("preferences", config.name, STAGE, VERSION, settings, parents))


def _speech_settings(config: ImportPreferencesConfig) -> dict[str, Any]:
    source = {
        "path": released_identity(config.source, config.config),
        "name": source_name(config.source),
        "licence": config.licence,
        "data_class": config.data_class,
    }
    split = {
        "leakage": config.leakage,
        "near_duplicate_similarity": config.near_duplicate_similarity,
        "dev_share": config.dev_share,
        "seed": config.seed,
    }
    return {"speeches": [source], "split": split}


def import_preferences(config: ImportPreferencesConfig, store: Store) -> Artifact:
    """Import the released preference dataset of a config, or return it if it exists.

    Raises:
        InputError: it cannot be read, or has not the released columns.
        ConfigError: it has no ratings of the principle that the config calls the one of safety.
        DataQualityError: no pair is left in a split.
    """
    plans = plan(config, store)
    release = cache(partial(read_release, config))  # once for both, and not for what exists
    store.make(plans.speeches, lambda draft: _build_speeches(release(), draft))
    return store.make(plans.preferences, lambda draft: _build_preferences(release(), store, draft))


def _build_speeches(release: Release, draft: Draft) -> None:
    rows = release.speeches
    write_speeches(draft, rows)
    clusters = {row.cluster for row in rows}
    source = {
        "name": source_name(release.config.source),
        "licence": release.config.licence,
        "data_class": release.config.data_class,
        "speeches": len(rows),
    }
    splits = Counter(row.split for row in rows)
    draft.write_metrics(
        {
            "funnel": release.funnel().as_dict(),
            "sources": [source],
            "splits": {split: splits[split] for split in SPLITS},
            "clusters": len(clusters),
            "clusters_across_splits": release.crossing_clusters,
            "near_duplicates": len(rows) - len(clusters),
            "crisis": sum(row.speech.crisis for row in rows),
        }
    )


def _build_preferences(release: Release, store: Store, draft: Draft) -> None:
    config = release.config
    unfit = None if config.length is None else token_limit(config.length, store)
    _require_same_release(release, store.open(draft.parent("speeches")))
    made = pair_rows(release, unfit)
    _require_pairs(made.pairings, config)
    for split, pairing in made.pairings.items():
        if pairing.pairs:
            write_pairs(draft, split, pairing.pairs, release.principles)
    draft.notes["judge"] = config.labelled_by or ""
    draft.write_metrics(
        {
            "pairing": {split: pairing.as_dict() for split, pairing in made.pairings.items()},
            "words": words_by_side(made.pairings),
            "flaws": flaws(made.facts),
        }
    )
    pairs = {split: pairing.pairs for split, pairing in made.pairings.items()}
    write_dataset_card(draft, gather_dataset_facts(store, draft, pairs, principles=release.principles))


def _require_same_release(release: Release, speeches: Artifact) -> None:
    """Make sure that the rows are those that the speeches were read from: a name on the Hub may move."""
    if read_speeches(speeches) != release.speeches:
        raise StoreError(
            f"has changed since speeches {speeches.ref} were read from it",
            where=release.config.source,
            remedy="name a revision: hub:owner/name@COMMIT",
        )


def _require_pairs(pairings: Mapping[str, Pairing], config: ImportPreferencesConfig) -> None:
    asked = {"train": True, "dev": config.dev_share > 0, "test": True}
    for split, pairing in pairings.items():
        if asked[split] and not pairing.pairs:
            raise DataQualityError(
                f"no pair is left in {split}: {counted(pairing.dropped)} dropped",
                where=config.source,
                remedy="look at what was dropped, and change dev_share, leakage or length",
            )
