"""Facts -> README.md: what a dataset or a model is, and what it must not be used for.

The front matter is what the Hub and `datasets.load_dataset` read; the notices stand first in the body,
because whoever opens the folder must meet them first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "odc-by", "odbl", "pddl", "openrail"),
        *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0"),
        *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0"),
        *("llama3", "llama3.1", "llama3.2", "unknown"),
    }
)
"""Identifiers that the Hub knows; any other licence is `other` in the front matter and spelt out below it."""


@dataclass(frozen=True)
class DatasetFacts:
    """What the card of a preference dataset tells.

    Args:
        name: of the artifact.
        licences: of the sources of the client speeches.
        rows: pairs by split, only the splits that have a file.
        principles: ids of the rated principles, in the order of the columns.
        notices: sentences that must head everything made from the sources.
    """

    name: str
    licences: Sequence[str]
    rows: Mapping[str, int]
    principles: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What the card of a model tells; `what` says its trade: `reward model`, or how a policy was aligned."""

    name: str
    what: str
    notices: tuple[str, ...]


def dataset_card(facts: DatasetFacts) -> str:
    """Return the README.md of a preference dataset.

    The splits are named by pattern, so that other files beside them do not confuse `load_dataset`.
    """
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in facts.rows]
    front = {
        "pretty_name": facts.name,
        "license": _hub_licence(facts.licences),
        "language": ["en"],
        "task_categories": ["text-generation"],
        "tags": ["counselling", "preference", "rlhf"],
        "size_categories": [_size_category(sum(facts.rows.values()))],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return _rendered("dataset_card.md.j2", front, facts)


def model_card(facts: ModelFacts) -> str:
    """Return the README.md of a reward model or a policy."""
    is_reward = facts.what.startswith("reward")
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if is_reward else "text-generation",
        "tags": ["counselling", "psychocounsel", "reward-model" if is_reward else "dpo"],
    }
    return _rendered("model_card.md.j2", front, facts, is_reward=is_reward)


def _hub_licence(licences: Sequence[str]) -> str | list[str]:
    """Return the one licence, or all: the first alone could promise more than another source allows."""
    ids = list(
        dict.fromkeys(each.casefold() if each.casefold() in HUB_LICENCES else "other" for each in licences)
    )
    return ids[0] if len(ids) == 1 else ids or "unknown"


def _size_category(rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")


def _rendered(template: str, front: Mapping[str, Any], facts: DatasetFacts | ModelFacts, **more: Any) -> str:
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        loader=PackageLoader("psychocounsel.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return environment.get_template(template).render(front_matter=head, facts=facts, **more)
