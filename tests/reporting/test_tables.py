"""Tables of typed metrics, their renderers, key metrics and warnings."""

from typing import Any

import pytest
from report_runs import artifact, audit_metrics, comparison_metrics, rate, text_quality, whole_run, with_metrics

from psychocounsel.reporting.artifact_tables import key_metric, row_count, summary, tables, warnings_of
from psychocounsel.reporting.tables import NONE, Share, Table, as_markdown, as_text, differences
from psychocounsel.store.artifacts import Artifact

TABLE = Table(
    "t", "Some rows.", ("name", "count", "share"), "lrl", (("a|b", "1", Share(0.25, "25 %")), ("c", "20", ""))
)


def audit(**changes: Any) -> Artifact:
    return artifact("audits", "sample", audit_metrics(**changes))


def canaries(**changes: Any) -> dict[str, Any]:
    return {**audit_metrics()["canaries"], **changes}


def rows(found: Artifact, key: str) -> dict[str, tuple[str, ...]]:
    (table,) = [each for each in tables(found) if each.key == key]
    return {
        str(label): tuple(str(cell).replace("\N{NO-BREAK SPACE}", " ") for cell in cells)
        for label, *cells in table.rows
    }


def test_text_has_columns_of_equal_width() -> None:
    assert as_text(TABLE).splitlines() == ["Some rows.", "  name  count  share", "  a|b       1  25 %", "  c        20"]


WIDE = Table(
    "w",
    "A title of some words.",
    ("figure", "estimate", "over"),
    "lrl",
    (("where both orders agree on a winner", "71.5 %", "n = 737"), ("raw", "70.6 %", "n = 768")),
)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            50,
            [
                "A title of some words.",
                "  figure                         estimate  over",
                "  where both orders agree on a     71.5 %  n = 737",
                "    winner",
                "  raw                              70.6 %  n = 768",
            ],
        ),
        (
            20,
            [
                *("A title of some", "words."),
                *("  where both orders", "  agree on a winner", "    estimate: 71.5 %", "    over: n = 737"),
                *("  raw", "    estimate: 70.6 %", "    over: n = 768"),
            ],
        ),
    ],
)
def test_text_fits_a_narrow_terminal(width: int, lines: list[str]) -> None:
    assert as_text(WIDE, width).splitlines() == lines
    assert as_text(TABLE, width) == as_text(TABLE)


def test_markdown_escapes_cells_and_counts_what_it_cuts() -> None:
    assert as_markdown(TABLE, max_rows=1).splitlines() == [
        "| name | count | share |",
        "|---|---:|---|",
        "| a\\|b | 1 | 25 % |",
        "| and 1 more |  |  |",
    ]


def test_differences_are_the_cells_that_differ() -> None:
    other = Table("t", "", TABLE.header, "lrl", (("a|b", "2", Share(0.5, "25 %")),))
    found = differences([TABLE], [other], ("left", "right"))
    assert found.header == ("metric", "left", "right")
    absent = "\N{EN DASH}"
    assert found.rows == (("a|b: count", "1", "2"), ("c: count", "20", absent), ("c: share", "", absent))


def test_every_kind_has_tables_a_key_metric_and_a_summary() -> None:
    for each in whole_run(2).artifacts:
        found = tables(each)
        assert found
        assert all(len(row) == len(table.header) == len(table.align) for table in found for row in table.rows)
        assert len({table.key for table in found}) == len(found)
        assert all(table.sources == (each,) for table in found)
        assert key_metric(each)
        assert summary(each).count("\n") < 40


def test_topics_have_their_splits_and_why_some_speeches_have_none() -> None:
    found = next(each for each in whole_run(2).artifacts if each.kind == "speeches")
    by_split = {"train": {"": 1, "grief": 5}, "dev": {}, "test": {"grief": 2}}
    told = {"topics": {"": 1, "grief": 7}, "topics_by_split": by_split, "without_topic": {"no_cue": 1}}
    changed = with_metrics(found, **told)
    (table,) = [each for each in tables(changed) if each.key == "topics"]
    assert [(row[:2], row[3:]) for row in table.rows] == [
        (("grief", "7"), ("5", "0", "2")),
        (("none", "1"), ("1", "0", "0")),
    ]
    assert "1 no cue" in table.title


@pytest.mark.parametrize(
    ("kind", "name", "metric"),
    [
        ("speeches", "sample", "160 of 170 rows kept"),
        ("judgements", "sample", "635 of 636 valid"),
        ("preferences", "sample", "620 pairs"),
        ("reward-models", "sample", "test accuracy 81.4 % [71.4 to 91.4 %]"),
        ("policies", "tiny-dpo", "loss 0.659 -> 0.155"),
        (
            "policies",
            "tiny-online",
            "3 rounds, best 3: reward +0.600, win rate 80.0 % [70.0 to 90.0 %] over the initial policy",
        ),
        ("comparisons", "dpo", "win rate 72.0 % [62.0 to 82.0 %]"),
    ],
)
def test_key_metrics(kind: str, name: str, metric: str) -> None:
    (found,) = [each for each in whole_run(3).artifacts if (each.kind, each.name) == (kind, name)]
    assert key_metric(found).replace("\N{NO-BREAK SPACE}", " ") == metric


def test_side_tables_are_no_rows_of_an_artifact() -> None:
    counts = {"speeches.parquet": 192, "rows.parquet": 200, "samples.parquet": 9, "votes.parquet": 9}
    assert row_count(artifact("speeches", "s", {}, rows=counts)) == 192


def test_every_figure_of_an_audit_has_its_interval_and_what_it_rests_on() -> None:
    found = rows(audit(), "audit")
    assert found["judgements that failed"] == ("0.2 %", "", "1 of 636 judgements")
    assert found["responses that seem to address the judge"][0] == "2"
    assert found["ties between responses to one speech"][2] == "n = 950, 0 missing"
    assert found["rank correlation of rating and length"] == ("+0.21", "+0.13 to +0.28", "635 responses")
    assert found["retest: equal ratings"][2] == "n = 49, 1 missing"
    assert found["retest: change of the mean rating"] == ("-0.01", "-0.03 to +0.27", "19 responses")
    assert found["halo: what one reply adds"] == ("+0.23", "+0.08 to +0.38", "18 responses, 21 pairs of principles")
    assert found["canaries: largest rise"] == ("+0.57", "", "19 copies, 1 missing")
    assert found["canaries that gained a point or more"][0] == "0"
    assert rows(audit(), "retest")["empathy"] == ("82.0 %", "100.0 %", "0.93", "49")
    assert rows(audit(), "retest")["safety"][2] == "\N{EN DASH}"
    # Parts that were left out have no row.
    found = rows(audit(**dict.fromkeys(("retest", "one_principle", "canaries", "length", "ties", "halo"))), "audit")
    assert not [label for label in found if label.startswith(("retest", "canaries", "halo, "))]
    assert found["ties between responses to one speech"][0] == "\N{EN DASH}"


@pytest.mark.parametrize(("confidence", "named"), [(0.95, False), (0.8, True), (0.99, True)])
def test_verdicts_of_another_confidence_than_usual_say_so(confidence: float, named: bool) -> None:
    compared = artifact("comparisons", "dpo", comparison_metrics(), settings={"confidence": confidence})
    said = [each for each in warnings_of(compared) if f"are of {100 * confidence:g} % and not 95 %" in each]
    assert len(said) == named


SWAYED = {"gained_a_point": ["a1", "b2"], "lost_a_point": 1, "resists": False}


def gain(low: float | None) -> dict[str, Any]:
    return {"n": 19, "mean": 0.3, "low": low, "high": low and 0.6, "largest": 1.0}


@pytest.mark.parametrize(
    ("found", "warnings", "words"),
    [
        (canaries(lost_a_point=0), 0, "no copy of a response gained a point by them. "),
        (canaries(lost_a_point=7), 0, "no copy of a response gained a point by them, and 7 lost one or more. "),
        (canaries(**SWAYED, gain=gain(0.2)), 1, "OBEYS words that address it: 2 of 19 copies"),
        (canaries(**SWAYED, gain=gain(0.0)), 1, "it is unclear: 2 of 19 copies gained a point or more by them, 1 lost"),
        (canaries(**SWAYED, gain=gain(None)), 1, "it is unclear: 2 of 19 copies"),
        (canaries(missing=20, gain=None, resists=None), 0, "unknown: every copy failed"),
        (canaries(asked=0, missing=0, gain=None, resists=None), 0, "unknown: no response could gain a point"),
    ],
)
def test_whether_canaries_sway_the_judge_comes_first(found: dict[str, Any], warnings: int, words: str) -> None:
    assert len(warnings_of(audit(canaries=found))) == warnings
    assert words in summary(audit(canaries=found)).splitlines()[warnings]


def rate_of(estimate: float, n: int = 40) -> dict[str, float]:
    return {"estimate": estimate, "low": max(0.0, estimate - 0.1), "high": min(1.0, estimate + 0.1), "n": n}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_inconsistent_rate": rate_of(0.26)}, "flipped with the order"),
        ({"position_inconsistent_rate": rate_of(1.0), "first_position_rate": rate_of(1.0)}, "shown first won 100.0"),
        ({"first_position_rate": rate_of(0.39)}, "shown first won 39.0"),
        ({"position_inconsistent_rate": rate_of(0.25), "first_position_rate": rate_of(0.6)}, None),
    ],
)
def test_a_judge_of_positions_is_named_before_its_win_rate(changes: dict[str, Any], words: str | None) -> None:
    found = artifact("comparisons", "c", comparison_metrics(**changes))
    named = [
        line
        for line in summary(found).replace("\N{NO-BREAK SPACE}", " ").splitlines()
        if "order" in line or "first" in line
    ]
    assert (words is not None) == named[0].startswith("! ")
    assert words is None or any(line.startswith("! ") and words in line for line in named)


@pytest.mark.parametrize(("worst", "best", "is_named"), [(0.61, 0.79, False), (0.59, 0.7, True), (0.7, 0.81, True)])
def test_what_is_missing_is_named_where_it_may_move_the_rate_out_of_its_interval(
    worst: float, best: float, is_named: bool
) -> None:
    bounds = {"missing_as_losses": rate_of(worst, n=1000), "missing_as_wins": rate_of(best, n=1000)}
    metrics = comparison_metrics(win_rate=rate_of(0.7, n=960), missing=40, **bounds)
    named = [line for line in warnings_of(artifact("comparisons", "c", metrics)) if "40 of 1000" in line]
    assert bool(named) == is_named


def test_what_cannot_be_measured_has_a_reason_and_no_number() -> None:
    controlled = {"rate": None, "length_effect": None, "sigma": None, "shorter": 0.0, "longer": 1.0, "reason": "why"}
    small = {"grief": rate_of(0.7, n=19), "sleep": rate_of(0.7, n=20)}
    worst = {"missing": 3, "missing_as_losses": rate_of(0.6), "missing_as_wins": rate_of(0.7)}
    found = artifact("comparisons", "c", comparison_metrics(length_controlled=controlled, by_topic=small, **worst))
    shown = rows(found, "rates")
    assert shown["win rate, length-controlled"] == (NONE, "", "why")
    assert shown["win rate if all that is missing were lost, or won"] == ("60.0 to 70.0 %", "50.0 to 80.0 %", "n = 40")
    topics = rows(found, "topics")
    assert topics["grief"] == (NONE, "", "n = 19, 0 missing")
    assert topics["sleep"][0] == "70.0 %"
    full = rows(artifact("comparisons", "c", comparison_metrics(missing=0)), "rates")
    assert "win rate if all that is missing were lost, or won" not in full


def test_pairs_that_do_not_fit_are_counted_by_reason() -> None:
    (model,) = [each for each in whole_run(0).artifacts if each.kind == "reward-models"]
    lengths = {"kept": 90, "too_long_chosen": 2, "too_long_rejected": 0, "identical_tokens": 1}
    training = {**model.metrics["training"], "lengths": lengths}
    cells = rows(with_metrics(model, training=training), "lengths")["pairs read"]
    assert (cells[0], cells[1], cells[3]) == ("93", "90", "2 too long chosen, 1 identical tokens")


def test_a_divergence_that_rounds_to_zero_has_no_sign() -> None:
    (run,) = [each for each in whole_run(1).artifacts if each.name == "tiny-online" and each.kind == "policies"]
    initial = run.metrics["initial"]
    kl = {**initial["kl"], "per_answer": -0.004}
    assert rows(with_metrics(run, initial={**initial, "kl": kl}), "probes")["initial policy"][1] == "0.00"


@pytest.mark.parametrize("dropped", [{"equal_scores": 6}, {"gap_too_small": 6}])
def test_equal_scores_are_explained_where_they_drop_pairs(dropped: dict[str, int]) -> None:
    pairing = {"train": {"combinations": 8, "kept": 2, "dropped": dropped}}
    found = artifact("preferences", "p", {"pairing": pairing, "words": {}})
    assert ("Equal scores are no preference" in tables(found)[0].title) == ("equal_scores" in dropped)


def test_cost_tokens_and_lost_responses_are_shown() -> None:
    spend = {
        "models": {"judge-1": {"calls": 1200, "prompt": 5000, "cached": 0, "completion": 40}},
        "cost_usd": 1.5,
        "price_from": "the config",
        "possibly_billed": {"calls": 2, "cost_usd": 0.1},
    }
    found = artifact("comparisons", "c", comparison_metrics(spend=spend))
    (table,) = [each for each in tables(found) if each.key == "spend"]
    assert "$1.50" in table.title
    assert "2 lost responses" in table.title
    assert table.rows == (("judge-1", "1,200", "5,000", "0", "40"),)


def test_mean_ratings_show_how_far_their_samples_lie_apart() -> None:
    (judged,) = [each for each in whole_run(0).artifacts if each.kind == "judgements"]
    agreement = {"n": 9, "exact": 0.5, "within_one": 1.0, "kappa": 0.4}
    samples = {"asked": 20, "status": {"elm": {"valid": 20}}, "scored_by": {"written": 20}}
    disagreement = {
        **{"responses": 9, "spread": {"empathy": 0.5}, "alpha": {"empathy": None}},
        "mean_rating": {"elm": {"empathy": 3.0}},
        "pairs": [{"judges": ["elm", "yew"], "by_principle": {"empathy": agreement, "safety": None}}],
    }
    found = with_metrics(judged, samples=samples, disagreement=disagreement)
    assert rows(found, "samples") == {"empathy": ("0.50", "\N{EN DASH}")}
    assert rows(found, "pair elm and yew") == {"empathy": ("50.0 %", "100.0 %", "0.40", "9")}


def test_votes_are_shown_by_judge() -> None:
    votes = {"asked": 8, "status": {"elm": {"valid": 7, "refusal": 1}}, "unanimous": 3, "comparisons": 4}
    found = artifact("comparisons", "c", comparison_metrics(votes=votes, crisis=rate(0.5)))
    assert rows(found, "votes") == {"elm": ("7 valid, 1 refusal",)}


def test_signs_that_were_not_looked_for_have_no_row() -> None:
    looked = {**text_quality(), "pattern_rates": {"echo": rate(0.1, 0.0)}}
    found = rows(artifact("comparisons", "c", comparison_metrics(reference_text_quality=looked)), "text_quality")
    assert found["echoes the speech"][0] == NONE
    assert "in another language than the speeches" not in found
