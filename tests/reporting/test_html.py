import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_runs import (
    OFFLINE,
    artifact,
    audit_metrics,
    dataset,
    item,
    probe_metrics,
    rate,
    text_quality,
    training,
    whole_run,
    with_metrics,
)

from psychocounsel.reporting.html import ReportData, page_warnings, render_report, report_metrics
from psychocounsel.reporting.item_browser import ItemSet
from psychocounsel.reporting.tables import anchor
from psychocounsel.types import Rate

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a page holds: tags that are open and not closed, addresses, ids, texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(whole_run())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def flat(page: Page) -> str:
    return " ".join(page.text.split())


@pytest.fixture(scope="module")
def text(page: Page) -> str:
    return flat(page)


def test_the_page_is_well_formed_and_every_link_leads_somewhere(page: Page) -> None:
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {target for target in page.values("href") if not target.startswith("#")} == set()
    assert {target.removeprefix("#") for target in page.values("href")} <= set(ids)


def test_nothing_is_fetched_and_only_our_script_runs(html: str, page: Page) -> None:
    assert "http://" not in html
    assert "https://" not in html
    assert page.values("src") == []
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    for element in ("script", "style"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert re.search(rf"{element}-src[-a-z]* 'sha256-{re.escape(digest)}'", policy)
    without = render_report(replace(whole_run(), item_sets=()))
    assert "<script" not in without
    assert "script-src" not in without
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def with_changed(kind: str, **changes: object) -> str:
    """Return the text of the page on which the artifacts of a kind have other metrics."""
    run = whole_run(0)
    changed = tuple(with_metrics(each, **changes) if each.kind == kind else each for each in run.artifacts)
    return flat(Page(render_report(replace(run, artifacts=changed))))


def alone(kind: str, metrics: dict[str, object]) -> str:
    return flat(Page(render_report(ReportData("run", (artifact(kind, "one", metrics),)))))


def test_client_text_is_data() -> None:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;'
    run = whole_run(0)
    shown = item(evil, topic=evil, answer=evil, author=evil, criterion=evil)
    compared = next(each for each in run.artifacts if each.kind == "comparisons")
    poisoned = with_metrics(compared, by_topic={evil: compared.metrics["win_rate"]})
    words = {"warnings": [evil], "settings": {evil: evil}, "rows": {evil: 1}, "made_with": {evil: evil}}
    warned = replace(run.artifacts[0], manifest={**run.artifacts[0].manifest, **words})
    artifacts = (warned, *run.artifacts[1:-1], poisoned)
    html = render_report(ReportData(evil, artifacts, (ItemSet(compared, ("overall", evil), 1, (shown,)),)))
    assert '<script>alert("x")' not in html
    assert "<img" not in html
    assert not [a for _, a in Page(html).tags if "onerror" in a]
    assert evil in Page(html).text


def test_warnings_stand_before_every_figure_and_once(html: str) -> None:
    first_figure = html.index('class="cards"')
    assert html.index("<h1>") < html.index(OFFLINE) < first_figure
    assert html.index("are of one family") < first_figure
    warnings = page_warnings(whole_run())
    assert [len([each for each in warnings if words in each]) for words in (OFFLINE, "one family")] == [1, 1]


OTHERS = {"labels": ["gpt-4o"], "evaluation": "claude-x", "same_family": False, "judged": {}, "own_family": []}


def test_a_judge_that_compares_answers_of_its_own_family_is_named_first() -> None:
    judged = {"policy": ["meta-llama/Llama-3.2-3B"], "reference": ["gpt-4o", "gpt-4o-mini"]}
    own = {"evaluation": "gpt-4o-2024-08-06", "judged": judged, "own_family": ["reference"]}
    text = with_changed("comparisons", judges={**OTHERS, **own})
    warning = "(gpt-4o-2024-08-06) is of one family with the reference (gpt-4o, gpt-4o-mini), whose answers it compares"
    assert text.index(warning) < text.index("Main figures")


def test_a_policy_that_no_longer_ends_its_answers_is_named_before_its_win_rate() -> None:
    qualities = {"policy_text_quality": text_quality(0.46), "reference_text_quality": text_quality(0.06)}
    text = with_changed("comparisons", **qualities)
    warning = "decayed: unfinished (cut by the token limit): 46.0 %, of the reference 6.0 %"
    assert text.index(warning) < text.index("Main figures")
    last = {**probe_metrics(3), "text_quality": text_quality(0.46)}
    rounds = [{"probe": last, "pairs": 9, "trained_on": 9, "logps_chosen": -1.0, "logps_rejected": -1.0}]
    run = {"training": training(3), "pairs": 9, "initial": probe_metrics(0), "rounds": rounds, "best": 1}
    assert "46.0 %, of the initial policy 5.0 %" in alone("policies", run)


@pytest.mark.parametrize(("estimate", "is_named"), [(0.33, True), (0.6, False)])
def test_a_best_round_that_its_judge_likes_less_than_the_start_is_named(estimate: float, is_named: bool) -> None:
    best = {**probe_metrics(1), "win_rate": rate(estimate)}
    rounds = [{"probe": best, "pairs": 9, "trained_on": 9, "logps_chosen": -1.0, "logps_rejected": -1.0}]
    run = {"training": training(3), "pairs": 9, "initial": probe_metrics(0), "rounds": rounds, "best": 1}
    words = "The judge of the probes prefers the initial policy to the best round, 1: its win rate over it is 33.0"
    assert (words in alone("policies", run)) == is_named


def test_what_is_missing_or_was_not_measured_is_said(text: str) -> None:
    changed = with_changed(
        "comparisons",
        judges=OTHERS,
        missing_answers={"policy": {}, "reference": {"content_filter": 2, "not_in_file": 1}},
        missing_by_topic={"grief": {"missing": 3, "total": 12}, "sleep": {"missing": 0, "total": 9}},
        length_controlled={
            **{"rate": None, "length_effect": None, "sigma": None, "shorter": 0.0, "longer": 1.0},
            "reason": "the policy's answer is the shorter one in only 0 of 200 comparisons",
        },
        policy_text_quality={**text_quality(), "distinct_4gram_ratio": None},
        crisis=None,
    )
    assert "Judge: claude-x; of the labels: gpt-4o." in changed
    assert "reference 2 content filter, 1 not in file" in changed
    assert "grief 3 12 25.0 %" in changed
    assert "distinct runs of four words, mean ratio – 98.0" in changed  # noqa: RUF001
    assert not [words for words in ("one family", "sleep 0") if words in changed]
    assert "topics that are not listed miss none" in changed
    for words in ("the shorter one in only 0 of 200 comparisons", "Missing comparisons"):
        assert (words in changed, words in text) == (True, False)
    in_warning_headline_and_card = changed.count("comparisons (median 53 words against 53)")
    assert (in_warning_headline_and_card, changed.count("no rate at equal length")) == (3, 3)
    model = with_changed("reward-models", dev=None)
    assert "accuracy, dev" not in model
    assert "between authors of one tier – no such pair" in model  # noqa: RUF001


@pytest.mark.parametrize("is_shown", [True, False])
def test_judgements_show_missing_topics_and_attempts_on_the_judge(is_shown: bool) -> None:
    shares = {"": {"missing": 1, "total": 4}, "work": {"missing": 0, "total": 6}} if is_shown else {}
    counts = {"left_out": {}, "judged": 10, "status": {"valid": 9, "refusal": 1}, "histograms": {}}
    text = alone("judgements", {**counts, "missing_by_topic": shares, "addresses_judge": 2 * is_shown})
    for words in ("Missing judgements", "(no topic) 1 4 25.0 %", "2 responses seem to address the judge"):
        assert (words in text) == is_shown


@pytest.mark.parametrize(
    "line",
    [
        "Win rate, dpo against base 72.0 % 95 % CI 62.0 to 82.0 %",
        "At equal length, dpo against base 68.0 % 95 % CI 58.0 to 78.0 %",
        "position-inconsistent: 5.0 %",
        "81.4 % 95 % CI 71.4 to 91.4 %",
        "15.0 points more often than the better author (+2.0 to +28.0 points), not distinguishable from the longer",
        "620 500 train, 80 dev, 40 test of 624 train, 96 dev, 40 test combinations",
        # every loss of the funnel by its reason
        "speeches read 170 160 94.1 % 7 too short, 3 repeated speech",
        "responses judged 636 635 99.8 % 1 refusal",
        "On test, one combination for each speech",
        "combinations, train 624 500 80.1 % 120 gap too small, 4 safety inverted",
        "pairs read 500 498 99.6 % 2 too long chosen",
        # every online round
        *(f"round {number} 60 2 equal scores, 6 unfinished answers 1 too long rejected" for number in (1, 3)),
        *(f"{name} 58 57 -118.0 -131.0" for name in ("round 1", "round 3 (best)")),
        "round 3 (best) +0.600 6.00 2.50 54.2 1.20 5.0 % 3.0 % 80.0 % [70.0 to 90.0 %]",
        "70.0 % [60.0 to 80.0 %] -0.400 (3)",
        # text quality of both sides
        "unfinished 5.0 % (1.0 to 9.0 %) 20.0 % (16.0 to 24.0 %)",
    ],
)
def test_the_page_has_every_figure_of_the_run(text: str, line: str) -> None:
    assert line in text


JUDGED = {"left_out": {"repeated_text": 2, "empty": 1}, "judged": 9, "status": {"valid": 8, "empty": 1}}
JUDGED |= {"missing_by_topic": {}, "addresses_judge": 0, "histograms": {}}
READY = {"funnel": {"rows_in": 10, "kept": 6, "dropped": {"too_long": 3}}}
POOL = {"kept": 36, "repeated_text": 1, "failed": {"a": {"refusal": 2}, "b": {"refusal": 1}}}


@pytest.mark.parametrize(
    ("kind", "metrics", "line"),
    [
        ("judgements", JUDGED, "responses judged 12 8 66.7 % 2 repeated text, 1 empty, 1 empty reply"),
        ("candidates", READY, "ready responses 10 6 60.0 % 3 too long, 1 unaccounted for"),
        ("candidates", POOL, "responses of the pool 40 36 90.0 % 1 repeated text, 3 refusal"),
    ],
)
def test_every_row_is_kept_or_dropped_for_a_reason(kind: str, metrics: dict[str, object], line: str) -> None:
    assert line in alone(kind, metrics)


def test_every_figure_names_its_artifact(page: Page, text: str) -> None:
    run = whole_run()
    drawn = [a for tag, a in page.tags if tag == "div" and a.get("class") == "drawing"]
    assert len(drawn) >= 15
    assert all(a["aria-label"] for a in drawn)
    assert text.count(" from ") >= len(drawn)
    assert all(each.ref in text and each.id in text for each in run.artifacts)
    # Online rounds are one policy with consecutive steps.
    assert "loss from 0.659 at 1 to 0.38 at 36." in " ".join(page.values("aria-label"))


def test_the_rewards_of_the_rounds_are_drawn_for_speeches_about_crisis_too(html: str) -> None:
    assert "reward from 0 at 0 to 0.6 at 3. on speeches about crisis from -0.4 at 0 to -0.4 at 3." in html


def test_crisis_examples_are_folded_and_others_open(page: Page, text: str) -> None:
    folded = [("open" in a) for tag, a in page.tags if tag == "details" and a.get("class") == "example"]
    assert folded == [True, False]
    preferred = "The policy's answer is preferred in both orders. By principle, for the policy: empathy: "
    assert preferred + "position-inconsistent." in text


def test_equal_data_give_equal_bytes(html: str) -> None:
    assert render_report(whole_run()) == html


@pytest.mark.parametrize(
    "kind", ["speeches", "judgements", "preferences", "reward-models", "base-models", "comparisons"]
)
def test_a_missing_kind_leaves_the_rest_standing(kind: str) -> None:
    run = whole_run(0)
    kept = tuple(each for each in run.artifacts if each.kind != kind)
    page = Page(render_report(replace(run, artifacts=kept)))
    assert page.open == []
    assert all(each.ref in page.text for each in kept)
    assert Page(render_report(ReportData("nothing", ()))).open == []


def test_an_online_run_without_its_earlier_rounds_shows_its_last() -> None:
    last = next(each for each in whole_run(3).artifacts if each.kind == "policies" and each.name == "tiny-online")
    text = flat(Page(render_report(ReportData("run", (last,)))))
    assert "round 3 (best) 58 57 -118.0 -131.0" in text
    assert "round 3 – – 1 too long rejected" in text  # noqa: RUF001


def test_the_metrics_of_a_report_are_those_of_the_artifacts() -> None:
    run = whole_run()
    figures = report_metrics(run)
    of = {each.kind: each for each in reversed(run.artifacts)}
    compared, reward = of["comparisons"], of["reward-models"]
    assert figures["win_rates"][compared.ref]["win_rate"] == Rate(**compared.metrics["win_rate"])
    assert figures["reward_models"][reward.ref]["accuracy"] == Rate(**reward.metrics["test"]["accuracy"])
    assert list(figures["pairs"].values()) == [{"train": 500, "dev": 80, "test": 40}]


def audited(**changes: object) -> ReportData:
    created = dataset()
    parents = {key: created[key] for key in ("judgements", "speeches", "candidates")}
    audit = artifact("audits", "sample", audit_metrics(**changes), parents=parents, warnings=[OFFLINE])
    return ReportData("run", (*created.values(), audit))


def test_an_audit_has_its_section_and_a_judge_that_obeys_is_a_warning(html: str) -> None:
    run = audited()
    page = render_report(run)
    assert page.count(f'href="#{anchor(run.artifacts[-1])}"') >= 3  # the heading and both tables
    assert "retest: equal ratings 84.0 % 79.0 to 89.0 % n = 49, 1 missing" in flat(Page(page))
    assert "Judge audit" not in html
    swayed = {**audit_metrics()["canaries"], "gained_a_point": ["a1", "b2"], "lost_a_point": 1, "resists": False}
    (warned,) = set(page_warnings(audited(canaries=swayed))) - set(page_warnings(run))
    assert "is unclear" in warned
    assert "2 of 19 copies gained a point or more by them, 1 lost" in warned
    obeying = {**swayed, "gain": {"n": 19, "mean": 0.4, "low": 0.1, "high": 0.7, "largest": 1.5}}
    (warned,) = set(page_warnings(audited(canaries=obeying))) - set(page_warnings(run))
    assert "OBEYS words that address it: 2 of 19 copies gained a point or more by them" in warned


def test_a_page_with_restricted_text_says_so_first() -> None:
    run = whole_run(0)
    settings = {"speeches": [{"path": "notes.jsonl", "data_class": "restricted"}]}
    restricted = replace(run.artifacts[0], manifest={**run.artifacts[0].manifest, "settings": settings})
    first = page_warnings(replace(run, artifacts=(restricted, *run.artifacts[1:])))[0]
    assert "restricted text" in first
    assert restricted.ref in first
