"""Artifact -> Tables and Paragraphs: what could not be judged, by topic and by side."""

from collections.abc import Mapping
from typing import cast

from psychocounsel.reporting.blocks import Cell, Paragraph, Share, Table, percent, reason_words
from psychocounsel.reporting.report_data import ArtifactFacts


def missing_by_topic(artifact: ArtifactFacts, what: str) -> list[Table]:
    """Return the topics of which something is missing, for refusals are not missing at random; or nothing."""
    shares = cast(Mapping[str, Mapping[str, int]], artifact.table("missing_by_topic"))
    rows: list[tuple[Cell, ...]] = []
    for topic, share in shares.items():
        if share["missing"]:
            part = share["missing"] / share["total"]
            counts = (str(share["missing"]), str(share["total"]))
            rows.append((topic or "(no topic)", *counts, Share(part, percent(part))))
    header = ("topic", "missing", "of", "share missing")
    caption = f"Missing {what} by topic of the speech; topics that are not listed miss none."
    return [Table(caption, header, "lrrl", tuple(rows), (artifact,))] if rows else []


def unanswered(verdicts: ArtifactFacts, authors: Mapping[str, str]) -> list[Paragraph]:
    """Say who left speeches without an answer, and why; nothing where both sides answered all.

    Args:
        verdicts: of the comparison.
        authors: by side, `policy` and `reference`.
    """
    failed = cast(Mapping[str, dict[str, int]], verdicts.table("missing_answers"))
    told = [f"{authors[side]}: {reason_words(by)}" for side, by in failed.items() if by]
    words = "Speeches without an answer to compare are missing, and a win for nobody"
    return [Paragraph(f"{words}. {'; '.join(told)}.")] if told else []
