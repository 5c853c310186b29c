"""The README.md of models, and the rendering that all cards share."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from psychocounsel.reporting.artifact_tables import tables
from psychocounsel.reporting.tables import as_markdown, escaped
from psychocounsel.store.artifacts import Artifact, ArtifactWriter


def draft(writer: ArtifactWriter) -> Artifact:
    """Return what is written so far as an artifact, so that its card can show its tables."""
    spec = writer.spec
    parents = [parent._asdict() for parent in spec.parents]
    manifest = {"id": spec.id, "kind": spec.kind, "name": spec.name, "stage": spec.stage, "version": spec.version}
    more = {
        "settings": spec.settings,
        "parents": parents,
        "rows": writer.rows,
        "warnings": [*spec.warnings, *writer.warnings],
    }
    return Artifact(writer.folder, {**manifest, **more})


def model_card(writer: ArtifactWriter, what: str, warnings: Iterable[str]) -> str:
    """Return the README.md of a reward model or a policy whose metrics are written.

    Args:
        writer: of the model.
        what: `reward model`, or how a policy was aligned.
        warnings: those of the data that it was trained on.
    """
    is_reward = what.startswith("reward")
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if is_reward else "text-generation",
        "tags": ["counselling", "psychocounsel", "reward-model" if is_reward else "dpo"],
    }
    return render_card(
        "model_card.md.j2",
        front,
        is_reward=is_reward,
        name=writer.spec.name,
        what=what,
        warnings=dict.fromkeys([*warnings, *writer.warnings]),
        tables=tables(draft(writer)),
    )


def render_card(template: str, front: Mapping[str, Any], **values: Any) -> str:
    """Return a card: `front` becomes the YAML that the Hub reads, `values` are what the template shows."""
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        loader=PackageLoader("psychocounsel.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = cast(dict[str, Any], environment.filters)
    filters.update(cell=escaped, markdown=as_markdown, origin=_origin)
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(front_matter=head, **values))


def _origin(artifacts: Iterable[Artifact]) -> str:
    """Return where numbers were read, by kind and reference."""
    return ", ".join(f"{each.kind} `{each.ref}`" for each in artifacts)
