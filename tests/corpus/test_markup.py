"""HTML -> text: tags of HTML go, everything else that has angle brackets stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.corpus.text import without_markup

pieces = st.sampled_from(
    [
        "<",
        ">",
        "&",
        ";",
        "amp",
        "lt",
        "#60",
        "br",
        "b",
        "/",
        "p",
        "<br>",
        "</p>",
        "&amp;",
        "&lt;",
        "<!--",
        "-->",
        " ",
        "I <3 you",
        "script",
        "=",
        '"x"',
        "é",
        "\n",
    ]
)
tangled = st.lists(pieces, max_size=25).map("".join)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("I cry.<br>Every<br/>night.<BR />", "I cry.\nEvery\nnight.\n"),
        ("<p>one</p><p class='x y'>two</p>", "\n\none\n\n\n\ntwo\n\n"),
        ("<ul><li>eat</li><li>sleep</li></ul>", "\n\n- eat\n- sleep\n"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "\n\n\n a b\n\n\n"),
        ('a <a href="http://x.org" target=_blank>link</a> <b>now</b>', "a link now"),
        ("tea &amp; rest&nbsp;&#39;now&#x27; &quot;ok&quot;", "tea & rest\u00a0'now' \"ok\""),
        ("&amp;nbsp;twice &amp;lt;br&amp;gt;escaped", "\u00a0twice \nescaped"),
        ("x<!-- a note -->y<script>alert('<b>')</script>z<style>p {}</style>", "xyz"),
    ],
)
def test_html_becomes_text(raw: str, plain: str) -> None:
    assert without_markup(raw) == plain


@pytest.mark.parametrize(
    "text",
    [
        "I <3 you </3",
        "a < b and b > c",
        "if 3<4 then <what>?",
        "<sighs> (<looks away>) <i cry all night>",
        "<b",
        "R&D at AT&T &c; me&you",
        "see http://x.org/?a=1&copy=2&lt=3",
        "<!-- never closed",
        "(Nods, wiping tears) so...",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    assert without_markup(text) == text


@given(tangled)
def test_no_second_pass_finds_more(text: str) -> None:
    assert without_markup(without_markup(text)) == without_markup(text)


@pytest.mark.parametrize("text", ["<<b>b>" * 20_000, "<!--" * 50_000, "<script>" * 20_000, "&amp;" * 30_000])
def test_a_hostile_text_does_not_hang(text: str) -> None:
    plain = without_markup(text)
    assert without_markup(plain) == plain


def test_tags_that_never_end_lose_their_brackets() -> None:
    assert without_markup("<" * 30 + "b>" * 30) == "b>" * 10
