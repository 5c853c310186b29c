"""Facts -> README.md: what a dataset or a model is, and what it must not be used for.

The front matter is what the Hub and `datasets.load_dataset` read; the notices stand first in the body,
because whoever opens the folder must meet them first.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.judging.rubric import Rubric
from psychocounsel.reporting import card_tables
from psychocounsel.reporting import card_tables as card_labels
from psychocounsel.reporting.card_facts import (
    BINS_PER_POINT,
    OTHER,
    AuthorScores,
    CardFigure,
    DatasetFacts,
    RubricFacts,
    combine,
)
from psychocounsel.reporting.tables import ArtifactFacts, Cell, ParentFacts, Table
from psychocounsel.store.artifacts import METRICS, Artifact, ArtifactWriter
from psychocounsel.store.files import write_bytes
from psychocounsel.store.references import ancestors
from psychocounsel.store.schemas import read_candidates, read_judgements
from psychocounsel.store.store import Store
from psychocounsel.types import Judgement, PreferencePair, ReplyStatus

_MARKUP = re.compile(r"[\\`*|<\[\]]")
_OWN_NAME = "terms-of-the-sources"
"""What the Hub asks for beside `license: other`; the terms themselves stand in the card."""


@dataclass(frozen=True)
class ModelFacts:
    """What the card of a model tells; `what` says its trade: `reward model`, or how a policy was aligned."""

    name: str
    what: str
    notices: tuple[str, ...]


def dataset_card(facts: DatasetFacts, figures: Sequence[CardFigure] = ()) -> str:
    """Return the README.md of a preference dataset.

    Args:
        facts: what it tells.
        figures: the pictures that lie beside it.
    """
    licence = combine([*facts.licences, *(each.licence for each in card_tables.sources(facts))])
    return _rendered(
        "dataset_card.md.j2",
        _dataset_front(facts, licence.licence),
        facts,
        licence=licence,
        tables=card_tables,
        labels=card_labels,
        figures={figure.key: figure for figure in figures},
        cleaning=_settings(facts.speeches, "cleaning"),
        pairing=_settings(facts.dataset, "pairing"),
        excluded=_excluded(facts),
    )


def _dataset_front(facts: DatasetFacts, licence: str) -> dict[str, Any]:
    """Return what the Hub reads; splits by pattern, so that other files beside them do not confuse it."""
    languages = _languages(facts)
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in facts.rows]
    return {
        "pretty_name": facts.name,
        "license": licence,
        **({"license_name": _OWN_NAME} if licence == OTHER else {}),
        **({"language": languages} if languages else {}),
        **({"annotations_creators": ["machine-generated"]} if facts.judges else {}),
        "task_categories": ["text-generation"],
        "tags": ["counselling", "mental-health", "preference", "rlhf"],
        "size_categories": [_size_category(sum(facts.rows.values()))],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _languages(facts: DatasetFacts) -> list[str]:
    """Return the languages that the cleaning let pass; none where it let all pass."""
    cleaning: Mapping[str, Any] = facts.speeches.settings.get("cleaning", {}) if facts.speeches else {}
    return list(cleaning.get("languages", ["en"]))


def _size_category(rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")


def _settings(artifact: ArtifactFacts | None, key: str) -> str:
    """Return the settings in one block that are set, `key: value` one after the other."""
    settings: Mapping[str, Any] = artifact.settings.get(key, {}) if artifact else {}
    told = [f"`{name}: {_plain(value)}`" for name, value in settings.items() if value not in (None, {}, [])]
    return ", ".join(told)


def _excluded(facts: DatasetFacts) -> str:
    """Return the names of the texts with which no speech may share a span of words."""
    named: Sequence[Mapping[str, Any]] = facts.speeches.settings.get("exclude", ()) if facts.speeches else ()
    return ", ".join(str(each.get("name", each.get("path"))) for each in named)


def _plain(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def model_card(facts: ModelFacts) -> str:
    """Return the README.md of a reward model or a policy."""
    is_reward = facts.what.startswith("reward")
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if is_reward else "text-generation",
        "tags": ["counselling", "psychocounsel", "reward-model" if is_reward else "dpo"],
    }
    return _rendered("model_card.md.j2", front, facts, is_reward=is_reward)


def _rendered(template: str, front: Mapping[str, Any], facts: DatasetFacts | ModelFacts, **more: Any) -> str:
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        loader=PackageLoader("psychocounsel.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = cast(dict[str, Any], environment.filters)  # pyright: ignore[reportUnknownMemberType]
    filters.update(cell=_cell, markdown=_markdown, origin=_origin)
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    rendered = environment.get_template(template).render(front_matter=head, facts=facts, **more)
    return re.sub(r"\n{3,}", "\n\n", rendered)


def _markdown(table: Table) -> str:
    """Return a table as GitHub-flavoured Markdown; what stands in its cells stays text."""
    rules = ["---:" if side == "r" else "---" for side in table.align]
    lines = [_line(table.header), "|" + "|".join(rules) + "|", *(_line(row) for row in table.rows)]
    return "\n".join(lines)


def _line(cells: Iterable[Cell]) -> str:
    return "| " + " | ".join(_cell(each if isinstance(each, str) else each.words) for each in cells) + " |"


def _cell(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _origin(artifacts: Iterable[ArtifactFacts]) -> str:
    """Return where figures were read, by kind and reference."""
    return ", ".join(f"{each.kind} `{each.ref}`" for each in artifacts)


PEOPLE = "people"
"""Stands for every author who is a person, known by a web address or a number: a card ranks no person."""
_PERSON = re.compile(r"person-[0-9a-f]{8}|.*://.*")


def gather_dataset_facts(
    store: Store,
    writer: ArtifactWriter,
    pairs: Mapping[str, Sequence[PreferencePair]],
    rubric: Rubric | None = None,
    principles: Sequence[str] = (),
) -> DatasetFacts:
    """Return what the card of a preference dataset tells.

    Args:
        store: where its ancestors lie.
        writer: the dataset, its tables and its metrics written.
        pairs: the pairs of every split that has any.
        rubric: what the responses were rated by; None where that is not known.
        principles: ids of the rated principles where there is no rubric.

    Raises:
        StoreError: an ancestor is missing, or one of its tables is damaged.
    """
    lineage = _lineage(store, writer)
    made_from = [ArtifactFacts.of(each) for each in lineage]
    judgements = next((each for each in lineage if each.kind == "judgements"), None)
    rated = [] if judgements is None else read_judgements(judgements)
    return DatasetFacts(
        name=writer.spec.name,
        licences=_licences([writer.spec.settings, *(each.settings for each in made_from)]),
        rows={split: len(each) for split, each in pairs.items() if each},
        principles=tuple(principles) if rubric is None else rubric.principle_ids,
        notices=tuple(dict.fromkeys(notice for each in lineage for notice in each.warnings)),
        rubric=None if rubric is None else _rubric(rubric),
        artifacts=(_draft_facts(writer), *made_from),
        judges=dict(Counter(each.judge for each in rated)),
        scores_by_author=() if rubric is None else _scores(_authors(store, judgements), rated, rubric),
        words={split: _words(each) for split, each in pairs.items() if each},
    )


def write_dataset_card(writer: ArtifactWriter, facts: DatasetFacts) -> None:
    """Write the card of a dataset and the figures that it shows."""
    from psychocounsel.reporting.card_figures import draw_figures  # matplotlib: only to draw

    figures = draw_figures(facts)
    for figure in figures:
        write_bytes(writer.file(figure.file), figure.png)
    writer.write_card(dataset_card(facts, figures))


def _lineage(store: Store, writer: ArtifactWriter) -> list[Artifact]:
    """Return every artifact that a writer comes from, once, nearest first."""
    found: dict[str, Artifact] = {}
    walks = [list(ancestors(store, store.open(parent))) for parent in writer.spec.parents]
    for each in sorted((each for walk in walks for each in walk), key=lambda each: each.depth):
        found.setdefault(each.artifact.id, each.artifact)
    return list(found.values())


def _draft_facts(writer: ArtifactWriter) -> ArtifactFacts:
    plan = writer.spec
    return ArtifactFacts(
        kind=plan.kind,
        name=plan.name,
        ref=plan.ref,
        id=plan.id,
        metrics=json.loads(writer.file(METRICS).read_text(encoding="utf-8")),
        rows=writer.rows,
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


def _scores(authors: Mapping[str, str], rated: Sequence[Judgement], rubric: Rubric) -> tuple[AuthorScores, ...]:
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
