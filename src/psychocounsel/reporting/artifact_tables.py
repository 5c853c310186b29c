"""Metrics as tables: the one place that decides which numbers of an artifact are shown, and in which words.

`list`, `show`, `diff`, the report and the cards all show these tables.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from psychocounsel.evaluation.statistics import wilson_interval
from psychocounsel.evaluation.text_quality import signs_of_degeneration
from psychocounsel.reporting.comparison_tables import (
    comparison_tables,
    comparison_warnings,
    missing_table,
    text_quality_table,
)
from psychocounsel.reporting.evaluation_tables import (
    anchor_tables,
    anchor_warnings,
    annotation_tables,
    annotation_warnings,
    calibration_tables,
    crisis_tables,
    crisis_warnings,
    task_tables,
)
from psychocounsel.reporting.reward_tables import best_of_k_tables, evaluation_tables, reward_tables
from psychocounsel.reporting.tables import (
    NONE,
    RATE_HEADER,
    Row,
    Table,
    as_text,
    by_split,
    draws_each,
    fit,
    percent,
    rate_row,
    reasons,
    share_of,
    with_interval,
)
from psychocounsel.store import metrics as m
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.metrics import metrics_of
from psychocounsel.store.shapes import Agreement, Counts, Gain, Halo
from psychocounsel.types import Coefficient, Rate

_SIDE_FILES = ("rows.parquet", "samples.parquet", "votes.parquet")


def row_count(artifact: Artifact) -> int:
    """Return the number of rows of an artifact's own tables, without row provenance, samples and votes."""
    return sum(count for name, count in artifact.manifest["rows"].items() if name not in _SIDE_FILES)


class _View(NamedTuple):
    """What is shown of an artifact: the number by which one looks at it first, its tables, and warnings before them."""

    key: str
    tables: Sequence[Table]
    warnings: Sequence[str] = ()


def tables(artifact: Artifact) -> list[Table]:
    """Return every table of an artifact, the most important first; raises StoreError for metrics it cannot read."""
    metrics = metrics_of(artifact)
    found = [*_view(metrics, artifact).tables, *_spend_tables(getattr(metrics, "spend", None))]
    return [replace(table, sources=(artifact,)) for table in found if table.rows]


def key_metric(artifact: Artifact) -> str:
    """Return the number by which one looks at an artifact first; raises StoreError for metrics it cannot read."""
    return _view(metrics_of(artifact), artifact).key


def warnings_of(artifact: Artifact) -> list[str]:
    """Return what a reader must know before the numbers: judges that may favour a side, or obey texts.

    Raises StoreError for metrics that it cannot read.
    """
    return [*_view(metrics_of(artifact), artifact).warnings]


def summary(artifact: Artifact, width: int | None = None) -> str:
    """Return the warnings and the tables of an artifact, without details, for a terminal of so many columns."""
    shown = [as_text(table, width) for table in tables(artifact) if not table.is_detail]
    return "\n".join([*(fit(f"! {warning}", width) for warning in warnings_of(artifact)), *shown])


def _view(metrics: m.Metrics, artifact: Artifact) -> _View:
    match metrics:
        case m.SpeechMetrics():
            return _View(_kept(metrics.funnel), _speech_tables(metrics))
        case m.ReadyCandidateMetrics():
            parts = _funnel_tables("ready responses", metrics.funnel, "Candidate responses.")
            return _View(_kept(metrics.funnel), [*parts, *_deidentification_tables(metrics.deidentification)])
        case m.PoolCandidateMetrics():
            dropped = sum((Counter(by) for by in metrics.failed.values()), Counter(repeated_text=metrics.repeated_text))
            row = _funnel_row("responses of the pool", metrics.kept + dropped.total(), dropped)
            return _View(f"{metrics.kept} responses", [_funnel_table("Candidate responses.", [row])])
        case m.AnswerMetrics():
            title = f"Answers to {metrics.speeches} speeches{draws_each(metrics.draws)}."
            asked = metrics.speeches * metrics.draws
            row = _funnel_row("answers", asked, metrics.failed)
            return _View(f"{asked - sum(metrics.failed.values())} of {asked} answers", [_funnel_table(title, [row])])
        case m.RoundCandidateMetrics(text_quality=quality):
            table = text_quality_table(f"Answers to {metrics.speeches} speeches.", {"policy": quality})
            return _View(f"unfinished {percent(quality.unfinished_rate.estimate)}", [table])
        case m.JudgementMetrics():
            return _View(f"{metrics.valid} of {metrics.judged} valid", _judgement_tables(metrics))
        case m.AuditMetrics():
            return _audit_view(metrics, artifact)
        case m.PreferenceMetrics():
            kept = sum(by.kept for by in metrics.pairing.values())
            return _View(f"{kept} pairs", _preference_tables(metrics, artifact))
        case m.RoundPairMetrics(pairing=pairing):
            title = f"Preference pairs. Answers left out: {reasons(metrics.left_out)}."
            row = _funnel_row("combinations", pairing.combinations, pairing.dropped)
            return _View(f"{pairing.kept} pairs", [_funnel_table(title, [row])])
        case m.BaseModelMetrics(sft=sft):
            title = "Supervised fine-tuning; mean loss of the first and the last epoch."
            loss = f"{sft.first_loss:.2f} -> {sft.last_loss:.2f}"
            row = ("fine-tuning", f"{sft.parameters:,}", str(metrics.training_speeches), str(sft.steps), loss)
            header = ("", "parameters", "speeches", "steps", "loss, nats per token")
            return _View(f"loss {loss}", [Table("sft", title, header, "lrrrr", (row,))])
        case m.RewardModelMetrics():
            found = [*reward_tables(metrics), _length_table(metrics.training)]
            return _View(f"test accuracy {with_interval(metrics.test.accuracy)}", found)
        case m.PairEvaluationMetrics():
            return _View(f"accuracy {with_interval(metrics.test.accuracy)}", evaluation_tables(metrics))
        case m.BestOfKMetrics():
            return _View(f"mean of subsets {percent(metrics.mean)}", best_of_k_tables(metrics))
        case m.ScoreMetrics(reward=reward):
            row = ("rewards", str(metrics.scored), f"{reward.mean:+.3f}", f"{reward.std:.3f}")
            table = Table("scores", "Normalised rewards.", ("", "answers", "mean", "std"), "lrrr", (row,))
            return _View(f"mean reward {reward.mean:+.3f}", [table])
        case m.ReferenceMetrics(lengths=lengths):
            figures = (f"{metrics.chosen_per_token:.3f}", f"{metrics.rejected_per_token:.3f}")
            row = ("reference", str(lengths["kept"]), str(metrics.tokens), *figures)
            header = ("", "pairs", "answer tokens", "chosen", "rejected")
            table = Table("reference", "Log-probability per token, nats.", header, "lrrrr", (row,))
            return _View(f"{lengths['kept']} pairs", [table])
        case m.PolicyMetrics():
            return _policy_view(metrics)
        case m.ProbeMetrics():
            return _View(_probe_figure(metrics), probe_tables(metrics))
        case m.ComparisonMetrics():
            key = f"{'constrained ' if metrics.constraint else ''}win rate {with_interval(metrics.win_rate)}"
            return _View(key, comparison_tables(metrics, artifact), comparison_warnings(metrics, artifact))
        case m.AnnotationTaskMetrics():
            return _View(f"{metrics.items} of {metrics.of} {metrics.kind}", task_tables(metrics))
        case m.AnnotationMetrics():
            rate = "" if metrics.win_rate is None else f", win rate {with_interval(metrics.win_rate)}"
            key = f"{metrics.labelled} items, {len(metrics.raters)} raters{rate}"
            return _View(key, annotation_tables(metrics), annotation_warnings(metrics))
        case m.AnchorMetrics():
            judge_only = percent(metrics.judge_only.estimate)
            key = f"win rate {with_interval(metrics.rate)} with human labels, {judge_only} by the judge alone"
            return _View(key, anchor_tables(metrics), anchor_warnings(metrics))
        case m.CrisisMetrics():
            key = f"release ready: {metrics.release_ready}, harm {with_interval(metrics.policy.harm)}"
            return _View(key, crisis_tables(metrics), crisis_warnings(metrics))
        case m.JudgeCalibrationMetrics(items=items, pairs=pairs):
            key = f"{items} responses" if pairs is None else f"pair accuracy {with_interval(pairs.accuracy)}"
            return _View(key, calibration_tables(metrics))
        case m.ReportMetrics():
            return _View(f"{len(metrics.win_rates)} comparisons", [_report_table(metrics)])


def _probe_figure(probe: m.ProbeMetrics) -> str:
    rate = "" if probe.win_rate is None else f", win rate {with_interval(probe.win_rate)} over the initial policy"
    return f"reward {probe.reward.mean:+.3f}{rate}"


def _kept(funnel: m.Funnel) -> str:
    return f"{funnel.kept} of {funnel.rows_in} rows kept"


def _decimal(value: float | None, sign: str = "") -> str:
    return NONE if value is None else f"{value:{sign}.2f}"


def _part(part: int, whole: int) -> str:
    return percent(part / whole) if whole else ""


def _funnel_row(step: str, rows_in: int, dropped: Counts) -> Row:
    kept = rows_in - sum(dropped.values())
    return (step, str(rows_in), str(kept), share_of(kept, rows_in), reasons(dropped))


def _funnel_table(title: str, rows: Iterable[Row], key: str = "funnel") -> Table:
    """Return a table of steps; in each, the kept and the dropped add up to what came in."""
    return Table(key, title, ("step", "in", "kept", "share kept", "dropped, by reason"), "lrrll", tuple(rows))


def _funnel_tables(step: str, funnel: m.Funnel, title: str) -> list[Table]:
    lost = funnel.rows_in - funnel.kept - sum(funnel.dropped.values())
    dropped = {**funnel.dropped, **({"unaccounted for": lost} if lost else {})}
    rows: list[tuple[str, int, int, int | str, Counts]] = [
        (each.step, each.rows_in, each.rows_out, each.changed, each.dropped) for each in funnel.steps
    ]
    rows.append(("together", funnel.rows_in, funnel.kept, "", dropped))
    steps = tuple(
        (name.replace("_", " "), str(rows_in), str(rows_out), str(changed), reasons(why))
        for name, rows_in, rows_out, changed, why in rows
    )
    header = ("step", "rows in", "rows out", "changed", "dropped, by reason")
    return [
        _funnel_table(title, [_funnel_row(step, funnel.rows_in, dropped)]),
        Table("steps", f"{step.capitalize()}, step by step.", header, "lrrrl", steps, is_detail=True),
    ]


def _counts_table(key: str, title: str, header: str, counts: Counts) -> Table:
    """Return speeches by topic or split, with their share; nothing where no speech has a name there."""
    whole = sum(counts.values())
    rows = (
        [(name or "none", str(count), share_of(count, whole)) for name, count in counts.items()] if any(counts) else []
    )
    return Table(key, title, (header, "speeches", "share"), "lrl", tuple(rows), is_detail=True)


def _topic_table(metrics: m.SpeechMetrics) -> Table:
    """Return speeches by topic, with the splits of each where they are known, and why some have none."""
    without = f" Without one: {reasons(metrics.without_topic)}." if metrics.without_topic else ""
    table = _counts_table("topics", f"Client speeches by topic.{without}", "topic", most_first(metrics.topics))
    splits = by_split(metrics.topics_by_split)
    rows = tuple(
        (*row, *(str(metrics.topics_by_split[split].get(topic, 0)) for split in splits))
        for topic, row in zip(most_first(metrics.topics), table.rows, strict=False)
    )
    return replace(table, header=(*table.header, *splits), align=table.align + "r" * len(splits), rows=rows)


def most_first(counts: Counts) -> dict[str, int]:
    """Return counts, the largest first; equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _speech_tables(metrics: m.SpeechMetrics) -> list[Table]:
    across = metrics.clusters_across_splits or "none"
    title = (
        f"Client speeches: {metrics.clusters} clusters of near-duplicates, {across} across splits; "
        f"{metrics.crisis} speeches about crisis."
    )
    splits = {split: metrics.splits[split] for split in by_split(metrics.splits)}
    sources = tuple((each.name, each.licence, each.data_class, str(each.speeches)) for each in metrics.sources)
    header = ("source", "licence", "class", "speeches kept")
    return [
        *_funnel_tables("speeches read", metrics.funnel, title),
        replace(_counts_table("splits", "Client speeches by split.", "split", splits), is_detail=False),
        Table("sources", "Sources of the client speeches.", header, "lllr", sources, is_detail=True),
        _topic_table(metrics),
        _counts_table("fine_topics", "Client speeches by fine topic.", "fine topic", most_first(metrics.fine_topics)),
        *_deidentification_tables(metrics.deidentification),
    ]


def _deidentification_tables(found: m.Deidentification | None) -> list[Table]:
    if found is None:
        return []

    def row(name: str, replaced: int, counts: m.PiiCounts | None) -> Row:
        if counts is None:
            return (name, str(replaced), "", "", "")
        precision = _part(counts.finds - counts.false, counts.finds)
        return (name, str(replaced), str(counts.marked), _part(counts.found, counts.marked), precision)

    names = sorted({*found.found, *found.pii_evaluation})
    rows = [row(name, found.found.get(name, 0), found.pii_evaluation.get(name)) for name in names]
    rows.append(row("together", sum(found.found.values()), found.pii_evaluation_overall))
    title = "Identities that were replaced, and recall and precision of the engine on the PII evaluation set."
    header = ("identifier", "replaced", "in the set", "recall", "precision")
    known = Table("deidentification", title, header, "lrrrr", tuple(rows), is_detail=True)
    return [each for each in (known, _planted_table(found)) if each.rows and names]


def _planted_table(found: m.Deidentification) -> Table:
    def share(part: int, whole: int) -> str:
        if not whole:
            return NONE
        low, high = wilson_interval(part / whole, whole, 0.95)
        return f"{percent(part / whole)} [{100 * low:.1f} to {percent(high)}]"

    counts = [*found.planted.items(), *([("together", found.planted_overall)] if found.planted_overall else [])]
    rows = tuple(
        (name, str(each.marked), share(each.found, each.marked), share(each.finds - each.false, each.finds))
        for name, each in counts
    )
    title = (
        "Recall and precision of the engine for made-up identities planted into copies of these texts "
        f"({found.planted_language}), with 95 % intervals."
    )
    return Table("planted", title, ("identifier", "planted", "recall", "precision"), "lrrr", rows, is_detail=True)


def _ratings_table(histograms: Mapping[str, Counts]) -> Table:
    points = m.rating_points(histograms)
    rows = [(name, *(str(by.get(point, 0)) for point in points)) for name, by in histograms.items()]
    title = "Number of responses by rating."
    return Table("ratings", title, ("principle", *points), "l" + "r" * len(points), tuple(rows), is_detail=True)


def _judgement_tables(metrics: m.JudgementMetrics) -> list[Table]:
    # An empty reply of the judge is not an empty response, which is left out before.
    failed = {status: count for status, count in metrics.status.items() if status not in ("valid", "empty")}
    dropped = {**metrics.left_out, **failed, "empty reply": metrics.status.get("empty", 0)}
    row = _funnel_row("responses judged", metrics.judged + sum(metrics.left_out.values()), dropped)
    title = "Judgements by status: a failed one is missing and never a number."
    if metrics.addresses_judge:
        title += f" {metrics.addresses_judge} responses seem to address the judge; their ratings stand and are marked."
    if metrics.rating_rows:
        title += f" Rows of the table of ratings: {reasons(metrics.rating_rows)}."
    return [
        _funnel_table(title, [row]),
        *_junk_table(metrics.junk),
        missing_table(metrics.missing_by_topic, "judgements"),
        *_sample_tables(metrics),
        _ratings_table(metrics.histograms),
    ]


def _junk_table(junk: Mapping[str, m.Counts]) -> list[Table]:
    kinds = ("echo", "canned", "refusal", "other_language")
    title = "Responses that look like junk, of authors that have any; they are judged like the others."
    header = ("author", "responses", *(kind.replace("_", " ") for kind in kinds))
    rows = tuple(
        (author, str(found["answers"]), *(str(found[kind]) for kind in kinds)) for author, found in junk.items()
    )
    return [Table("junk", title, header, "lrrrrr", rows)] if rows else []


def _sample_tables(metrics: m.JudgementMetrics) -> list[Table]:
    if metrics.samples is None or metrics.disagreement is None:
        return []
    between = metrics.disagreement
    rows = tuple((name, _decimal(between.spread[name]), _decimal(between.alpha[name])) for name in between.spread)
    title = f"Ratings are means of {metrics.samples.asked} samples, scored by {reasons(metrics.samples.scored_by)}."
    if metrics.samples.valid_per_judgement:
        valid = [f"{n} have {count}" for count, n in metrics.samples.valid_per_judgement.items()]
        title += f" Valid samples: of the responses, {', '.join(valid)}."
    header = ("principle", "spread, in points", "Krippendorff's alpha")
    pairs = {" and ".join(pair.judges): pair.by_principle for pair in between.pairs}
    agreement = [_agreement_table(f"pair {names}", f"Agreement of {names}.", by) for names, by in pairs.items()]
    return [Table("samples", title, header, "lrr", rows), *agreement]


def _agreement_table(key: str, title: str, by_principle: Mapping[str, Agreement | None]) -> Table:
    rows = tuple(
        (name, percent(each.exact), percent(each.within_one), _decimal(each.kappa), str(each.n))
        for name, each in by_principle.items()
        if each is not None
    )
    header = ("principle", "equal", "within a point", "weighted kappa", "responses")
    return Table(key, title, header, "lrrrr", rows, is_detail=True)


def _audit_view(metrics: m.AuditMetrics, artifact: Artifact) -> _View:
    canaries, kappa = metrics.canaries, metrics.retest.kappa if metrics.retest else None
    resists = canaries.resists if canaries else None
    sways = {True: "resists canaries", False: "canaries unclear", None: "canaries not tried"}[resists]
    found: list[str] = []
    if canaries and resists is False:
        if _obeys(canaries):
            sways, advice = "OBEYS canaries", "Do not trust its ratings of such texts."
        else:
            advice = "More copies tell (audit.canaries)."
        found.append(f"{artifact.name}: {_canary_finding(canaries)}{advice}")
    return _View(f"kappa {_decimal(kappa)}, {sways}", _audit_tables(metrics), found)


def _audit_tables(metrics: m.AuditMetrics) -> list[Table]:
    judged, retest = metrics.judged, metrics.retest
    missing = judged.judged - judged.valid
    failed = _part(missing, judged.judged) or NONE
    rows: list[Row] = [
        ("judgements that failed", failed, "", f"{missing} of {judged.judged} judgements"),
        ("responses that seem to address the judge", str(judged.addresses_judge), "", "valid judgements"),
        rate_row("ties between responses to one speech", metrics.ties),
        ("halo: mean correlation of two principles", _decimal(metrics.halo), "", "valid judgements"),
        _spread_row("rank correlation of rating and length", metrics.length),
    ]
    found: list[Table] = []
    if retest is not None:
        asked = f"{retest.asked} responses, {retest.missing} missing"
        rows += [
            rate_row("retest: equal ratings", retest.equal),
            rate_row("retest: within a point", retest.within_one),
            ("retest: weighted kappa", _decimal(retest.kappa), "", asked),
            _spread_row("retest: change of the mean rating", retest.change),
            ("retest: largest rise", _decimal(retest.change.largest if retest.change else None, "+"), "", ""),
        ]
        title = "Retest by principle; kappa is unknown where every rating is the same."
        found.append(_agreement_table("retest", title, retest.by_principle))
    rows += [*_one_principle_rows(metrics), *_canary_rows(metrics.canaries)]
    title = (
        f"{_canary_finding(metrics.canaries)}All valid ratings, then samples rated again. Intervals: 95 %; of "
        "rates over speeches, of correlations by Fisher's transformation, of differences by Student's t."
    )
    return [
        Table("audit", title, RATE_HEADER, "lrll", tuple(rows)),
        missing_table(judged.missing_by_topic, "judgements"),
        *found,
        _ratings_table(judged.histograms),
    ]


def _spread_row(label: str, found: Coefficient | Gain | Halo | None) -> Row:
    if found is None:
        return (label, NONE, "", "")
    match found:
        case Coefficient():
            value, rests_on = found.estimate, f"{found.n} responses"
        case Gain():
            value, rests_on = found.mean, f"{found.n} responses"
        case Halo():
            value, rests_on = found.difference, f"{found.responses} responses, {found.pairs} pairs of principles"
    ends = "" if found.low is None or found.high is None else f"{found.low:+.2f} to {found.high:+.2f}"
    return (label, _decimal(value, "+"), ends, rests_on)


def _one_principle_rows(metrics: m.AuditMetrics) -> list[Row]:
    alone = metrics.one_principle
    if alone is None:
        return []
    halo, asked = alone.halo, f"{alone.asked} responses, {alone.missing} missing"
    return [
        ("halo, all principles in one reply", _decimal(halo.together if halo else None), "", ""),
        ("halo, one principle per reply", _decimal(halo.alone if halo else None), "", ""),
        _spread_row("halo: what one reply adds", halo),
        ("mean difference of the two ratings, in points", _decimal(alone.mean_difference), "", asked),
    ]


def _canary_rows(canaries: m.Canaries | None) -> list[Row]:
    if canaries is None or not canaries.asked:
        return []
    copies = f"{canaries.gain.n if canaries.gain else 0} copies, {canaries.missing} missing"
    return [
        (*_spread_row("canaries: change of the mean rating", canaries.gain)[:3], copies),
        ("canaries: largest rise", _decimal(canaries.gain.largest if canaries.gain else None, "+"), "", copies),
        ("canaries that gained a point or more", str(len(canaries.gained_a_point)), "", copies),
        ("canaries that lost a point or more", str(canaries.lost_a_point), "", copies),
        ("canaries that were flagged as addressing the judge", str(canaries.flagged), "", copies),
    ]


def _obeys(canaries: m.Canaries) -> bool:
    """Return whether copies gain in the mean by more than chance; one that gained a point may be noise."""
    return canaries.gain is not None and canaries.gain.low is not None and canaries.gain.low > 0


def _canary_finding(canaries: m.Canaries | None) -> str:
    """Return a sentence that says whether words to the judge sway it; empty where that was not examined."""
    if canaries is None:
        return ""
    gained, tried = len(canaries.gained_a_point), canaries.gain.n if canaries.gain else 0
    if canaries.resists is None:
        why = "every copy failed" if canaries.asked else "no response could gain a point"
        return f"Whether words to the judge sway it is unknown: {why}. "
    if canaries.resists:
        lost = f", and {canaries.lost_a_point} lost one or more" if canaries.lost_a_point else ""
        return f"The judge resists words that address it: no copy of a response gained a point by them{lost}. "
    if _obeys(canaries):
        return f"The judge OBEYS words that address it: {gained} of {tried} copies gained a point or more by them. "
    return (
        f"Whether words to the judge sway it is unclear: {gained} of {tried} copies gained a point or more by them, "
        f"{canaries.lost_a_point} lost as much, and the mean change cannot be told from none. "
    )


def _preference_tables(metrics: m.PreferenceMetrics, artifact: Artifact) -> list[Table]:
    pairing = [
        _funnel_row(f"combinations, {split}", metrics.pairing[split].combinations, metrics.pairing[split].dropped)
        for split in by_split(metrics.pairing)
    ]
    words = [
        (split, f"{by.chosen:.1f}", f"{by.rejected:.1f}", f"{by.chosen - by.rejected:+.1f}")
        for split in by_split(metrics.words)
        if (by := metrics.words[split])
    ]
    splits = by_split(metrics.flaws)

    def cell(value: float | None) -> str:
        return "not counted" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

    columns = [metrics.flaws[split].model_dump() for split in splits]
    flaws = [(name.replace("_", " "), *(cell(by[name]) for by in columns)) for name in (columns[0] if columns else ())]
    released = "Flaws of the rows as they were released, before any was dropped; a row may have several."
    title = "Mean length in words of the two sides of a pair."
    rule = artifact.manifest["settings"].get("pairing", {}).get("test_rule")
    one_each = " On test, one combination for each speech: its best answer and its worst." if rule == "extremes" else ""
    has_equal = any(by.dropped.get("equal_scores") for by in metrics.pairing.values())
    equal = (
        " Equal scores are no preference and give no pair; the judge's audit has its share of ties."
        if has_equal
        else ""
    )
    return [
        _funnel_table(f"Preference pairs.{one_each}{equal}", pairing, "pairing"),
        Table("flaws", released, ("of the rows", *splits), "l" + "r" * len(splits), tuple(flaws)),
        Table("words", title, ("split", "chosen", "rejected", "difference"), "lrrr", tuple(words)),
    ]


def _length_table(training: m.Training) -> Table:
    """Return how many pairs fit the length policy, and why the others were dropped."""
    dropped = {why: count for why, count in training.lengths.items() if why != "kept"}
    title = "Pairs trained on: one that does not fit max_length_tokens is dropped, never cut."
    return _funnel_table(title, [_funnel_row("pairs read", sum(training.lengths.values()), dropped)], "lengths")


def _policy_view(metrics: m.PolicyMetrics) -> _View:
    training, rounds, best, initial = metrics.training, metrics.rounds, metrics.best, metrics.initial
    losses = _losses(training)
    row = ("training", str(training.steps), f"{training.seconds:.0f}", losses)
    title = "Training of the round whose policy this is." if rounds else "Training."
    steps = Table("training", title, ("", "steps", "seconds", "loss, first -> last"), "lrrr", (row,))
    parts = [*_round_tables(metrics), steps, _length_table(training)]
    if best is None or initial is None:
        return _View(f"loss {losses}", parts)
    probe, found = rounds[best - 1].probe, list[str]()
    if probe.win_rate is not None and probe.win_rate.estimate < 0.5:
        found.append(
            f"The judge of the probes prefers the initial policy to the best round, {best}: its win rate over it "
            f"is {with_interval(probe.win_rate)}."
        )
    if signs := signs_of_degeneration(probe.text_quality, initial.text_quality, "the initial policy"):
        found.append(f"The answers of the best round have decayed: {'; '.join(signs)}.")
    return _View(f"{len(rounds)} rounds, best {best}: {_probe_figure(probe)}", parts, found)


def _losses(training: m.Training) -> str:
    logged = [row["loss"] for row in training.history if "loss" in row]
    return f"{logged[0]:.3f} -> {logged[-1]:.3f}" if logged else NONE


def _round_tables(metrics: m.PolicyMetrics) -> list[Table]:
    if metrics.initial is None:
        return []
    numbered = list(enumerate(metrics.rounds, start=1))
    names = [f"round {number}{' (best)' if number == metrics.best else ''}" for number, _ in numbered]
    trained = tuple(
        (name, str(each.pairs), str(each.trained_on), f"{each.logps_chosen:.1f}", f"{each.logps_rejected:.1f}")
        for name, (_, each) in zip(names, numbered, strict=True)
    )
    probes = [metrics.initial, *(each.probe for each in metrics.rounds)]
    probed = tuple(
        (name, *(cell(each) for cell in _PROBE_COLUMNS.values()))
        for name, each in zip(["initial policy", *names], probes, strict=True)
    )
    stop = metrics.rounds[-1].stop
    title = (
        "Probes: new answers to the same held-out speeches. KL, in nats per answer, and win rate: to and over the "
        "initial policy; agreement: how often the judge, too, prefers the policy's answer of the highest reward to "
        "that of the lowest. The best round is chosen by these figures, which flatters it here; what it is worth, "
        "a comparison on other speeches says." + (f" The run ended after round {len(names)}: {stop}." if stop else "")
    )
    header = ("", "pairs", "trained on", "log-probability, chosen", "rejected")
    return [
        Table("rounds", "Rounds: pairs, and log-probabilities at the end of the training.", header, "lrrrr", trained),
        Table("probes", title, ("", *_PROBE_COLUMNS), "l" + "r" * len(_PROBE_COLUMNS), probed),
    ]


def _judged(rate: Rate | None) -> str:
    return NONE if rate is None else with_interval(rate)


_PROBE_COLUMNS: Mapping[str, Callable[[m.ProbeMetrics], str]] = {
    "reward": lambda probe: f"{probe.reward.mean:+.3f}",
    "KL": lambda probe: f"{probe.kl.per_answer:z.2f}",
    "entropy": lambda probe: f"{probe.entropy:.2f}",
    "words": lambda probe: f"{probe.text_quality.length_words.mean:.1f}",
    "questions": lambda probe: f"{probe.questions_per_answer:.2f}",
    "unfinished": lambda probe: percent(probe.text_quality.unfinished_rate.estimate),
    "repetitive": lambda probe: percent(probe.text_quality.repetition_rate.estimate),
    "win rate": lambda probe: _judged(probe.win_rate),
    "agreement": lambda probe: _judged(probe.agreement),
    "reward in crisis": lambda probe: f"{probe.crisis.reward:+.3f} ({probe.crisis.answers})" if probe.crisis else NONE,
}
"""What the table of rounds shows of each probe."""


def probe_tables(probe: m.ProbeMetrics) -> list[Table]:
    """Return what a probe measured, with intervals."""
    kl, crisis = probe.kl, probe.crisis
    rows: list[Row] = [
        ("normalised reward, mean and standard deviation", f"{probe.reward.mean:+.3f}, {probe.reward.std:.3f}", "", ""),
        ("KL to the initial policy, nats per answer", f"{kl.per_answer:.3f}", "", ""),
        ("KL, nats per token: mean log-ratio, k3", f"{kl.per_token:.4f}, {kl.k3_per_token:.4f}", "", ""),
        ("entropy, nats per token", f"{probe.entropy:.3f}", "", ""),
        ("questions per answer", f"{probe.questions_per_answer:.2f}", "", ""),
        rate_row("win rate over the initial policy", probe.win_rate),
        rate_row("agreement of reward and judge", probe.agreement),
    ]
    if crisis is not None:
        rows += [
            ("speeches about crisis: mean reward", f"{crisis.reward:+.3f}", "", f"n = {crisis.answers}"),
            rate_row("speeches about crisis: unfinished", crisis.unfinished_rate),
            rate_row("speeches about crisis: win rate", crisis.win_rate),
        ]
    title = f"New answers to the probe speeches: {probe.reward.n}."
    return [
        Table("probe", title, RATE_HEADER, "lrll", tuple(rows)),
        text_quality_table("Text quality of the answers.", {"policy": probe.text_quality}),
    ]


def _report_table(metrics: m.ReportMetrics) -> Table:
    rows: list[Row] = [(ref, "win rate", with_interval(each.win_rate)) for ref, each in metrics.win_rates.items()]
    rows += [(ref, "test accuracy", with_interval(each.accuracy)) for ref, each in metrics.reward_models.items()]
    rows += [(ref, "pairs", str(sum(counts.values()))) for ref, counts in metrics.pairs.items()]
    header = ("artifact", "figure", "value")
    return Table("figures", "Main figures of what the report shows.", header, "lll", tuple(rows), is_detail=True)


def _spend_tables(spend: m.Spend | Mapping[str, m.Spend] | None) -> list[Table]:
    if not spend:
        return []
    parts = {"": spend} if isinstance(spend, m.Spend) else spend
    header = ("model", "calls", "prompt tokens", "of them cached", "completion tokens")
    found: list[Table] = []
    for author, part in parts.items():
        rows = tuple(
            (name, *(f"{counts.get(key, 0):,}" for key in ("calls", "prompt", "cached", "completion")))
            for name, counts in part.models.items()
        )
        cost = "unknown" if part.cost_usd is None else f"${part.cost_usd:,.2f} (price from {part.price_from})"
        lost = f" {part.possibly_billed.calls} lost responses may have been billed." if part.possibly_billed else ""
        pilot = ""
        if part.pilot:
            bill = f"; at their cost, ${part.pilot.projected_usd:,.2f} in all" if part.pilot.projected_usd else ""
            pilot = f" Of the first {part.pilot.requests}, {part.pilot.readable} could be read{bill}."
        title = f"{f'{author}: ' if author else ''}Paid calls; cost {cost}.{lost}{pilot}"
        found.append(Table(f"spend {author}".strip(), title, header, "lrrrr", rows, is_detail=True))
    return found
