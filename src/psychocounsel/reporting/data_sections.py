"""Speeches, candidates, judgements, pairs -> Section: what came in, what was dropped, how it was rated."""

from collections.abc import Mapping
from typing import Any, cast

from psychocounsel.reporting.blocks import (
    Block,
    Cell,
    Paragraph,
    Plot,
    Section,
    Share,
    Table,
    percent,
)
from psychocounsel.reporting.card_tables import flaws_of
from psychocounsel.reporting.funnels import funnel_line, funnel_table
from psychocounsel.reporting.labels import EMPTY_REPLY
from psychocounsel.reporting.missing import missing_by_topic
from psychocounsel.reporting.plots import rating_histograms
from psychocounsel.reporting.report_data import ArtifactFacts, ReportData, in_order

FLAWS = "Flaws of the rows as they were imported, before any was dropped; a row may have several."


def data_section(data: ReportData) -> Section:
    """Return the funnel from raw rows to pairs, every line adding up."""
    tables = [
        *(_speeches(each) for each in data.of_kind("speeches")),
        *(_candidates(each) for each in data.of_kind("candidates") if _has_funnel(each)),
        *(table for each in data.of_kind("judgements") for table in _judgements(each)),
        *(_pairs(each) for each in data.datasets),
        *(table for each in data.datasets if (table := flaws_of(each, FLAWS))),
    ]
    words = [_words(each) for each in data.datasets if each.table("words")]
    intro = Paragraph(
        "In each line, kept and dropped together are all that came in; none is left out silently."
    )
    return Section("From raw rows to pairs", "funnel", (intro, *tables, *words) if tables else ())


def ratings_section(data: ReportData) -> Section:
    """Return how often each rating was given, by principle."""
    blocks: list[Block] = []
    for each in data.of_kind("judgements"):
        counts = cast(Mapping[str, Mapping[str, int]], each.table("histograms"))
        if not counts:
            continue
        told = "; ".join(f"{name}: {_rating_words(by)}" for name, by in counts.items())
        caption = "Number of responses by rating, one panel per principle."
        blocks.append(
            Plot(
                rating_histograms(counts, f"ratings-{each.id[:8]}"),
                caption,
                f"Ratings by principle. {told}",
                (each,),
            )
        )
    return Section("Ratings by principle", "ratings", tuple(blocks))


def _rating_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} times {rating}" for rating, count in counts.items())


def _has_funnel(candidates: ArtifactFacts) -> bool:
    return candidates.value("funnel") is not None or candidates.value("kept") is not None


def _funnel_line(step: str, funnel: Mapping[str, Any], whole: str = "rows_in") -> tuple[Cell, ...]:
    return funnel_line(step, funnel.get(whole, 0), funnel.get("kept", 0), funnel.get("dropped", {}))


def _speeches(speeches: ArtifactFacts) -> Table:
    funnel = speeches.table("funnel")
    rows = [_funnel_line("speeches read", funnel)]
    total = max(1, funnel.get("kept", 0))
    for split, count in in_order(speeches.table("splits")).items():
        share = Share(count / total, percent(count / total))
        rows.append((f"split {split}", "", str(count), share, ""))
    across = speeches.value("clusters_across_splits") or "none"
    remarks = [f"{speeches.value('clusters')} clusters of near-duplicates, {across} across splits"]
    remarks += [f"{speeches.value('crisis')} speeches about crisis"]
    caption = "Client speeches: " + "; ".join(remarks) + "."
    return funnel_table(caption, rows, speeches)


def _candidates(candidates: ArtifactFacts) -> Table:
    if candidates.value("funnel") is not None:
        line = _funnel_line("ready responses", candidates.table("funnel"))
    else:
        dropped: dict[str, int] = {"repeated_text": int(candidates.number("repeated_text") or 0)}
        for failed in cast(Mapping[str, Mapping[str, int]], candidates.table("failed")).values():
            for status, count in failed.items():
                dropped[status] = dropped.get(status, 0) + count
        kept = int(candidates.number("kept") or 0)
        line = funnel_line("answers asked of the pool", kept + sum(dropped.values()), kept, dropped)
    return funnel_table("Candidate responses.", [line], candidates)


def _judgements(judgements: ArtifactFacts) -> list[Table]:
    left_out: dict[str, int] = dict(judgements.table("left_out"))
    failed: dict[str, int] = dict(judgements.table("status"))
    valid = failed.pop("valid", 0)
    candidates = int(judgements.number("judged") or 0) + sum(left_out.values())
    dropped = {**left_out, **{EMPTY_REPLY.get(why, why): count for why, count in failed.items()}}
    line = funnel_line("responses judged", candidates, valid, dropped)
    caption = "Judgements by status: a failed one is missing and never a number."
    if attempts := int(judgements.number("addresses_judge") or 0):
        caption += f" {attempts} responses seem to address the judge; their ratings stand, and are marked."
    return [funnel_table(caption, [line], judgements), *missing_by_topic(judgements, "judgements")]


def _pairs(dataset: ArtifactFacts) -> Table:
    rows = [
        _funnel_line(f"combinations, {split}", counts, "combinations")
        for split, counts in in_order(dataset.table("pairing")).items()
    ]
    return funnel_table("Preference pairs.", rows, dataset)


def _words(dataset: ArtifactFacts) -> Table:
    means = in_order(dataset.table("words"))
    rows = tuple(
        (split, f"{by['chosen']:.1f}", f"{by['rejected']:.1f}", f"{by['chosen'] - by['rejected']:+.1f}")
        for split, by in means.items()
    )
    header = ("split", "chosen", "rejected", "difference")
    return Table("Mean length in words of the two sides of a pair.", header, "lrrr", rows, (dataset,))
