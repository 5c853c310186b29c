import struct
from collections import Counter
from typing import Any

from report_runs import artifact

from psychocounsel.reporting.card_facts import AuthorScores, DatasetFacts, RubricFacts
from psychocounsel.reporting.card_figures import draw_figures

RUBRIC = RubricFacts("1", "d" * 64, "en", 1, 5, {"empathy": "Empathy", "safety": "Safety"})
HISTOGRAMS = {"empathy": {"1": 3, "5": 2}, "safety": {"2": 4}}
WORDS = {"train": {"chosen": Counter({12: 3, 40: 1}), "rejected": Counter({5: 4})}}


def facts(**changes: Any) -> DatasetFacts:
    judgements = artifact("judgements", "small", {"histograms": HISTOGRAMS})
    speeches = artifact("speeches", "small", {"topics": {"grief": 3, "恋愛 😀 $\\frac$": 1}})
    given: dict[str, Any] = {
        "rubric": RUBRIC,
        "artifacts": (judgements, speeches),
        "scores_by_author": (AuthorScores("small-model", (0, 2, 0, 0, 0, 0, 0, 1), 2.5),),
        "words": WORDS,
    }
    return DatasetFacts("small", ["mit"], {"train": 4}, ("empathy", "safety"), (), **{**given, **changes})


def chunks(png: bytes) -> list[str]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = list[str](), 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append(png[at + 4 : at + 8].decode())
        at += 12 + length
    return found


def test_equal_facts_give_equal_files_without_dates_or_versions() -> None:
    drawn, again = draw_figures(facts()), draw_figures(facts())
    assert [each.file for each in drawn] == [
        f"figures/{key}.png" for key in ("ratings", "authors", "lengths", "topics")
    ]
    assert [each.png for each in drawn] == [each.png for each in again]
    for each in drawn:
        assert set(chunks(each.png)) <= {"IHDR", "pHYs", "IDAT", "IEND"}


def test_other_facts_give_another_picture() -> None:
    other = {"train": {**WORDS["train"], "rejected": Counter({5: 3, 6: 1})}}
    lengths = [
        each.png for words in (WORDS, other) for each in draw_figures(facts(words=words)) if each.key == "lengths"
    ]
    assert len(set(lengths)) == 2


def test_what_is_not_known_is_not_drawn() -> None:
    assert draw_figures(DatasetFacts("small", ["mit"], {"train": 4}, (), ())) == []
    keys = {each.key for each in draw_figures(facts(words={}, scores_by_author=()))}
    assert keys == {"ratings", "topics"}


def test_of_many_authors_the_rest_are_counted() -> None:
    authors = tuple(AuthorScores(f"model-{place}", (1, 0, 0, 0, 0, 0, 0, 0), 1.0) for place in range(23))
    figure = next(each for each in draw_figures(facts(scores_by_author=authors)) if each.key == "authors")
    assert "3 authors with fewer responses are left out" in figure.caption
