"""What the pattern engine finds, what it must leave, and how it treats crisis lines."""

# ruff: noqa: RUF001 - full-width marks are those of Chinese
import re
from collections import Counter

import pytest
from counsel_chat import counsel_chat
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.corpus import DeidentificationConfig
from psychocounsel.corpus.crisis import CrisisServices, CrisisServicesFile
from psychocounsel.corpus.deidentify import deidentify, open_deidentifier, resolve

ENGINE = open_deidentifier(DeidentificationConfig(engine="patterns"))


def hidden(text: str, **settings: object) -> str:
    return deidentify(text, open_deidentifier(DeidentificationConfig(engine="patterns", **settings)))


PEOPLE = [
    ("My name is Zyler Okt.", "My name is [PERSON_1]."),
    ("Kevin left. I miss Kevin's voice.", "[PERSON_1] left. I miss [PERSON_1]'s voice."),
    ("I told Sarah O'Brien-Wells all of it.", "I told [PERSON_1] all of it."),
    ("my wife anna yells, anna always yells", "my wife [PERSON_1] yells, [PERSON_1] always yells"),
    ("i think stephanie lied", "i think [PERSON_1] lied"),
    ("my sister, Zyla, and my brother (Bob)", "my sister, [PERSON_1], and my brother ([PERSON_2])"),
    ("My therapist, Dr. Black, and mr miller", "My therapist, Dr. [PERSON_1], and mr [PERSON_2]"),
    ("Aunt May came in May.", "Aunt [PERSON_1] came in May."),
    ("My Neighbor Zlatko told me.", "My Neighbor [PERSON_1] told me."),
    (
        "So my Ex-Wife Zlata said, and my Late Grace told me.",
        "So my Ex-Wife [PERSON_1] said, and my Late [PERSON_2] told me.",
    ),
    ("Then my Landlord Zlatko hit me.", "Then my Landlord [PERSON_1] hit me."),
    (
        "Mason: I am.\n**MASON:** Oh.\n[00:12] Mason: I left.",
        "[PERSON_1]: I am.\n**MASON:** Oh.\n[00:12] [PERSON_1]: I left.",
    ),
    ("My boss, Steven Hayes, met Wei Zhang.", "My boss, [PERSON_1], met [PERSON_2]."),
    ("My friend Will said no. Will I cope?", "My friend [PERSON_1] said no. Will I cope?"),
    ("My ex-husband Zed hit me. Zed is big.", "My ex-husband [PERSON_1] hit me. [PERSON_1] is big."),
    ("I saw Grace Miller and José de la Cruz.", "I saw [PERSON_1] and [PERSON_2]."),
    ("My twins Will and Drew fight.", "My twins [PERSON_1] and [PERSON_2] fight."),
    ("Please help.\nThanks,\nZyla", "Please help.\nThanks,\n[PERSON_1]"),
    ("Everyone calls me Grace.", "Everyone calls me [PERSON_1]."),
    ("Last week Tunji came home drunk.", "Last week [PERSON_1] came home drunk."),
    ("Ask Mr./Mrs. Vandersmoot or my GP/Dr. Kolawske.", "Ask Mr./Mrs. [PERSON_1] or my GP/Dr. [PERSON_2]."),
    ("(sighs) [Anna cries] *laughs*", "(sighs) [[PERSON_1] cries] *laughs*"),
]
NUMBERS = [
    ("Write to a.b+c@mail.co.uk now", "Write to [EMAIL_1] now"),
    ("sam dot lee at gmail dot com", "[EMAIL_1]"),
    ("sam at yahoomail.com", "[EMAIL_1]"),
    ("call (503) 555-0142 or +44 20 7946 0958", "call [PHONE_1] or [PHONE_2]"),
    ("He called from 555-0198 again", "He called from [PHONE_1] again"),
    ("She texted from 555-0142, my number 555-0198 rang", "She texted from [PHONE_1], my number [PHONE_2] rang"),
    ("SAM.LEE AT GMAIL.COM or kim_lee at Gmail Dot Com", "[EMAIL_1] or [EMAIL_2]"),
    ("My insta is sara_1", "My insta is [HANDLE_1]"),
    ("thanks u/Blue-cat_9 and /u/wei of r/depression", "thanks [HANDLE_1] and [HANDLE_2] of r/depression"),
    ("reach me at +63 917 123 7798", "reach me at [PHONE_1]"),
    ("加我微信\uff1awx39686488abc吧", "加我微信\uff1a[HANDLE_1]吧"),
    (
        "我的微信是@lone.wolf_88加我, 感谢u/sad-cat_9和 @小明同学",
        "我的微信是[HANDLE_1]加我, 感谢[HANDLE_2]和 [HANDLE_3]",
    ),
    ("@好的关系，当然是互相尊重的。@快乐的鱼：你好", "@好的关系，当然是互相尊重的。[HANDLE_1]：你好"),
    (
        "我叫Anna，她叫Mary Smith，大师Michele McDonald总结的。",
        "我叫[PERSON_1]，她叫[PERSON_2]，大师[PERSON_3]总结的。",
    ),
    ("Try these:\n- Sleep\n- Music", "Try these:\n- Sleep\n- Music"),
    ("It helps me:\n- Sleep\n\nBe well.\n- Quentaro", "It helps me:\n- Sleep\n\nBe well.\n- [PERSON_1]"),
    ("Mein Handy ist aus. Ich wohne in PO Box 123.", "Mein Handy ist aus. Ich wohne in [ADDRESS_1]."),
    ("my username is jörg_88, his account: иван_1", "my username is [HANDLE_1], his account: [HANDLE_2]"),
    ("my snapchat is SARA_K", "my snapchat is [HANDLE_1]"),
    ("see www.a-b.net/x?y=1, please", "see [URL_1], please"),
    ("I am @lone.wolf_88 and u know it", "I am [HANDLE_1] and u know it"),
    ("My snapchat is quiet_riot22.", "My snapchat is [HANDLE_1]."),
    ("My insta is lone.wolf", "My insta is [HANDLE_1]"),
    ("from 203.0.113.47 and 2001:db8::8a2e:370", "from [IP_1] and [IP_2]"),
    ("Call 988, 911 or 1-800-273-8255, not (503) 555-0142.", "Call 988, 911 or 1-800-273-8255, not [PHONE_1]."),
    ("text HOME to 741741, SSN 219-09-4817", "text HOME to 741741, SSN [ID_NUMBER_1]"),
    ("card 4539 1488 0343 6467", "card [ID_NUMBER_1]"),
    ("write to k.o-brien+help@uni-köln.de", "write to [EMAIL_1]"),
    ("text 1-800-555-HELPS", "text [PHONE_1]"),
    ("my case number is 24-1187 and MRN 00482913", "my case number is [ID_NUMBER_1] and MRN [ID_NUMBER_2]"),
    ("born on March 14, 1987; DOB: 3/4/87", "born on [DATE_OF_BIRTH_1]; DOB: [DATE_OF_BIRTH_2]"),
    ("May 5 is my son's birthday", "[DATE_OF_BIRTH_1] is my son's birthday"),
    ("at 48 Maple St, Apt 3B, Dayton, OH 45402.", "at [ADDRESS_1]."),
    ("i live at 310 sunset blvd with dad", "i live at [ADDRESS_1] with dad"),
    ("my zip code is 90210", "my zip code is [ADDRESS_1]"),
    ("P.O. Box 44 and SW1A 2AA", "[ADDRESS_1] and [ADDRESS_2]"),
]
CIRCUMSTANCES = [
    ("I work at Google and I hate Google.", "I work at [EMPLOYER_1] and I hate [EMPLOYER_1]."),
    ("She was fired from the Acme Steel Works in May.", "She was fired from the [EMPLOYER_1] in May."),
    ("When Lincoln High School closed I left.", "When [SCHOOL_1] closed I left."),
    ("He has a degree from MIT, or the University of Ohio.", "He has a degree from [SCHOOL_1], or the [SCHOOL_2]."),
    ("It ended on March 3rd, 2019. Since June 4 I rest.", "It ended on [EVENT_DATE_1]. Since [EVENT_DATE_2] I rest."),
    (
        "He left on the 9th of May. On 2020-02-29 or 10/02/2022.",
        "He left on the [EVENT_DATE_1]. On [EVENT_DATE_2] or [EVENT_DATE_3].",
    ),
]
LEFT_ALONE = [
    "As the Serenity Prayer says. The American Psychological Association says so, and your Inner Critic wants more.",
    "Hope: I will rest.\nJoy: I will eat.\nPros: none.\nTherapist: Hi.\nTherapist: So?",
    "Braxton Hicks contractions, Wu Wei, busco consuelo, vi\u1ec7n tr\u1edf l\u1ea1i trang web.",
    "The long number 4539 1488 0343 6468 fails its check digit.",
    "Will I ever cope? I will. May I hope? In May, by the grace of God, Joy and Hope will do.",
    "I am 34, she was 12 in 1998; 24/7, 3 of 10, $14,500, 20 mg, 9:30, 412 days since 10/02.",
    "My GAD-7 is 15, my PHQ-9 is 18, and Borderline Personality Disorder, CBT, EMDR, Lexapro are words.",
    "(sighs) [Crying] *laughs* (Long silence)",
    "I'm Christian, I'm Fine, I'm Sorry. My husband Always says so, my mom God bless her too.",
    "We went to Florence, Paris and St. Mary Hospital, then to Virginia Beach.",
    "Our first child was born in Jan 13 years ago, and I was born in 1990.",
    "I work at home, for God and at School. Medical School and the Community College are hard; so was High School.",
    "On the 4th of July, on December 25th, in March 2019, in May. Before Oct 2 weeks passed.",
    "A 20 minute drive, 5 people on my street, 3 doors down the road.",
    "Dear Therapist, Every Sunday my Dad calls Mom. He is my Rock.",
    "I paid 500-1000 dollars, version 1.2.3 of 2019-2020.",
    "It's ok.I am fine.So is he @ 3pm, F@ck",
    "Help! tl;dr Because I was ill. All is unreal (dp/dr). dp/dr. What now? I have a good dr. His son is ill.",
    "Occupation: Nurse\nEducation: none\nLives with: his parent\nNotes: none",
    "I am on Facebook, and...she is not. My boss AT ALL times. Many fantastic friends Online, but none here.",
    "He goes to Med School, she to Culinary School; Some College is enough.",
]


@pytest.mark.parametrize(("text", "expected"), PEOPLE + NUMBERS + CIRCUMSTANCES)
def test_what_identifies_somebody_is_hidden(text, expected):
    assert hidden(text) == expected


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_ordinary_words_and_numbers_stay(text):
    assert hidden(text) == text


def test_another_list_of_crisis_lines_can_be_given():
    line = {"name": "Line", "numbers": ["503-555-0142"]}
    listed = CrisisServicesFile.model_validate(
        {"countries": [{"country": "US", "calling_code": "1", "services": [line]}]}
    )
    engine = open_deidentifier(DeidentificationConfig(engine="patterns"), CrisisServices(listed))
    assert deidentify("Call 503-555-0142 or 1-800-273-8255", engine) == "Call 503-555-0142 or [PHONE_1]"


def test_entities_and_threshold_limit_what_is_hidden():
    assert hidden("Anna, a@b.org", entities=["EMAIL"]) == "Anna, [EMAIL_1]"
    text = "My wife Anna and i think stephanie lied"
    assert hidden(text, min_score=0.6) == "My wife [PERSON_1] and i think stephanie lied"
    assert open_deidentifier(DeidentificationConfig()) is None


PIECES = (
    *("Anna", "my sister ", "Zyla ", "Will ", " and ", "Dr. ", "Black", ", ", ". ", "\n", "'s ", "(", ")"),
    *("born on ", "May 5", "case number ", "24-1187", "call ", "555-0198", "@zoe_1", "a@b.org", "[PERSON_1]"),
    *("[EMAIL_9]", "www.x.org", "988", "503-555-0142", "Thanks,\n", "my name is ", "12 Oak Street", "GRACE"),
    *("grace ", "said"),
)
fragments = st.sampled_from(PIECES)


@given(st.lists(fragments, max_size=10).map("".join))
def test_a_second_time_changes_nothing(text):
    once = deidentify(text, ENGINE)
    assert deidentify(once, ENGINE) == once


@given(st.text(max_size=60))
def test_spans_lie_in_the_text(text):
    assert all(0 <= span.start < span.end <= len(text) for span in ENGINE.find(text))


REPEATED = [
    "a", "A-", "1 ", "1-", "@", "a.", "Anna ", "my sister ", "born 1 ", "case 1 ", "12 A ", "live at 1 a ", ":1:",
]  # fmt: skip


@pytest.mark.parametrize("piece", REPEATED)
def test_a_hostile_text_does_not_hang(piece):
    text = piece * (40_000 // len(piece))
    once = deidentify(text, ENGINE)
    assert deidentify(once, ENGINE) == once


def test_the_fingerprint_follows_what_affects_the_finds():
    settings = ({}, {}, {"entities": ("EMAIL",)}, {"min_score": 0.9})
    configs = (DeidentificationConfig.model_validate({"engine": "patterns", **each}) for each in settings)
    plain, same, *others = [str(engine.fingerprint) for engine in map(open_deidentifier, configs) if engine]
    assert plain == same
    assert len({plain, *others}) == 3


def test_on_real_questions_the_finds_are_those_that_were_looked_at():
    questions = dict.fromkeys(row.question for row in counsel_chat())
    finds = [(span.entity, text[span.start : span.end]) for text in questions for span in resolve(ENGINE.find(text))]
    assert Counter(entity for entity, _ in finds) == {"PERSON": 13}
    assert all(re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+){0,2}", found) for _, found in finds)
