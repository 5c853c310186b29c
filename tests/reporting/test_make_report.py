import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import OFFLINE, comparison_metrics, dataset, reward_metrics

from psychocounsel.config.schema import ReportConfig
from psychocounsel.stages.report import make_report, specs
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind, Parent
from psychocounsel.store.schemas import (
    Annotation,
    OrderedComparison,
    SplitSpeech,
    write_candidates,
    write_comparisons,
    write_judgements,
    write_pairs,
    write_records,
    write_speeches,
)
from psychocounsel.store.store import Store
from psychocounsel.types import (
    Candidate,
    Comparison,
    Judgement,
    PreferencePair,
    ReplyStatus,
    ScoredCandidate,
    Speech,
    Winner,
)

SPEECHES = [Speech(f"(Sighs) Every night I wake at {hour} and count.", "sleep") for hour in range(5)]
EVIL = "<script>alert(1)</script>"


def made(store: Store, kind: Kind, metrics: dict[str, Any], *parents: Parent, **more: Any) -> Artifact:
    def build(writer: ArtifactWriter) -> None:
        more.get("write", lambda _: None)(writer)
        writer.write_metrics(metrics)

    settings, notices = more.get("settings", {}), more.get("notices", ())
    return store.make(ArtifactSpec(kind, more.get("name", "run"), "made-up", 1, settings, parents, notices), build)


def answers(author: str, texts: list[str]) -> list[Candidate]:
    return [Candidate(speech.id, author, text) for speech, text in zip(SPEECHES, texts, strict=False)]


TUNED = answers("tuned", ["What is that like?", EVIL, "Mm."])


def comparison_rows(policy: list[Candidate], reference: list[Candidate]) -> list[OrderedComparison]:
    """The policy wins the first comparison in both orders; the second one flips; the third one failed."""
    rows: list[OrderedComparison] = []
    outcomes = [(Winner.FIRST, Winner.SECOND), (Winner.FIRST, Winner.FIRST), None]
    for ours, theirs, outcome in zip(policy, reference, outcomes, strict=False):
        for place, (order, first, second) in enumerate((("forward", ours, theirs), ("backward", theirs, ours))):
            winners = {} if outcome is None else {"overall": outcome[place], "empathy": outcome[place]}
            status = ReplyStatus.VALID if winners else ReplyStatus.REFUSAL
            rows.append(OrderedComparison(Comparison(ours.speech_id, first.id, second.id, status, winners), order))
    return rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one comparison of three speeches, and a reward model that has no part in it."""
    store = Store(tmp_path / "store")
    rows = [SplitSpeech(speech, "test", speech.id) for speech in SPEECHES]
    metrics = dataset()["speeches"].metrics
    speeches = made(store, "speeches", metrics, write=lambda to: write_speeches(to, rows)).as_parent("speeches")
    policy = TUNED
    reference = answers("base", ["Sleep more.", "Sleep.", "Hm."])
    parents: list[Parent] = []
    for side, written in (("policy", policy), ("reference", reference)):
        answered = made(
            store,
            "candidates",
            {"speeches": 3, "draws": 1, "failed": {}},
            speeches,
            name=f"run-{side}",
            write=lambda to, written=written: write_candidates(to, written),
            settings={"responder": {"author": written[0].author}},
        )
        parents.append(answered.as_parent(f"{side} answers"))
    compared = comparison_rows(policy, reference)

    def write(writer: ArtifactWriter) -> None:
        write_comparisons(writer, compared, ("overall", "empathy"))

    settings = {"judge": {"backend": "offline"}, "confidence": 0.95}
    more: dict[str, Any] = {"write": write, "notices": (OFFLINE,), "settings": settings}
    made(store, "comparisons", comparison_metrics(), *parents, speeches, **more)
    made(store, "reward-models", reward_metrics())
    return store


def page(report: Artifact) -> str:
    return report.file("report.html").read_text(encoding="utf-8")


def config(*artifacts: str, **more: Any) -> ReportConfig:
    return ReportConfig(name="report", artifacts=artifacts, **more)


def test_a_report_shows_what_it_names_and_all_it_came_from(store: Store) -> None:
    report = make_report(config("comparisons/run"), store)
    html = page(report)
    assert report.kind == "reports"
    assert report.warnings == (OFFLINE,)
    assert all(each.ref in html for each in store.artifacts() if each.kind in ("speeches", "candidates", "comparisons"))
    assert "reward-models" not in html
    assert html.index(OFFLINE) < html.index('class="cards"')
    # Examples have texts and the outcomes of both orders.
    assert html.count('<details class="example"') == 3
    assert "tuned (policy)" in html
    assert "base (reference)" in html
    assert "preferred in both orders. By principle, for the policy: empathy: win." in html
    assert "flipped with the order" in html
    assert "No result: at least one order failed." in html
    assert EVIL not in html
    assert "&lt;script&gt;" in html
    assert page(make_report(config("comparisons/run", examples=1), store)).count('<details class="example"') == 1
    assert 'id="examples"' not in page(make_report(config("comparisons/run", examples=0), store))


def test_every_answer_is_on_the_page_with_its_ratings_and_reasons(store: Store) -> None:
    speeches = store.artifacts("speeches")[0].as_parent("speeches")
    (written,) = [each for each in store.artifacts("candidates") if each.name == "run-policy"]
    given = [Judgement(each.id, "judge", ReplyStatus.VALID, {"empathy": 2}, reasons="Cold.") for each in TUNED[:2]]
    given.append(Judgement(TUNED[2].id, "judge", ReplyStatus.REFUSAL))
    metrics = dataset()["judgements"].metrics
    parents = (speeches, written.as_parent("ready candidates"))
    made(store, "judgements", metrics, *parents, write=lambda to: write_judgements(to, given, ("empathy",)))
    sides = (ScoredCandidate(TUNED[0], 4, {"empathy": 4}), ScoredCandidate(TUNED[1], 1, {"empathy": 1}))
    pair = PreferencePair(SPEECHES[0], sides[0], replace(sides[1], candidate=answers("other", ["No."])[0]))
    metrics = dataset()["preferences"].metrics
    made(store, "preferences", metrics, speeches, write=lambda to: write_pairs(to, "test", [pair], ("empathy",)))
    shown = make_report(config("comparisons/run", "judgements/run", "preferences/run", max_items=2), store)
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page(shown), re.DOTALL)
    found = json.loads(data)
    assert [(each["criteria"], each["total"]) for each in found["sets"]] == [
        *((["overall", "empathy"], 3), (["empathy"], 3), (["empathy"], 1)),
    ]
    by_set = [[each for each in found["items"] if each["set"] == number] for number in range(3)]
    assert [len(items) for items in by_set] == [2, 2, 1]
    rated = {each["answers"][0]["reasons"] for each in by_set[1]}
    assert rated <= {"Cold.", "refusal"}
    assert {each["answers"][0]["reasons"] for each in by_set[0]} == rated  # the same answers, compared
    assert {each["answers"][1]["reasons"] for each in by_set[0]} == {""}
    assert [each["ratings"] for each in by_set[2][0]["answers"]] == [{"empathy": 4}, {"empathy": 1}]
    flipped = [each for each in by_set[0] if each["outcomes"] == ["position-inconsistent"] * 2]
    assert all([order["winners"][0] for order in each["orders"]] == ["policy", "reference"] for each in flipped)


def test_people_s_labels_stand_with_what_they_labelled_and_a_model_s_do_not(store: Store) -> None:
    (one,) = store.artifacts("comparisons")
    at = ("item", one.id, TUNED[0].speech_id, 0)
    given = [
        Annotation(*at, "ana", "human", "left", 0.0, "random"),
        Annotation(*at, "ben", "human", "skip", None, "random"),
        Annotation(*at, "bot", "model", "left", 1.0, "random"),
    ]
    metrics = {"labeller": "human", "sampled": "random", "items": 1, "labelled": 1, "skipped": 0}
    metrics |= {"raters": {}, "win_rate": None, "agreement": {}}
    made(store, "annotations", metrics, one.as_parent("tasks"), write=lambda to: write_records(to, Annotation, given))
    (data,) = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', page(make_report(config("annotations/run"), store))
    )
    assert [each["labels"] for each in json.loads(data)["items"] if each["labels"]] == [{"ana": 0.0}]


def test_several_comparisons_are_shown_side_by_side_with_the_settings_that_differ(store: Store) -> None:
    (one,) = store.artifacts("comparisons")
    rows = comparison_rows(TUNED, answers("base", ["Sleep more.", "Sleep.", "Hm."]))
    other = {"judge": {"backend": "endpoint", "model": "another-judge"}, "confidence": 0.95}
    made(
        *(store, "comparisons", comparison_metrics(), *one.parents),
        **{"name": "again", "settings": other},
        write=lambda to: write_comparisons(to, rows, ("overall", "empathy")),
    )
    html = page(make_report(config("comparisons/run", "comparisons/again"), store))
    section = html.partition("Policies side by side</h2>")[2].partition("<section")[0]
    assert all(words in section for words in ("judge.model", "another-judge", "Cohen", "empathy"))
    assert "Policies side by side" not in page(make_report(config("comparisons/run"), store))


def test_the_same_artifacts_give_the_same_bytes_and_are_up_to_date(store: Store, tmp_path: Path) -> None:
    both = config("comparisons/run", "reward-models/run")
    first, again = (make_report(both, store) for _ in range(2))
    assert first.is_new
    assert not again.is_new
    (rates,) = first.metrics["win_rates"].values()
    assert rates["win_rate"] == comparison_metrics()["win_rate"]
    written = first.file("report.html").read_bytes()
    first.folder.rename(tmp_path / "elsewhere")
    assert make_report(both, store).file("report.html").read_bytes() == written


def test_roles_have_kind_and_name_and_the_id_where_two_share_a_name(store: Store) -> None:
    other = made(store, "reward-models", reward_metrics(), settings={"seed": 2})
    first = next(each for each in store.artifacts("reward-models") if each.id != other.id)
    one = specs(config("reward-models/run"), store)
    assert [parent.role for parent in one.parents] == ["reward-models run"]
    refs = [f"reward-models/{each.ref}" for each in (first, other)]
    both = specs(config(*refs, refs[1]), store)
    assert [parent.role for parent in both.parents] == [ref.replace("/", " ") for ref in refs]
    make_report(config(*refs), store)
