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
    reason_words,
)
from psychocounsel.reporting.plots import rating_histograms
from psychocounsel.reporting.report_data import ArtifactFacts, ReportData, in_order

_HEADER = ("step", "in", "kept", "share kept", "dropped, by reason")
_ALIGN = "lrrll"


def data_section(data: ReportData) -> Section:
    """Return the funnel from raw rows to pairs, every line adding up."""
    tables = [
        *(_speeches(each) for each in data.of_kind("speeches")),
        *(_candidates(each) for each in data.of_kind("candidates") if _has_funnel(each)),
        *(_judgements(each) for each in data.of_kind("judgements")),
        *(_pairs(each) for each in data.datasets),
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
        caption = "Number of responses by rating (1 to 5), one panel per principle."
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


def _line(step: str, rows_in: int, kept: int, dropped: Mapping[str, int]) -> tuple[Cell, ...]:
    """Return a line of the funnel; it says so where the parts are not the whole."""
    lost = rows_in - kept - sum(dropped.values())
    reasons = reason_words({**dropped, "unaccounted for": lost} if lost else dict(dropped))
    part = kept / rows_in if rows_in else 0.0
    return (step, str(rows_in), str(kept), Share(part, percent(part)), reasons)


def _funnel_line(step: str, funnel: Mapping[str, Any], whole: str = "rows_in") -> tuple[Cell, ...]:
    return _line(step, funnel.get(whole, 0), funnel.get("kept", 0), funnel.get("dropped", {}))


def _speeches(speeches: ArtifactFacts) -> Table:
    funnel = speeches.table("funnel")
    rows = [_funnel_line("speeches read", funnel)]
    total = max(1, funnel.get("kept", 0))
    for split, count in in_order(speeches.table("splits")).items():
        share = Share(count / total, percent(count / total))
        rows.append((f"split {split}", "", str(count), share, ""))
    remarks = [f"{speeches.value('clusters')} clusters of near-duplicates, none across splits"]
    remarks += [f"{speeches.value('crisis')} speeches about crisis"]
    caption = "Client speeches: " + "; ".join(remarks) + "."
    return Table(caption, _HEADER, _ALIGN, tuple(rows), (speeches,))


def _candidates(candidates: ArtifactFacts) -> Table:
    if candidates.value("funnel") is not None:
        line = _funnel_line("ready responses", candidates.table("funnel"))
    else:
        dropped: dict[str, int] = {"repeated_text": int(candidates.number("repeated_text") or 0)}
        for failed in cast(Mapping[str, Mapping[str, int]], candidates.table("failed")).values():
            for status, count in failed.items():
                dropped[status] = dropped.get(status, 0) + count
        kept = int(candidates.number("kept") or 0)
        line = _line("answers asked of the pool", kept + sum(dropped.values()), kept, dropped)
    return Table("Candidate responses.", _HEADER, _ALIGN, (line,), (candidates,))


def _judgements(judgements: ArtifactFacts) -> Table:
    status: dict[str, Any] = dict(judgements.table("status"))
    valid = status.pop("valid", 0)
    line = _line("responses judged", int(judgements.number("judged") or 0), valid, status)
    caption = "Judgements by status: a failed one is missing and never a number."
    return Table(caption, _HEADER, _ALIGN, (line,), (judgements,))


def _pairs(dataset: ArtifactFacts) -> Table:
    rows = [
        _funnel_line(f"combinations, {split}", counts, "combinations")
        for split, counts in in_order(dataset.table("pairing")).items()
    ]
    return Table("Preference pairs.", _HEADER, _ALIGN, tuple(rows), (dataset,))


def _words(dataset: ArtifactFacts) -> Table:
    means = in_order(dataset.table("words"))
    rows = tuple(
        (split, f"{by['chosen']:.1f}", f"{by['rejected']:.1f}", f"{by['chosen'] - by['rejected']:+.1f}")
        for split, by in means.items()
    )
    header = ("split", "chosen", "rejected", "difference")
    return Table("Mean length in words of the two sides of a pair.", header, "lrrr", rows, (dataset,))
