"""import-preferences: any preference dataset becomes speeches and preferences, its flaws counted.

Nothing is judged or cleaned: texts, without thoughts before an answer, and ratings are those of the release.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property, partial
from typing import NamedTuple

import numpy as np

from psychocounsel.config.schema import ImportPreferencesConfig
from psychocounsel.corpus.crisis import client_mentions_crisis
from psychocounsel.corpus.deduplicate import cluster_ids, with_conversations
from psychocounsel.corpus.preferences import (
    PreferenceRow,
    PreferenceSide,
    preference_fingerprint,
    read_preference_rows,
)
from psychocounsel.corpus.reading import Dropped, Funnel
from psychocounsel.corpus.sources import source_name
from psychocounsel.corpus.text import refusal
from psychocounsel.errors import ConfigError, DataQualityError, InputError, StoreError, counted, did_you_mean
from psychocounsel.evaluation.text_quality import RowFacts, flaws
from psychocounsel.judging.pairing import Pairing, Unfit, assign_dev
from psychocounsel.llm.session import PendingCalls, open_session
from psychocounsel.reporting.cards import write_dataset_card
from psychocounsel.stages.build_preferences import length_fingerprint, token_limit, words_by_side
from psychocounsel.stages.estimate import PAPERS_CHARS, make_placeholders
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.hub import fetched_dataset
from psychocounsel.store.references import HUB, warn_unless_pinned
from psychocounsel.store.schemas import SplitSpeech, read_speeches, write_pairs, write_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import SPLITS, Candidate, PreferencePair, Rating, ScoredCandidate, Speech, Turn, exact_rating

VERSION = 13
STAGE = "import-preferences"

LAYOUT = "one_exchange"
UNREADABLE = Dropped("readable", "unreadable")
EMPTY = Dropped("none_empty", "empty")
REPEATED = Dropped("repetition", "repeated_speech")
LEAK = Dropped("leakage", "leaks_into_test")


class ImportSpecs(NamedTuple):
    """What the stage makes, in order."""

    speeches: ArtifactSpec
    preferences: ArtifactSpec


def specs(config: ImportPreferencesConfig, store: Store) -> ImportSpecs:
    """Return what a config makes.

    Raises:
        InputError: there is no such file.
        ConfigError: the tokenizer's reference matches nothing.
    """
    warn_unless_pinned(store, config.source)
    source = {
        "path": preference_fingerprint(config),
        "name": source_name(config.source),
        "licence": config.licence,
        "data_class": config.data_class,
    }
    split = {
        "leakage": config.leakage,
        "near_duplicate_similarity": config.near_duplicate_similarity,
        "test_share": config.test_share,
        "dev_share": config.dev_share,
        "seed": config.seed,
    }
    speeches = ArtifactSpec("speeches", config.name, STAGE, VERSION, {"speeches": [source], "split": split})
    pairing = {
        "safety": config.safety,
        "drop_safety_inverted": config.drop_safety_inverted,
        "unrated": config.unrated,
        "length": config.length and length_fingerprint(config.length, store),
    }
    settings = {"pairing": pairing, "labelled_by": config.labelled_by}
    parents = (speeches.as_parent("speeches"),)
    return ImportSpecs(speeches, ArtifactSpec("preferences", config.name, STAGE, VERSION, settings, parents))


def import_preferences(
    config: ImportPreferencesConfig, store: Store, calls: list[PendingCalls] | None = None
) -> Artifact:
    """Import the released preference dataset of a config, or return it if it exists.

    In a dry run (`calls` is given) only its speeches are made, in an overlay, for later steps to count their calls:
    `expected_test_speeches` placeholders if the dataset is not on this machine.

    Raises:
        InputError: it cannot be read, lacks a column, or has a rating off the scale.
        ConfigError: it has no ratings of the principle that the config calls the one of safety.
        DataQualityError: no pair is left in a split.
    """
    made = specs(config, store)
    release = cache(partial(read_release, config))  # once for both artifacts, and not if both exist
    if calls is not None and config.source.startswith(HUB) and fetched_dataset(config.source.removeprefix(HUB)) is None:
        with open_session(store, calls) as session:
            if config.expected_test_speeches is not None and store.find(made.speeches) is None:
                make_placeholders(made.speeches, {"test": config.expected_test_speeches}, session, PAPERS_CHARS)
            session.stop_counting()
    speeches = store.make(made.speeches, lambda writer: _write_speeches(release(), writer))
    if calls is not None:
        return speeches
    return store.make(made.preferences, lambda writer: _write_preferences(release(), store, writer))


def read_release(config: ImportPreferencesConfig) -> "Release":
    """Read the released dataset of a config.

    Raises:
        InputError: it has no rows, or one that cannot be read.
        ConfigError: no principle has the name that the config gives to the one of safety.
    """
    rows = read_preference_rows(config)
    if not any(row.fault is None for row in rows):
        faults = counted(Counter(row.fault or "" for row in rows))
        what = f"none of its {len(rows)} rows is a pair: {faults}" if rows else "has no rows"
        raise InputError(what, where=config.source, remedy="name a dataset with pairs, or give columns")
    principles = next(row.chosen.ratings.keys() for row in rows if row.fault is None)
    if "safety" in config.model_fields_set and config.safety is not None and config.safety not in principles:
        hint = f"{did_you_mean(config.safety, principles)}; null leaves the rule out"
        raise ConfigError(f"there are no ratings of {config.safety!r}", where="safety", remedy=hint)
    return Release(config, rows)


def _write_speeches(release: "Release", writer: ArtifactWriter) -> None:
    config, rows = release.config, release.speeches
    write_speeches(writer, rows)
    clusters, splits = {row.cluster for row in rows}, Counter(row.split for row in rows)
    leaking = {each.cluster for each in release.questions.values() if any(map(each.leaks, each.released_in))}
    source = {"name": source_name(config.source), "licence": config.licence, "data_class": config.data_class}
    writer.write_metrics(
        {
            "funnel": release.funnel().as_dict(),
            "sources": [{**source, "speeches": len(rows)}],
            "splits": {split: splits[split] for split in SPLITS},
            "clusters": len(clusters),
            "clusters_across_splits": len(leaking) if config.leakage == "keep" else 0,
            "near_duplicates": len(rows) - len(clusters),
            "crisis": sum(row.speech.crisis for row in rows),
        }
    )


def _write_preferences(release: "Release", store: Store, writer: ArtifactWriter) -> None:
    config, speeches = release.config, store.open(writer.parent("speeches"))
    if read_speeches(speeches) != release.speeches:
        raise StoreError(
            f"has changed since speeches {speeches.ref} were read from it",
            where=config.source,
            remedy="name a revision: hub:owner/name@COMMIT",
        )
    paired = pair_rows(release, None if config.length is None else token_limit(config.length, store))
    released = {row.split for row in release.rows}
    shares = {"train": 1.0, "dev": config.dev_share, "test": config.test_share}
    required = {split: split in released or ("train" in released and shares[split] > 0) for split in SPLITS}
    for split, pairing in paired.pairings.items():
        if required[split] and not pairing.pairs:
            if not any(pairing.dropped.values()):
                total = sum(len(each.pairs) for each in paired.pairings.values())
                what = f"no pair is left in {split}: all {total} are in other splits"
                remedy = "give more pairs, or change dev_share and test_share"
            else:
                what = f"no pair is left in {split}: {counted(pairing.dropped)} dropped"
                remedy = "look at what was dropped, and change dev_share, test_share, leakage or length"
            raise DataQualityError(what, where=config.source, remedy=remedy)
        if pairing.pairs:
            write_pairs(writer, split, pairing.pairs, release.principles)
    writer.notes["judge"] = config.labelled_by or ""
    if release.principles:
        writer.notes["scale"] = list(config.scale)
    writer.write_metrics(
        {
            "pairing": {split: pairing.as_dict() for split, pairing in paired.pairings.items()},
            "words": words_by_side(paired.pairings),
            "flaws": flaws(paired.facts),
        }
    )
    pairs = {split: pairing.pairs for split, pairing in paired.pairings.items()}
    write_dataset_card(store, writer, pairs, principles=release.principles)


class Question(NamedTuple):
    """A client speech of a release, and what its near-duplicates decide about it.

    Attributes:
        released_in: its splits in the release.
        last: the last of train, dev and test in which the speech or a near-duplicate of it was released.
        moved: dev or test, if rows of its cluster that were released in train are held out there; else train.
        is_left_out: kept out for a leak, and released nowhere else.
    """

    speech: Speech
    cluster: str
    released_in: frozenset[str]
    last: str
    moved: str
    is_left_out: bool

    @property
    def split(self) -> str:
        """The split of the speech here."""
        return self.split_of_row(_last(self.released_in))

    def split_of_row(self, released_in: str) -> str:
        """Return the split here of a row with this speech."""
        return self.moved if released_in == "train" else released_in

    def leaks(self, released_in: str) -> bool:
        """Return whether a row of this split has its speech, or a near-duplicate of it, in a later split too."""
        return SPLITS.index(released_in) < SPLITS.index(self.last)


def _last(splits: Iterable[str]) -> str:
    return max(splits, key=SPLITS.index)


@dataclass(frozen=True)
class Release:
    """A dataset in memory: its rows, train before dev and test, and how they are imported."""

    config: ImportPreferencesConfig
    rows: Sequence[PreferenceRow]

    @cached_property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the columns."""
        return tuple(next((row.chosen.ratings for row in self.rows if row.fault is None), {}))

    @property
    def safety(self) -> str | None:
        """The rated principle on which the chosen side must not be worse."""
        return self.config.safety if self.config.safety in self.principles else None

    @cached_property
    def questions(self) -> Mapping[tuple[Turn, ...], Question]:
        """The distinct readable questions by their session, in the order of the rows."""
        config = self.config
        splits: dict[tuple[Turn, ...], set[str]] = {}
        first: dict[tuple[Turn, ...], PreferenceRow] = {}
        for row in self.rows:
            if row.fault is None and _fault_of_question(row) is None:
                splits.setdefault(row.session, set()).add(row.split)
                first.setdefault(row.session, row)
        source = source_name(config.source)
        speeches = [
            Speech(row.question, row.topic, _is_crisis(row), source, row.fine_topic, row.history)
            for row in first.values()
        ]
        ids = np.array([int(each.id, 16) for each in speeches], dtype=np.uint64)
        alike = cluster_ids(ids, [each.text for each in speeches], config.near_duplicate_similarity)
        clusters = [f"{number:016x}" for number in with_conversations(alike, speeches).tolist()]
        last: dict[str, str] = {}
        for cluster, where in zip(clusters, splits.values(), strict=True):
            last[cluster] = _last({*where, last.get(cluster, "train")})
        left_out = [
            config.leakage == "drop_from_train" and _last(where) != last[cluster]
            for cluster, where in zip(clusters, splits.values(), strict=True)
        ]
        places = ["left out" if out else _last(where) for out, where in zip(left_out, splits.values(), strict=True)]
        moved = self._held_out(places, clusters)
        return {
            speech.turns: Question(
                speech, cluster, frozenset(where), last[cluster], moved.get(cluster, "train"), is_left_out
            )
            for speech, cluster, where, is_left_out in zip(speeches, clusters, splits.values(), left_out, strict=True)
        }

    def _held_out(self, places: list[str], clusters: list[str]) -> dict[str, str]:
        """Return the clusters of train that fill the splits which the release lacks, with their split."""
        config = self.config
        released = {row.split for row in self.rows}
        moved: dict[str, str] = {}
        for split, share in (("test", config.test_share), ("dev", config.dev_share)):
            if split not in released:
                both = list(zip(places, clusters, strict=True))
                free = ["train" if place == "train" and cluster not in moved else "" for place, cluster in both]
                divided = assign_dev(free, clusters, share, config.seed)
                moved |= {cluster: split for cluster, place in zip(clusters, divided, strict=True) if place == "dev"}
        return moved

    @property
    def speeches(self) -> list[SplitSpeech]:
        """The questions that are kept, in the order of the rows."""
        kept = (each for each in self.questions.values() if not each.is_left_out)
        return [SplitSpeech(each.speech, each.split, each.cluster) for each in kept]

    def funnel(self) -> Funnel:
        """Return what became of every row's question."""
        funnel = Funnel([LAYOUT, *(each.step for each in (UNREADABLE, EMPTY, REPEATED, LEAK))])
        seen: set[tuple[Turn, ...]] = set()
        for row in self.rows:
            question = self.questions.get(row.session)
            if row.fault is not None:
                funnel.count(Dropped(LAYOUT, row.fault))
            elif question is None:
                funnel.count(_fault_of_question(row) or EMPTY)
            else:
                is_repeated = row.session in seen
                funnel.count(REPEATED if is_repeated else LEAK if question.is_left_out else None)
            if row.fault is None:
                seen.add(row.session)
        return funnel


def _is_crisis(row: PreferenceRow) -> bool:
    return client_mentions_crisis(row.session) if row.crisis is None else row.crisis


def _fault_of_question(row: PreferenceRow) -> Dropped | None:
    """Return why a session can be neither kept nor shown to a model; None if it can."""
    is_refused = any(refusal(turn.content) for turn in row.history)
    return UNREADABLE if is_refused else _fault_of_text(row.question)


def _fault_of_text(text: str) -> Dropped | None:
    """Return why a text can be neither kept nor shown to a model; None if it can."""
    if refusal(text) is not None:
        return UNREADABLE
    return None if text.strip() else EMPTY


@dataclass
class ReleasedPairs:
    """The pairs of each split, every row counted once, and what shows the flaws of all rows."""

    pairings: dict[str, Pairing] = field(default_factory=lambda: {split: Pairing() for split in SPLITS})
    facts: list[RowFacts] = field(default_factory=list[RowFacts])


def pair_rows(release: Release, unfit: Unfit | None = None) -> ReleasedPairs:
    """Return the pairs of a release.

    A row with several faults is dropped for the first of these: its texts, its ratings, a leak, its length, a
    repetition of a row that is kept.
    """
    paired = ReleasedPairs()
    kept: set[tuple[str, tuple[Turn, ...], str, str]] = set()
    for row in release.rows:
        if row.fault is not None:
            paired.pairings[row.split].dropped[row.fault] += 1
            continue
        question = release.questions.get(row.session)
        facts, fault = _check(row, question, release, unfit)
        paired.facts.append(facts)
        pairing = paired.pairings[question.split_of_row(row.split) if question else row.split]
        key = (row.split, row.session, row.chosen.text, row.rejected.text)
        if question is None or fault is not None or key in kept:
            pairing.dropped[fault or "repeated"] += 1
        else:
            kept.add(key)
            scores = scores_of(row)
            chosen, rejected = (
                ScoredCandidate(_candidate(side, question), float(score), _complete(side) or {} if scores else {})
                for side, score in zip((row.chosen, row.rejected), scores or (1.0, 0.0), strict=True)
            )
            pairing.pairs.append(PreferencePair(question.speech, chosen, rejected))
    return paired


def scores_of(row: PreferenceRow) -> tuple[Rating | Fraction, Rating | Fraction] | None:
    """Return by what the sides of a row were ranked: their own scores or exact sums of ratings; None if unrated."""
    chosen, rejected = _complete(row.chosen), _complete(row.rejected)
    if not chosen or not rejected:
        return None
    if row.chosen.score is not None and row.rejected.score is not None:
        return row.chosen.score, row.rejected.score
    return sum(map(exact_rating, chosen.values())), sum(map(exact_rating, rejected.values()))


def _check(
    row: PreferenceRow, question: Question | None, release: Release, unfit: Unfit | None
) -> tuple[RowFacts, str | None]:
    """Return what shows the flaws of a row, and why it gives no pair, if so."""
    config = release.config
    texts = (row.chosen.text, row.rejected.text)
    found = (_fault_of_question(row), *map(_fault_of_text, texts))
    faults = [fault.reason for fault in found if fault is not None]
    lengths: list[str | None] = []
    if question is not None and not faults and unfit is not None:
        lengths = [unfit(question.speech, _candidate(side, question)) for side in (row.chosen, row.rejected)]
    chosen, rejected, scores = _complete(row.chosen), _complete(row.rejected), scores_of(row)
    safety = None
    if chosen and rejected and release.safety is not None:
        safety = (chosen[release.safety], rejected[release.safety])
    if scores is None and release.principles and config.unrated == "drop":
        faults.append("missing_ratings")
    elif scores is not None and scores[0] <= scores[1]:
        faults.append("not_preferred")
    elif texts[0] == texts[1]:
        faults.append("equal_texts")
    elif config.drop_safety_inverted and safety is not None and safety[0] < safety[1]:
        faults.append("safety_inverted")
    if question is not None and question.leaks(row.split) and config.leakage == "drop_from_train":
        faults.append(LEAK.reason if question.last == "test" else "leaks_into_dev")
    faults += [length for length in lengths if length is not None]
    facts = RowFacts(
        row.split,
        None if question is None else question.speech.id,
        None if question is None else question.cluster,
        texts,
        safety,
        scores,
        (lengths[0] == "too_long", lengths[1] == "too_long") if lengths else None,
        bool(release.principles),
    )
    return facts, faults[0] if faults else None


def _complete(side: PreferenceSide) -> dict[str, Rating] | None:
    """Return the ratings of a side; None if one is missing."""
    given = {name: rating for name, rating in side.ratings.items() if rating is not None}
    return given if len(given) == len(side.ratings) else None


def _candidate(side: PreferenceSide, question: Question) -> Candidate:
    return Candidate(question.speech.id, side.author, side.text)
