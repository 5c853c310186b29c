"""Tables and warnings of comparisons: win rates whole and by slice, what is missing, and the quality of the answers."""

from collections.abc import Mapping

from psychocounsel.evaluation.length_control import MIN_SIDE_SHARE
from psychocounsel.evaluation.statistics import MIN_SLICE
from psychocounsel.evaluation.text_quality import BROKEN, signs_of_degeneration
from psychocounsel.reporting.tables import (
    NONE,
    RATE_HEADER,
    Row,
    Table,
    coefficient_row,
    draws_each,
    interval,
    over,
    percent,
    rate_row,
    reasons,
    share_of,
)
from psychocounsel.store import metrics as m
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.shapes import LengthControlled, TextQuality
from psychocounsel.types import Rate

MAX_FLIPS = 0.25
FIRST_PLACE = (0.4, 0.6)
"""A judge with more flips, or another share of wins for the first answer, is named before its win rate."""
FEWEST_DECIDED, MANY_IDENTICAL, MANY_MISSING = 0.1, 0.05, 0.1
"""Shares of the comparisons: the judge prefers a side in both orders, both answers are one text, there is no result."""


def comparison_warnings(metrics: m.ComparisonMetrics, artifact: Artifact) -> list[str]:
    """Return what a reader must know before the numbers of a comparison."""
    judges = metrics.judges
    found: list[str] = []
    if (given := confidence(artifact)) != "95 %":
        found.append(f"The intervals are of {given} and not 95 %: so is what is called better, worse or different.")
    if judges.same_family:
        found.append(
            f"The judge of the labels ({', '.join(judges.labels)}) and the judge of the win rate "
            f"({judges.evaluation}) are of one family: the win rate says how well the policy learned that "
            "judge's taste, and is no independent evidence of quality."
        )
    if judges.own_family:
        sides = " and ".join(f"the {side} ({', '.join(judges.judged[side])})" for side in judges.own_family)
        found.append(
            f"The judge of the win rate ({judges.evaluation}) is of one family with {sides}, whose answers "
            "it compares: models tend to favour their own (arXiv 2404.13076)."
        )
    worst, best = metrics.missing_as_losses, metrics.missing_as_wins
    may_leave = worst.estimate < metrics.win_rate.low or best.estimate > metrics.win_rate.high
    if metrics.missing > MANY_MISSING * worst.n or may_leave:
        found.append(
            f"{metrics.missing} of {worst.n} comparisons have no result, and which ones may depend on the answers: if "
            f"all were lost or won, the win rate would be {100 * worst.estimate:.1f} to {percent(best.estimate)}."
        )
    if metrics.identical > MANY_IDENTICAL * metrics.answered_by_both:
        found.append(
            f"In {metrics.identical} of {metrics.answered_by_both} comparisons both answers are the same text: what "
            "the judge says of them is noise."
        )
    decided = metrics.wins + metrics.losses
    if decided < FEWEST_DECIDED * metrics.win_rate.n:
        found.append(
            f"The judge prefers a side, whatever the order, in only {decided} of {metrics.win_rate.n} comparisons: a "
            "win rate near 50 % then says that it tells no difference, not that there is none."
        )
    if metrics.position_inconsistent_rate.estimate > MAX_FLIPS:
        found.append(
            f"{percent(metrics.position_inconsistent_rate.estimate)} of the verdicts flipped with the order of the "
            "answers: the judge's noise pulls the win rate towards 50 %."
        )
    if not FIRST_PLACE[0] <= metrics.first_position_rate.estimate <= FIRST_PLACE[1]:
        found.append(
            f"The answer shown first won {percent(metrics.first_position_rate.estimate)} of the comparisons: the judge "
            "goes by position, which pulls the win rate towards 50 %."
        )
    lengths = metrics.length_controlled
    fewer, more = sorted((lengths.shorter, lengths.longer))
    if (without := no_rate_at_equal_length(metrics)) and fewer < MIN_SIDE_SHARE <= more:
        found.append(f"There is {without}. Whether the judge goes by more than length cannot be told.")
    ours, theirs = metrics.policy_text_quality, metrics.reference_text_quality
    if signs := signs_of_degeneration(ours, theirs):
        found.append(f"The policy's answers have decayed: {'; '.join(signs)}. A win rate does not show that.")
    if signs := signs_of_degeneration(theirs, ours, "the policy", BROKEN):
        found.append(f"The reference's answers are broken. {'; '.join(signs)}. A win over them says little.")
    return found


def no_rate_at_equal_length(metrics: m.ComparisonMetrics) -> str:
    """Return why a win rate has none at equal length beside it, with the median lengths; empty where it has one."""
    if metrics.length_controlled.rate is not None:
        return ""
    ours, theirs = (each.length_words.median for each in (metrics.policy_text_quality, metrics.reference_text_quality))
    reason = metrics.length_controlled.reason
    return f"no rate at equal length: {reason} (median {ours:.0f} words against {theirs:.0f})"


def comparison_tables(metrics: m.ComparisonMetrics, artifact: Artifact) -> list[Table]:
    """Return the tables of a comparison, the win rates first."""
    rows = (
        rate_row("win rate, raw", metrics.win_rate),
        rate_row("win rate where both orders agree on a winner", metrics.win_rate_decided),
        *_worst_case_rows(metrics),
        *_length_rows(metrics.length_controlled),
        rate_row("position-inconsistent: the verdict flipped with the order", metrics.position_inconsistent_rate),
        rate_row("share of comparisons won by the first position", metrics.first_position_rate),
        coefficient_row(
            "agreement of the two orders beyond chance, kappa", metrics.order_kappa, "all verdicts are the same"
        ),
    )
    outcomes = {name: getattr(metrics, name) for name in ("wins", "ties", "losses", "missing")}
    counts = ", ".join(f"{count} {name}" for name, count in outcomes.items())
    judges = metrics.judges
    title = (
        f"Policy over reference{_constraint(metrics)}: {counts}; together {metrics.speeches} "
        f"speeches{draws_each(metrics.draws)}. Ties count half. Judge: {judges.evaluation}; of the "
        f"labels: {', '.join(judges.labels) or 'none in the lineage'}. "
        f"Intervals: {confidence(artifact)}, over speeches."
        + ("" if metrics.leakage else " Whether the policy was trained on these speeches is not known.")
    )
    unanswered = tuple((side, reasons(by)) for side, by in metrics.missing_answers.items() if by)
    why = "Answers that are missing: nothing to compare, and a win for neither side."
    sides = {"policy": metrics.policy_text_quality, "reference": metrics.reference_text_quality}
    lengths = shortest_first(metrics.by_speech_length)
    return [
        Table("rates", title, RATE_HEADER, "lrll", rows),
        Table("unanswered", why, ("side", "answers, by reason"), "ll", unanswered),
        missing_table(metrics.missing_by_topic, "comparisons"),
        _slice_table("criteria", "principle", metrics.by_criterion, metrics.draws),
        _slice_table("topics", "topic", {"speeches about crisis": metrics.crisis, **metrics.by_topic}, metrics.draws),
        _slice_table("lengths", "the number of words that the client says", lengths, metrics.draws),
        text_quality_table(f"Text quality of the answers: share of answers with its interval.{_drift(metrics)}", sides),
        *([_vote_table(metrics.votes)] if metrics.votes else []),
    ]


def _drift(metrics: m.ComparisonMetrics) -> str:
    if metrics.kl is None:
        return ""
    kl = metrics.kl
    return (
        f" Mean of log(policy / reference) over the policy's answers: {kl.per_answer:+.2f} nats per answer, "
        f"{kl.per_token:+.3f} per token. It estimates the KL divergence if they were sampled at temperature 1; below, "
        "it may be negative."
    )


def _constraint(metrics: m.ComparisonMetrics) -> str:
    if metrics.constraint is None:
        return ""
    words = [each.length_words.mean for each in (metrics.policy_text_quality, metrics.reference_text_quality)]
    return (
        f", with “{metrics.constraint.line}” to the {' and the '.join(metrics.constraint.sides)} (mean length "
        f"{words[0]:.0f} and {words[1]:.0f} words)"
    )


def _worst_case_rows(metrics: m.ComparisonMetrics) -> list[Row]:
    if not metrics.missing:
        return []
    worst, best = metrics.missing_as_losses, metrics.missing_as_wins
    bounds = f"{100 * worst.estimate:.1f} to {percent(best.estimate)}"
    ends = f"{100 * worst.low:.1f} to {percent(best.high)}"
    return [("win rate if all that is missing were lost, or won", bounds, ends, f"n = {worst.n}")]


def _length_rows(controlled: LengthControlled) -> list[Row]:
    label = "win rate, length-controlled"
    if controlled.rate is None or controlled.length_effect is None:
        return [(label, NONE, "", controlled.reason)]
    effect = controlled.length_effect
    sides = f"shorter in {percent(controlled.shorter)}, longer in {percent(controlled.longer)}"
    slope = (f"{effect.estimate:+.2f}", f"{effect.low:+.2f} to {effect.high:+.2f}", sides)
    return [rate_row(label, controlled.rate), ("effect of length on the log-odds of a win", *slope)]


def shortest_first(by_length: Mapping[str, Rate | None]) -> dict[str, Rate | None]:
    """Return the win rates by the length of the speech, `30 to 70` words, sorted."""
    return dict(sorted(by_length.items(), key=lambda each: int(each[0].split()[0])))


def _slice_table(key: str, slices: str, rates: Mapping[str, Rate | None], draws: int) -> Table:
    rows = tuple(
        (name or "(no topic)", NONE, "", over(rate))
        if rate is not None and rate.n < MIN_SLICE
        else rate_row(name or "(no topic)", rate)
        for name, rate in rates.items()
    )
    of_each = f"{draws} comparisons" if draws > 1 else "one comparison"
    title = f"Win rate by {slices}; {of_each} of each speech. A slice of fewer than {MIN_SLICE} shows its size only."
    return Table(key, title, RATE_HEADER, "lrll", rows, is_detail=True)


def _vote_table(votes: m.Replies) -> Table:
    title = f"Votes: {votes.asked}; unanimous in {votes.unanimous} of {votes.comparisons} valid comparisons."
    rows = tuple((judge, reasons(status)) for judge, status in votes.status.items())
    return Table("votes", title, ("judge", "votes, by status"), "ll", rows, is_detail=True)


def confidence(artifact: Artifact) -> str:
    """Return the confidence of the intervals of a comparison, as `95 %`."""
    return f"{100 * float(artifact.manifest['settings'].get('confidence', 0.95)):g} %"


def text_quality_table(title: str, sides: Mapping[str, TextQuality]) -> Table:
    """Return the signs of degeneration in the answers of each side."""
    labels = {
        "repetition_rate": "repeats itself",
        "unfinished_rate": "unfinished",
        "empty_rate": "empty",
        "distinct_4gram_ratio": "distinct runs of four words, mean ratio",
        "copied_rate": "copies a training answer (16 words in a row)",
    }
    patterns = {
        "diagnoses": "diagnoses (by English words)",
        "medicates": "orders medication (by English words)",
        "flatters": "flatters or agrees at any price (by English words)",
        "refuses": "refuses to talk (by English words)",
        "addresses_judge": "addresses the judge (by English words)",
        "canned": "gives its text to three speeches or more",
        "echo": "echoes the speech",
        "other_language": "in another language than the speeches",
    }

    def cell(rate: Rate | None) -> str:
        return NONE if rate is None else f"{percent(rate.estimate)} ({interval(rate)})"

    rows: list[Row] = [
        (label, *(cell(getattr(quality, name)) for quality in sides.values())) for name, label in labels.items()
    ]
    rows += [
        (label, *(cell(quality.pattern_rates.get(name)) for quality in sides.values()))
        for name, label in patterns.items()
        if any(name in quality.pattern_rates for quality in sides.values())
    ]
    lengths = [quality.length_words for quality in sides.values()]
    words = [f"{each.mean:.1f}, {each.median:.1f}, {each.p95:.1f}" for each in lengths]
    rows.append(("length in words: mean, median, 95th percentile", *words))
    return Table("text_quality", title, ("figure", *sides), "l" + "r" * len(sides), tuple(rows), is_detail=True)


def missing_table(shares: Mapping[str, m.MissingShare], what: str) -> Table:
    """Return the topics of which something is missing: refusals are not missing at random."""
    rows = [
        (topic or "(no topic)", str(share.missing), str(share.total), share_of(share.missing, share.total))
        for topic, share in shares.items()
        if share.missing
    ]
    title = f"Missing {what} by topic of the speech; topics that are not listed miss none."
    return Table("missing_by_topic", title, ("topic", "missing", "of", "share missing"), "lrrl", tuple(rows))
