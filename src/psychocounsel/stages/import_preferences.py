"""Released preference dataset -> speeches and preferences: what others judged, with its flaws counted.

Nothing is judged or cleaned: the ratings are those of the release, and so are the texts.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.config.schema import ImportPreferencesConfig
from psychocounsel.corpus.contacts import mentions_crisis
from psychocounsel.corpus.deduplicate import SPLITS, cluster_ids
from psychocounsel.corpus.reading import Dropped, Funnel
from psychocounsel.corpus.sources import (
    ReleasedRow,
    ReleasedSide,
    read_released,
    released_identity,
    source_name,
)
from psychocounsel.corpus.text import refusal
from psychocounsel.errors import ConfigError, DataQualityError, InputError, StoreError, counted
from psychocounsel.evaluation.dataset_flaws import RowFacts, flaws
from psychocounsel.judging.pairing import Pairing, Unfit, assign_dev
from psychocounsel.reporting.cards import gather_dataset_facts, write_dataset_card
from psychocounsel.stages.build_preferences import length_identity, token_limit, words_by_side
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.references import warn_unless_pinned
from psychocounsel.store.schemas import SplitSpeech, read_speeches, write_pairs, write_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, PreferencePair, ScoredCandidate, Speech

_TRAIN, _TEST, _LEFT_OUT = "train", "test", "left out"
_UNREADABLE = Dropped("readable", "unreadable")
_EMPTY = Dropped("none_empty", "empty")
_REPEATED = Dropped("repetition", "repeated_speech")
LEAK = Dropped("leakage", "leaks_into_test")


class Question(NamedTuple):
    """A client speech of a release, and what its near-duplicates decide about it.

    Args:
        speech: as it was released.
        cluster: of near-duplicates.
        is_test: whether it was released in test, there alone or in train too.
        is_dev: whether rows of its cluster that were released in train are held out as dev.
        leaks: whether it was released in train and it, or a near-duplicate of it, in test.
        is_left_out: whether it is kept out of train for that, and was released nowhere else.
    """

    speech: Speech
    cluster: str
    is_test: bool
    is_dev: bool
    leaks: bool
    is_left_out: bool

    @property
    def split(self) -> str:
        """The one in which the speech stands here."""
        return self.split_of_row(_TEST if self.is_test else _TRAIN)

    def split_of_row(self, released_in: str) -> str:
        """Return the one in which a row with it stands here."""
        return "dev" if self.is_dev and released_in == _TRAIN else released_in


class _Asked(NamedTuple):
    """A client speech, its cluster and the splits in which it was released."""

    speech: Speech
    cluster: str
    splits: set[str]


@dataclass(frozen=True)
class Release:
    """A released data set in memory: its rows, train before test, and how they are to be imported."""

    config: ImportPreferencesConfig
    rows: Sequence[ReleasedRow]

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the columns."""
        return tuple(self.rows[0].chosen.ratings)

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """The distinct readable questions by their text, in the order of the rows."""
        splits: dict[str, set[str]] = {}
        for row in self.rows:
            if unfit_to_read(row.question) is None:
                splits.setdefault(row.question, set()).add(row.split)
        name = source_name(self.config.source)
        speeches = [Speech(text, crisis=mentions_crisis(text), source=name) for text in splits]
        clusters = _clusters(speeches, self.config.near_duplicate_similarity)
        asked = [_Asked(*each) for each in zip(speeches, clusters, splits.values(), strict=True)]
        return {each.speech.text: each for each in _questions(asked, self.config)}

    @property
    def speeches(self) -> list[SplitSpeech]:
        """The questions that are kept, in the order of the rows."""
        return [
            SplitSpeech(each.speech, each.split, each.cluster)
            for each in self.questions.values()
            if not each.is_left_out
        ]

    @property
    def crossing_clusters(self) -> int:
        """How many clusters have rows in train or dev and in test."""
        is_kept = self.config.leakage == "keep"
        return len({each.cluster for each in self.questions.values() if each.leaks and is_kept})

    def funnel(self) -> Funnel:
        """Return what became of every row's question."""
        steps = (each.step for each in (_UNREADABLE, _EMPTY, _REPEATED, LEAK))
        funnel = Funnel(tuple(steps))
        seen: set[str] = set()
        for row in self.rows:
            question = self.questions.get(row.question)
            if question is None:
                funnel.drop(unfit_to_read(row.question) or _EMPTY)
            elif row.question in seen:
                funnel.drop(_REPEATED, question.speech.id)
            elif question.is_left_out:
                funnel.drop(LEAK, question.speech.id)
            else:
                funnel.keep(question.speech.id)
            seen.add(row.question)
        return funnel


def read_release(config: ImportPreferencesConfig) -> Release:
    """Read the released data set of a config.

    Raises:
        InputError: it has no rows, or one that cannot be read.
        ConfigError: no principle has the name that the config gives to the one of safety.
    """
    rows = list(read_released(config.source, config.config))
    if not rows:
        raise InputError("has no rows", where=config.source, remedy="name a data set with rows")
    _require_principle(config.safety, list(rows[0].chosen.ratings))
    return Release(config, rows)


def _require_principle(safety: str | None, principles: Sequence[str]) -> None:
    if safety is not None and safety not in principles:
        close = difflib.get_close_matches(safety, principles, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(principles)}, or null"
        raise ConfigError(f"there are no ratings of {safety!r}", where="safety", remedy=hint)


def unfit_to_read(text: str) -> Dropped | None:
    """Return why a text of a release can be neither kept nor shown to a model; None where it can."""
    if refusal(text) is not None:
        return _UNREADABLE
    return None if text.strip() else _EMPTY


def _clusters(speeches: Sequence[Speech], similarity: float) -> list[str]:
    ids = np.array([int(each.id, 16) for each in speeches], dtype=np.uint64)
    found = cluster_ids(ids, [each.text for each in speeches], similarity)
    return [f"{number:016x}" for number in found.tolist()]


def _questions(asked: Sequence[_Asked], config: ImportPreferencesConfig) -> list[Question]:
    in_test = {each.cluster for each in asked if _TEST in each.splits}
    leaks = [_TRAIN in each.splits and each.cluster in in_test for each in asked]
    places = [_place(each, leak, config) for each, leak in zip(asked, leaks, strict=True)]
    clusters = [each.cluster for each in asked]
    divided = assign_dev(places, clusters, config.dev_share, config.seed)
    dev = {cluster for cluster, place in zip(clusters, divided, strict=True) if place == "dev"}
    return [
        Question(each.speech, each.cluster, place == _TEST, each.cluster in dev, leak, place == _LEFT_OUT)
        for each, leak, place in zip(asked, leaks, places, strict=True)
    ]


def _place(asked: _Asked, leaks: bool, config: ImportPreferencesConfig) -> str:
    if _TEST in asked.splits:
        return _TEST
    return _LEFT_OUT if leaks and config.leakage == "drop_from_train" else _TRAIN


REPEATED = "repeated"


def _one_of_each() -> dict[str, Pairing]:
    return {split: Pairing() for split in SPLITS}


@dataclass
class ReleasedPairs:
    """The pairs of each split, every row counted once, and what tells the flaws of all rows."""

    pairings: dict[str, Pairing] = field(default_factory=_one_of_each)
    facts: list[RowFacts] = field(default_factory=list[RowFacts])


def pair_rows(release: Release, unfit: Unfit | None = None) -> ReleasedPairs:
    """Return the pairs of a release.

    A row that could be dropped for several reasons is dropped for the first of these: its texts, its ratings,
    a leak, its length, a repetition of a row that is kept.

    Args:
        release: the rows.
        unfit: tells of a response with its prompt why it cannot be trained on; None where nobody asks.
    """
    made = ReleasedPairs()
    kept: set[tuple[str, str, str, str]] = set()
    for row in release.rows:
        read = _read(row, release.questions.get(row.question), release.config, unfit)
        made.facts.append(read.facts)
        pairing = made.pairings[read.split]
        key = (row.split, row.question, row.chosen.text, row.rejected.text)
        if read.question is None or read.reason is not None or key in kept:
            pairing.dropped[read.reason or REPEATED] += 1
        else:
            kept.add(key)
            pairing.pairs.append(_pair(row, read.question))
    return made


class _Read(NamedTuple):
    """A row: its client speech where there is one, what tells its flaws, and why it gives no pair, if so."""

    row: ReleasedRow
    question: Question | None
    facts: RowFacts
    reason: str | None

    @property
    def split(self) -> str:
        """The one in which the row stands here."""
        return self.question.split_of_row(self.row.split) if self.question else self.row.split


def _read(row: ReleasedRow, question: Question | None, config: ImportPreferencesConfig, unfit: Unfit | None) -> _Read:
    texts = (row.question, row.chosen.text, row.rejected.text)
    reason = next((fault.reason for fault in map(unfit_to_read, texts) if fault is not None), None)
    lengths: list[str | None] = []
    if question is not None and reason is None and unfit is not None:
        lengths = [unfit(question.speech, _candidate(side, question)) for side in (row.chosen, row.rejected)]
    facts = _facts(row, question, lengths, config.safety)
    reasons = (reason, _fault_of_ratings(facts, config), _leak(row, question, config), *lengths)
    return _Read(row, question, facts, next((each for each in reasons if each is not None), None))


def _facts(row: ReleasedRow, question: Question | None, lengths: Sequence[str | None], safety: str | None) -> RowFacts:
    ratings = (_whole(row.chosen), _whole(row.rejected))
    both = None if ratings[0] is None or ratings[1] is None else (ratings[0], ratings[1])
    return RowFacts(
        row.split,
        None if question is None else question.speech.id,
        None if question is None else question.cluster,
        (row.chosen.text, row.rejected.text),
        None if both is None or safety is None else (both[0][safety], both[1][safety]),
        None if both is None else (sum(both[0].values()), sum(both[1].values())),
        (lengths[0] == "too_long", lengths[1] == "too_long") if lengths else None,
    )


def _whole(side: ReleasedSide) -> dict[str, int] | None:
    """Return the ratings of a side that has all of them."""
    given = {name: rating for name, rating in side.ratings.items() if rating is not None}
    return given if len(given) == len(side.ratings) else None


def _fault_of_ratings(facts: RowFacts, config: ImportPreferencesConfig) -> str | None:
    if facts.totals is None:
        return "missing_ratings"
    if facts.totals[0] <= facts.totals[1]:
        return "not_preferred"
    if facts.texts[0] == facts.texts[1]:
        return "equal_texts"
    if config.drop_safety_inverted and facts.safety is not None and facts.safety[0] < facts.safety[1]:
        return "safety_inverted"
    return None


def _leak(row: ReleasedRow, question: Question | None, config: ImportPreferencesConfig) -> str | None:
    leaks = question is not None and question.leaks and row.split == "train"
    return LEAK.reason if leaks and config.leakage == "drop_from_train" else None


def _pair(row: ReleasedRow, question: Question) -> PreferencePair:
    chosen, rejected = (
        ScoredCandidate(_candidate(side, question), sum(ratings.values()), ratings)
        for side in (row.chosen, row.rejected)
        if (ratings := _whole(side)) is not None
    )
    return PreferencePair(question.speech, chosen, rejected)


def _candidate(side: ReleasedSide, question: Question) -> Candidate:
    return Candidate(question.speech.id, side.author, side.text)


VERSION = 1
STAGE = "import-preferences"


class ImportPlans(NamedTuple):
    """What the stage makes, in order."""

    speeches: ArtifactSpec
    preferences: ArtifactSpec


def specs(config: ImportPreferencesConfig, store: Store) -> ImportPlans:
    """Return what a config means, without making it.

    Raises:
        InputError: a split of the release has no file.
        ConfigError: nothing answers to the tokenizer's name.
    """
    warn_unless_pinned(store, config.source)
    speeches = ArtifactSpec("speeches", config.name, STAGE, VERSION, _speech_settings(config))
    pairing = {
        "safety": config.safety,
        "drop_safety_inverted": config.drop_safety_inverted,
        "length": config.length and length_identity(config.length, store),
    }
    settings = {"pairing": pairing, "labelled_by": config.labelled_by}
    parents = (speeches.as_parent("speeches"),)
    return ImportPlans(speeches, ArtifactSpec("preferences", config.name, STAGE, VERSION, settings, parents))


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
    plans = specs(config, store)
    release = cache(partial(read_release, config))  # once for both, and not for what exists
    store.make(plans.speeches, lambda writer: _build_speeches(release(), writer))
    return store.make(plans.preferences, lambda writer: _build_preferences(release(), store, writer))


def _build_speeches(release: Release, writer: ArtifactWriter) -> None:
    rows = release.speeches
    write_speeches(writer, rows)
    clusters = {row.cluster for row in rows}
    source = {
        "name": source_name(release.config.source),
        "licence": release.config.licence,
        "data_class": release.config.data_class,
        "speeches": len(rows),
    }
    splits = Counter(row.split for row in rows)
    writer.write_metrics(
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


def _build_preferences(release: Release, store: Store, writer: ArtifactWriter) -> None:
    config = release.config
    unfit = None if config.length is None else token_limit(config.length, store)
    _require_same_release(release, store.open(writer.parent("speeches")))
    made = pair_rows(release, unfit)
    _require_pairs(made.pairings, config)
    for split, pairing in made.pairings.items():
        if pairing.pairs:
            write_pairs(writer, split, pairing.pairs, release.principles)
    writer.notes["judge"] = config.labelled_by or ""
    writer.write_metrics(
        {
            "pairing": {split: pairing.as_dict() for split, pairing in made.pairings.items()},
            "words": words_by_side(made.pairings),
            "flaws": flaws(made.facts),
        }
    )
    pairs = {split: pairing.pairs for split, pairing in made.pairings.items()}
    write_dataset_card(writer, gather_dataset_facts(store, writer, pairs, principles=release.principles))


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
