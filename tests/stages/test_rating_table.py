"""Ratings that exist already enter as a judge: any number of raters, off the scale, missing, and MentalBench-Align."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.config.components import JudgeConfig, recipes_folder
from psychocounsel.config.loading import config_of, load_config
from psychocounsel.config.schema import BuildPreferencesConfig, EvalWinrateConfig
from psychocounsel.errors import ConfigError, DataQualityError, InputError
from psychocounsel.stages.build_preferences import build_preferences
from psychocounsel.stages.eval_winrate import eval_winrate
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.schemas import read_judgements, read_pairs
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus

HUMAN_RATINGS = Path(__file__).parents[3] / "shared" / "data" / "mentalalign" / "Human_judge.xlsx"
PRINCIPLES = ("empathy", "safety")
RUBRIC = {
    "version": "1",
    "language": "en",
    "scale": {"min": 1, "max": 3},
    "principles": [
        {"id": name, "name": name.title(), "description": "x", "anchors": dict.fromkeys("123", "x")}
        for name in PRINCIPLES
    ],
}
SPEECHES = ("My job worries me.", "I sleep badly these days.", "My son does not call.")
AUTHORS = ("Anna Smith", "gpt-4o")


def write(path: Path, rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(folder: Path, table: list[dict[str, Any]], columns: dict[str, Any], **judge: Any) -> BuildPreferencesConfig:
    speeches = write(folder / "speeches.jsonl", [{"key": at, "text": text} for at, text in enumerate(SPEECHES)])
    answers = [
        {"key": at, "who": who, "text": f"Answer {n} to the one who says: {text}"}
        for at, text in enumerate(SPEECHES)
        for n, who in enumerate(AUTHORS)
    ]
    path = write(folder / "table.jsonl", table)
    (folder / "rubric.yaml").write_text(json.dumps(RUBRIC), encoding="utf-8")
    corpus = {
        "name": "c",
        "speeches": [
            {
                "path": speeches,
                "columns": {"text": "text", "key": "key"},
                "licence": "mit",
                "data_class": "public",
            }
        ],
        "candidates": [
            {
                "path": write(folder / "answers.jsonl", answers),
                "columns": {"text": "text", "author": "who", "speech_key": "key"},
                "licence": "mit",
                "data_class": "public",
            }
        ],
        "cleaning": {"min_chars": 1, "languages": []},
        "split": {"test_share": 0, "dev_share": 0},
    }
    rubric = str(folder / "rubric.yaml")
    given = {"backend": "table", "path": path, "rubric": rubric, "columns": columns, **judge}
    return config_of(BuildPreferencesConfig, {"name": "t", "corpus": corpus, "judge": given})


def judged(store: Store, made: Artifact) -> dict[str, Any]:
    judgements = store.open(made.parent("judgements"))
    return {"metrics": judgements.metrics, "rows": read_judgements(judgements)}


LONG = {"speech": "s", "author": "who", "principle": "p", "value": "v"}


def long_rows(*raters: int, **changed: Any) -> list[dict[str, Any]]:
    """Each rater gives the first author 3 and the second author their own number."""
    return [
        {"s": at, "who": who, "p": name.title(), "v": 3 if who == AUTHORS[0] else rater, "rater": f"r{at}", **changed}
        for at in range(len(SPEECHES))
        for who in AUTHORS
        for name in PRINCIPLES
        for rater in raters
    ]


@pytest.mark.parametrize("shape", ["long", "text keys", "objects", "wide principles", "texts of responses", "strings"])
def test_a_table_of_any_shape_gives_the_same_pairs(tmp_path: Path, shape: str) -> None:
    ratings = {AUTHORS[0]: 3, AUTHORS[1]: 1}
    items = [(at, who) for at in range(len(SPEECHES)) for who in AUTHORS]
    columns: dict[str, Any] = LONG
    more: dict[str, Any] = {}
    rows = long_rows(1)
    if shape == "text keys":
        rows = [{**row, "s": SPEECHES[row["s"]]} for row in rows]
    elif shape == "strings":
        rows = [{**row, "v": f"{row['v']}.0"} for row in rows]
    elif shape == "objects":
        columns = {"speech": "s", "author": "who", "value": "v"}
        values = {
            who: json.dumps({**dict.fromkeys(PRINCIPLES, rating), "Overall": 9}) for who, rating in ratings.items()
        }
        rows = [{"s": at, "who": who, "v": values[who]} for at, who in items]
    elif shape == "wide principles":
        columns, more = {"speech": "s", "author": "who", "principle": "wide.column"}, {"wide": {"columns": PRINCIPLES}}
        rows = [{"s": at, "who": who, **dict.fromkeys(PRINCIPLES, ratings[who])} for at, who in items]
    elif shape == "texts of responses":
        columns = {**LONG, "author": None, "response": "text"}
        texts = [f"Answer {AUTHORS.index(row['who'])} to the one who says: {SPEECHES[row['s']]}" for row in rows]
        rows = [{**row, "text": text} for row, text in zip(rows, texts, strict=True)]
    store = Store(tmp_path / "store")
    made = build_preferences(config(tmp_path, rows, columns, **more), store)
    pairs = read_pairs(made, "train")
    assert {pair.speech.text for pair in pairs} == set(SPEECHES)
    assert all(pair.chosen.ratings == {"empathy": 3, "safety": 3} and pair.margin == 4 for pair in pairs)
    assert {pair.rejected.candidate.author for pair in pairs} == {"gpt-4o"}
    assert not {pair.chosen.candidate.author for pair in pairs} & {"Anna Smith"}, "people stay unnamed"
    rows_read = judged(store, made)["metrics"]["rating_rows"]
    assert rows_read == {"read": len(rows) * (2 if shape == "wide principles" else 1)}


def test_of_several_raters_the_mean_counts_and_their_disagreement_is_kept(tmp_path: Path) -> None:
    rows = [
        {**row, "rater": rater, "v": row["v"] if row["who"] == AUTHORS[0] else points}
        for row in long_rows(1)
        for rater, points in (("ann", 1), ("ben", 2))
    ]
    store = Store(tmp_path / "store")
    made = build_preferences(config(tmp_path, rows, {**LONG, "rater": "rater"}), store)
    assert [pair.rejected.ratings for pair in read_pairs(made, "train")] == [{"empathy": 1.5, "safety": 1.5}] * 3
    metrics = judged(store, made)["metrics"]
    assert metrics["samples"]["status"] == {"ann": {"valid": 6}, "ben": {"valid": 6}}
    assert metrics["disagreement"]["responses"] == 6
    with pytest.raises(InputError, match="rated twice"):
        build_preferences(config(tmp_path, rows, LONG), Store(tmp_path / "other"))


NAMES = {"empathy": "Shows empathy (1-3)", "safety": "Is safe (1-3)"}


@pytest.mark.parametrize("shape", ["questions", "sheet", "export", "nested"])
def test_tables_of_other_programs(tmp_path: Path, shape: str) -> None:
    """A survey with a question per item, a wide sheet of words, an export of annotations, and nested completions."""
    words = {1: "Stimme nicht zu", 2: "2,0", 3: "Stimme zu "}
    raters, more = (
        (7, 8) if shape == "export" else ("ann", "ben"),
        {"points": {"stimme zu": 3, "Stimme nicht zu": 1, "N/A": None}},
    )
    items = [(at, who) for at in range(len(SPEECHES)) for who in AUTHORS]
    given = {(who, rater): 3 if who == AUTHORS[0] else 1 + (rater in ("ben", 8)) for who in AUTHORS for rater in raters}
    rows: list[dict[str, Any]]
    if shape == "questions":
        asked = {f"Q{at}_{who}_{name}": {"s": at, "who": who, "p": name} for at, who in items for name in PRINCIPLES}
        rows = [{"id": each, **{q: given[said["who"], each] for q, said in asked.items()}} for each in raters]
        more |= {"wide": {"columns": asked}, "where": 'id != "ImportId"'}
        columns = {"speech": "wide.column.s", "author": "wide.column.who", "principle": "wide.column.p", "rater": "id"}
        rows.append({"id": "ImportId", **dict.fromkeys(asked, "Which?")})
    elif shape == "sheet":
        labels = {f"{NAMES[p]} {rater}": {"p": p, "rater": rater} for p in PRINCIPLES for rater in raters}
        rows = [
            {"s": at, "who": who, **{q: words[given[who, label["rater"]]] for q, label in labels.items()}}
            for at, who in items
        ]
        more |= {"wide": {"columns": labels}}
        columns = {"speech": "s", "author": "who", "principle": "wide.column.p", "rater": "wide.column.rater"}
    elif shape == "export":
        rows = [
            {
                "data": {"text": SPEECHES[at], "who": who},
                "annotations": [
                    {"by": each, "result": [{"name": p, "value": {"rating": given[who, each]}} for p in PRINCIPLES]}
                    for each in raters
                ],
            }
            for at, who in items
        ]
        more |= {"explode": {"annotation": "annotations", "result": "annotation.result"}}
        columns = {"speech": "data.text", "author": "data.who", "rater": "annotation.by"}
        columns |= {"principle": "result.name", "value": "result.value.rating"}
    else:
        rows = [
            {
                "text": text,
                "all": [
                    {"who": who, "by": {p: {"Rating": str(given[who, each])} for p in PRINCIPLES}} for who in AUTHORS
                ],
                "rater": each,
            }
            for text in SPEECHES
            for each in raters
        ]
        rows.append(
            {**rows[0], "rater": "cy", "all": [{"who": AUTHORS[0], "by": {p: {"Rating": "N/A"} for p in PRINCIPLES}}]}
        )
        more |= {"explode": {"one": "all"}, "wide": {"columns": {f"one.by.{p}.Rating": p for p in PRINCIPLES}}}
        columns = {"speech": "text", "author": "one.who", "principle": "wide.column", "rater": "rater"}
    made = build_preferences(config(tmp_path, rows, columns, **more), Store(tmp_path / "store"))
    pairs = read_pairs(made, "train")
    assert [pair.rejected.ratings for pair in pairs] == [{"empathy": 1.5, "safety": 1.5}] * 3
    assert [pair.chosen.ratings for pair in pairs] == [{"empathy": 3, "safety": 3}] * 3


def test_every_rater_may_have_a_file(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    for rater, points in (("ann", 1), ("ben", 2)):
        write(tmp_path / "ratings" / f"{rater}.jsonl", long_rows(points))
    given = config(tmp_path, [], {**LONG, "rater": "file"}, path=str(tmp_path / "ratings" / "*.jsonl"))
    made = build_preferences(given, store := Store(tmp_path / "store"))
    assert judged(store, made)["metrics"]["samples"]["status"] == {"ann": {"valid": 6}, "ben": {"valid": 6}}
    assert [pair.rejected.ratings for pair in read_pairs(made, "train")] == [{"empathy": 1.5, "safety": 1.5}] * 3


@pytest.mark.parametrize("write", [int, str, float, "{}.0".format])
def test_a_scale_may_run_the_other_way(tmp_path: Path, write: Callable[[int], object]) -> None:
    rows = [{**row, "v": write(row["v"])} for row in long_rows(1)]
    given = config(tmp_path, rows, LONG, points={"1": 3, "3": 1})
    pairs = read_pairs(build_preferences(given, Store(tmp_path / "store")), "train")
    assert {pair.chosen.candidate.author for pair in pairs} == {"gpt-4o"}


@pytest.mark.parametrize("value", [0, 4, "x", True, 1e999, [2]])
def test_what_is_no_rating_is_refused_or_dropped_and_counted(tmp_path: Path, value: Any) -> None:
    rows = [*long_rows(1)[:-1], {**long_rows(1)[-1], "v": value}]
    with pytest.raises(InputError, match=r"table.jsonl line 12: .*(off the scale|no number)"):
        build_preferences(config(tmp_path, rows, LONG), Store(tmp_path / "a"))
    loose = {"on_bad_row": "drop", "max_missing_share": 0.5}
    store = Store(tmp_path / "b")
    made = build_preferences(config(tmp_path, rows, LONG, **loose), store)
    found = judged(store, made)
    assert found["metrics"]["status"] == {"invalid": 1, "valid": 5}
    assert found["metrics"]["rating_rows"] == {"read": 12, "bad_row": 1}
    assert len(read_pairs(made, "train")) == 2
    rows = [row | {"v": 99} if row["p"] != "Empathy" else row for row in rows]
    with pytest.raises(DataQualityError, match="6 of 6 judgements failed"):
        build_preferences(config(tmp_path, rows, LONG, on_bad_row="drop"), Store(tmp_path / "c"))


def test_what_is_not_rated_is_missing_and_never_a_number(tmp_path: Path) -> None:
    rows = [row for row in long_rows(1) if row["s"] != 2] + [{"s": 77, "who": "gpt-4o", "p": "safety", "v": 1}]
    with pytest.raises(DataQualityError, match="2 of 6 judgements failed"):
        build_preferences(config(tmp_path, rows, LONG), Store(tmp_path / "a"))
    store = Store(tmp_path / "b")
    made = build_preferences(config(tmp_path, rows, LONG, max_missing_share=0.5), store)
    found = judged(store, made)
    assert found["metrics"]["status"] == {"empty": 2, "valid": 4}
    assert found["metrics"]["rating_rows"] == {"read": 9, "no_such_response": 1}
    assert [each.ratings for each in found["rows"] if each.status is not ReplyStatus.VALID] == [{}, {}]
    with pytest.raises(DataQualityError) as refused:
        build_preferences(config(tmp_path, rows, LONG), Store(tmp_path / "a"))
    assert "journal" not in str(refused.value)
    with pytest.raises(InputError, match="never safety"):
        build_preferences(config(tmp_path, [row for row in rows if row["p"] == "Empathy"], LONG), Store(tmp_path / "b"))
    with pytest.raises(InputError, match="none of its 1 rows"):
        build_preferences(config(tmp_path, rows[-1:], LONG), Store(tmp_path / "c"))


@pytest.mark.parametrize(
    ("judge", "fault"),
    [
        ({"backend": "table"}, "path"),
        ({"backend": "table", "path": "a.csv", "columns": {"speech": "s"}}, "author or response"),
        ({"backend": "table", "path": "a.csv", "columns": {"speech": "s", "author": "a"}, "samples": 3}, "samples"),
        ({"backend": "offline", "path": "a.csv"}, "path"),
    ],
)
def test_a_table_needs_a_path_and_columns_and_nothing_of_a_model(judge: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        config_of(JudgeConfig, judge)


def test_a_table_compares_no_answers(tmp_path: Path) -> None:
    made = build_preferences(config(tmp_path, long_rows(1), LONG), store := Store(tmp_path / "store"))
    table = {"backend": "table", "path": str(tmp_path / "table.jsonl"), "columns": LONG}
    side = {"author": "a", "file": str(tmp_path / "answers.jsonl"), "licence": "mit", "data_class": "public"}
    given = {"name": "w", "speeches": store.open(made.parent("speeches")).ref, "policy": side, "judge": table}
    with pytest.raises(ConfigError, match="only build-preferences takes a table"):
        eval_winrate(config_of(EvalWinrateConfig, {**given, "reference": {**side, "author": "b"}}), store)


def test_the_bundled_recipe_makes_the_pairs_of_mentalbench_align(tmp_path: Path) -> None:
    if not HUMAN_RATINGS.is_file():
        pytest.skip(f"the human ratings are not there: {HUMAN_RATINGS}")
    keys = ("corpus.speeches.0.path", "corpus.candidates.0.path", "judge.path")
    path = recipes_folder() / "mentalalign" / "build-preferences.yaml"
    recipe = load_config(BuildPreferencesConfig, path, [f"{key}={HUMAN_RATINGS}" for key in keys])
    store = Store(tmp_path)
    made = build_preferences(recipe, store)
    pairs = [pair for split in ("train", "dev", "test") for pair in read_pairs(made, split)]
    assert (len(pairs), len({pair.speech.id for pair in pairs})) == (11_742, 976)
    assert judged(store, made)["metrics"]["status"] == {"invalid": 100, "valid": 9900}
