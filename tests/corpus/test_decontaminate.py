"""Texts of other benchmarks -> index: a shared span is found, and nothing else is."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.corpus.deduplicate import ExclusionIndex
from psychocounsel.corpus.sources import SourceRow, texts_in
from psychocounsel.errors import InputError

TWELVE = "Since the move I do not sleep and nobody here knows me."
LONGER = f"Well. {TWELVE} What should I do about it, and when?"


def index_of(*texts: str, span_words: int = 12) -> ExclusionIndex:
    return ExclusionIndex([("other", texts)], span_words)


@pytest.mark.parametrize(
    "text",
    [
        TWELVE,
        f"Hello there, {TWELVE}",
        "SINCE the move, I do not sleep -- and nobody here knows me! Since then...",
        "since\nthe\u00a0move i do not sleep and nobody here knows me",
    ],
)
def test_twelve_words_in_a_row_are_found_in_any_spelling(text: str) -> None:
    assert index_of(LONGER).shares_span(text) == "other"


@pytest.mark.parametrize(
    "text",
    [
        "Since the move I do not sleep and nobody here knows",
        "Well, since the move I do not sleep and nobody here knew me.",
        "Me knows here nobody and sleep not do I move the since.",
        "the since move I do not sleep and nobody here knows me",
        "",
    ],
)
def test_eleven_words_or_another_order_are_no_span(text: str) -> None:
    assert index_of(LONGER).shares_span(text) is None


def test_apostrophes_are_one() -> None:
    written = "I don't know what I'd say if she'd ask why we aren't talking"
    assert index_of(written).shares_span(f"Look: {written.replace(chr(39), chr(0x2019))}") == "other"


@pytest.mark.parametrize(
    ("excluded", "text", "shared"),
    [
        ("I miss my old dog", "I MISS my old dog!", True),
        ("I miss my dog", "I miss my dog", False),
        ("I miss my old dog", "I miss my old dog so", False),
        (f"I miss my old dog. {TWELVE}", "I miss my old dog", False),
        ("I miss my old dog", f"I miss my old dog. {TWELVE}", False),
    ],
)
def test_a_text_shorter_than_a_span_counts_as_a_whole_from_five_words_on(
    excluded: str, text: str, shared: bool
) -> None:
    assert index_of(excluded, "and one more text of five").shares_span(text) == ("other" if shared else None)


def test_the_first_source_that_shares_is_named() -> None:
    sources = [
        ("a.csv", ["nothing of this is ever said again by anybody"]),
        ("b.csv", [LONGER]),
        ("c.csv", [TWELVE]),
    ]
    index = ExclusionIndex(sources, 12)
    assert index.shares_span(TWELVE) == "b.csv"
    assert index.shares_span("Nothing of this is ever said again by anybody.") == "a.csv"


def spans(text: str, span_words: int) -> set[tuple[str, ...]]:
    words = text.split()
    if len(words) < span_words:
        return {tuple(words)} if len(words) >= 5 else set()
    return {tuple(words[at : at + span_words]) for at in range(len(words) - span_words + 1)}


few_words = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@given(st.lists(few_words, min_size=1, max_size=5), few_words, st.integers(1, 8))
def test_it_agrees_with_sets_of_spans(excluded: list[str], text: str, span_words: int) -> None:
    known = set[tuple[str, ...]]().union(*(spans(each, span_words) for each in excluded))
    if known:
        found = index_of(*excluded, span_words=span_words).shares_span(text)
        assert (found is not None) == bool(known & spans(text, span_words))


def test_many_spans_are_all_found_and_no_other() -> None:
    words = [f"{number * 7919 % 100003:x}" for number in range(3000)]
    index = index_of(" ".join(words))
    assert all(index.shares_span(" ".join(words[at : at + 12])) == "other" for at in range(0, 2988, 13))
    assert not any(index.shares_span(" ".join(words[at + 12 : at : -1])) for at in range(0, 2988, 13))


def test_an_index_takes_about_ten_bytes_a_word_and_texts_are_not_kept() -> None:
    def texts() -> Iterator[str]:
        for start in range(500):
            yield " ".join(f"w{(start * 31 + step * step) % 499}" for step in range(200))

    tracemalloc.start()
    try:
        kept = ExclusionIndex([("other", texts())], 12)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.shares_span(TWELVE) is None
    # 100,000 words of 8 bytes and the sieve; also one text, 500 known words and one chunk of work.
    assert peak < 100_000 * 12 + 800_000


def test_a_source_without_a_text_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match=r"b\.csv: it has no text of 5 words or more; check the columns"):
        ExclusionIndex([("a.csv", [TWELVE]), ("b.csv", ["too short", ""])], 12)


def test_texts_of_the_named_columns_row_by_row() -> None:
    rows = [
        SourceRow("x line 2", {"q": "one", "a": "two", "n": 3}),
        SourceRow("x line 3", {"q": None, "a": "", "n": 4}),
    ]
    assert list(texts_in(rows, ["q", "a"])) == ["one", "two", ""]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("text", r"x line 2: there is no column 'text'; set columns to one of: q, n"),
        ("n", r"x line 2: 'n' is list, not text; name columns of text only"),
    ],
)
def test_a_column_that_cannot_be_compared_is_an_error(column: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(texts_in([SourceRow("x line 2", {"q": "one", "n": ["a"]})], [column]))
