import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_runs import OFFLINE, artifact, comparison, corpus, labels, models, reward_metrics, whole_run

from psychocounsel.reporting.html import headline_numbers, notices, render_report
from psychocounsel.reporting.tables import ArtifactFacts, Example, ExampleSet, ReportData
from psychocounsel.types import Speech

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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
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


def test_the_page_is_well_formed_and_every_link_leads_somewhere(page: Page) -> None:
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {target for target in page.values("href") if not target.startswith("#")} == set()
    assert {target.removeprefix("#") for target in page.values("href")} <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(html: str, page: Page) -> None:
    assert "http://" not in html
    assert "https://" not in html
    assert page.values("src") == []
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_client_text_is_data() -> None:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;'
    run = whole_run(0)
    group = run.examples[0]
    example = Example(Speech(evil, topic=evil), evil, evil, {"overall": "win", evil: "loss"})
    verdicts = [each for each in run.artifacts if each.kind == "comparisons"]
    poisoned = replace(verdicts[0], metrics={**verdicts[0].metrics, "by_topic": {evil: verdicts[0].value("win_rate")}})
    noticed = replace(run.artifacts[0], notices=(evil,), settings={evil: evil}, rows={evil: 1}, made_with={evil: evil})
    artifacts = (noticed, *run.artifacts[1:], poisoned)
    sets = (ExampleSet(group.verdicts_ref, evil, evil, (example,)),)
    html = render_report(ReportData(evil, artifacts, sets))
    assert "<script" not in html
    assert "<img" not in html
    assert "onerror=alert" in html
    assert not [a for _, a in Page(html).tags if "onerror" in a]
    assert evil in Page(html).text


def test_notices_stand_before_every_figure(html: str) -> None:
    first_figure = html.index('class="cards"')
    assert html.index("<h1>") < html.index(OFFLINE) < first_figure
    assert html.index("are of one family") < first_figure


def test_each_notice_is_told_once() -> None:
    told = notices(whole_run())
    assert told.count(OFFLINE) == 1
    assert len([each for each in told if "one family" in each]) == 1


def test_no_warning_where_two_families_judged() -> None:
    made = corpus()
    made |= labels(made)
    named, _ = models(made, 0)
    made |= named
    judges = {"labels": ["gpt-4o"], "evaluation": "claude-x", "same_family": False}
    run = ReportData("run", (*made.values(), *comparison("dpo", named["dpo"], made, judges=judges)))
    assert "one family" not in render_report(run)
    assert "Judge of the labels: gpt-4o. Judge of this result: claude-x." in flat(Page(render_report(run)))


def with_verdicts(**changes: object) -> str:
    run = _changed("comparisons", lambda each: replace(each, metrics={**each.metrics, **changes}))
    return flat(Page(render_report(run)))


def test_a_judge_that_compares_answers_of_its_own_make_is_named_at_the_head() -> None:
    judges = {
        "labels": ["gpt-4o"],
        "evaluation": "gpt-4o-2024-08-06",
        "same_family": False,
        "judged": {"policy": ["meta-llama/Llama-3.2-3B"], "reference": ["gpt-4o", "gpt-4o-mini"]},
        "own_family": ["reference"],
    }
    text = with_verdicts(judges=judges)
    warning = "(gpt-4o-2024-08-06) is of one make with base (gpt-4o, gpt-4o-mini), whose answers it compares"
    assert text.index(warning) < text.index("Headline figures")
    assert "of one make" not in flat(Page(render_report(whole_run(0))))


def test_speeches_without_an_answer_and_missing_topics_are_told(page: Page) -> None:
    text = with_verdicts(
        missing_answers={"policy": {}, "reference": {"content_filter": 2, "not_in_file": 1}},
        missing_by_topic={"grief": {"missing": 3, "total": 12}, "sleep": {"missing": 0, "total": 9}},
    )
    assert "missing, and a win for nobody. base: 2 content filter, 1 not in file." in text
    assert "topics that are not listed miss none" in text
    assert "grief 3 12 25.0 %" in text
    assert "sleep 0" not in text
    assert "a win for nobody" not in flat(page)
    assert "Missing comparisons" not in flat(page)


def test_judgements_tell_missing_topics_and_attempts_on_the_judge() -> None:
    shares = {"": {"missing": 1, "total": 4}, "work": {"missing": 0, "total": 6}}
    metrics = {"judged": 10, "status": {"valid": 9, "refusal": 1}, "missing_by_topic": shares}
    facts = artifact("judgements", "j", {**metrics, "addresses_judge": 2})
    text = flat(Page(render_report(ReportData("run", (facts,)))))
    assert "(no topic) 1 4 25.0 %" in text
    assert "2 responses seem to address the judge" in text
    quiet = artifact("judgements", "j", {**metrics, "addresses_judge": 0, "missing_by_topic": {}})
    text = flat(Page(render_report(ReportData("run", (quiet,)))))
    assert "Missing judgements" not in text
    assert "address the judge" not in text


def test_headline_figures_carry_interval_flip_rate_and_baselines(page: Page) -> None:
    text = flat(page)
    assert "Win rate, dpo against base 72.0 % 95 % CI 62.0 to 82.0 %" in text
    assert "At equal length, dpo against base 68.0 % 95 % CI 58.0 to 78.0 %" in text
    assert "the two orders disagree on 5.0 %" in text
    assert "81.4 % 95 % CI 71.4 to 91.4 %" in text
    assert "who wrote it 66.4 %, longer wins 54.1 %, same-tier pairs: no such pair" in text
    assert "620 500 train, 80 dev, 40 test of 760 combinations" in text


def test_the_funnel_adds_up_by_reason(page: Page) -> None:
    text = flat(page)
    assert "speeches read 170 160 94.1 % 7 too short, 3 repeated speech" in text
    assert "responses judged 636 635 99.8 % 1 refusal" in text
    assert "combinations, train 624 500 80.1 % 120 gap too small, 4 safety inverted" in text


def test_pairs_that_do_not_fit_are_told_of_every_training(page: Page) -> None:
    text = flat(page)
    assert "pairs read 500 498 99.6 % 2 too long chosen" in text
    assert "pairs of round 3 58 57 98.3 % 1 too long rejected" in text


def test_candidates_that_were_not_judged_are_in_the_funnel() -> None:
    metrics = {"left_out": {"repeated_text": 2, "empty": 1}, "judged": 9, "status": {"valid": 8, "empty": 1}}
    page = Page(render_report(ReportData("run", (artifact("judgements", "some", metrics),))))
    assert "responses judged 12 8 66.7 % 2 repeated text, 1 empty, 1 empty reply" in flat(page)


def test_rows_that_nobody_counted_are_told() -> None:
    funnel = {"rows_in": 10, "kept": 6, "dropped": {"too_long": 3}}
    page = Page(render_report(ReportData("run", (artifact("candidates", "leaky", {"funnel": funnel}),))))
    assert "ready responses 10 6 60.0 % 3 too long, 1 unaccounted for" in flat(page)


def test_answers_asked_of_a_pool_add_up_too() -> None:
    metrics = {"kept": 36, "repeated_text": 1, "failed": {"a": {"refusal": 2}, "b": {"refusal": 1}}}
    page = Page(render_report(ReportData("run", (artifact("candidates", "pool", metrics),))))
    assert "answers asked of the pool 40 36 90.0 % 1 repeated text, 3 refusal" in flat(page)


def test_every_figure_names_its_artifact(page: Page) -> None:
    run = whole_run()
    drawn = [a for tag, a in page.tags if tag == "div" and a.get("class") == "drawing"]
    assert len(drawn) >= 15
    assert all(a["aria-label"] for a in drawn)
    text = flat(page)
    assert text.count(" from ") >= len(drawn)
    for each in run.artifacts:
        assert each.ref in text
        assert each.id in text


def test_online_rounds_are_one_policy_with_steps_counted_on(page: Page) -> None:
    text = flat(page)
    assert "1 60 58 2 equal scores, 6 unfinished answers +0.200 0.900 16" in text
    assert "3 60 58 2 equal scores, 6 unfinished answers +0.600 0.900 16" in text
    labels_ = " ".join(page.values("aria-label"))
    assert "loss from 0.659 at 1 to 0.38 at 36." in labels_


def test_crisis_examples_are_folded_and_others_open(page: Page) -> None:
    folded = [("open" in a) for tag, a in page.tags if tag == "details" and a.get("class") == "example"]
    assert folded == [True, False]
    outcome = "The policy's answer is preferred in both orders. By principle, for the policy: empathy: "
    assert f"{outcome}position-inconsistent." in flat(page)


def test_equal_data_give_equal_bytes(html: str) -> None:
    assert render_report(whole_run()) == html


def _without(*kinds: str) -> ReportData:
    run = whole_run(0)
    return ReportData("run", tuple(each for each in run.artifacts if each.kind not in kinds), run.examples)


def _changed(kind: str, change: Callable[[ArtifactFacts], ArtifactFacts]) -> ReportData:
    run = whole_run(0)
    return replace(run, artifacts=tuple(change(each) if each.kind == kind else each for each in run.artifacts))


@pytest.mark.parametrize(
    "kind", ["speeches", "judgements", "preferences", "reward-models", "base-models", "comparisons"]
)
def test_a_missing_kind_leaves_the_rest_standing(kind: str) -> None:
    page = Page(render_report(_without(kind)))
    assert page.open == []
    assert all(each.ref in page.text for each in _without(kind).artifacts)


def test_artifacts_without_any_figure_are_still_listed() -> None:
    run = whole_run(2)
    bare = replace(run, artifacts=tuple(replace(each, metrics={}, rows={}, settings={}) for each in run.artifacts))
    page = Page(render_report(bare))
    assert page.open == []
    assert all(each.ref in page.text for each in run.artifacts)


def test_an_online_run_without_its_earlier_rounds_shows_its_last() -> None:
    run = whole_run(3)
    kept = [each for each in run.artifacts if each.kind == "policies" and each.name == "tiny-online"]
    assert "3 58 – +0.600 0.900 16" in flat(Page(render_report(ReportData("run", tuple(kept)))))  # noqa: RUF001


def test_an_empty_report_is_a_page() -> None:
    assert Page(render_report(ReportData("nothing", ()))).open == []


def test_a_reward_model_without_dev_or_same_tier_pairs_says_so() -> None:
    metrics = {**reward_metrics(), "dev": None}
    run = _changed("reward-models", lambda each: replace(each, metrics=metrics))
    text = flat(Page(render_report(run)))
    assert "accuracy, dev" not in text
    assert "between authors of one tier – no such pair" in text  # noqa: RUF001


def test_a_comparison_without_crisis_or_length_control_says_so() -> None:
    uncontrolled = {"rate": None, "length_effect": 0.0, "sigma": 0.0, "controlled": False}
    changed = _changed(
        "comparisons",
        lambda each: replace(each, metrics={**each.metrics, "length_controlled": uncontrolled, "crisis": None}),
    )
    assert "Length could not be controlled for" in flat(Page(render_report(changed)))


def test_no_such_remark_where_length_was_controlled(page: Page) -> None:
    assert "Length could not be controlled for" not in flat(page)


def test_headline_numbers_are_those_of_the_artifacts() -> None:
    run = whole_run()
    numbers = headline_numbers(run)
    verdicts = run.of_kind("comparisons")[0]
    reward = run.of_kind("reward-models")[0]
    assert numbers["win_rates"][verdicts.ref]["win_rate"] == verdicts.metrics["win_rate"]  # type: ignore[index]
    assert numbers["reward_models"][reward.ref]["accuracy"] == reward.metrics["test"]["accuracy"]  # type: ignore[index]
    assert list(numbers["pairs"].values()) == [{"train": 500, "dev": 80, "test": 40}]  # type: ignore[attr-defined]
