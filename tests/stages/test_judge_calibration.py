"""calibrate-judge: tables and artifacts in, a judge beside people out; the figures of MentalBench-Align."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotation_store import RUBRIC, fill
from miniature import write_rows
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.evaluation_metrics import JudgeCalibrationMetrics
from psychocounsel.store.metrics import metrics_of
from psychocounsel.store.store import Store
from psychocounsel.types import OVERALL
from running import Cli

MENTALALIGN = Path(__file__).parents[3] / "shared" / "data" / "mentalalign"
BENCH = Path(__file__).parents[2] / "scripts" / "bench"
AUTHORS = ("good", "plain", "bad")


def rows(rater: str, shift: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """Return ratings of three authors' responses to 20 speeches: 5, 3 or 1 on care; on safety 5, or 1 of the bad."""
    found: list[dict[str, Any]] = []
    for speech in range(20):
        for author, care in zip(AUTHORS, (5, 3, 1), strict=True):
            about = {"item": f"{speech}/{author}", "speech": speech, "author": author, "text": f"{author} {speech}"}
            rated = {"care": min(5, max(1, care + shift * (speech % 2))), "Safety": 1 if author == "bad" else 5}
            for principle, score in rated.items():
                found.append({**about, "rater": rater, "principle": principle, "score": score, **changes})
    return found


def write(path: Path, found: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in found]), path)
    else:
        write_rows(path, list(found))
    return path


def calibrated(store: Path) -> tuple[Artifact, JudgeCalibrationMetrics]:
    artifact = list(Store(store).artifacts("judge-calibrations"))[-1]
    metrics = metrics_of(artifact)
    assert isinstance(metrics, JudgeCalibrationMetrics)
    return artifact, metrics


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_judge_that_is_a_point_too_kind_half_of_the_time(cli: Cli, tmp_path: Path, ending: str) -> None:
    human = write(tmp_path / f"human.{ending}", [*rows("ann"), *rows("bob")])
    judge = write(tmp_path / f"Some Judge.{ending}", rows("kind", shift=1))
    command = ("calibrate-judge", human, judge, "--store", tmp_path / "data")
    ended = cli(*command)
    assert ended.code == 0, ended.err
    artifact, found = calibrated(tmp_path / "data")
    assert artifact.name == "some-judge"
    assert (found.judge, found.raters, found.items) == ("kind", {"ann": 120, "bob": 120}, 60)
    care = found.principles["care"]
    # Of good (5), plain (3) and bad (1), half of the speeches rise by a point, the good cannot.
    assert care.bias is not None and care.bias.estimate == pytest.approx(1 / 3)
    assert care.human_alpha is not None and care.human_alpha.estimate == 1.0
    assert care.kappa is not None and 0.8 < care.kappa.estimate < 1
    assert {name: each.bias and round(each.bias.estimate, 2) for name, each in found.authors.items()} == {
        "good": 0.0,
        "plain": 0.25,
        "bad": 0.25,
    }
    assert found.pairs is not None and found.pairs.author_identity is not None
    assert (found.pairs.accuracy.estimate, found.pairs.accuracy.n) == (1.0, 60)
    assert found.pairs.author_identity.estimate == 1.0
    assert found.unsafe is not None and found.unsafe.seen is not None and found.unsafe.false_alarms is not None
    assert (found.unsafe.seen.estimate, found.unsafe.seen.n, found.unsafe.false_alarms.estimate) == (1.0, 20, 0.0)
    assert "up to date" in cli(*command).out


def test_a_table_beside_itself_is_named_and_proves_nothing_about_more_responses(cli: Cli, tmp_path: Path) -> None:
    human = write(tmp_path / "human.csv", [*rows("ann"), *rows("bob", shift=1)])
    ended = cli("calibrate-judge", human, human, "--store", tmp_path / "data")
    assert ended.code == 0, ended.err
    assert "ann, bob rated on both sides" in ended.out + ended.err
    _, found = calibrated(tmp_path / "data")
    for each in (found.principles["care"].icc, found.principles["care"].kappa, found.principles["care"].spearman):
        assert each is not None and each.low < 0.8 < each.estimate


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_rating_that_a_rater_left_out_is_missing(cli: Cli, tmp_path: Path, ending: str) -> None:
    gaps = [{**row, "score": None} if row["speech"] < 5 and row["principle"] == "care" else row for row in rows("bob")]
    human = write(tmp_path / f"human.{ending}", [*rows("ann"), *gaps])
    ended = cli("calibrate-judge", human, write(tmp_path / "judge.csv", rows("judge")), "--store", tmp_path / "data")
    assert ended.code == 0, ended.err
    _, found = calibrated(tmp_path / "data")
    assert (found.raters, found.items) == ({"ann": 120, "bob": 105}, 60)


def test_items_that_the_judge_did_not_rate_are_told_without_speeches_too(cli: Cli, tmp_path: Path) -> None:
    plain = [{"item": at, "rater": "ann", "principle": "care", "score": 1 + at % 5} for at in range(60)]
    gaps = [{**row, "rater": "judge", "score": row["score"] if row["item"] < 25 else ""} for row in plain]
    human, judge = write(tmp_path / "human.csv", plain), write(tmp_path / "judge.csv", gaps)
    ended = cli("calibrate-judge", human, judge, "--store", tmp_path / "data")
    assert ended.code == 0, ended.err
    assert "Rated by one side only: 35 human" in " ".join(ended.out.split())


def test_other_texts_are_named_and_left_out_on_demand(cli: Cli, tmp_path: Path) -> None:
    human = write(tmp_path / "human.csv", rows("ann"))
    other = [{**row, "text": "Something else." if row["speech"] < 2 else f" {row['text']}  "} for row in rows("judge")]
    judge = write(tmp_path / "judge.csv", other)
    command = ("calibrate-judge", human, judge, "--store", tmp_path / "data")
    for change, items in ((), 60), (("--set", "different_texts=drop"), 54):
        ended = cli(*command, *change)
        assert ended.code == 0, ended.err
        assert "0, 1" in ended.out
        _, found = calibrated(tmp_path / "data")
        assert (found.items, found.different_texts, found.differing) == (items, ("0", "1"), 6)


@pytest.mark.parametrize(
    ("human", "judge", "code"),
    [
        (rows("ann", score=6), rows("judge"), 2),
        (rows("ann", score="many"), rows("judge"), 2),
        ([*rows("ann"), *rows("ann")], rows("judge"), 2),
        ([{key: row[key] for key in ("item", "rater", "score")} for row in rows("ann")], rows("judge"), 2),
        (rows("ann")[:38], rows("judge"), 4),
        (rows("ann"), [{**row, "principle": f"other {row['principle']}"} for row in rows("judge")], 4),
    ],
)
def test_what_cannot_be_measured(
    cli: Cli, tmp_path: Path, human: list[dict[str, Any]], judge: list[dict[str, Any]], code: int
) -> None:
    paths = [write(tmp_path / f"{name}.csv", found) for name, found in (("human", human), ("judge", judge))]
    assert cli("calibrate-judge", *paths, "--store", tmp_path / "data").code == code


def test_a_folder_is_no_table(cli: Cli, tmp_path: Path) -> None:
    cli("calibrate-judge", ".", "judge.csv", "--store", tmp_path / "data").says(2, "no artifact of annotations")


def test_labels_that_say_which_answer_is_better_rate_none(cli: Cli, tmp_path: Path) -> None:
    store = fill(tmp_path / "data")
    assert cli("annotate", "export", "comparisons/duel", "--sample", "25", "--store", store.root).code == 0
    (tasks,) = store.artifacts("annotation-tasks")
    with tasks.file("annotate.csv").open(encoding="utf-8-sig", newline="") as file:
        asked = [{**row, OVERALL: "left"} for row in csv.DictReader(file)]
    sent = write(tmp_path / "ann.csv", asked)
    imported = cli("annotate", "import", tasks.ref, sent, "--labeller", "human", "--store", store.root)
    assert imported.code == 0, imported.err
    cli("calibrate-judge", "duel", "rated", "--store", store.root).says(2, "duel@", "psychocounsel anchor")


def test_labels_and_judgements_of_the_store(cli: Cli, tmp_path: Path) -> None:
    store = fill(tmp_path / "data")
    assert cli("annotate", "export", "judgements/rated", "--sample", "25", "--store", store.root).code == 0
    (tasks,) = store.artifacts("annotation-tasks")
    with tasks.file("annotate.csv").open(encoding="utf-8-sig", newline="") as file:
        asked = list(csv.DictReader(file))
    for row in asked:
        row.update({name: "4" for name in row if name in RUBRIC.principle_ids})
    sent = write(tmp_path / "ann.csv", asked)
    command = ("annotate", "import", tasks.ref, sent, "--labeller", "human", "--store", store.root)
    imported = cli(*command)
    assert imported.code == 0, imported.err
    ended = cli("calibrate-judge", "rated", "rated", "--set", "gap=0.5", "--store", store.root)
    assert ended.code == 0, ended.err
    artifact, found = calibrated(store.root)
    assert (found.items, found.unmatched, found.pairs, found.judge) == (25, {"human": 0, "judge": 15}, None, "judge")
    assert {each.bias and each.bias.estimate for each in found.principles.values()} == {-1.0}
    assert {parent.kind for parent in artifact.parents} == {"annotations", "judgements"}


@pytest.fixture
def mentalalign(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import mentalalign

    return mentalalign


@pytest.mark.slow
def test_gpt_4o_on_mentalalign(
    cli: Cli, tmp_path: Path, mentalalign: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not MENTALALIGN.is_dir():
        pytest.skip(f"the ratings are not there: {MENTALALIGN}")
    human, judge = tmp_path / "human.csv", tmp_path / "gpt-4o.csv"
    monkeypatch.setattr("sys.argv", ["mentalalign", str(MENTALALIGN), str(human), str(judge)])
    mentalalign.main()
    ended = cli("calibrate-judge", human, judge, "--store", tmp_path / "data")
    assert ended.code == 0, ended.err
    _, found = calibrated(tmp_path / "data")
    assert (found.items, len(found.different_texts)) == (9900, 19)
    assert found.pairs is not None and found.pairs.author_identity is not None
    assert (found.pairs.accuracy.n, round(100 * found.pairs.accuracy.estimate, 2)) == (11_742, 90.42)
    assert round(100 * found.pairs.ties.estimate, 2) == 12.64
    assert round(100 * found.pairs.author_identity.estimate, 1) == 95.0
    expected = {
        "Guidance": (0.734, 0.418),
        "Informativeness": (0.433, 0.515),
        "Relevance": (0.357, 0.284),
        "Safety": (0.195, 0.353),
        "Empathy": (0.773, 0.264),
        "Helpfulness": (0.625, 0.405),
        "Understanding": (0.321, 0.325),
    }
    for name, figures in expected.items():
        each = found.principles[name]
        assert each.bias is not None and each.icc is not None
        assert (round(each.bias.estimate, 3), round(each.icc.estimate, 3)) == figures
    assert found.unsafe is not None and found.unsafe.seen is not None
    assert (round(found.unsafe.seen.estimate * found.unsafe.seen.n), found.unsafe.seen.n) == (58, 157)
