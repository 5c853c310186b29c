"""Speeches, candidates, judgements, pairs -> Section: what came in, what was dropped, how it was rated."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from psychocounsel.reporting.card_tables import flaws_of
from psychocounsel.reporting.plots import Dot, dots_and_intervals, rating_histograms
from psychocounsel.reporting.tables import (
    EMPTY_REPLY,
    UNTRIED,
    Answers,
    ArtifactFacts,
    Block,
    Cell,
    Example,
    ExampleSet,
    Heading,
    Paragraph,
    Plot,
    Plots,
    ReportData,
    Section,
    Share,
    Table,
    count_words,
    funnel_line,
    funnel_table,
    in_order,
    interval_words,
    missing_by_topic,
    percent,
    unanswered,
)
from psychocounsel.reporting.training_sections import dot_words
from psychocounsel.types import OVERALL, Rate

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
    intro = Paragraph("In each line, kept and dropped together are all that came in; none is left out silently.")
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
    return [Paragraph(f"Whether words to the judge can sway it: it {words[audit.value('canaries', 'resists')]}.")]


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


_HEALTH = {
    "repetition_rate": "repeats itself",
    "unfinished_rate": "unfinished",
    "empty_rate": "empty",
    "distinct_4gram_ratio": "distinct runs of four words, mean ratio",
}
_WORDS = {
    "win": "The policy's answer is preferred in both orders.",
    "loss": "The reference's answer is preferred in both orders.",
    "tie": "A tie in both orders.",
    "position-inconsistent": "The two orders disagree, which counts as a tie.",
    "missing": "No verdict: at least one order failed.",
}


class Sides(NamedTuple):
    """The authors of the two answers."""

    policy: str
    reference: str


def sides_of(data: ReportData, verdicts: ArtifactFacts) -> Sides:
    """Return who was compared; the roles themselves where the answers name no author."""
    names: list[str] = []
    for role in ("policy", "reference"):
        answers = data.parent_of(verdicts, f"{role} answers")
        responder = cast(Mapping[str, Any], answers.settings.get("responder", {}) if answers else {})
        names.append(str(responder.get("author", role)))
    return Sides(*names)


def confidence_words(verdicts: ArtifactFacts) -> str:
    """Return the confidence of the intervals of a win rate, as `95 %`."""
    return f"{100 * float(verdicts.settings.get('confidence', 0.95)):g} %"


def winrate_section(data: ReportData) -> Section:
    """Return the win rates of each comparison: raw, length-controlled, crisis, by principle and by topic."""
    blocks: list[Block] = []
    for verdicts in data.of_kind("comparisons"):
        sides = sides_of(data, verdicts)
        blocks.append(Heading(f"{sides.policy} against {sides.reference}", (verdicts,)))
        blocks += [_judge_words(verdicts), *unanswered(verdicts, sides._asdict()), _counts(verdicts, sides)]
        blocks += missing_by_topic(verdicts, "comparisons")
        plots = [
            *_rates_plot(verdicts, "overall", _overall_dots(verdicts), "overall and on the crisis slice"),
            *_rates_plot(verdicts, "principle", _dots(verdicts, "win_rate_by_criterion"), "by principle"),
            *_rates_plot(verdicts, "topic", _dots(verdicts, "by_topic"), "by topic"),
        ]
        blocks += [Plots(tuple(plots))] if plots else []
    return Section("Win rate", "win-rate", tuple(blocks))


def _judge_words(verdicts: ArtifactFacts) -> Paragraph:
    labels = ", ".join(str(each) for each in verdicts.sequence("judges", "labels")) or "none in the lineage"
    evaluation = verdicts.value("judges", "evaluation") or "unknown"
    return Paragraph(
        f"Judge of the labels: {labels}. Judge of this result: {evaluation}. Each pair of answers is "
        "judged in both orders; a disagreement is a tie, ties count half. Intervals: "
        f"{confidence_words(verdicts)}, bootstrap over speeches."
    )


def _counts(verdicts: ArtifactFacts, sides: Sides) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, words in (
        ("win_rate", "win rate, raw"),
        ("length_controlled", "win rate, length-controlled"),
        ("position_inconsistent_rate", "position-inconsistent: the two orders disagree"),
        ("first_position_rate", "share of verdicts for the first place"),
    ):
        rate = verdicts.rate("length_controlled", "rate") if name == "length_controlled" else verdicts.rate(name)
        if rate is not None:
            rows.append((words, percent(rate.estimate), interval_words(rate), count_words(rate)))
    outcomes = ("wins", "ties", "losses", "missing")
    told = ", ".join(f"{verdicts.value(name) or 0} {name}" for name in outcomes)
    compared = sum(int(verdicts.number(name) or 0) for name in outcomes)
    remark = "" if verdicts.value("length_controlled", "controlled") is not False else _UNCONTROLLED
    caption = f"{sides.policy} over {sides.reference}: {told}; together {compared} speeches.{remark}"
    return Table(caption, ("figure", "estimate", "interval", "comparisons"), "lrll", tuple(rows), (verdicts,))


_UNCONTROLLED = (
    " Length could not be controlled for (it does not vary, or all outcomes are equal): the raw rate stands."
)


def _overall_dots(verdicts: ArtifactFacts) -> list[Dot]:
    raw, controlled = verdicts.rate("win_rate"), verdicts.rate("length_controlled", "rate")
    crisis = verdicts.rate("crisis")
    rows = [("raw", raw, 0), ("length-controlled", controlled, 1), ("crisis slice, raw", crisis, 2)]
    return [Dot(label, rate, group) for label, rate, group in rows if rate is not None]


def _dots(verdicts: ArtifactFacts, name: str) -> list[Dot]:
    return [Dot(_with_count(label or "(no topic)", rate), rate) for label, rate in verdicts.rates(name).items()]


def _with_count(label: str, rate: Rate) -> str:
    return f"{label} ({rate.n})"


def _rates_plot(verdicts: ArtifactFacts, key: str, dots: list[Dot], words: str) -> list[Plot]:
    if not dots:
        return []
    svg = dots_and_intervals(f"winrate-{key}-{verdicts.id[:8]}", dots, axis="win rate")
    caption = f"Win rate {words}; the dashed line is 50 %."
    return [Plot(svg, caption, f"Win rate {words}. {dot_words(dots)}", (verdicts,))]


def health_section(data: ReportData) -> Section:
    """Return signs of decay of both sides' answers, side by side."""
    tables: list[Block] = []
    for verdicts in data.of_kind("comparisons"):
        if verdicts.table("policy_text_quality") or verdicts.table("reference_text_quality"):
            tables.append(_health_table(verdicts, sides_of(data, verdicts)))
    return Section("Text health", "health", tuple(tables))


def _health_table(verdicts: ArtifactFacts, sides: Sides) -> Table:
    names = ("policy_text_quality", "reference_text_quality")
    rows = [(words, *(_rate_words(verdicts.rate(side, figure)) for side in names)) for figure, words in _HEALTH.items()]
    rows.append(("length in words: mean, median, 95th percentile", *(_length_words(verdicts, side) for side in names)))
    caption = "Answers to the test speeches: share of answers with its interval."
    header = ("figure", f"{sides.policy} (policy)", f"{sides.reference} (reference)")
    return Table(caption, header, "lrr", tuple(rows), (verdicts,))


def _rate_words(rate: Rate | None) -> str:
    return "–" if rate is None else f"{percent(rate.estimate)} ({interval_words(rate)})"  # noqa: RUF001


def _length_words(verdicts: ArtifactFacts, side: str) -> str:
    length = cast(Mapping[str, float], verdicts.table(side, "length_words"))
    return ", ".join(f"{length[name]:.1f}" for name in ("mean", "median", "p95")) if length else "–"  # noqa: RUF001


def examples_section(data: ReportData) -> Section:
    """Return some answers of both sides, crisis ones folded away."""
    by_ref = {each.ref: each for each in data.artifacts}
    blocks: list[Block] = []
    for group in data.examples:
        sources = (by_ref[group.verdicts_ref],) if group.verdicts_ref in by_ref else ()
        blocks.append(Heading(f"{group.policy_author} against {group.reference_author}", sources))
        blocks += [_answers(group, each) for each in group.examples]
    if blocks:
        intro = "Drawn by the hash of the speech, not chosen. Speeches about crisis are folded away."
        blocks.insert(0, Paragraph(intro))
    return Section("Examples", "examples", tuple(blocks))


def _answers(group: ExampleSet, example: Example) -> Answers:
    overall = _WORDS.get(example.outcomes.get(OVERALL, "missing"), "")
    details = [f"{name}: {outcome}" for name, outcome in example.outcomes.items() if name != OVERALL]
    verdict = overall + (f" By principle, for the policy: {', '.join(details)}." if details else "")
    return Answers(example, verdict, group.policy_author, group.reference_author)
