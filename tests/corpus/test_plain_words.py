"""Text -> words: what counts as the same text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.corpus.text import plain_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I DON'T know.", ["i", "dont", "know"]),
        ("I don\u2019t know\u2026", ["i", "dont", "know"]),
        ("I don`t know", ["i", "dont", "know"]),
        ("self-harm,self\u2013harm", ["self", "harm", "self", "harm"]),
        ("snake_case\tand\nlines", ["snake", "case", "and", "lines"]),
        ("co\u00adop zero\u200bwidth", ["coop", "zerowidth"]),
        ("\ufb01ve \uff26ull stra\u00dfe", ["five", "full", "strasse"]),
        ("caf\u00e9 Cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("23:40, twice", ["23", "40", "twice"]),
        ("... !", []),
        ("", []),
    ],
)
def test_words_by_hand(text: str, words: list[str]) -> None:
    assert plain_words(text) == words


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_plain_ascii_reads_as_it_does_beside_other_letters(text: str) -> None:
    assert plain_words(text) == plain_words(f"{text} \u00e9")[:-1]


@given(st.text())
def test_composed_and_decomposed_text_have_the_same_words(text: str) -> None:
    assert plain_words(unicodedata.normalize("NFD", text)) == plain_words(unicodedata.normalize("NFC", text))


@given(st.text())
def test_words_of_the_words_are_the_words(text: str) -> None:
    words = plain_words(text)
    assert plain_words(" ".join(words)) == words
