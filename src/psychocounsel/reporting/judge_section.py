"""Audits -> Section: what the judge of the labels is worth."""

from collections.abc import Mapping
from typing import Any, cast

from psychocounsel.domain import Rate
from psychocounsel.reporting.audit_words import UNTRIED
from psychocounsel.reporting.blocks import Block, Heading, Paragraph, Section, Table, interval_words, percent
from psychocounsel.reporting.report_data import ArtifactFacts, ReportData

_DASH = "–"  # noqa: RUF001 - an en dash stands for an empty cell
_Row = tuple[str, str, str, str]


def judge_section(data: ReportData) -> Section:
    """Return what each audit in the report found."""
    blocks: list[Block] = []
    for audit in data.of_kind("audits"):
        blocks += [Heading(audit.name, (audit,)), *_verdict(audit), _figures(audit), *_by_principle(audit)]
    return Section("What the judge is worth", "judge", tuple(blocks))


def obedience_warning(audit: ArtifactFacts) -> str:
    """Say that a judge gives points to texts that ask for them; nothing where it does not."""
    if audit.value("canaries", "resists") is not False:
        return ""
    return (
        f"The judge of {audit.name} does not resist texts that address it: of {_tried(audit)} copies of "
        f"responses with words to the judge, {_won(audit)} gained a point or more. Its ratings of such texts "
        "are not to be trusted."
    )


def _tried(audit: ArtifactFacts) -> int:
    return int(audit.number("canaries", "gain", "n") or 0)


def _won(audit: ArtifactFacts) -> int:
    return len(audit.sequence("canaries", "gained_a_point"))


def _verdict(audit: ArtifactFacts) -> list[Block]:
    if not audit.table("canaries"):
        return []
    words = {
        True: "resists: no copy of a response gained a point by them",
        False: f"obeys: {_won(audit)} of {_tried(audit)} copies gained a point or more by them",
        None: f"is {UNTRIED}" if not audit.number("canaries", "asked") else "is unknown: every copy failed",
    }
    return [
        Paragraph(f"Whether words to the judge can sway it: it {words[audit.value('canaries', 'resists')]}.")
    ]


def _figures(audit: ArtifactFacts) -> Table:
    rows = [*_of_all(audit), *_of_retest(audit), *_of_one_principle(audit), *_of_canaries(audit)]
    caption = (
        "All valid ratings, then samples that were asked about again. Intervals: 95 %; of rates by bootstrap "
        "over speeches, of correlations by Fisher's transformation, of differences by Student's t."
    )
    return Table(caption, ("figure", "estimate", "interval", "over"), "lrll", tuple(rows), (audit,))


def _of_all(audit: ArtifactFacts) -> list[_Row]:
    judged = int(audit.number("judged", "judged") or 0)
    missing = judged - int(audit.number("judged", "status", "valid") or 0)
    flagged = f"{int(audit.number('judged', 'addresses_judge') or 0)}"
    share = percent(missing / judged) if judged else _DASH
    over = f"{missing} of {judged} judgements"
    return [
        ("judgements that failed", share, "", over),
        ("responses that seem to address the judge", flagged, "", "valid judgements"),
        _rate_row("ties between responses to one speech", audit.rate("ties"), "pairs"),
        ("halo: mean correlation of two principles", _decimal(audit.number("halo")), "", "valid judgements"),
        _spread_row("rank correlation of rating and length", audit.table("length"), "estimate"),
    ]


def _of_retest(audit: ArtifactFacts) -> list[_Row]:
    if not audit.table("retest"):
        return []
    change = audit.table("retest", "change")
    return [
        _rate_row("asked again: equal ratings", audit.rate("retest", "equal"), "responses"),
        _rate_row("asked again: within a point", audit.rate("retest", "within_one"), "responses"),
        ("asked again: weighted kappa", _decimal(audit.number("retest", "kappa")), "", ""),
        _spread_row("asked again: change of the mean rating", change, "mean"),
        ("asked again: largest rise", _signed(change.get("largest")), "", ""),
    ]


def _of_one_principle(audit: ArtifactFacts) -> list[_Row]:
    if not audit.table("one_principle"):
        return []
    halo = audit.table("one_principle", "halo")
    over = f"{halo.get('responses', 0)} responses, {halo.get('pairs', 0)} pairs of principles"
    difference = _spread_row("halo: what one reply adds", halo, "difference")
    return [
        ("halo, all principles in one reply", _decimal(halo.get("together")), "", over),
        ("halo, one principle per reply", _decimal(halo.get("alone")), "", over),
        (*difference[:3], over),
        (
            "mean difference of the two ratings, in points",
            _decimal(audit.number("one_principle", "mean_difference")),
            "",
            f"{int(audit.number('one_principle', 'missing') or 0)} responses missing",
        ),
    ]


def _of_canaries(audit: ArtifactFacts) -> list[_Row]:
    if not audit.number("canaries", "asked"):
        return []
    gain = audit.table("canaries", "gain")
    over = f"{_tried(audit)} copies, {int(audit.number('canaries', 'missing') or 0)} missing"
    lost = f"{int(audit.number('canaries', 'lost_a_point') or 0)}"
    rise = _spread_row("canaries: change of the mean rating", gain, "mean")
    return [
        (*rise[:3], over),
        ("canaries: largest rise", _signed(gain.get("largest")), "", over),
        ("canaries that gained a point or more", str(_won(audit)), "", over),
        ("canaries that lost a point or more", lost, "", over),
    ]


def _by_principle(audit: ArtifactFacts) -> list[Block]:
    told = cast(Mapping[str, Mapping[str, Any] | None], audit.table("retest", "by_principle"))
    rows = [
        (name, percent(by["exact"]), percent(by["within_one"]), _decimal(by["kappa"]), str(by["n"]))
        for name, by in told.items()
        if by is not None
    ]
    header = ("principle", "equal", "within a point", "weighted kappa", "responses")
    caption = "The judge asked again, by principle; kappa is unknown where every rating is the same."
    return [Table(caption, header, "lrrrr", tuple(rows), (audit,))] if rows else []


def _rate_row(label: str, rate: Rate | None, units: str) -> _Row:
    if rate is None:
        return (label, _DASH, "", "")
    return (label, percent(rate.estimate), interval_words(rate), f"{rate.n} {units}, {rate.missing} missing")


def _spread_row(label: str, told: Mapping[str, Any], figure: str) -> _Row:
    low, high = told.get("low"), told.get("high")
    between = "" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
    over = f"{told['n']} responses" if "n" in told else ""
    return (label, _signed(told.get(figure)), between, over)


def _decimal(value: float | None) -> str:
    return _DASH if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return _DASH if value is None else f"{value:+.2f}"
