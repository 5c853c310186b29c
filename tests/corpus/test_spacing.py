"""Text -> text with a space behind each sentence, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.corpus.cleaning import with_sentence_spacing
from psychocounsel.corpus.contacts import web_addresses
from psychocounsel.corpus.text import sentences

pieces = st.sampled_from(
    [
        ".",
        "...",
        "!",
        "?",
        '"',
        "”",
        ")",
        "(",
        " ",
        "\n",
        "I",
        "feel",
        "Sad",
        "3",
        "www.x.org",
        "http://a.com/b",
        "a@b.org",
        "e.g",
        "U.S",
        "été",
        "¿",
        "😀",
        "م",
        "p.m",
        "i",
    ]
)
tangled = st.lists(pieces, max_size=20).map("".join)


@pytest.mark.parametrize(
    ("glued", "apart"),
    [
        ("I am sad.I feel alone.My", "I am sad. I feel alone. My"),
        ("I am sad.My mother left!She did?Yes", "I am sad. My mother left! She did? Yes"),
        ("I don't.It hurts", "I don't. It hurts"),
        ("so sad...I cry", "so sad... I cry"),
        ("what?!I cannot", "what?! I cannot"),
        ('He said "go."Then he left', 'He said "go." Then he left'),
        ('He said."Go away" was all', 'He said. "Go away" was all'),
        ("(it hurts).Once more", "(it hurts). Once more"),
        ("since 2015.Now", "since 2015. Now"),
        ("at 9 p.m.We met", "at 9 p.m. We met"),
        ("I am sad.i feel it", "I am sad. i feel it"),
        ("rest.2. Eat", "rest. 2. Eat"),
        ("1.Talk to her", "1. Talk to her"),
        ("Estoy triste.\u00bfPor qu\u00e9?", "Estoy triste. \u00bfPor qu\u00e9?"),
        ("I have PTSD.The doctor", "I have PTSD. The doctor"),
        ("see https://x.org/helpI hope", "see https://x.org/help I hope"),
        ("see www.x.org.Be well", "see www.x.org. Be well"),
        ("Jane Roewww.x.org", "Jane Roe www.x.org"),
        ("this helps.https://x.org", "this helps. https://x.org"),
    ],
)
def test_a_missing_space_is_put_in(glued: str, apart: str) -> None:
    assert with_sentence_spacing(glued) == apart


@pytest.mark.parametrize(
    "text",
    [
        "www.Example.Org/A.B and https://x.org/a.Html?b=C.D",
        "write to Jane.Doe@Mail.Org",
        "report.PDF, notes.Docx, Node.JS, ASP.NET",
        "e.g. this, i.e. That, e.g.This",
        "the U.S.A and the U.S.Army, J.R.R. Tolkien, Ph.D. or M.Ed. or Psy.D",
        "3.5 times, 1.000, v2.0, 12.5%",
        "I...don't know...maybe",
        "a.m. and p.m. are fine",
        "He said. She said! Who? (Me.) \u201cYes.\u201d End",
        "one.\ntwo?\n\nThree",
        "(Nods, wiping tears) Yes...",
    ],
)
def test_what_is_right_stays(text: str) -> None:
    assert with_sentence_spacing(text) == text


@given(tangled)
def test_only_spaces_are_put_in(text: str) -> None:
    spaced = with_sentence_spacing(text)
    assert spaced.replace(" ", "") == text.replace(" ", "")


@given(tangled)
def test_sentences_join_to_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Roe came. She left.", ["Dr. Roe came. ", "She left."]),
        ("1. Rest. 2. Eat.", ["1. Rest. ", "2. Eat."]),
        ("Why? because. So did I. Then", ["Why? ", "because. ", "So did I. ", "Then"]),
        ("wait... and go... Now", ["wait... and go... ", "Now"]),
        ("\u201cStop.\u201d He did", ["\u201cStop.\u201d ", "He did"]),
        ("Help:\nCall me\nor not", ["Help:\n", "Call me\nor not"]),
        ("e.g. this. That", ["e.g. this. ", "That"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("see www.x.org, and (http://y.com/a_(b)).", ["www.x.org", "http://y.com/a_(b)"]),
        (
            "psychologytoday.com/foo or Alz.org or bit.ly/abc",
            ["psychologytoday.com/foo", "Alz.org", "bit.ly/abc"],
        ),
        (
            "mail jane.roe+x@mail.co.uk or jane (at) x (dot) org",
            ["jane.roe+x@mail.co.uk", "jane (at) x (dot) org"],
        ),
        ("x.org/statshttps://y.org/z", ["x.org/stats", "https://y.org/z"]),
        ("sad.it is so.me and help.me in.it be.at", []),
        ("3.5 e.g. U.S.A p.m. report.pdf", []),
        ("go to example dot com", ["example dot com"]),
    ],
)
def test_addresses_are_found_from_end_to_end(text: str, addresses: list[str]) -> None:
    assert [text[each.start : each.end] for each in web_addresses(text)] == addresses


@pytest.mark.parametrize(
    "text", ["a.A" * 30_000, "http://" * 20_000, "a@" * 30_000, "x.org " * 10_000, "a. b. " * 20_000]
)
def test_a_hostile_text_does_not_hang(text: str) -> None:
    assert len(with_sentence_spacing(text)) >= len(text)
    assert "".join(sentences(text)) == text
