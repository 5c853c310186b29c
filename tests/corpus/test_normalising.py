"""Raw text -> clean text: what goes, what stays, and what is refused."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psychocounsel.corpus.text import clean_text, normalise, refusal
from psychocounsel.errors import InputError

spaces_and_marks = st.sampled_from(
    [
        " ",
        "\t",
        "\n",
        "\r",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\x01",
        "\x1c",
        "\x85",
        "\u0301",
        "e",
        "a",
        "\u0327",
        "\u200b",
        "\u200d",
        "\u202e",
        "\u212a",
    ]
)
awkward = st.lists(spaces_and_marks | st.characters(exclude_categories=["Cs"]), max_size=20).map("".join)


@given(awkward)
@example("e\x01\u0301")
@example("\u212a\u200d")
@example("\u0915\u200b\u200d")
@example("\r\x01\n\r\x01\n\r\x01\na")
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(awkward)
def test_clean_text_is_composed_and_has_no_outer_space_or_control(text: str) -> None:
    clean = normalise(text)
    assert clean == clean.strip()
    assert unicodedata.is_normalized("NFC", clean)
    assert {char for char in clean if unicodedata.category(char) == "Cc"} <= {"\n", "\x00", "\x85"}
    assert "\n\n\n" not in clean
    assert "  " not in clean


@given(awkward)
def test_no_visible_character_is_lost(text: str) -> None:
    def visible(given: str) -> list[str]:
        decomposed = unicodedata.normalize("NFD", given)
        return sorted(
            char for char in decomposed if not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf")
        )

    assert visible(normalise(text)) == visible(text)


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f469\u200d\U0001f467\u200d\U0001f466 \u2764\ufe0f \U0001f44d\U0001f3fd",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937",
        "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f937\U0001f3fd\u200d\u2640\ufe0f",
        "one\u2028two",
        "(Nods, wiping away tears) I\u2019ve been \u2026 so\u2014tired",
        "line one\nline two\n\nline four",
    ],
)
def test_what_a_client_wrote_stays(text: str) -> None:
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  I\tlie  awake\u00a0 ", "I lie awake"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("one \n  two", "one\ntwo"),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("cafe\u0301", "caf\u00e9"),
        ("be\x07ll\x1b", "bell"),
        ("a\u202eb\u202c \u2066c\u2069 \u200e\u200fd\u061c", "ab c d"),
        ("\ufeffzero\u200bwidth\u2060 soft\u00adhyphen", "zerowidth softhyphen"),
        ("jo\u200din\u200cers\u200d \u200d", "joiners"),
        ("caf\u200be\u200b\u0301", "caf\u00e9"),
        ("narrow\u202fspace\u2007 here", "narrow space here"),
        (" \n\t ", ""),
    ],
)
def test_spaces_line_ends_and_controls_are_made_plain(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


def test_what_no_table_holds_is_named() -> None:
    assert refusal("a\x00b") == "a NUL character"
    assert refusal("a\ud83db") == "a lone surrogate"
    assert refusal("\U0001f600 fine") is None


def test_a_cell_becomes_clean_text_or_an_error_with_its_place() -> None:
    assert clean_text("  one ", "text", "a.csv line 2") == "one"
    assert clean_text(None, "text", "a.csv line 2") == ""
    for value, what in [
        (3, "is int, not text"),
        ("a\x00", "holds a NUL character"),
        ("\ud800", "holds a lone surrog"),
    ]:
        with pytest.raises(InputError, match=f"a.csv line 2: 'text' {what}"):
            clean_text(value, "text", "a.csv line 2")
