"""What a report says first."""

import re
from dataclasses import replace
from typing import Any

import pytest
from report_runs import artifact, comparison_metrics, item, rate, whole_run

from psychocounsel.reporting.html import ReportData, render_report
from psychocounsel.reporting.item_browser import Answer, Item
from psychocounsel.reporting.overview import Compared, headlines, length_plot, overview_plots, paper_table
from psychocounsel.reporting.tables import as_text
from psychocounsel.store.metrics import ComparisonMetrics, parse_metrics


def compared(name: str = "dpo", warnings: tuple[str, ...] = (), **changes: object) -> Compared:
    metrics = comparison_metrics(**changes)
    made = artifact("comparisons", name, metrics, warnings=list(warnings))
    parsed = parse_metrics("comparisons", metrics)
    assert isinstance(parsed, ComparisonMetrics)
    return Compared(made, f"{name} against base", parsed)


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [(0.72, "better than 50"), (0.55, "not distinguishable from 50"), (0.3, "worse than 50")],
)
def test_the_headline_says_whether_the_rate_differs_from_a_coin(estimate: float, verdict: str) -> None:
    (headline,) = headlines([compared(win_rate=rate(estimate), leakage={"speeches": 41, "leaked": 3})], [], {})
    assert verdict in headline.sentence
    assert "3 of 41 speeches were in the training data" in headline.sentence
    assert headline.sentence.count("distinguishable") == verdict.count("distinguishable")


@pytest.mark.parametrize(
    ("estimate", "caveat"),
    [(0.68, ""), (0.48, "48.0 % (38.0 to 58.0 %): not distinguishable"), (0.3, ": worse than 50")],
)
def test_a_better_rate_that_equal_length_does_not_bear_out_says_so(estimate: float, caveat: str) -> None:
    control = {**comparison_metrics()["length_controlled"], "rate": rate(estimate)}
    (headline,) = headlines([compared(win_rate=rate(0.72), length_controlled=control)], [], {})
    sentence = headline.sentence.replace("\N{NO-BREAK SPACE}", " ")
    assert ("at equal length" in sentence, caveat in sentence) == (bool(caveat), True)


@pytest.mark.parametrize(
    ("estimate", "worst", "best", "caveat"),
    [(0.72, 0.65, 0.8, ""), (0.72, 0.55, 0.8, "unless what is missing was lost"), (0.3, 0.2, 0.45, "missing was won")],
)
def test_a_verdict_that_hangs_on_what_is_missing_says_so(
    estimate: float, worst: float, best: float, caveat: str
) -> None:
    bounds = {"missing_as_losses": rate(worst), "missing_as_wins": rate(best)}
    (headline,) = headlines([compared(win_rate=rate(estimate), **bounds)], [], {})
    assert (caveat in headline.sentence, "unless" in headline.sentence) == (True, bool(caveat))


def test_what_is_missing_is_said_of_the_raw_rate_and_not_of_that_at_equal_length() -> None:
    control = {**comparison_metrics()["length_controlled"], "rate": rate(0.48)}
    (headline,) = headlines(
        [compared(win_rate=rate(0.72), missing_as_losses=rate(0.55), length_controlled=control)], [], {}
    )
    assert headline.sentence.index("missing was lost") < headline.sentence.index("at equal length")


def test_a_warning_about_one_comparison_stands_under_its_headline_and_a_shared_one_above_all() -> None:
    shared, own = "Rated by nobody.", "Trained on its test."
    both = [compared("dpo", (shared, own)), compared("online", (shared,))]
    first, second = headlines(both, [shared, own], {})
    assert (first.warnings, second.warnings) == ((own,), ())
    html = render_report(ReportData("run", tuple(each.artifact for each in both)))
    assert [html.count(each) for each in (shared, own)] == [1, 1]
    assert html.index(shared) < html.index('class="headline"') < html.index(own)


def test_people_have_the_last_word_in_the_headline_and_a_judge_who_is_wrong_is_named() -> None:
    judged = compared(win_rate=rate(0.87)).artifact
    corrected = rate(0.61)
    none: dict[str, Any] = {"items": 0, "raw": None, "kappa": None, "alpha": None}
    metrics = {
        **{"judge": "offline", "labelled": 120, "unlabelled": 80, "skipped": 0, "raters": {"ann": 120}},
        **{"judge_only": rate(0.87), "human_only": rate(0.6), "anchored": corrected, "headline": "anchored"},
        **{"judge_holds": False, "bias": {"estimate": 0.26, "low": 0.2, "high": 0.32, "n": 120}, "rho": 0.3},
        **{"kappa": None, "lambda": 0.4, "labels_worth": 1.05, "agreement": none},
    }
    anchored = artifact("anchors", "dpo", metrics, parents={"comparisons": judged, "labels": judged})
    html = render_report(ReportData("run", (judged, anchored))).replace("\N{NO-BREAK SPACE}", " ")
    sentence = html[html.index('class="headline"') :].partition("</p>")[0]
    assert "people&#39;s labels of 120 of these speeches it is 61.0 % (51.0 to 71.0 %)" in sentence
    assert html.index('class="headline"') < html.index(
        "does not hold the rate by human labels"
    )  # of two, it is this one
    assert html.count("does not hold the rate by human labels") == 1
    cards = re.findall(r'"label">(Win rate[^,]*),.*?"value">([^<]*)<', html, re.DOTALL)
    assert cards[:2] == [("Win rate by people", "61.0 %"), ("Win rate by the judge", "87.0 %")]
    assert "The judge saves no labels (one is worth 1.05)" in html


def test_the_papers_figures_stand_under_ours() -> None:
    arms = [compared(), compared("short", constraint={"line": "At most 100 words.", "sides": ["policy"]})]
    (table,) = paper_table(arms)
    lines = as_text(table).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert re.search(r"ours: dpo against base +offline +72.0 % \[62.0 to 82.0 %\] +–", "\n".join(lines))  # noqa: RUF001
    assert re.search(r"ours: short against base +offline +– +72.0 %", "\n".join(lines))  # noqa: RUF001
    assert any("Llama3-8B + DPO-Iter" in line and "87.0 %" in line and "77.0 %" in line for line in lines)
    other_domain = compared("hygiene", win_rate_by_criterion={"correct": rate(0.6), "teaches": rate(0.4)})
    assert paper_table([*arms, other_domain]) == [table]
    assert paper_table([other_domain]) == []


def test_many_policies_share_a_plot_and_four_of_them_a_circle() -> None:
    across, circle = overview_plots([compared(f"policy {number}") for number in range(6)])
    assert "policy 5 against base: 72.0" in across.alternative
    assert "The first 4 of 6 comparisons." in circle.caption
    assert "empathy 60.0" in circle.alternative
    assert [len(overview_plots(few)) for few in ([], [compared()])] == [0, 1]


def test_points_of_a_sweep_with_long_names_are_told_apart_and_leave_room_for_the_circle() -> None:
    points = [compared(f"model-build-preferences.pairing.min_gap-{gap}-and-so-on") for gap in (0.5, 1.0)]
    answered = "a policy with quite a long name against counsellors of our own clinic"
    across, circle = overview_plots([Compared(each.artifact, answered, each.metrics) for each in points])
    for point in points:
        assert f">{point.artifact.id[:8]}: a policy with" in across.svg
        assert f">{point.artifact.id[:8]}: a policy with" in circle.svg
    assert "of our own clinic" not in circle.svg  # cut, and pytest makes a warning of a collapsed plot an error


def test_sentences_about_points_of_a_sweep_name_the_point() -> None:
    points = [compared(f"mini-align.beta-{beta}") for beta in (0.1, 0.3)]
    beside = [Compared(each.artifact, "policy against base", each.metrics) for each in points]
    said = headlines([*beside, compared()], [], {})
    assert [each.sentence.partition(":")[0] for each in said] == [
        *(f"policy against base (mini-align.beta-{beta})" for beta in (0.1, 0.3)),
        "dpo against base",
    ]


def words(count: int) -> str:
    return " ".join(["word"] * count)


def test_the_length_plot_rises_where_the_judge_favours_length() -> None:
    run = whole_run(0)
    (group,) = run.item_sets
    longer_wins: list[Item] = []
    for number in range(200):
        difference = number % 100 - 50
        answers = (Answer("dpo", words(60 + max(difference, 0))), Answer("base", words(60 - min(difference, 0))))
        longer_wins.append(replace(item(f"speech {number}", wins=difference > 0), answers=answers))
    (plot,) = length_plot(replace(group, items=tuple(longer_wins)))
    shares = re.findall(r"words: ([\d.]+)", plot.alternative)
    assert shares == ["0.0", "0.0", "45.0", "100.0", "100.0"]
    assert length_plot(replace(group, items=tuple(longer_wins[:39]))) == []
