"""Draft of a preference dataset, its ancestors, its pairs -> DatasetFacts -> README.md with its figures."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from psychocounsel.domain import Judgement, PreferencePair, ReplyStatus
from psychocounsel.evaluation.words import word_count
from psychocounsel.judging.rubric import Rubric
from psychocounsel.reporting.card_facts import BINS_PER_POINT, AuthorScores, DatasetFacts, RubricFacts
from psychocounsel.reporting.cards import dataset_card
from psychocounsel.reporting.report_data import ArtifactFacts, ParentFacts
from psychocounsel.store.artifacts import METRICS, Artifact, Draft
from psychocounsel.store.atomic import write_bytes
from psychocounsel.store.lineage import ancestors
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import read_candidates, read_judgements

PEOPLE = "people"
"""Stands for every author who is a person, known by a web address or a number: a card ranks no person."""
_PERSON = re.compile(r"person-[0-9a-f]{8}|.*://.*")


def gather_dataset_facts(
    store: Store,
    draft: Draft,
    pairs: Mapping[str, Sequence[PreferencePair]],
    rubric: Rubric | None = None,
    principles: Sequence[str] = (),
) -> DatasetFacts:
    """Return what the card of a preference dataset tells.

    Args:
        store: where its ancestors lie.
        draft: the dataset, its tables and its metrics written.
        pairs: the pairs of every split that has any.
        rubric: what the responses were rated by; None where that is not known.
        principles: ids of the rated principles where there is no rubric.

    Raises:
        StoreError: an ancestor is missing, or one of its tables is damaged.
    """
    lineage = _lineage(store, draft)
    made_from = [ArtifactFacts.of(each) for each in lineage]
    judgements = next((each for each in lineage if each.kind == "judgements"), None)
    rated = [] if judgements is None else read_judgements(judgements)
    return DatasetFacts(
        name=draft.plan.name,
        licences=_licences([draft.plan.settings, *(each.settings for each in made_from)]),
        rows={split: len(each) for split, each in pairs.items() if each},
        principles=tuple(principles) if rubric is None else rubric.principle_ids,
        notices=tuple(dict.fromkeys(notice for each in lineage for notice in each.notices)),
        rubric=None if rubric is None else _rubric(rubric),
        artifacts=(_draft_facts(draft), *made_from),
        judges=dict(Counter(each.judge for each in rated)),
        scores_by_author=() if rubric is None else _scores(_authors(store, judgements), rated, rubric),
        words={split: _words(each) for split, each in pairs.items() if each},
    )


def write_dataset_card(draft: Draft, facts: DatasetFacts) -> None:
    """Write the card of a dataset and the figures that it shows."""
    from psychocounsel.reporting.card_figures import draw_figures  # matplotlib: only to draw

    figures = draw_figures(facts)
    for figure in figures:
        write_bytes(draft.file(figure.file), figure.png)
    draft.write_card(dataset_card(facts, figures))


def _lineage(store: Store, draft: Draft) -> list[Artifact]:
    """Return every artifact that a draft comes from, once, nearest first."""
    found: dict[str, Artifact] = {}
    walks = [list(ancestors(store, store.open(parent))) for parent in draft.plan.parents]
    for each in sorted((each for walk in walks for each in walk), key=lambda each: each.depth):
        found.setdefault(each.artifact.id, each.artifact)
    return list(found.values())


def _draft_facts(draft: Draft) -> ArtifactFacts:
    plan = draft.plan
    return ArtifactFacts(
        kind=plan.kind,
        name=plan.name,
        ref=plan.ref,
        id=plan.id,
        metrics=json.loads(draft.file(METRICS).read_text(encoding="utf-8")),
        rows=draft.rows,
        parents=ParentFacts.of(plan.parents),
        settings=plan.settings,
        stage=plan.stage,
        version=plan.version,
    )


def _licences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every licence that the settings of a dataset and its ancestors name, once."""
    found = [licence for each in settings for licence in _named_licences(each)]
    return sorted(dict.fromkeys(found))


def _named_licences(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
            if key == "licence" and isinstance(inner, str):
                yield inner
            yield from _named_licences(inner)
    elif isinstance(value, list | tuple):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _named_licences(inner)


def _rubric(rubric: Rubric) -> RubricFacts:
    names = {each.id: each.name for each in rubric.principles}
    return RubricFacts(rubric.version, rubric.digest, rubric.language, rubric.minimum, rubric.maximum, names)


def _authors(store: Store, judgements: Artifact | None) -> dict[str, str]:
    """Return by id of a judged response who wrote it."""
    return {
        candidate.id: PEOPLE if _PERSON.fullmatch(candidate.author) else candidate.author
        for parent in (() if judgements is None else judgements.parents)
        if parent.kind == "candidates"
        for candidate in read_candidates(store.open(parent))
    }


def _scores(
    authors: Mapping[str, str], rated: Sequence[Judgement], rubric: Rubric
) -> tuple[AuthorScores, ...]:
    """Return the mean ratings of each author's responses, most responses first."""
    totals: dict[str, Counter[int | Fraction]] = {}
    for each in rated:
        if each.status is ReplyStatus.VALID:
            totals.setdefault(authors[each.candidate_id], Counter())[each.total] += 1
    scores = [_author_scores(author, by_total, rubric) for author, by_total in totals.items()]
    return tuple(sorted(scores, key=lambda each: (-each.responses, each.author)))


def _author_scores(author: str, by_total: Mapping[int | Fraction, int], rubric: Rubric) -> AuthorScores:
    """Put responses into bins by whole numbers: a mean on the edge of a bin lies in it, not before it."""
    principles = len(rubric.principles)
    bins = [0] * (BINS_PER_POINT * (rubric.maximum - rubric.minimum))
    for total, count in by_total.items():
        place = int(BINS_PER_POINT * (total - rubric.minimum * principles) // principles)
        bins[min(place, len(bins) - 1)] += count
    whole = sum(total * count for total, count in by_total.items())
    return AuthorScores(author, tuple(bins), float(whole / (principles * sum(by_total.values()))))


def _words(pairs: Sequence[PreferencePair]) -> dict[str, Counter[int]]:
    return {
        "chosen": Counter(word_count(pair.chosen.candidate.text) for pair in pairs),
        "rejected": Counter(word_count(pair.rejected.candidate.text) for pair in pairs),
    }
