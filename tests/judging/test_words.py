import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.judging.injection import PhraseBook, split_sentences, split_words, stem
from psychocounsel.judging.offline_text import QuestionKind, classify, load_lexicon, view_client, view_reply
from psychocounsel.types import Speech


def test_contractions_are_undone_whatever_the_apostrophe() -> None:
    expected = "you are not there and i will not go can not let us it is sam coat"
    text = "You're not there, and I won't go. Can't. Let's. It\u2019s Sam's coat"
    assert " ".join(split_words(text)) == expected


def test_sentences_know_how_they_ended() -> None:
    ended = [(s.words[-1], s.is_question, s.is_finished) for s in split_sentences("One. Two?! And thr")]
    assert ended == [("one", False, True), ("two", True, True), ("thr", False, False)]


@pytest.mark.parametrize(
    ("one", "other"),
    [("driving", "drives"), ("stopped", "stop"), ("letters", "letter")],
)
def test_forms_of_a_word_share_a_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_phrases_are_found_by_words_and_by_beginnings() -> None:
    book = PhraseBook({"fear": ("frighten*", "on edge"), "odd": ("f*t",)})
    found = [(hit.category, hit.found, hit.start) for hit in book.hits(split_words("On edge, frightened, fit."))]
    assert found == [("fear", "on edge", 0), ("fear", "frightened", 2), ("odd", "fit", 3)]


def test_every_entry_of_the_word_lists_can_be_found() -> None:
    lexicon = load_lexicon()
    for book in (lexicon.phrases, lexicon.feelings):
        for category, entries in book.phrases.items():
            for entry in entries:
                words = split_words(entry.replace("*", ""))
                assert any(hit.category == category for hit in book.hits(words)), (category, entry)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("What was that like for you?", QuestionKind.OPEN),
        ("And with the door shut, how do you feel?", QuestionKind.OPEN),
        ("How often do you drink?", QuestionKind.CLOSED),
        ("Did you tell him?", QuestionKind.CLOSED),
        ("Would you tell me about Biscuit?", QuestionKind.INVITATION),
        ("I wonder what the coat holds.", QuestionKind.INVITATION),
        ("You told me what it was like.", None),
    ],
)
def test_kinds_of_question(text: str, kind: QuestionKind | None) -> None:
    (sentence,) = split_sentences(text)
    assert classify(sentence, about_danger=False) is kind


def test_a_question_about_safety_counts_as_one_only_in_a_crisis() -> None:
    calm, crisis = view_client(Speech("I lost my job.")), view_client(Speech("I lost my job.", crisis=True))
    asked = [view_reply("Are you safe tonight?", client) for client in (calm, crisis)]
    assert [view.questions for view in asked if view] == [(QuestionKind.CLOSED,), (QuestionKind.SAFETY,)]


def test_danger_is_heard_without_the_tag() -> None:
    assert view_client(Speech("Some nights I want to die.")).in_crisis
    assert not view_client(Speech("Some nights I want to dance.")).in_crisis


@given(st.text())
def test_any_text_can_be_taken_apart(text: str) -> None:
    words = [word for sentence in split_sentences(text) for word in sentence.words]
    assert all(words)
    for sentence in split_sentences(text):
        assert sentence.clause_starts[0] == 0
