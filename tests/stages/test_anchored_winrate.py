"""anchor: from a comparison and labels in a store to the corrected win rate, and what is refused."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from annotation_store import fill
from psychocounsel.evaluation.annotations import Label, annotation_metrics
from psychocounsel.store.artifacts import ArtifactSpec, ArtifactWriter, Kind, Parent
from psychocounsel.store.evaluation_metrics import AnchorMetrics
from psychocounsel.store.metrics import metrics_of
from psychocounsel.store.schemas import Annotation, AnnotationItem, OrderedComparison, write_comparisons, write_records
from psychocounsel.store.store import Store
from psychocounsel.types import OVERALL, Comparison, ReplyStatus, Winner
from running import Cli

SPEECHES = 400
CHOICES = {1.0: "left", 0.5: "tie", 0.0: "right"}


def make(
    store: Store, kind: Kind, name: str, parents: Mapping[str, Parent], build: Callable[[ArtifactWriter], None]
) -> Parent:
    by_role = tuple(parent._replace(role=role) for role, parent in parents.items())
    return store.make(ArtifactSpec(kind, name, "made-up", 1, {"name": name}, by_role), build).as_parent("")


def points_of(at: int) -> float:
    """Return what people say of a speech: 3 of 5 are won, 1 is a tie."""
    return (1.0, 1.0, 1.0, 0.5, 0.0)[at % 5]


def compared(store: Store, name: str, missing: int = 0, unanswered: int = 0) -> Parent:
    """Make a comparison by a judge that also gives the policy three of four losses."""

    def build(writer: ArtifactWriter) -> None:
        rows: list[OrderedComparison] = []
        for at in range(SPEECHES):
            points = 1.0 if at % 5 == 4 and at % 4 else points_of(at)
            winner = {1.0: Winner.FIRST, 0.5: Winner.TIE, 0.0: Winner.SECOND}[points]
            each = Comparison(f"s{at}", f"p{at}", f"r{at}", ReplyStatus.VALID, {OVERALL: winner})
            if at < missing:
                each = Comparison(f"s{at}", f"p{at}", f"r{at}", ReplyStatus.REFUSAL)
            rows += [OrderedComparison(each, "forward"), OrderedComparison(each.swap(), "backward")]
        (writer.folder / "metrics.json").write_text(json.dumps({"missing": missing + unanswered}))
        writer.notes["judge"] = "a judge"
        write_comparisons(writer, rows, [OVERALL])

    return make(store, "comparisons", name, {}, build)


def labelled(
    store: Store, name: str, of: Parent, n: int, *, raters: tuple[str, ...] = ("ann", "bob"), **changes: Any
) -> None:
    """Make labels of the first speeches; the last of them is skipped, and the second rater calls each tenth a tie."""
    items = [AnnotationItem(f"i{at}", f"s{at}", 0, (f"p{at}", f"r{at}"), 0) for at in range(n)]

    def label(rater: str, at: int) -> Label:
        if at == n - 1:
            return None
        return {OVERALL: "tie" if rater == "bob" and at % 10 == 0 else CHOICES[points_of(at)]}

    labels = {rater: {item.item: label(rater, at) for at, item in enumerate(items)} for rater in raters}

    def build(writer: ArtifactWriter) -> None:
        rows: list[Annotation] = []
        for rater, own in labels.items():
            for item, given in own.items():
                choice = "skip" if given is None else str(given[OVERALL])
                points = {"left": 1.0, "tie": 0.5, "right": 0.0}.get(choice)
                speech = item.replace("i", "s")
                rows.append(Annotation(item, of.id, speech, 0, rater, "human", choice, points, "random"))
        write_records(writer, Annotation, rows)
        metrics = annotation_metrics(items, labels, [OVERALL])
        writer.write_metrics({**metrics, "labeller": "human", "sampled": "random", **changes})

    make(store, "annotations", name, {"comparisons": of}, build)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_labels_correct_a_judge_that_favours_the_policy(root: Path, cli: Cli) -> None:
    store = Store(root)
    labelled(store, "experts", compared(store, "duel", missing=4, unanswered=25), 160)
    command = ("anchor", "duel", "--labels", "experts", "--store", root)
    ended = cli(*command)
    assert ended.code == 0, ended.err
    (artifact,) = store.artifacts("anchors")
    found = metrics_of(artifact)
    assert isinstance(found, AnchorMetrics)
    assert (found.judge, found.labelled, found.unlabelled, found.skipped) == ("a judge", 159, 241, 1)
    assert found.judge_only.estimate == pytest.approx(0.85, abs=0.01)
    assert found.judge_only.missing == 4
    assert (found.headline, found.judge_holds) == ("anchored", False)
    assert found.rate.low < 0.7 < found.rate.high
    assert found.rate.estimate == pytest.approx(0.7, abs=0.03)
    assert found.bias is not None and found.bias.low > 0.1
    assert found.bias.n == 155
    assert 0 < found.weight < 1
    assert (found.raters, found.agreement.items) == ({"ann": 159, "bob": 159}, 159)
    assert found.unanswered == 25
    for shown in (
        "does not hold",
        "In 25 of 425 comparisons a side gave no answer",
        "a judge",
        "corrected by the labels: the rate to cite",
    ):
        assert shown in ended.out
    assert "up to date" in cli(*command).out


def test_labels_of_one_person_are_called_that(root: Path, cli: Cli) -> None:
    store = Store(root)
    duel = compared(store, "duel")
    for name, raters in (("one", ("ann",)), ("two", ("ann", "bob"))):
        labelled(store, name, duel, 60, raters=raters)
        ended = cli("anchor", "duel", "--labels", name, "--name", name, "--store", root)
        assert ended.code == 0, ended.err
        assert ("No answer was labelled by two people (raters: ann)" in ended.out) == (name == "one")


@pytest.mark.parametrize(
    ("n", "of", "changes", "code"),
    [
        (25, "duel", {}, 4),
        (60, "other", {}, 2),
        (60, "duel", {"labeller": "model"}, 2),
        (60, "duel", {"sampled": "other"}, 4),
        (60, "duel", {"win_rate": None}, 2),
    ],
)
def test_labels_that_correct_nothing_are_refused(
    root: Path, cli: Cli, n: int, of: str, changes: dict[str, Any], code: int
) -> None:
    store = Store(root)
    parents = {name: compared(store, name) for name in ("duel", "other")}
    labelled(store, "experts", parents[of], n, **changes)
    ended = cli("anchor", "duel", "--labels", "experts", "--store", root)
    assert (ended.code, list(store.artifacts("anchors"))) == (code, [])
    assert (f"annotate export comparisons/{parents['duel'].ref}" in ended.err) == (of == "other")
    assert (f"--store {root}" in ended.err) == (of == "other")


def test_a_kind_in_the_place_of_another_is_named_with_its_key(root: Path, cli: Cli) -> None:
    labelled(Store(root), "experts", compared(Store(root), "duel"), 60)
    ended = cli("anchor", "annotations/experts", "--labels", "comparisons/duel", "--store", root)
    assert "error: comparisons of experts: 'annotations/experts' is one of annotations" in ended.err


def test_labels_that_were_exported_and_imported(root: Path, cli: Cli, tmp_path: Path) -> None:
    store = fill(root, speeches=40)
    assert cli("annotate", "export", "comparisons/duel", "--sample", "35", "--store", root).code == 0
    (tasks,) = store.artifacts("annotation-tasks")
    with tasks.file("annotate.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [{**row, OVERALL: "left"} for row in csv.DictReader(file)]
    with (tmp_path / "ann.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    imported = cli("annotate", "import", tasks.ref, tmp_path / "ann.csv", "--labeller", "human", "--store", root)
    assert imported.code == 0, imported.err
    ended = cli(*imported.out.strip().rpartition("next: psychocounsel ")[2].split())
    assert ended.code == 0, ended.err
    assert "next: psychocounsel open anchors/" in ended.out
    found = metrics_of(next(iter(store.artifacts("anchors"))))
    assert isinstance(found, AnchorMetrics)
    assert (found.labelled, found.unlabelled, found.judge_only.estimate) == (35, 5, 1.0)
    assert (found.weight, found.headline, found.rho, found.judge_holds) == (0.0, "human_only", None, False)
    assert found.rate.low < 0.5 < found.rate.high


def test_a_config_file_and_missing_labels(root: Path, cli: Cli, tmp_path: Path) -> None:
    store = Store(root)
    labelled(store, "experts", compared(store, "duel"), 60, raters=("ann",))
    assert cli("anchor", "duel", "--store", root).code == 2
    config = tmp_path / "anchor.yaml"
    config.write_text("name: few\ncomparisons: duel\nlabels: experts\n", encoding="utf-8")
    dry = cli("anchor", config, "--dry-run", "--store", root)
    assert (dry.code, list(store.artifacts("anchors"))) == (0, [])
    assert "anchors" in dry.out
    assert cli("anchor", config, "--store", root).code == 0
    found = metrics_of(next(iter(store.artifacts("anchors"))))
    assert isinstance(found, AnchorMetrics)
    assert (found.headline, found.agreement.kappa) == ("human_only", None)
