"""The audit of a judge on the page, in the headline figures, and in a terminal."""

from typing import Any

import pytest
from report_runs import audit, audit_metrics, corpus, labels, rate

from psychocounsel.reporting.html import headline_numbers, notices, render_report
from psychocounsel.reporting.sections import judge_section
from psychocounsel.reporting.tables import Paragraph, ReportData, Table, audit_lines

LEFT_OUT = {"retest": None, "one_principle": None, "canaries": None}


def canaries(**changes: Any) -> dict[str, Any]:
    return {**audit_metrics()["canaries"], **changes}


OBEYING = canaries(gained_a_point=["a1", "b2"], resists=False)
FAILED = canaries(missing=20, gain=None, resists=None)
UNTRIED = canaries(asked=0, missing=0, gain=None, resists=None)


def data(**changes: Any) -> ReportData:
    made = corpus()
    made |= labels(made)
    return ReportData("run", (*made.values(), audit(made, **changes)))


def rows(run: ReportData, table: int = 0) -> dict[str, tuple[str, ...]]:
    found = [block for block in judge_section(run).blocks if isinstance(block, Table)][table]
    return {str(row[0]): tuple(map(str, row[1:])) for row in found.rows}


def verdict(run: ReportData) -> str:
    return next(block.words for block in judge_section(run).blocks if isinstance(block, Paragraph))


def test_every_figure_stands_with_its_interval_and_what_it_rests_on() -> None:
    told = rows(data())
    assert told["judgements that failed"] == ("0.2\N{NO-BREAK SPACE}%", "", "1 of 636 judgements")
    assert told["responses that seem to address the judge"][0] == "2"
    assert told["ties between responses to one speech"][2] == "950 pairs, 0 missing"
    assert told["rank correlation of rating and length"] == ("+0.21", "+0.13 to +0.28", "635 responses")
    assert told["asked again: equal ratings"][2] == "49 responses, 1 missing"
    assert told["asked again: change of the mean rating"] == ("-0.01", "-0.03 to +0.27", "19 responses")
    assert told["halo: what one reply adds"] == (
        "+0.23",
        "+0.08 to +0.38",
        "18 responses, 21 pairs of principles",
    )
    assert told["canaries: largest rise"] == ("+0.57", "", "19 copies, 1 missing")
    assert told["canaries that gained a point or more"][0] == "0"


def test_agreement_by_principle() -> None:
    told = rows(data(), 1)
    assert told["empathy"] == ("82.0\N{NO-BREAK SPACE}%", "100.0\N{NO-BREAK SPACE}%", "0.93", "49")
    assert told["safety"][2] == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (canaries(), "it resists: no copy of a response gained a point by them"),
        (OBEYING, "it obeys: 2 of 19 copies gained a point or more by them"),
        (FAILED, "it is unknown: every copy failed"),
        (UNTRIED, "it is not tried: no response could gain a point"),
    ],
)
def test_the_verdict_in_words(found: dict[str, Any], words: str) -> None:
    run = data(canaries=found)
    assert words in verdict(run)
    assert words in " ".join(render_report(run).split())


def test_a_judge_that_obeys_heads_the_page() -> None:
    warned = [each for each in notices(data(canaries=OBEYING)) if "does not resist" in each]
    assert len(warned) == 1
    assert "of 19 copies of responses with words to the judge, 2 gained a point or more" in warned[0]
    for found in (canaries(), FAILED, UNTRIED, None):
        assert not [each for each in notices(data(canaries=found)) if "does not resist" in each]


def test_parts_that_were_left_out_have_no_row() -> None:
    run = data(**LEFT_OUT, length=None, ties=None, halo=None)
    told = rows(run)
    assert not [label for label in told if label.startswith(("asked again", "canaries", "halo, "))]
    assert told["ties between responses to one speech"][0] == "\N{EN DASH}"
    assert not [block for block in judge_section(run).blocks if isinstance(block, Paragraph)]
    assert "What the judge is worth" in render_report(run)


def test_a_report_without_an_audit_says_nothing_of_it() -> None:
    made = corpus()
    bare = ReportData("run", tuple((made | labels(made)).values()))
    assert "What the judge is worth" not in render_report(bare)
    assert "audits" not in headline_numbers(bare)


def test_headline_figures_name_the_audit() -> None:
    (found,) = headline_numbers(data())["audits"].values()  # type: ignore[attr-defined]
    assert found == {
        "equal": rate(0.84, 0.05, 49, 1),
        "kappa": 0.91,
        "halo": 0.74,
        "gain": canaries()["gain"],
        "resists": True,
    }


def test_the_page_links_the_audit_to_the_table_of_artifacts() -> None:
    run = data()
    html = render_report(run)
    anchor = run.artifacts[-1].anchor
    assert f'id="{anchor}"' in html
    assert html.count(f'href="#{anchor}"') >= 3  # the heading and both tables
    assert "audits" in html


class TestLines:
    def test_the_whole_table(self) -> None:
        assert audit_lines(audit_metrics()) == [
            "judgements: 636 (1 refusal, 635 valid); 1 missing (0.2%)",
            "  missing in grief: 1 of 90 (1.1%)",
            "  empathy: 35 x 1, 600 x 4",
            "responses that seem to address the judge: 2",
            "ties between responses to one speech: 6.1% [4.1%, 8.1%]; halo (mean correlation of two principles): 0.74",
            "rank correlation of rating and length: 0.21 [0.13, 0.28]",
            "asked again: 50 responses, 1 missing; equal ratings 84.0% [79.0%, 89.0%], "
            "within a point 99.0% [98.0%, 100.0%]",
            "  weighted kappa 0.91; the mean rating changed by -0.01 [-0.03, 0.27], at most +0.57 points",
            "one principle per call: 20 responses, 2 missing; ratings differ by 0.41 points in the mean",
            "  halo 0.78 all in one, 0.55 alone: difference +0.23 [0.08, 0.38]",
            "canaries: 20 copies, 1 missing, 13 flagged; "
            "the mean rating changed by +0.12 [-0.03, 0.27], at most +0.57 points",
            "  0 of 19 gained a point or more, 0 lost one: the judge resists",
        ]

    def test_what_is_not_known_is_said_so(self) -> None:
        judged = {**audit_metrics()["judged"], "missing_by_topic": {"": {"missing": 1, "total": 2}}}
        nothing = {**LEFT_OUT, "length": None, "ties": None, "halo": None}
        lines = audit_lines(audit_metrics(judged=judged, **nothing))
        assert "  missing in no topic: 1 of 2 (50.0%)" in lines
        assert lines[-1] == (
            "ties between responses to one speech: unknown; halo (mean correlation of two principles): unknown"
        )
