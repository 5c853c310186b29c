"""The page of what each rule did to a corpus. It holds texts before de-identification, so it stays private."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

from markupsafe import Markup

from psychocounsel.corpus.changes import CorpusEffects
from psychocounsel.reporting.artifact_tables import tables
from psychocounsel.reporting.html import content_security_policy, page_environment
from psychocounsel.reporting.tables import NONE, Table, percent, share_of
from psychocounsel.store.artifacts import Artifact

_NAMES = {"speeches": "Speeches", "candidates": "Responses"}


def effects_table(artifact: Artifact, effects: CorpusEffects) -> Table:
    """Return a row per rule: texts touched, characters lost, and the most that it took of one text."""
    rows = tuple(
        (
            rule.name.replace("_", " "),
            str(rule.touched),
            share_of(rule.touched, effects.texts),
            str(rule.lost),
            NONE if rule.most is None else percent(rule.most.share),
        )
        for rule in effects.rules
    )
    title = (
        f"{_NAMES[artifact.kind]}: what each rule did to {effects.texts} texts, white space apart. "
        f"{effects.shortened} lost more than a tenth of their characters, "
        f"{effects.shortened_prose} of them beside phone numbers and addresses."
    )
    return Table("effects", title, ("rule", "texts touched", "share", "characters lost", "most of one"), "lrrrr", rows)


def render_page(name: str, found: Sequence[tuple[Artifact, CorpusEffects]]) -> str:
    """Return the page; equal corpora give an equal page."""
    environment = page_environment()
    cast(dict[str, Any], environment.filters).update(percent=percent, parts=_parts)
    style = Markup((files("psychocounsel.reporting") / "templates" / "report.css").read_text("utf-8"))  # noqa: S704
    return environment.get_template("corpus.html.j2").render(
        name=name,
        policy=content_security_policy(style),
        style=style,
        flags=[flag for _, effects in found for flag in effects.flags()],
        parts_of_corpus=[
            (_NAMES[artifact.kind], effects, [effects_table(artifact, effects), *_funnel(artifact)])
            for artifact, effects in found
        ],
    )


def _funnel(artifact: Artifact) -> list[Table]:
    return [table for table in tables(artifact) if table.key == "funnel"]


def _parts(text: str, other: str) -> tuple[str, str, str]:
    """Split a text into the start that it shares with the other, what differs, and the end that they share."""
    start = _shared_start(text, other)
    end = _shared_start(text[start:][::-1], other[start:][::-1])
    return text[:start], text[start : len(text) - end], text[len(text) - end :]


def _shared_start(text: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return next(
        (at for at, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), min(len(text), len(other))
    )
