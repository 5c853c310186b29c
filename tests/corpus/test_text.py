"""Words, sentences, characters, markup and language of texts."""

import unicodedata

import pytest
from counsel_chat import counsel_chat
from hypothesis import example, given
from hypothesis import strategies as st

from psychocounsel.corpus.text import clean_text, is_foreign, normalise, plain_words, refusal, without_markup
from psychocounsel.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I DON'T know.", ["i", "dont", "know"]), ("I don\u2019t know\u2026", ["i", "dont", "know"]),
        ("I don`t know", ["i", "dont", "know"]), ("self-harm,self\u2013harm", ["self", "harm", "self", "harm"]),
        ("snake_case\tand\nlines", ["snake", "case", "and", "lines"]),
        ("co\u00adop zero\u200bwidth", ["coop", "zerowidth"]),
        ("\ufb01ve \uff26ull stra\u00dfe", ["five", "full", "strasse"]),
        ("caf\u00e9 Cafe\u0301", ["caf\u00e9", "caf\u00e9"]), ("23:40, twice", ["23", "40", "twice"]),
        ("... !", []), ("", []),
    ],
)  # fmt: skip
def test_words_by_hand(text: str, words: list[str]) -> None:
    assert plain_words(text) == words


@given(st.text() | st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_are_the_same_composed_decomposed_read_again_and_beside_other_letters(text: str) -> None:
    words = plain_words(text)
    assert plain_words(unicodedata.normalize("NFD", text)) == plain_words(unicodedata.normalize("NFC", text))
    assert plain_words(" ".join(words)) == words
    if text.isascii():
        assert plain_words(f"{text} \u00e9")[:-1] == words


spaces_and_marks = st.sampled_from(
    [
        " ", "\t", "\n", "\r", "\u00a0", "\u2028", "\u3000", "\x01", "\x1c", "\x85", "\u0301", "e", "a", "\u0327",
        "\u200b", "\u200d", "\u202e", "\u212a",
    ]
)  # fmt: skip
anything = st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, range(0x80, 0xA0))))
awkward = st.lists(spaces_and_marks | anything, max_size=20).map("".join)


@given(awkward)
@example("e\x01\u0301")
@example("\u212a\u200d")
@example("\u0915\u200b\u200d")
@example("\r\x01\n\r\x01\n\r\x01\na")
def test_normalised_text_is_composed_and_plain_and_no_visible_character_is_lost(text: str) -> None:
    def visible(given: str) -> list[str]:
        decomposed = unicodedata.normalize("NFD", given)
        return sorted(
            char for char in decomposed if not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf")
        )

    clean = normalise(text)
    assert normalise(clean) == clean == clean.strip()
    assert unicodedata.is_normalized("NFC", clean)
    assert {char for char in clean if unicodedata.category(char) == "Cc"} <= {"\n", "\x00", "\x85"}
    assert "\n\n\n" not in clean
    assert "  " not in clean
    assert visible(clean) == visible(text)


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f469\u200d\U0001f467\u200d\U0001f466 \u2764\ufe0f \U0001f44d\U0001f3fd", "one\u2028two",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "line one\nline two\n\nline four",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937",
        "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f937\U0001f3fd\u200d\u2640\ufe0f",
        "(Nods, wiping away tears) I\u2019ve been \u2026 so\u2014tired",
    ],
)  # fmt: skip
def test_what_a_client_wrote_stays(text: str) -> None:
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  I\tlie  awake\u00a0 ", "I lie awake"), ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("one \n  two", "one\ntwo"), ("one\n\n\n\n\ntwo", "one\n\ntwo"), ("cafe\u0301", "caf\u00e9"),
        ("be\x07ll\x1b", "bell"), ("a\u202eb\u202c \u2066c\u2069 \u200e\u200fd\u061c", "ab c d"),
        ("\ufeffzero\u200bwidth\u2060 soft\u00adhyphen", "zerowidth softhyphen"),
        ("jo\u200din\u200cers\u200d \u200d", "joiners"), ("caf\u200be\u200b\u0301", "caf\u00e9"),
        ("narrow\u202fspace\u2007 here", "narrow space here"), (" \n\t ", ""),
        ("I\x92m \x93fine\x94 \x96 really\x81", "I\u2019m \u201cfine\u201d \u2013 really"),
    ],
)  # fmt: skip
def test_spaces_line_ends_and_controls_are_made_plain(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


def test_a_cell_becomes_clean_text_or_an_error_with_its_place() -> None:
    assert clean_text("  one ", "text", "a.csv line 2") == "one"
    assert clean_text(None, "text", "a.csv line 2") == ""
    assert refusal("\U0001f600 fine") is None
    for value, what in [(3, "is int, not text"), ("a\x00", "holds a NUL character"), ("\ud800", "holds a lone surrog")]:
        with pytest.raises(InputError, match=f"a.csv line 2: 'text' {what}"):
            clean_text(value, "text", "a.csv line 2")


markup_pieces = st.sampled_from(
    [
        "[b]", "[/b]", "[url=x.org]", "[/url]", "[quote]", "[/quote]",
        "<", ">", "&", ";", "amp", "lt", "#60", "br", "b", "/", "p", "<br>", "</p>", "&amp;", "&lt;", "<!--", "-->",
        " ", "I <3 you", "script", "=", '"x"', "é", "\n",
    ]
)  # fmt: skip
tangled_markup = st.lists(markup_pieces, max_size=25).map("".join)


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
        ('<span style="font-family: &quot;A&quot;">hi</span>', "hi"),
        ("&lt;i title=&quot;&amp;quot;A&amp;quot;&quot;&gt;hi&lt;/i&gt;", "hi"),
        ('<a title="1 > 0">x</a>', "x"),
        ('<font color="red"size=2>a</font><o:p></o:p><video controls src=x></video><p\nid=1 >b<b/>', "a\n\nb"),
        ('<span data-x="a\'b" hidden>a</span><center>b</center><time datetime="1">c</time>', "a\nb\nc"),
        ('[quote="Jo, post:3"]I [b]am[/B] sad[/quote]Me too [i]', "\n\nI am sad\n\nMe too [i]"),
        (
            "[list][*]eat[*]sleep[/list][img]http://x.org/a.png[/img][color=red]a < b & c[/color]",
            "\n\n- eat\n- sleep\na < b & c",
        ),
        ("x<!-- a note -->y<script>alert('<b>')</script>z<style>p {}</style>", "xyz"),
    ],
)
def test_html_becomes_text(raw: str, plain: str) -> None:
    assert without_markup(raw) == plain


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ('<a href="https://x.org/a?b=1&amp;c=2" rel=x>chat <b>here</b></a>', "chat here (https://x.org/a?b=1&c=2)"),
        ('<a href="https://www.x.org/">x.org</a>, <a href=tel:9-88>988</a>', "x.org, 988"),
        ('<a href="tel:988">call</a> or <a href="https://y.org">see</a>', "call (988) or see"),
        (
            "[url=https://x.org]here[/url] [url]https://x.org[/url] [url=y.org]there[/url]",
            "here (https://x.org) https://x.org there",
        ),
    ],
)
def test_links_that_are_kept_stand_behind_their_text(raw: str, plain: str) -> None:
    assert without_markup(raw, lambda address: "x.org" in address or "88" in address) == plain


@pytest.mark.parametrize(
    "text",
    [
        "I <3 you </3", "a < b and b > c", "if 3<4 then <what>?", "<sighs> (<looks away>) <i cry all night>", "<b",
        "R&D at AT&T &c; me&you", "see http://x.org/?a=1&copy=2&lt=3", "<!-- never closed",
        "(Nods, wiping tears) so...", "[laughs] [b] I [i] know[/s]", "[sic] and [s]he",
    ],
)  # fmt: skip
def test_what_is_no_html_stays(text: str) -> None:
    assert without_markup(text) == text


@given(tangled_markup)
@example("<<b>b>" * 20_000)
@example("<!--" * 50_000)
@example("<script>" * 20_000)
@example("&amp;" * 30_000)
@example("[b] [i] [u]" * 30_000 + "[/s]")
def test_no_second_pass_finds_more_and_hostile_markup_does_not_hang(text: str) -> None:
    plain = without_markup(text)
    assert without_markup(plain) == plain


def test_tags_that_never_end_lose_their_brackets() -> None:
    assert without_markup("<" * 30 + "b>" * 30) == "b>" * 10


FOREIGN = {
    "es": "Me siento muy triste desde que murió mi padre y no sé con quién hablar de ello.",
    "de": "Seit der Trennung schlafe ich kaum noch und kann mich auf nichts mehr konzentrieren.",
    "fr": "Je me sens seule depuis mon déménagement et je pleure presque tous les soirs.",
    "pt": "Sinto-me muito sozinha desde que mudei de cidade e choro quase todas as noites.",
    "it": "Da quando ci siamo lasciati non riesco più a dormire e a concentrarmi.",
    "nl": "Sinds de scheiding slaap ik nauwelijks en kan ik me nergens op concentreren.",
    "pl": "Od rozwodu prawie nie śpię i nie mogę się na niczym skupić.",
    "tr": "Annem benimle konuşmuyor ve kendimi çok üzgün hissediyorum, ne yapsam bilmem.",
    "zh": "我最近总是睡不着觉。工作压力很大。不知道该怎么办。",
    "ar": "أشعر بالحزن منذ وفاة والدي ولا أعرف مع من أتحدث.",
    "hi": "मुझे रात को नींद नहीं आती और काम का बहुत तनाव है।",
    "ru": "После развода я почти не сплю и не могу сосредоточиться на работе.",
    "ja": "離婚してからほとんど眠れず、仕事に集中できません。",
    "ko": "이혼한 뒤로 거의 잠을 자지 못하고 일에 집중할 수가 없어요.",
}
STAGE = "(Nods, wiping away tears and looking at the floor) "


@pytest.mark.parametrize("language", sorted(FOREIGN))
def test_other_languages_are_foreign_to_english_only(language: str) -> None:
    text = FOREIGN[language]
    assert is_foreign(text, ("en",))
    assert is_foreign(STAGE + text, ("en",))
    assert not is_foreign(text, (language,))
    assert not is_foreign(text, ("en", language))
    assert not is_foreign(text, ())


@pytest.mark.parametrize(
    "text",
    [
        "(Nods.)", "(Se seca las l\u00e1grimas) I just can't do this any more, I am so tired.", "ok", "Lol idk",
        "Nothing helps.", "my mum's proper doing my head in innit", "HELP ME PLEASE I CANT BREATHE",
        "d\u00e9j\u00e0 vu, je ne sais quoi, I have it all the time honestly", "*sighs* No.", "[PERSON_1] [URL_1]",
        "Certainly.", "12, 13 and 14!!", "",
    ],
)  # fmt: skip
def test_english_short_texts_and_directions_are_not_foreign(text: str) -> None:
    assert not is_foreign(text, ("en",))


def test_an_unknown_code_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"corpus.cleaning.languages.*xq"):
        is_foreign(FOREIGN["de"], ("xq", "en"))


def test_every_question_of_counsel_chat_is_english() -> None:
    questions = {answer.question for answer in counsel_chat()}
    assert len(questions) == 824
    assert [text for text in questions if is_foreign(text, ("en",))] == []
    beginnings = [text[:40] for text in sorted(questions)[::4]]
    assert [text for text in beginnings if is_foreign(text, ("en",))] == []
