"""The report in a real browser: every answer is found by filter, search and keyboard, and a text never runs."""

from collections.abc import Generator
from dataclasses import replace

import pytest
from report_runs import dataset, item, whole_run

from browser import Page, needs_browser, open_page
from psychocounsel.reporting.html import render_report
from psychocounsel.reporting.item_browser import Answer, Item, ItemSet
from psychocounsel.types import Speech

pytestmark = needs_browser
EVIL = '</script><script>document.title = "owned"</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    """A report on 2,326 comparisons, of which every tenth is about sleep, and on one rated speech."""
    run = whole_run(0)
    (group,) = run.item_sets
    numbered = (item(f"speech {number}", topic="sleep" if number % 10 == 0 else "work") for number in range(2_324))
    first, *others = (*group.items, *numbered)
    labelled = replace(first, labels={"ana": 0.0, "ben": 1.0})
    compared = replace(group, items=(labelled, *others), total=2_326)
    poor, good = Answer("a", EVIL, {"empathy": 1.5}, EVIL), Answer("b", "Tell me more.", {"empathy": 4.0})
    rated = ItemSet(
        dataset()["judgements"], ("empathy",), 7, (Item(Speech(EVIL, EVIL), (poor, good)),), points=(1, 2, 3, 4)
    )
    results = ("fails", "base-fails", "passes")
    checked = tuple(
        Item(Speech(EVIL, "masked", True), (replace(poor, ratings={}, faults=(EVIL,)), good), found=found, title=title)
        for title, found in (("masked-02", {"harm": "fails", "asks": "fails"}), ("harmless-01", {"harm": "passes"}))
    )
    at_risk = ItemSet(dataset()["judgements"], ("harm", "asks"), 2, checked, "answers to people at risk", results)
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(render_report(replace(run, item_sets=(compared, rated, at_risk))), encoding="utf-8")
    with open_page(path, folder / "profile") as opened:
        yield opened


def choose(page: Page, control: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const it = document.getElementById('browser-{control}'); it.value = {value!r};"
        " it.dispatchEvent(new Event('change')); })()"
    )


def status(page: Page) -> str:
    return page.evaluate("document.getElementById('browser-status').textContent")


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.textContent")


def shown(page: Page, selector: str = "") -> list[str]:
    return page.evaluate(f"[...document.querySelectorAll('#browser-list {selector}')].map((each) => each.textContent)")


def test_items_are_found_by_outcome_topic_and_words(page: Page) -> None:
    assert status(page).startswith("2,326 of 2,326 items, page 1 of 233")
    choose(page, "result", "disputed")
    assert status(page).startswith("1 of 2,326")
    assert "ana prefers the reference, ben prefers the policy" in shown(page, ".item")[0]
    choose(page, "result", "position-inconsistent")
    assert status(page).startswith("0 of 2,326")
    choose(page, "criterion", "1")
    assert status(page).startswith("2,326 of 2,326")
    choose(page, "topic", "sleep")
    assert status(page).startswith("233 of 2,326")
    choose(page, "topic", "*")
    page.evaluate("document.getElementById('browser-search').focus()")
    page.type("SPEECH 1234")
    page.wait_for("document.getElementById('browser-status').textContent.startsWith('1 of')")
    (details,) = shown(page, ".item")
    for words in ("What do you miss most?", "Cheer up.", "A is the policy: A listens.", "B asks what is missed."):
        assert words in details
    (row,) = [each for each in shown(page, "tbody tr") if each.startswith("empathy")]
    assert row == "empathypolicyreferenceflipped with the order"


def test_the_keyboard_leads_through_the_items(page: Page) -> None:
    page.evaluate("document.activeElement.blur()")
    page.press("/")
    page.type("x")
    page.wait_for("document.getElementById('browser-status').textContent.startsWith('0 of')")
    page.evaluate("document.getElementById('browser-search').value = ''")
    choose(page, "result", "")
    page.press("Escape")
    page.evaluate("document.getElementById('answers').scrollIntoView()")
    page.press("j")
    first = focused(page)
    page.press("j")
    assert focused(page) != first
    page.press("k")
    assert focused(page) == first
    page.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    page.press("n")
    assert "page 2 of 233" in status(page)
    assert focused(page).endswith("speech 8")
    page.press("p")
    page.press("o")
    assert page.evaluate("document.querySelectorAll('#browser-list details[open]').length") == 9
    assert page.evaluate("document.querySelectorAll('#browser-list .crisis').length") == 1
    assert "live" not in shown(page, ".crisis summary")[0]


def test_checked_answers_are_found_by_what_they_fail(page: Page) -> None:
    choose(page, "set", "2")
    assert shown(page, "summary") == ["the policy fails masked-02", "passes harmless-01"]
    assert page.evaluate("[...document.getElementById('browser-result').options].map((each) => each.value)") == [
        *("", "fails", "base-fails", "passes")
    ]
    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.getElementById('browser-open').click()")
    assert page.evaluate("document.querySelectorAll('#browser-list details[open]').length") == 2
    choose(page, "result", "fails")
    assert shown(page, ".badge") == ["the policy fails", EVIL]
    choose(page, "result", "")
    choose(page, "criterion", "1")
    assert shown(page, "summary") == ["the policy fails masked-02", "harmless-01"]  # what is not asked has no result
    choose(page, "result", "passes")
    assert status(page).startswith("0 of 2")


def test_a_planted_script_stays_text_and_nothing_is_requested(page: Page) -> None:
    choose(page, "set", "1")
    assert status(page).startswith("1 of 1 items (of 7, by hash)")
    (text,) = shown(page, ".item")
    assert text.count(EVIL) == 5  # the speech twice, its topic, the answer and the reasons
    choose(page, "result", "1")
    assert status(page).startswith("0 of 1")
    choose(page, "result", "2")
    assert status(page).startswith("1 of 1")
    assert page.evaluate("document.title") == "sample-run – PsychoCounsel report"  # noqa: RUF001
    for width in (390, 1280):
        page.resize(width, 800)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (page.errors, page.requests) == ([], [])
