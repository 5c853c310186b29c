"""Placeholders: the same person keeps one, nothing is replaced twice, the rest of a text stays."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.schema import ENTITIES, Entity
from psychocounsel.corpus.deidentify import Fingerprint, Placeholders, Span, deidentify, resolve

PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(ENTITIES)})_\d+\]")


class WordFinder:
    """Finds given words wherever they stand, within placeholders too."""

    def __init__(self, words: dict[str, Entity]) -> None:
        self.fingerprint: Fingerprint = {}
        self.words = words

    def find(self, text: str) -> Sequence[Span]:
        return [
            Span(*match.span(), entity, 0.5)
            for word, entity in self.words.items()
            for match in re.finditer(re.escape(word), text)
        ]


def people(*names: str) -> WordFinder:
    return WordFinder(dict.fromkeys(names, "PERSON"))


def test_the_same_person_keeps_its_placeholder_and_numbers_follow_the_text():
    finder = WordFinder({"Bo": "PERSON", "Anna": "PERSON", "a@b.org": "EMAIL"})
    text = "Anna saw Bo. Bo wrote to a@b.org, and Anna read it."
    assert deidentify(text, finder) == (
        "[PERSON_1] saw [PERSON_2]. [PERSON_2] wrote to [EMAIL_1], and [PERSON_1] read it."
    )


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("Anna Smith left. Anna's bag.", ["Anna Smith", "Anna's"], "[PERSON_1] left. [PERSON_1]'s bag."),
        ("Anna came, Anna Smith that is.", ["Anna", "Anna Smith"], "[PERSON_1] came, [PERSON_1] that is."),
        ("ANNA and anna", ["ANNA", "anna"], "[PERSON_1] and [PERSON_1]"),
        ("Anna Smith or Dr. Smith", ["Anna Smith", "Smith"], "[PERSON_1] or Dr. [PERSON_1]"),
        ("Anna Smith, Anna Jones", ["Anna Smith", "Anna Jones"], "[PERSON_1], [PERSON_2]"),
        ("Anna Smith, Bo Jones; Jones", ["Anna Smith", "Bo Jones", "Jones"], "[PERSON_1], [PERSON_2]; [PERSON_2]"),
        ("Anna M. Smith is Anna Smith", ["Anna M. Smith", "Anna Smith"], "[PERSON_1] is [PERSON_1]"),
        ("James\u2019 and James", ["James\u2019", "James"], "[PERSON_1]\u2019 and [PERSON_1]"),
    ],
)
def test_parts_of_a_name_are_one_person(text, names, expected):
    assert deidentify(text, people(*names)) == expected


def test_a_number_is_one_however_it_is_written():
    finder = WordFinder({"(503) 555-0142": "PHONE", "503-555-0142": "PHONE"})
    assert deidentify("(503) 555-0142 or 503-555-0142", finder) == "[PHONE_1] or [PHONE_1]"


def test_a_placeholder_of_the_text_is_not_used_again():
    assert deidentify("[PERSON_3] met Bo", people("Bo")) == "[PERSON_3] met [PERSON_4]"


def test_texts_that_belong_together_share_their_placeholders():
    placeholders, finder = Placeholders(), people("Anna", "Bo")
    assert deidentify("Bo left", finder, placeholders) == "[PERSON_1] left"
    assert deidentify("[PERSON_7] stays", finder, placeholders) == "[PERSON_7] stays"
    assert deidentify("Anna misses Bo", finder, placeholders) == "[PERSON_8] misses [PERSON_1]"


def test_of_two_spans_that_overlap_the_longer_stays_then_the_surer():
    short, long = Span(2, 6, "PERSON", 0.9), Span(0, 8, "EMAIL", 0.1)
    sure, unsure = Span(10, 14, "PHONE", 0.8), Span(10, 14, "ID_NUMBER", 0.7)
    assert resolve([short, unsure, long, sure]) == [long, sure]


spans = st.builds(
    lambda start, length, entity, score: Span(start, start + length, entity, score),
    st.integers(0, 30),
    st.integers(1, 9),
    st.sampled_from(ENTITIES),
    st.floats(0, 1),
)


@given(st.lists(spans, max_size=12), st.randoms())
def test_resolved_spans_lie_apart_in_order_and_cover_a_longest_one(found, random):
    kept = resolve(found)
    assert all(left.end <= right.start for left, right in pairwise(kept))
    assert set(kept) <= set(found)
    assert all(any(each.start < span.end and span.start < each.end for each in kept) for span in found)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert {(span.start, span.end) for span in resolve(shuffled)} == {(span.start, span.end) for span in kept}


pieces = ("Anna", "Bo", " ", ", ", "and", "PERSON", "_", "1", "[", "]", "[PERSON_1]", "[PHONE_22]", "'s")
texts = st.lists(st.sampled_from(pieces), max_size=14).map("".join)
finders = st.dictionaries(
    st.sampled_from(["Anna", "Bo", "PERSON", "1", "2", "and", "[", "N_", "Bo and", "'s"]),
    st.sampled_from(ENTITIES),
    min_size=1,
).map(WordFinder)


@given(texts, finders)
def test_a_second_time_changes_nothing(text, finder):
    once = deidentify(text, finder)
    assert deidentify(once, finder) == once


@given(texts, finders)
def test_all_that_is_not_found_stays_and_so_do_placeholders(text, finder):
    out = deidentify(text, finder)
    stays = [re.escape(piece) for piece in PLACEHOLDER.findall(text)]
    assert re.search(".*".join(stays), out)
    assert set(PLACEHOLDER.sub("", out)) <= set(PLACEHOLDER.sub("", text))


def test_a_find_of_nothing_is_no_find():
    assert deidentify("Anna 's", people("'s")) == "Anna 's"


def test_a_text_without_finds_is_the_same_text():
    assert deidentify("nothing here", people("Anna")) == "nothing here"
