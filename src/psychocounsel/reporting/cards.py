"""Facts -> README.md: what a dataset or a model is, and what it must not be used for.

The front matter is what the Hub and `datasets.load_dataset` read; the notices stand first in the body,
because whoever opens the folder must meet them first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from psychocounsel.reporting import card_labels, card_tables
from psychocounsel.reporting.blocks import Cell, Table
from psychocounsel.reporting.card_facts import CardFigure, DatasetFacts
from psychocounsel.reporting.licences import OTHER, combine
from psychocounsel.reporting.report_data import ArtifactFacts

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
