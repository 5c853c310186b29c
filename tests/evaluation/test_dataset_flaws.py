"""Flaws of preference rows, counted by hand."""

from typing import Any

from psychocounsel.evaluation.dataset_flaws import RowFacts, flaws

ROW = RowFacts("train", "s1", "c1", ("a b c", "a"), (5, 4), (30, 20))


def train(*rows: RowFacts) -> dict[str, Any]:
    return flaws(rows)["train"]


def test_rows_without_flaw() -> None:
    assert flaws([ROW, ROW._replace(speech_id="s2", cluster="c2", texts=("a", "b c"))]) == {
        "train": {
            "rows": 2,
            "speeches": 2,
            "missing_ratings": 0,
            "not_preferred": 0,
            "safety_inverted": 0,
            "equal_texts": 0,
            "repeated": 0,
            "leaks_exactly": 0,
            "leaks_nearly": 0,
            "too_long_chosen": None,
            "too_long_rejected": None,
            "chosen_is_longer": 1,
            "mean_words_chosen": 2.0,
            "mean_words_rejected": 1.5,
        }
    }


def test_a_dash_is_no_word() -> None:
    found = train(ROW._replace(texts=("Well - hear me. It's late.", "a b c d e")))
    assert (found["mean_words_chosen"], found["mean_words_rejected"]) == (5.0, 5.0)
    assert found["chosen_is_longer"] == 0


def test_ratings() -> None:
    found = train(
        ROW._replace(safety=(3, 4)),
        ROW._replace(safety=(4, 4)),
        ROW._replace(safety=None, totals=None),
        ROW._replace(totals=(20, 20)),
        ROW._replace(totals=(19, 20)),
    )
    assert (found["safety_inverted"], found["missing_ratings"], found["not_preferred"]) == (1, 1, 2)


def test_a_repetition_has_speech_and_texts_of_a_row_of_its_split() -> None:
    rows = [
        ROW,
        ROW,
        ROW._replace(totals=(9, 8)),
        ROW._replace(texts=("a", "a b c")),
        ROW._replace(speech_id="s2"),
        ROW._replace(split="test"),
    ]
    assert {split: each["repeated"] for split, each in flaws(rows).items()} == {"train": 2, "test": 0}


def test_leaks_are_rows_of_both_splits() -> None:
    rows = [
        ROW,
        ROW._replace(texts=("x", "y")),
        ROW._replace(speech_id="s2", cluster="c2"),
        ROW._replace(speech_id="s3", cluster="c3"),
        ROW._replace(split="test"),
        ROW._replace(split="test", speech_id="s4", cluster="c2"),
    ]
    found = flaws(rows)
    assert [found["train"][key] for key in ("leaks_exactly", "leaks_nearly")] == [2, 3]
    assert [found["test"][key] for key in ("leaks_exactly", "leaks_nearly")] == [1, 2]


def test_rows_without_a_readable_speech_leak_nowhere_and_repeat_nothing() -> None:
    unread = ROW._replace(speech_id=None, cluster=None)
    found = flaws([unread, unread, unread._replace(split="test")])
    for split, rows in (("train", 2), ("test", 1)):
        assert found[split]["rows"] == rows
        assert [found[split][key] for key in ("speeches", "repeated", "leaks_exactly", "leaks_nearly")] == [0] * 4


def test_lengths_are_counted_by_side_where_somebody_measured() -> None:
    found = train(
        ROW._replace(too_long=(False, True)),
        ROW._replace(too_long=(True, True)),
        ROW._replace(too_long=(False, False)),
        ROW,
    )
    assert (found["too_long_chosen"], found["too_long_rejected"]) == (1, 2)


def test_equal_texts() -> None:
    assert train(ROW, ROW._replace(texts=("a", "a")))["equal_texts"] == 1
