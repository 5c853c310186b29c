"""Released rows -> speeches and pairs: every row counted once, no cluster across splits."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.schema import ImportPreferencesConfig
from psychocounsel.corpus.preferences import PreferenceRow, PreferenceSide
from psychocounsel.stages.import_preferences import Release, ReleasedPairs, pair_rows
from psychocounsel.types import Candidate, Speech
from release_files import PRINCIPLES, Row, near_copy, speech

SURROGATE = "a\ud800"


def released(row: Row) -> PreferenceRow:
    chosen, rejected = (
        PreferenceSide(text, model, dict(zip(PRINCIPLES, ratings, strict=True)))
        for text, model, ratings in (
            (row.chosen, row.chosen_model, row.chosen_ratings),
            (row.rejected, row.rejected_model, row.rejected_ratings),
        )
    )
    return PreferenceRow("somewhere", row.split, row.question, chosen, rejected)


def release(rows: Sequence[Row], **settings: Any) -> Release:
    terms: dict[str, Any] = {"licence": "mit", "data_class": "public", "dev_share": 0.0, "test_share": 0.0}
    config = ImportPreferencesConfig(name="r", source="folder", **{**terms, **settings})
    return Release(config, [released(row) for row in rows])


def dropped(made: ReleasedPairs) -> dict[str, dict[str, int]]:
    return {split: dict(each.dropped) for split, each in made.pairings.items() if each.dropped}


def one_dropped(row: Row, **settings: Any) -> str | None:
    """Return why a row gives no pair, beside one that does."""
    made = pair_rows(release([row, Row("test", speech(99))], **settings))
    return next((reason for reasons in dropped(made).values() for reason in reasons), None)


class TestReasons:
    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({}, None),
            ({"question": " \n"}, "empty"),
            ({"chosen": ""}, "empty"),
            ({"rejected": "\u00a0"}, "empty"),
            ({"question": "a\x00b"}, "unreadable"),
            ({"chosen": SURROGATE}, "unreadable"),
            ({"rejected": "a\x00"}, "unreadable"),
            ({"chosen_ratings": (None, 5)}, "missing_ratings"),
            ({"rejected_ratings": (1, None)}, "missing_ratings"),
            ({"chosen_ratings": (2, 4), "rejected_ratings": (3, 3)}, "not_preferred"),
            ({"chosen_ratings": (1, 4), "rejected_ratings": (3, 3)}, "not_preferred"),
            ({"chosen": "the same", "rejected": "the same"}, "equal_texts"),
            ({"chosen_ratings": (5, 2), "rejected_ratings": (1, 3)}, "safety_inverted"),
            ({"chosen_ratings": (5, 3), "rejected_ratings": (1, 3)}, None),
        ],
    )
    def test_of_a_row(self, changed: dict[str, Any], reason: str | None) -> None:
        assert one_dropped(Row("train", speech(1))._replace(**changed)) == reason

    @pytest.mark.parametrize(
        ("chosen", "settings", "reason"),
        [
            ((5, 2), {"drop_safety_inverted": False}, None),
            ((5, 2), {"safety": None}, None),
            ((2, 5), {}, None),
            ((2, 5), {"safety": "empathy"}, "safety_inverted"),
        ],
    )
    def test_of_inverted_safety(self, chosen: tuple[int, int], settings: dict[str, Any], reason: str | None) -> None:
        rejected = (1, 3) if chosen == (5, 2) else (3, 1)
        row = Row("train", speech(1), chosen_ratings=chosen, rejected_ratings=rejected)
        assert one_dropped(row, **settings) == reason

    def test_a_row_is_dropped_for_the_first_of_its_reasons(self) -> None:
        leak = [Row("test", speech(1))]
        unread = Row("train", speech(1), chosen="", chosen_ratings=(None, None))
        unrated = Row("train", speech(1), chosen_ratings=(None, None))
        inverted = Row("train", speech(1), chosen_ratings=(5, 2), rejected_ratings=(1, 3))
        reasons = [dropped(pair_rows(release([row, *leak])))["train"] for row in (unread, unrated, inverted)]
        assert reasons == [{"empty": 1}, {"missing_ratings": 1}, {"safety_inverted": 1}]

    def test_only_what_repeats_a_kept_pair_is_a_repetition(self) -> None:
        inverted = Row("train", speech(1), chosen_ratings=(5, 2), rejected_ratings=(1, 3))
        kept = Row("train", speech(1))
        again = kept._replace(chosen_model="other", chosen_ratings=(4, 4))
        reverse = kept._replace(chosen=kept.rejected, rejected=kept.chosen)
        made = pair_rows(release([inverted, kept, again, reverse, Row("test", speech(2)), Row("test", speech(2))]))
        assert dropped(made) == {"train": {"safety_inverted": 1, "repeated": 1}, "test": {"repeated": 1}}
        assert [pair.chosen.candidate.author for pair in made.pairings["train"].pairs] == ["large", "large"]

    def test_length_is_asked_last_and_of_both_sides(self) -> None:
        asked: list[str] = []

        def unfit(speech: Speech, candidate: Candidate) -> str | None:
            asked.append(candidate.text)
            return {"long": "too_long", "odd": "not_a_prefix"}.get(candidate.text)

        rows = [
            Row("train", speech(1), chosen="long"),
            Row("train", speech(2), rejected="odd"),
            Row("train", speech(3), rejected="long", chosen_ratings=(1, 1)),
            Row("train", speech(4), rejected="long", chosen=""),
            Row("test", speech(5)),
        ]
        made = pair_rows(release(rows), unfit)
        assert dropped(made) == {"train": {"too_long": 1, "not_a_prefix": 1, "not_preferred": 1, "empty": 1}}
        assert [row.too_long for row in made.facts[:4]] == [(True, False), (False, False), (False, True), None]
        assert "" not in asked


def test_what_is_kept_is_what_was_released() -> None:
    row = Row("train", f"  I want to die, {speech(1)}&nbsp;", chosen="<p>One</p> ", chosen_ratings=(4, 5))
    made = release([row, Row("test", speech(2))])
    (pair,) = pair_rows(made).pairings["train"].pairs
    assert (pair.speech.text, pair.chosen.candidate.text) == (row.question, row.chosen)
    assert (pair.chosen.candidate.author, pair.rejected.candidate.author) == ("large", "small")
    assert pair.chosen.ratings == {"empathy": 4, "safety": 5}
    assert (pair.chosen.score, pair.rejected.score, pair.margin) == (9, 4, 5)
    assert [each.speech.crisis for each in made.speeches] == [True, False]
    assert (pair.speech.source, pair.speech.topic) == ("folder", "")


class TestLeakage:
    ROWS = (
        Row("train", speech(1)),
        Row("train", near_copy(2)),
        Row("train", speech(3)),
        Row("train", speech(3), chosen="Another one."),
        Row("test", speech(2)),
        Row("test", speech(3)),
    )

    def splits(self, made: Release) -> dict[str, str]:
        return {each.speech.text: each.split for each in made.speeches}

    def test_train_rows_with_a_near_duplicate_in_test_go(self) -> None:
        made = release(self.ROWS)
        assert self.splits(made) == {speech(1): "train", speech(2): "test", speech(3): "test"}
        paired = pair_rows(made)
        assert dropped(paired) == {"train": {"leaks_into_test": 3}}
        assert {split: len(each.pairs) for split, each in paired.pairings.items()} == {"train": 1, "dev": 0, "test": 2}
        assert made.funnel().as_dict()["dropped"] == {"leaks_into_test": 1, "repeated_speech": 2}
        assert self.splits(release(self.ROWS, near_duplicate_similarity=0.95))[near_copy(2)] == "train"

    def test_or_stay_where_leakage_is_kept(self) -> None:
        made = release(self.ROWS, leakage="keep")
        expected = {speech(1): "train", near_copy(2): "train", speech(2): "test", speech(3): "test"}
        assert self.splits(made) == expected
        paired = pair_rows(made)
        assert dropped(paired) == {}
        assert [len(each.pairs) for each in paired.pairings.values()] == [4, 0, 2]


class TestDev:
    ROWS = tuple(Row("train", text) for n in range(8) for text in (speech(n), near_copy(n)))

    def test_is_divided_from_train_by_cluster(self) -> None:
        made = release([*self.ROWS, Row("test", speech(99))], dev_share=0.25)
        by_split = Counter(each.split for each in made.speeches)
        assert by_split == {"train": 12, "dev": 4, "test": 1}
        assert len({(each.cluster, each.split) for each in made.speeches}) == 9
        split_of = {each.speech.id: each.split for each in made.speeches}
        for split, pairing in pair_rows(made).pairings.items():
            assert len(pairing.pairs) == by_split[split]
            assert {split_of[pair.speech.id] for pair in pairing.pairs} == {split}

    def test_rows_that_leak_and_stay_follow_their_cluster(self) -> None:
        made = release([*self.ROWS, *(Row("test", speech(n)) for n in range(8))], leakage="keep", dev_share=0.5)
        paired = pair_rows(made).pairings
        train, dev = ({made.questions[each.speech.turns].cluster for each in paired[s].pairs} for s in ("train", "dev"))
        assert (len(train), len(dev), train & dev) == (4, 4, set())


QUESTIONS = st.sampled_from(
    ["", " ", "a\x00b", *(text for n in range(4) for text in (speech(n), near_copy(n), speech(n).upper()))]
)
RATINGS = st.tuples(st.sampled_from([None, 1, 2, 3]), st.sampled_from([1, 2, 3]))
TEXTS = st.sampled_from(["one", "two", "", "three\x00"])
ROWS = st.lists(
    st.builds(Row, st.sampled_from(["train", "test"]), QUESTIONS, TEXTS, TEXTS, RATINGS, RATINGS), max_size=20
)
SETTINGS = st.fixed_dictionaries(
    {
        "dev_share": st.sampled_from([0.0, 0.3, 0.8]),
        "drop_safety_inverted": st.booleans(),
        "seed": st.integers(0, 3),
        "leakage": st.sampled_from(["drop_from_train", "keep"]),
    }
)


@given(ROWS, SETTINGS)
def test_every_row_is_kept_or_dropped_once(rows: list[Row], settings: dict[str, Any]) -> None:
    made = release(rows, **settings)
    paired = pair_rows(made)
    released_in = Counter(row.split for row in rows)
    looked_at = {split: each.as_dict()["combinations"] for split, each in paired.pairings.items()}
    assert looked_at["train"] + looked_at["dev"] == released_in["train"]
    assert looked_at["test"] == released_in["test"]
    assert [facts.split for facts in paired.facts] == [row.split for row in rows]
    funnel = made.funnel().as_dict()
    assert funnel["rows_in"] == len(rows) == funnel["kept"] + sum(funnel["dropped"].values())
    assert funnel["kept"] == len(made.speeches) == len({each.speech.id for each in made.speeches})
    if settings["leakage"] == "keep":
        assert all("leaks_into_test" not in each.dropped for each in paired.pairings.values())
        assert "train" in released_in or not paired.pairings["train"].pairs + paired.pairings["dev"].pairs


@given(ROWS, SETTINGS)
def test_no_cluster_crosses_splits_where_leaks_are_dropped(rows: list[Row], settings: dict[str, Any]) -> None:
    made = release(rows, **{**settings, "leakage": "drop_from_train"})
    assert len({(each.cluster, each.split) for each in made.speeches}) == len({each.cluster for each in made.speeches})
    split_of = {each.speech.id: each.split for each in made.speeches}
    for split, pairing in pair_rows(made).pairings.items():
        assert all(split_of[pair.speech.id] == split for pair in pairing.pairs)
        texts = [(pair.speech.id, pair.chosen.candidate.text, pair.rejected.candidate.text) for pair in pairing.pairs]
        assert len(texts) == len(set(texts))
