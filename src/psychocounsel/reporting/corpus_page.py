"""The page of what each rule did to a corpus. It holds texts before de-identification, so it stays private."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from psychocounsel.corpus.changes import MOST_DROPPED, CorpusEffects
from psychocounsel.reporting.artifact_tables import tables
from psychocounsel.reporting.html import render_page
from psychocounsel.reporting.plots import shortened
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
        f"{effects.shortened} lost more than a tenth of their characters."
    )
    return Table("effects", title, ("rule", "texts touched", "share", "characters lost", "most of one"), "lrrrr", rows)


def render_corpus(name: str, found: Sequence[tuple[Artifact, CorpusEffects]]) -> str:
    """Return the page; equal corpora give an equal page."""
    return render_page(
        "corpus.html.j2",
        "report.css",
        None,
        name=name,
        parts=_parts,
        flags=[flag for _, effects in found for flag in effects.flags()],
        parts_of_corpus=[
            (_NAMES[artifact.kind], effects, [effects_table(artifact, effects), *_funnel(artifact), *_dropped(effects)])
            for artifact, effects in found
        ],
    )


def _funnel(artifact: Artifact) -> list[Table]:
    return [table for table in tables(artifact) if table.key == "funnel"]


def _dropped(effects: CorpusEffects) -> list[Table]:
    rows = tuple((each.where, each.reason, shortened(each.text, 160)) for each in effects.dropped)
    title = f"Rows that were dropped, at most {MOST_DROPPED} for each reason."
    return [Table("dropped", title, ("row", "reason", "text before cleaning"), "lll", rows)] if rows else []


def _parts(before: str, after: str) -> list[tuple[str, str]]:
    """Return the words of both texts in order, in parts that are `same`, `lost` or `new`."""
    old, new = (re.findall(r"\S+\s*|\s+", text) for text in (before, after))
    parts: list[tuple[str, str]] = []
    for kind, start, end, new_start, new_end in SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            parts.append(("same", "".join(old[start:end])))
        else:
            parts += [("lost", "".join(old[start:end])), ("new", "".join(new[new_start:new_end]))]
    return parts
