"""Responses without their authors' names: which authors are people, and what becomes of their names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.corpus.authors import KnownPeople, author_name, common_phrases, person, without_signatures
from psychocounsel.corpus.crisis import crisis_services

CRISIS = crisis_services()

PAGE = "https://counselchat.com/therapists/"
KNOWN = KnownPeople.of(map(person,
    [
        f"{PAGE}robin-landwehr-dbh-lpcc-ncc", "Jane Roe, LCSW", f"{PAGE}shawn-thomas-berthel-m-s-lmhc", "gpt-4o",
        "Grace Bell", f"{PAGE}eric-str-m-jd-ma-lmhc", "José Pérez", "Stephanie C", "Mary-Ann O'Meara", "Lee King",
        f"{PAGE}ella-van-ek-yorba-linda",
    ]
))  # fmt: skip
NO_PEOPLE = KnownPeople.of(map(person, ["gpt-4o", "llama-3.1-8b"]))

pieces = st.sampled_from(
    [
        "I hear you.", "Best,", "Warmly,", "Robin Landwehr", "Jane", "roe", ", LCSW", "\n", "- Jane", "~Grace",
        "www.x.org", "988", "call 988", "My name is Jane Roe", "Hi, I'm Robin.", "[PERSON_1]", "Take care", "Dr.",
        ".", "!", "and", "- ",
    ]
)  # fmt: skip
tangled = st.lists(pieces, max_size=14).map(" ".join)


@pytest.mark.parametrize(
    ("author", "name"),
    [
        (f"{PAGE}robin-landwehr-dbh-lpcc-ncc", "Robin Landwehr"), (f"{PAGE}dr-timothy-paul", "Timothy Paul"),
        (f"{PAGE}laurel-fay-2/", "Laurel Fay"), (f"{PAGE}ms-lynda-martens", "Lynda Martens"),
        (f"{PAGE}mark-morris-lcsw-new-orleans", "Mark Morris"), ("Jane Doe, LCSW", "Jane Doe"),
        ("sherry-katz-lcsw", "Sherry Katz"),
        (f"{PAGE}christopher-michael-ph-d?x=1", "Christopher Michael"), ("Dr. Jane Doe", "Jane Doe"),
        (f"{PAGE}vivian-d-echevarria-guzman-msc-lpc-s-ncc", "Vivian D Echevarria Guzman"),
        ("Amy Higgs OTR/L, CLT", "Amy Higgs"), ("Richie (Yerachmiel) Donowitz", "Richie Donowitz"),
        ("Jos\u00e9 P\u00e9rez", "Jos\u00e9 P\u00e9rez"), ("Roe, Jane", "Jane Roe"), ("Roe, Jane, PhD", "Jane Roe"),
        ("Prof. Dr. med. Hans M\u00fcller", "Hans M\u00fcller"), ("Dipl.-Psych. Anna Weber", "Anna Weber"),
    ],
)  # fmt: skip
def test_an_author_that_is_a_person_has_a_full_name(author: str, name: str) -> None:
    assert author_name(author) == name


@pytest.mark.parametrize(
    "author",
    [
        "gpt-4o", "gpt-4o-2024-08-06", "llama-3.1-8b", "author-3", "meta-llama/Llama-3.1-8B-Instruct", "deepseek-chat",
        "mistralai/Mistral-Large", "claude-opus", "human", "Jane", "therapist-a", "sft-model", "", "J. K.",
        f"{PAGE}able-counseling-services-llc", f"{PAGE}2nd-chance-counseling-service-online", "online 1",
        "Roe, LMFT, CAP",
    ],
)  # fmt: skip
def test_models_practices_and_single_words_are_no_people(author: str) -> None:
    assert author_name(author) is None


@pytest.mark.parametrize(
    "label",
    [
        "Mental Health Professional", "Self Care", "Deep Breathing", "Family Member", "Life Coach", "family-member",
        "Will Power Group", "wang li",
    ],
)  # fmt: skip
def test_a_phrase_is_no_person_unless_the_source_says_so(label: str) -> None:
    assert person(label) is None
    assert person("Jane Roe", "model") is None
    unlisted = person("Xio Qusp", "person")
    assert unlisted is not None
    assert (unlisted.name, unlisted.certain, person("Xio Qusp")) == ("Xio Qusp", True, None)


def test_the_role_of_all_authors_is_no_name_that_texts_lose() -> None:
    known = KnownPeople.of([person(label, "person") for label in ("mental health counselor", "good listener")])
    assert known.find("Mental health is hard, and Mental Health Week helps; be a good listener.") == []


def test_a_name_of_doubt_counts_in_capitals_only() -> None:
    known = KnownPeople.of([person("Grace Bell")])
    assert [each.name for each in known.find("Grace Bell rang, and so did the grace bell.")] == ["Grace Bell"]


def test_what_others_write_often_is_a_phrase() -> None:
    known = KnownPeople.of([person("Rose Garden"), person("Jane Roe")])
    assert known.names == {"Rose Garden", "Jane Roe"}
    written = [("elm", "In the Rose Garden."), ("Jane Roe", "Jane Roe wrote this."), ("oak", "Be well.")] * 30
    assert common_phrases(known, written) == {"Rose Garden": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    "written",
    [
        "Robin Landwehr", "robin landwehr", "ROBIN  LANDWEHR", "Robin-Landwehr", "Robin J. Landwehr",
        "Robin, Landwehr", "RobinLandwehr", "Shawn Thomas Berthel", "Shawn Berthel", "Eric Ström", "Jose Perez",
        "Ella van Ek", "José Pérez", "Mary Ann O\u2019Meara", "Stephanie C", "LeeKing",
    ],
)  # fmt: skip
def test_a_name_is_found_however_it_is_written(written: str) -> None:
    found = KNOWN.find(f"As {written}, my colleague, says.")
    assert [(each.start, each.end) for each in found] == [(3, 3 + len(written))]


@pytest.mark.parametrize(
    "text", ["to sleeking cats", "Robin and Landwehr", "Grace bells", "stephanie can", "Jane, roe deer or", ""]
)
def test_other_words_are_no_names(text: str) -> None:
    assert [each.name for each in KNOWN.find(text)] == (["Jane Roe"] if "roe deer" in text else [])


@pytest.mark.parametrize("label", ["Зоя Иванова", "Mary 李"])
def test_a_name_in_another_script_is_not_looked_for_in_part(label: str) -> None:
    known = KnownPeople.of([person(label, "person")])
    assert known.names == {label}
    assert known.find("Mary was an old friend of Зоя.") == []


@pytest.mark.parametrize(
    ("signed", "unsigned"),
    [
        ("Be well. Robin J. Landwehr, DBH, LPCC, NCC", "Be well."),
        ("I wish you well,Robin Landwehr, DBH", "I wish you well."),
        ("Ask for informationJane Roe, LCSW", "Ask for information."),
        ("You can do it! Warm regards, Shawn Berthel, M.S., LMHC", "You can do it!"),
        ("You can do it.\n\nSincerely,\nDr. Jane Roe\nLicensed Counselor\nwww.janeroe.com", "You can do it."),
        ("Rest well.\n\nBest,\nAnna Smith, LCSW", "Rest well."),
        ("Rest well.\n\nWarmly, Sherry", "Rest well."),
        ("Rest well.\n\nBest wishes,\nSherry", "Rest well.\n\nBest wishes."),
        ("Rest well. - Dr. Anna", "Rest well."),
        ("Rest well. ~Grace (www.gracebell.com and www.x.org)", "Rest well."),
        ("Hope that helps, Grace", "Hope that helps."),
        ("Rest well. Jane", "Rest well."),
        ("Rest well.\nAnna Smith, PhD", "Rest well."),
        ("Rest well.\nKATE BLANC, Ph.D.", "Rest well."),
        ("Rest well.\n- Kate Blanc, LCSW", "Rest well."),
        ("Rest well.\n\n- Kate Blanc", "Rest well."),
        ("1. Eat.\n2. Rest well. - Kate Blanc", "1. Eat.\n2. Rest well."),
        ("Rest well. Kind regards Jane Roe, LCSW", "Rest well."),
        ("Rest well. Anna M. Smith, Ph.D, R.C.C., C.C.C.", "Rest well."),
        ("Rest well. Warm regards,Anna Smith, M.S., LMHC", "Rest well."),
        ("Rest well.\n\nBest regards,\n[Your Name]", "Rest well."),
        ("Rest well. Warmly,", "Rest well."),
        ("Rest well. [PERSON_1], LPC", "Rest well."),
        ("Dr. Jane Roe www.x.org 514-690-2469", ""),
    ],
)
def test_a_closing_signature_goes(signed: str, unsigned: str) -> None:
    assert without_signatures(signed, KNOWN, CRISIS) == unsigned


@pytest.mark.parametrize(
    "text",
    [
        "You deserve the best, and peace.", "Tell it to your sister, Grace.", "Try these:\n- Journaling\n- Walking",
        "Try this.\n- Journaling\n- Walking", "Consider Acceptance Therapy, ACT",
        "Try these:\n- Journaling.\n- Walking", "AS EVERYONE HERE SAYS, REST IS GOOD FOR YOU.",
        "As they say: \u201cThis too shall pass.\u201d - Buddha", "Take care, and remember to rest.",
        "Good luck!\nStay strong.", "With love and grace", "I am Catholic. This is hard. (Nods)",
        "Lines that listen:\n- Samaritans 116 123", "Please call one of them. - Lifeline 988",
        "He said you are kind.", "",
    ],
)  # fmt: skip
def test_prose_and_crisis_lines_at_the_end_stay(text: str) -> None:
    assert without_signatures(text, KNOWN, CRISIS) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Hi, I'm Anna. You are brave.", "You are brave."),
        ("Hello there, my name is Anna Smith and I can help. You are brave.", "You are brave."),
        ("You are brave. I am Dr. Jane Roe. Rest now and then.", "You are brave. Rest now and then."),
        ("Hi! I'm Grace. You are brave.", "Hi! You are brave."),
        ("As Jane Roe says, and Robin Landwehr, and jane roe.", "As [PERSON_1] says, and [PERSON_2], and [PERSON_1]."),
        ("[PERSON_1] and Jane Roe's books help.", "[PERSON_1] and [PERSON_2]'s books help."),
        ("I am Jane Roe, call 988. You are brave.", "I am [PERSON_1], call 988. You are brave."),
        ("Follow @drrobinlandwehr, #RobinLandwehr.", "Follow @dr[PERSON_1], #[PERSON_1]."),
        ("As written by Jane Roe, LCSW", "As written by [PERSON_1], LCSW"),
    ],
)
def test_introductions_go_and_other_names_become_placeholders(text: str, cleaned: str) -> None:
    assert without_signatures(text, KNOWN, CRISIS) == cleaned


def test_names_in_addresses_stay_where_addresses_go_and_without_known_people_only_signatures_go() -> None:
    text = "See www.robinlandwehrlpcc.com for more on it."
    assert without_signatures(text, KNOWN, CRISIS) == "See www.[PERSON_1]lpcc.com for more on it."
    assert without_signatures(text, KNOWN, CRISIS, in_addresses=False) == text
    text = "As Jane Roe says. Rest.\n\nBest,\nJane Roe"
    assert without_signatures(text, NO_PEOPLE, CRISIS) == "As Jane Roe says. Rest."


@given(tangled)
def test_no_known_name_is_left_and_no_crisis_line_lost(text: str) -> None:
    cleaned = without_signatures(text, KNOWN, CRISIS)
    assert not re.search(r"robin\W{0,3}landwehr|jane\W{0,3}roe", cleaned, re.IGNORECASE)
    assert cleaned.count("call 988") == text.count("call 988")


@pytest.mark.parametrize(
    "unit", ["Best,\nJane\n", "Jane Roe. ", "I am Jane Roe. ", "- Jane\n", "[PERSON_1] ", "~", "A "]
)
def test_a_hostile_text_does_not_hang(unit: str) -> None:
    assert len(without_signatures(unit * 1_000, KNOWN, CRISIS)) <= len(unit * 1_000) + 1
