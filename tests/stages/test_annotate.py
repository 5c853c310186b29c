"""Items for experts go out blinded and come back as labels: through the command line, files and a browser."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from annotation_store import AUTHORS, PLANTED, RUBRIC, fill
from browser import Page, needs_browser, open_page
from psychocounsel.stages.annotate import RESTRICTED
from psychocounsel.store.artifacts import MANIFEST, METRICS, Artifact
from psychocounsel.store.metrics import AnnotationMetrics, metrics_of
from psychocounsel.store.schemas import Annotation, AnnotationItem, read_records
from psychocounsel.store.store import Store
from running import Cli, Ended, await_until, write_listed

SAMPLE = 12


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return fill(tmp_path / "store")


@pytest.fixture
def export(store: Store, cli: Cli) -> Callable[..., Artifact]:
    def run(ref: str = "comparisons/duel", sample: int = SAMPLE, *more: str) -> Artifact:
        ended = cli("annotate", "export", ref, "--sample", str(sample), "--store", store.root, *more)
        assert ended.code == 0, ended.err
        return store.artifacts("annotation-tasks")[-1]

    return run


@pytest.fixture
def bring(store: Store, cli: Cli) -> Callable[..., Ended]:
    def run(tasks: Artifact, *files: Path, labeller: str = "human") -> Ended:
        return cli("annotate", "import", tasks.ref, *files, "--labeller", labeller, "--store", store.root)

    return run


def page_of(tasks: Artifact) -> str:
    return tasks.file("annotate.html").read_text(encoding="utf-8")


def shown(tasks: Artifact) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page_of(tasks), re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))["items"]


def saved(path: Path, of: Artifact, labels: Mapping[str, Any], **changes: Any) -> Path:
    """Write what the page saves."""
    content = {"format": "psychocounsel-annotations-1", "tasks": of.id, "rater": path.stem, "labels": labels}
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


def key_of(tasks: Artifact) -> list[AnnotationItem]:
    return read_records(tasks, AnnotationItem)


def choosing(items: Sequence[AnnotationItem], *wanted: str | None) -> dict[str, Any]:
    """Label one item after the other: `policy`, `reference`, `tie`, or None for a skip."""
    sides = ("left", "right")
    labels: dict[str, Any] = {}
    for item, side in zip(items, wanted, strict=False):
        assert item.policy_at is not None
        choice = {"policy": sides[item.policy_at], "reference": sides[1 - item.policy_at], "tie": "tie"}
        labels[item.item] = None if side is None else {"overall": choice[side]}
    return labels


def test_export_is_blinded_shuffled_and_seeded(store: Store, export: Callable[..., Artifact]) -> None:
    tasks = export()
    key, items = key_of(tasks), shown(tasks)
    text = page_of(tasks) + tasks.file("annotate.csv").read_text(encoding="utf-8-sig")
    source = store.artifacts("comparisons")[-1]
    known = {*AUTHORS.values(), "duel", source.id, source.id[:8]}
    known |= {each for item in key for each in (item.speech_id, *item.answer_ids)}
    assert [each for each in known if each in text] == []
    assert [each["id"] for each in items] == [each.item for each in key]
    # The answers begin with p or r: only the key knows which is where.
    assert [each["answers"].index(f"p{key[at].draw} {PLANTED}") for at, each in enumerate(items)] == [
        each.policy_at for each in key
    ]
    assert {each.policy_at for each in key} == {0, 1}
    assert len({each.speech_id for each in key}) == SAMPLE  # no second draw before every speech had one
    assert {each.draw for each in key} == {0, 1}
    corpus = [each["speech_id"] for each in pq.read_table(source.file("comparisons.parquet")).to_pylist()]
    assert [each.speech_id for each in key] != sorted((each.speech_id for each in key), key=corpus.index)

    larger = key_of(export("comparisons/duel", 2 * SAMPLE))
    assert larger[:SAMPLE] == key
    assert len({each.speech_id for each in larger[:20]}) == 20
    other = key_of(export("comparisons/duel", SAMPLE, "--seed", "1"))
    assert not {each.item for each in other} & {each.item for each in key}
    export()
    assert len(store.artifacts("annotation-tasks")) == 3  # the same again is up to date


@pytest.mark.parametrize(
    ("ref", "sample", "more", "words"),
    [
        ("comparisons/duel", 41, (), "40 items"),
        ("comparisons/none", 5, (), "there is no"),
        ("speeches/said", 5, (), "name one of comparisons, judgements"),
        ("judgements/rated", 5, ("--rubric", "nowhere"), "no rubric"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    store: Store, cli: Cli, ref: str, sample: int, more: Sequence[str], words: str
) -> None:
    cli("annotate", "export", ref, "--sample", str(sample), *more, "--store", store.root).says(2, words)
    assert list(store.root.glob("annotation-tasks/*")) == []


def test_restricted_texts_are_announced(tmp_path: Path, cli: Cli) -> None:
    root = fill(tmp_path / "restricted", data_class="restricted").root
    ended = cli("annotate", "export", "comparisons/duel", "--sample", "2", "--store", root)
    assert (ended.code, "restricted" in ended.out.splitlines()[0]) == (0, True)
    assert "send to raters" not in ended.out
    exported = Store(root).artifacts("annotation-tasks")[-1]
    assert "restricted" in page_of(exported)
    assert not any("send the page" in each for each in exported.warnings)  # labels and reports would inherit it
    older = exported.manifest | {"notes": {}, "warnings": [RESTRICTED]}
    exported.file(MANIFEST).write_text(json.dumps(older), encoding="utf-8")
    again = cli("annotate", "export", "comparisons/duel", "--sample", "2", "--store", root)
    assert (again.code, "send to raters" in again.out) == (0, False)


def test_labels_of_several_raters_become_annotations(
    store: Store, export: Callable[..., Artifact], bring: Callable[..., Ended], tmp_path: Path
) -> None:
    tasks = export()
    key = key_of(tasks)
    ana = choosing(key, "policy", "policy", "reference", "tie", None, "policy")
    bo = choosing(key, "policy", "reference", "reference", "tie")
    rows = list(csv.DictReader(io.StringIO(tasks.file("annotate.csv").read_text(encoding="utf-8-sig"))))
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=";")  # as a German spreadsheet saves it
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "overall": bo.get(row["item"], {"overall": ""})["overall"].upper()})
    (tmp_path / "bo.csv").write_text(out.getvalue(), encoding="cp1252", errors="replace")
    ended = bring(tasks, saved(tmp_path / "ana.json", tasks, ana), tmp_path / "bo.csv")
    assert ended.code == 0, ended.err

    made = store.artifacts("annotations")[-1]
    found = read_records(made, Annotation)
    assert {(each.rater, each.labeller, each.sampled) for each in found} == {
        ("ana", "human", "random"),
        ("bo", "human", "random"),
    }
    assert {each.comparison_id for each in found} == {store.artifacts("comparisons")[-1].id}
    points = [each.points for each in found if each.rater == "ana"]
    assert points == [1, 1, 0, 0.5, None, 1]
    assert [(each.speech_id, each.draw) for each in found[:6]] == [(each.speech_id, each.draw) for each in key[:6]]
    metrics = metrics_of(made)
    assert isinstance(metrics, AnnotationMetrics)
    assert (metrics.items, metrics.labelled, metrics.skipped) == (SAMPLE, 5, 1)
    assert metrics.win_rate is not None
    assert metrics.win_rate.estimate == pytest.approx((1 + 0.5 + 0 + 0.5 + 1) / 5)
    agreement = metrics.agreement["overall"]
    assert agreement.raw is not None
    assert (agreement.items, agreement.raw.estimate) == (4, 0.75)
    counts = metrics.raters["bo"]
    assert (counts.labelled, counts.skipped, counts.pending) == (4, 0, 8)
    assert "Cohen" in ended.out
    assert "up to date" in bring(tasks, tmp_path / "bo.csv", tmp_path / "ana.json").out
    assert bring(tasks, tmp_path / "bo.csv", labeller="model").code == 0
    assert {each.labeller for each in read_records(store.artifacts("annotations")[-1], Annotation)} == {"model"}


def test_raters_who_did_not_read_are_named(cli: Cli, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", speeches=30)
    assert cli("annotate", "export", "comparisons/duel", "--sample", "60", "--store", store.root).code == 0
    (tasks,) = store.artifacts("annotation-tasks")
    key = key_of(tasks)
    said = {
        "tess": dict.fromkeys(range(40), "tie"),
        "lefty": {at: "left" if at % 10 else "right" for at in range(40)},
        **{name: {at: ("left", "tie", "right")[at % 3] for at in range(60)} for name in ("ann", "ann2")},
    }
    said["ann2"][0] = "tie"
    files = [
        saved(tmp_path / f"{name}.json", tasks, {key[at].item: {"overall": label} for at, label in own.items()})
        for name, own in said.items()
    ]
    ended = cli("annotate", "import", tasks.ref, *files, "--labeller", "human", "--store", store.root)
    assert ended.code == 0, ended.err
    words = re.sub(r"\s+", " ", ended.out[: ended.out.index("win rate by the labels")])
    assert "tess answered tie to all of 40 items" in words
    assert "lefty preferred the left answer in 90.0 % of the items" in words
    assert "ann and ann2 agree on 98.3 % of 60 items" in words
    assert words.count(" ! ") == 3


@pytest.mark.parametrize(
    ("speeches", "sample", "advice", "can_anchor"),
    [(14, 20, "test_share", False), (30, 29, "--sample 30", False), (30, 31, "", True)],
)
def test_anchor_is_named_only_where_it_can_succeed(
    tmp_path: Path, cli: Cli, speeches: int, sample: int, advice: str, can_anchor: bool
) -> None:
    root = fill(tmp_path / "store", speeches).root
    ended = cli("annotate", "export", "comparisons/duel", "--sample", str(sample), "--store", root)
    assert ended.code == 0, ended.err
    assert (f"covers {min(sample, speeches)} speeches" in ended.out, advice in ended.out) == (not can_anchor, True)
    tasks = Store(root).artifacts("annotation-tasks")[-1]
    labels = saved(tmp_path / "ana.json", tasks, choosing(key_of(tasks), *["policy", "tie"] * sample))
    ended = cli("annotate", "import", tasks.ref, labels, "--labeller", "human", "--store", root)
    assert ("next: psychocounsel anchor duel@" in ended.out, ended.code) == (can_anchor, 0)
    if not can_anchor:
        ref = Store(root).artifacts("annotations")[-1].ref
        cli("anchor", "duel", "--labels", ref, "--store", root).says(4, advice.replace("--sample 30", "at least 30"))


def test_a_sample_that_raters_chose_is_not_random(
    store: Store, export: Callable[..., Artifact], bring: Callable[..., Ended], tmp_path: Path
) -> None:
    tasks = export()
    key = key_of(tasks)
    first, second = choosing(key[:3], *["tie"] * 3), choosing(key[4:6], *["tie"] * 2)
    sampled: list[str] = []
    for number, labels in enumerate((first, first | second, first | second | choosing(key[3:4], None))):
        assert bring(tasks, saved(tmp_path / f"rater{number}.json", tasks, labels)).code == 0
        sampled.append(read_records(store.artifacts("annotations")[-1], Annotation)[0].sampled)
    assert sampled == ["random", "other", "random"]


Fault = Callable[[Path, Artifact, Mapping[str, Any]], Sequence[Path]]


def in_csv(*lines: str) -> Fault:
    def write(folder: Path, tasks: Artifact, labels: Mapping[str, Any]) -> Sequence[Path]:
        item = next(iter(labels))
        (folder / "bo.csv").write_text("\n".join(lines).replace("ITEM", item), encoding="utf-8")
        return [folder / "bo.csv"]

    return write


def in_json(labels: Callable[[Mapping[str, Any]], Any] = lambda labels: labels, **changes: Any) -> Fault:
    return lambda folder, tasks, given: [saved(folder / "bo.json", tasks, labels(given), **changes)]


def twice(folder: Path, tasks: Artifact, labels: Mapping[str, Any]) -> Sequence[Path]:
    return [saved(folder / f"{rater}.json", tasks, labels, rater=rater) for rater in ("bo", "Bo")]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (in_json(tasks="0" * 64), "'00000000'"),
        (in_json(lambda labels: {**labels, "0123456789abcdef": None}), "unknown"),
        (in_json(lambda labels: {item: {"overall": "up"} for item in labels}), "do not fit"),
        (in_json(lambda labels: {item: {} for item in labels}), "do not fit"),
        (in_json(lambda labels: dict.fromkeys(labels)), "no item is labelled"),
        (in_json(lambda labels: []), "no file that the page has saved"),
        (in_json(format="other"), "no file that the page has saved"),
        (in_json(rater="../ana"), "code of a rater"),
        (in_json(rater="Björn"), "of a-z, A-Z, digits"),
        (twice, "in another file"),
        (in_csv("item,overall", "ITEM,left", "ITEM,left"), "a second time"),
        (in_csv("item,overall", "ITEM,5"), "do not fit"),
        (in_csv("item,speech", "ITEM,left"), "with the columns item, overall"),
        (in_csv("item,overall", "ITEMX,left"), "unknown"),
        (in_csv(""), "with the columns"),
        (in_csv("item,overall", 'ITEM,"' + "x" * 200_000), "do not fit"),
        (in_csv("item,overall", 'ITEM,"' + "x" * 2_000_000), "with the columns"),
        (lambda folder, tasks, labels: [folder / "absent.csv"], "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    store: Store, export: Callable[..., Artifact], bring: Callable[..., Ended], tmp_path: Path, fault: Fault, words: str
) -> None:
    tasks = export()
    labels = choosing(key_of(tasks), "policy", "tie")
    bring(tasks, *fault(tmp_path, tasks, labels)).says(2, words)
    assert store.artifacts("annotations") == []


def test_who_labelled_must_be_said(export: Callable[..., Artifact], store: Store, cli: Cli, tmp_path: Path) -> None:
    tasks = export()
    path = saved(tmp_path / "ana.json", tasks, choosing(key_of(tasks), "tie"))
    assert cli("annotate", "import", tasks.ref, path, "--store", store.root).code == 2


def test_ratings_come_back_by_principle(
    store: Store, export: Callable[..., Artifact], bring: Callable[..., Ended], tmp_path: Path
) -> None:
    tasks = export("judgements/rated", 4)
    key = key_of(tasks)
    header = ["item", *RUBRIC.principle_ids]
    lines = [[key[0].item, *["4"] * 7], [key[1].item, *["2"] * 7], [key[2].item, "skip", *[""] * 6]]
    (tmp_path / "ana.csv").write_text("\n".join(",".join(line) for line in [header, *lines]), encoding="utf-8")
    other = {key[0].item: dict.fromkeys(RUBRIC.principle_ids, 5), key[1].item: dict.fromkeys(RUBRIC.principle_ids, 2)}
    ended = bring(tasks, tmp_path / "ana.csv", saved(tmp_path / "bo.json", tasks, other))
    assert ended.code == 0, ended.err
    made = store.artifacts("annotations")[-1]
    rows = pq.read_table(made.file("ratings.parquet")).to_pylist()
    assert {(row["rater"], row["item"], row["principle"], row["score"]) for row in rows} >= {
        ("ana", key[0].answer_ids[0], "safety", 4),
        ("bo", key[0].answer_ids[0], "safety", 5),
        ("ana", key[2].answer_ids[0], "safety", None),
    }
    assert rows[0]["response"].startswith("p")
    metrics = metrics_of(made)
    assert isinstance(metrics, AnnotationMetrics)
    assert metrics.win_rate is None
    assert metrics.mean_rating["empathy"] == (4.5 + 2) / 2
    assert metrics.agreement["empathy"].items == 2
    partial = {key[0].item: {"empathy": 3}}
    bring(tasks, saved(tmp_path / "cy.json", tasks, partial)).says(2, "do not fit")
    bring(tasks, saved(tmp_path / "cy.json", tasks, {key[0].item: dict.fromkeys(RUBRIC.principle_ids, 6)})).says(
        2, "do not fit"
    )


def test_labels_of_older_exports_are_read_whose_metrics_have_only_the_ends_of_the_scale(
    export: Callable[..., Artifact], bring: Callable[..., Ended], tmp_path: Path
) -> None:
    tasks = export("judgements/rated", 4)
    write_listed(tasks.file(METRICS), json.dumps(tasks.metrics | {"scale": [1, 5]}).encode("utf-8"))
    item = key_of(tasks)[0].item
    for rating, code in ((3, 0), (6, 2)):
        labels = {item: dict.fromkeys(RUBRIC.principle_ids, rating)}
        assert bring(tasks, saved(tmp_path / "ana.json", tasks, labels)).code == code


# --- In a browser ----------------------------------------------------------------------------------------------------


def text(page: Page, element: str) -> str:
    return page.evaluate(f"document.getElementById('{element}').textContent")


def begin(page: Page, rater: str) -> None:
    page.evaluate("document.getElementById('rater').focus()")
    page.type(rater)
    page.press("Enter")
    page.wait_for("document.getElementById('start').hidden")


def save(page: Page, folder: Path) -> Path:
    """Save by the button into a new folder, and return the file."""
    folder.mkdir()
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    click = "[...document.querySelectorAll('[id^=save]')].find(button => button.offsetParent).click()"
    page.call("Runtime.evaluate", expression=click, userGesture=True)  # Chromium stops a second download without one
    await_until(lambda: any(folder.glob("*.json")))
    return next(folder.glob("*.json"))


def give(page: Page, path: Path) -> None:
    """Choose a file to go on from."""
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])


@needs_browser
def test_a_rater_compares_with_the_keyboard_alone(
    store: Store, export: Callable[..., Artifact], bring: Callable[..., Ended], tmp_path: Path
) -> None:
    tasks = export("comparisons/duel", 5)
    key = key_of(tasks)
    path = Path(tmp_path / "sent" / "annotate.html")
    path.parent.mkdir()
    path.write_bytes(tasks.file("annotate.html").read_bytes())
    with open_page(path, tmp_path / "profile") as page:
        page.resize(390, 844)
        assert "suicide" in text(page, "start")
        assert page.evaluate("document.getElementById('item').hidden")
        begin(page, "ana")
        assert text(page, "place") == "1 of 5"
        assert text(page, "speech") == shown(tasks)[0]["speech"]
        answers = page.evaluate("[...document.querySelectorAll('.answer')].map(each => each.textContent)")
        assert answers == shown(tasks)[0]["answers"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for pressed in ("ArrowLeft", "t", "b", "ArrowRight", "s"):
            page.press(pressed)
        assert text(page, "place") == "4 of 5"
        page.reload()
        page.wait_for("document.readyState === 'complete' && !document.getElementById('start').hidden")
        page.press("Tab")  # no key labels anything before the start
        page.evaluate("document.querySelector('#begin button').click()")
        assert text(page, "place") == "4 of 5"
        half = save(page, tmp_path / "half")
        page.press("t")
        page.press("ArrowLeft")
        assert "4 items labelled, 1 skipped" in text(page, "counts")
        page.press("b")
        page.press("ArrowRight")
        done = save(page, tmp_path / "done")
        assert page.evaluate("document.title") != "planted"
        assert (page.errors, page.requests) == ([], [])
    labels = json.loads(done.read_text(encoding="utf-8"))["labels"]
    choices = [label and label["overall"] for label in (labels[each.item] for each in key)]
    assert choices == ["left", "right", None, "tie", "right"]
    assert bring(tasks, done).code == 0
    points = [each.points for each in read_records(store.artifacts("annotations")[-1], Annotation)]
    assert points[3] == 0.5
    assert points[0] == float(key[0].policy_at == 0)

    # Another computer: the half that was saved goes on where it stopped, and a file of another page is refused.
    with open_page(path, tmp_path / "other-profile") as page:
        give(page, saved(tmp_path / "other.json", tasks, {}, tasks="0" * 64))
        page.wait_for("document.getElementById('said').textContent.includes('another page')")
        give(page, half)
        page.wait_for("document.getElementById('start').hidden")
        assert text(page, "place") == "4 of 5"
        page.evaluate("Storage.prototype.setItem = () => { throw new Error('forbidden') }")
        page.press("t")
        assert "NOT kept" in text(page, "state")
        assert page.errors == []


@needs_browser
def test_a_rater_rates_by_principle_with_the_keyboard(export: Callable[..., Artifact], tmp_path: Path) -> None:
    tasks = export("judgements/rated", 2)
    with open_page(tasks.file("annotate.html"), tmp_path / "profile") as page:
        begin(page, "ana")
        for pressed in "4445":
            page.press(pressed)
        page.press("Enter")  # three principles are open
        assert text(page, "place") == "1 of 2"
        for pressed in ("1", "2", "3", "Enter", "s"):
            page.press(pressed)
        assert "1 items labelled, 1 skipped" in text(page, "counts")
        labels = json.loads(save(page, tmp_path / "done").read_text(encoding="utf-8"))["labels"]
        assert list(labels[shown(tasks)[0]["id"]].values()) == [4, 4, 4, 5, 1, 2, 3]
        assert (page.errors, page.requests) == ([], [])
