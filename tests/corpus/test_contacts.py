"""Responses without contacts: phones, mail and web addresses go, crisis lines and plain numbers stay."""

# ruff: noqa: RUF001 - full-width marks are those of Chinese

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.corpus.cleaning import with_placeholders, without_contacts
from psychocounsel.corpus.contacts import phone_numbers
from psychocounsel.corpus.crisis import BUNDLED, crisis_services, names_crisis_service
from psychocounsel.errors import ConfigError

CRISIS = crisis_services()

pieces = st.sampled_from(
    [
        "I hear you.", "Call 1-800-273-8255", "or 988", "www.x.org", "(514) 690-2469", "a@b.org", ".", " ", "\n",
        "!", "?", "[URL_1]", "Here is a link:", "text 741741", "3", "- ", "1. ", "(", ")", "787-466-5478", "\u2019",
        "https://y.com/z",
    ]
)  # fmt: skip
tangled = st.lists(pieces, max_size=15).map(" ".join)


@pytest.mark.parametrize(
    "number",
    [
        "(514) 690-2469", "514-690-2469", "514.690.2469", "514 690 2469", "5146902469", "787466-5478",
        "+1 514 690 2469", "1-514-690-2469", "020 7946 0958", "+44 20 7946 0958", "07911 123456", "01 23 45 67 89",
        "+33 1 23 45 67 89", "1-800-FLOWERS", "1 800 GET HELP", "404.293.5654 x12",
        *(f"514{dash}690{dash}2469" for dash in "\u2010\u2011\u2012\u2212\uff0d"), "(514) 690\u20112469",
        "０９０－１２３４－５６７８", "090-1234-5678", "010-1234-5678", "٠٥٠١٢٣٤٥٦٧", "（０２０）７９４６ ０９５８",
    ],
)  # fmt: skip
def test_phone_numbers_are_found_whole(number: str) -> None:
    text = f"My office: {number}."
    assert [text[each.start : each.end] for each in phone_numbers(text)] == [number]


@pytest.mark.parametrize(
    "text",
    [
        "Call me at 555-0142.", "tel: 690-2469", "my number is 555 0142", "WhatsApp 98765 4321", "他是139-2273-8296的",
        "我的QQ是723873298", "Mi móvil es 612 467 324", "मेरा नंबर 98765 63334 है", "رقمي هو 010 1234 9474",
        "+63 917 123 7798", "+971 50 123 9466",
    ],
)  # fmt: skip
def test_short_numbers_are_phones_where_the_text_says_so(text: str) -> None:
    assert len(phone_numbers(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "I am 35 and was 12 in 2003, for 10-15 minutes, 24/7, 3-4 times.",
        "from 2016-2017, 1931-1932, on 01/02/2015, 12-31-1999 and 2015-03-04",
        "We married on 04.03.1990 and left on 02.03.2015 at 10.",
        "I called him on 03/04/2021, lost contact in 2019-2020 and have had no text since 10.12.2022",
        "He scored 27/30 and 1,234,567 points, F32.1, 296.32, DSM-5, 300.02",
        "It costs $1,200,000 or $49.99, 1000-1500 calories, 100-1000 people",
        "ISBN 0143127748 and ISBN 978-0-14-312774-8, an 800-calorie diet",
        "version 1.2.3.4, 50/50, 100%, 7 days, 1000000 people, 10 000 steps",
        "in March 12 - 15 2019 he ran; a light 10 000 000, the marks of 1990 - 2010 20",
    ],
)
def test_ordinary_numbers_are_no_phones(text: str) -> None:
    assert phone_numbers(text) == []
    assert without_contacts(text, CRISIS) == with_placeholders(text, CRISIS) == text


@pytest.mark.parametrize(
    "line",
    [
        "1-800-273-8255", "800-273-8255", "(800) 273-8255", "1 (800) 273 8255", "+1.800.273.8255", "18002738255",
        "1-800-273-TALK", "1-800-273-talk", "1-800-4-A-CHILD", "866-488-7386", "1-800-799-7233", "1-800-656-HOPE",
        "0800 1111", "+44 800 1111", "13 11 14", "116 123", "116-123", "988", "911", "741741", "#741741", "9-1-1",
    ],
)  # fmt: skip
def test_crisis_lines_stay_however_they_are_written(line: str) -> None:
    text = f"If you are in danger, call {line} now. My site is www.x.org."
    assert without_contacts(text, CRISIS) == f"If you are in danger, call {line} now."
    assert with_placeholders(text, CRISIS) == f"If you are in danger, call {line} now. My site is [URL_1]."


@pytest.mark.parametrize(
    "text", ["I lost 112 pounds and 911 dollars.", "We have 14416 of them.", "It was 1-800 and 273-8255-12."]
)
def test_short_lines_count_near_a_calling_word_only(text: str) -> None:
    assert CRISIS.spans(text) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I hear you. Call me at (514) 690-2469. Be kind.", "I hear you. Be kind."),
        ("Call 1-800-273-8255 or visit www.x.org.", "Call 1-800-273-8255."),
        ("Call 988 (www.x.org) today.", "Call 988 today."),
        ("Try the 988 suicide hotline or www.x.org.", "Try the 988 suicide hotline."),
        ("Contact www.samaritans.org!Take care.", "Contact www.samaritans.org!Take care."),
        ("Call 911, or see https://x.org/a for more.", "Call 911 for more."),
        ("Rest first. Here is an article. https://x.org/a Then eat.", "Rest first. Then eat."),
        ("I wish you well. www.jane.com", "I wish you well."),
        (
            "One in five people will live through that (www.x.org), you see.",
            "One in five people will live through that, you see.",
        ),
        ("Read this (www.x.org). I know it helps. Call us (514-690-2469).", "I know it helps."),
        ("See https://x.org/helpful If not, rest.", "If not, rest."),
        ("Breathe.\n\nResources:\n- www.x.org\n- Blog: y.com/z", "Breathe."),
        ("Try:\n1. Rest\n2. www.x.org\n3. Eat", "Try:\n1. Rest\n3. Eat"),
        ("Write to a@b.org", ""),
        ("我听到了。请联系我139-2273-8296！先休息吧。", "我听到了。先休息吧。"),
        (
            "休みましょう。チャイルドライン：https://childline.or.jp/電話（0120-99-7777）",
            "休みましょう。チャイルドライン：https://childline.or.jp/電話（0120-99-7777）",
        ),
        (
            "聞いています。DV相談ナビ0570-0-55210へ。090-1234-5678に電話して。",
            "聞いています。DV相談ナビ0570-0-55210へ。",
        ),
        ("電話相談の窓口03-1234-9999があります。", "電話相談の窓口03-1234-9999があります。"),
        ("请访问www.xinli.com了解更多。\u201c我听到了。\u201d先休息吧。", "\u201c我听到了。\u201d先休息吧。"),
        ("هل تسمعني؟ اتصل بي 010 1234 9474. استرح.", "هل تسمعني؟ استرح."),
        ("मैं सुनता हूँ। मेरा नंबर 98765 63334 है। आराम करो।", "मैं सुनता हूँ। आराम करो।"),
        (
            "1. [YMCA](https://www.x.org/a)\n2. [Chat](https://988lifeline.org)",
            "1. YMCA\n2. [Chat](https://988lifeline.org)",
        ),
        ("Dr. Roe is kind. Dr. Roe has www.x.org.", "Dr. Roe is kind."),
        (
            "Call:\n- 988 (www.988lifeline.org)\n- Aid: 116 123, www.x.co.uk\n- us: x.org",
            "Call:\n- 988 (www.988lifeline.org)\n- Aid: 116 123",
        ),
        ("Here is the link to the hotline, call 988. www.x.org", "Here is the link to the hotline, call 988."),
        (
            "Try a support group near you, or look for a doctor on x.org or at www.y.org.",
            "Try a support group near you, or look for a doctor.",
        ),
        (
            "A list of groups is available through www.x.org and may help you.",
            "A list of groups is available and may help you.",
        ),
        (
            "You can read more on this in her two books here: https://x.org/a",
            "You can read more on this in her two books.",
        ),
        ("If you want to know more about any of this, visit www.x.org.", ""),
        ("Google and www.x.org are both good places to begin with this.", ""),
        ("I would tell anyone who feels like that to read www.x.org.", ""),
        (
            "Look for a group of people near you - google and www.x.org are both good places to begin.",
            "Look for a group of people near you.",
        ),
        (
            "It may help to look for a therapist near you; one place is x.org.",
            "It may help to look for a therapist near you.",
        ),
        (
            "A friend wrote a good and careful book on this, which is at x.org/a.",
            "A friend wrote a good and careful book on this.",
        ),
        ("There is a video on this — www.x.org — by a kind doctor.", "There is a video on this — by a kind doctor."),
        ("If you feel unsafe, call 911 or the clinic (514-690-2469).", "If you feel unsafe, call 911 or the clinic."),
        ("You could begin with a diary, a walk and an early night, www.x.org has more.", ""),
        ("Try to write for 10 min a day (see: x.org/a), and walk.", "Try to write for 10 min a day, and walk."),
        ("Walk. (Call 988 or see www.x.org.)", "Walk. (Call 988.)"),
        (
            'To read:\n1. "Feeling Good" by Burns (x.org/a)\n2. **Groups near you**: https://x.org\n3. x.org/b',
            'To read:\n1. "Feeling Good" by Burns.\n2. **Groups near you**',
        ),
        ("Please call somebody right now (988, www.x.org).", "Please call somebody right now (988)."),
        ("Call (741741 or www.x.org) if you feel unsafe.", "Call (741741) if you feel unsafe."),
        ("Ring 514-690-2469 (suicide help: www.x.org).", "Ring 514-690-2469 (suicide help)."),
        ("- Help now: 514-690-2469 www.x.org Crisis line", "- Help now: 514-690-2469 Crisis line"),
        ("Talk to:\n- Jane Roe, LMFT: www.x.org\n- Find me at @jane_roe or x.org\n- **Wei Zhang** (x.org/a)", ""),
        ("My name is Jane Roe and I work with couples - call me at 514-690-2469.", ""),
        ("Ask for Jane Roe today (514-690-2469).", ""),
        ("- Both places (+33 1 23 45 67 89 / (514) 690-2469) are kind.", "- Both places are kind."),
        ("Talk to your people at home (e.g. www.x.org), and rest.", "Talk to your people at home, and rest."),
        ("Call me:\n1. 020 7946 0958\n2) 0117 496 0123\n3. (514) 690-2469", "Call me:"),
        ("1. The blog of Sam: www.x.org. His name is Sam. 2. Rest.", "1. The blog of Sam. His name is Sam. 2. Rest."),
        (
            "The website www.x.org has a list of groups for you. It is good.",
            "The website has a list of groups for you. It is good.",
        ),
    ],
)
def test_a_contact_goes_with_what_says_nothing_without_it(text: str, kept: str) -> None:
    assert without_contacts(text, CRISIS) == kept


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("write to k.o-brien+help@uni-köln.de now", "write to [EMAIL_1] now"),
        ("邮箱ming@qq.com我们，看https://x.cn/a，或者x.com.cn。", "邮箱[EMAIL_1]我们，看[URL_1]，或者[URL_2]。"),
        ("See x.org.tw, x.com.sg or x.com.it is", "See [URL_1], [URL_2] or [URL_3].it is"),
        ("See x.com.no one was at x.org.as far", "See [URL_1].no one was at [URL_2].as far"),
        ("to sean.o'neil@x.org or 'anna@x.org'", "to [EMAIL_1] or '[EMAIL_2]'"),
        ("jörg@mail.org or uni-köln.de", "[EMAIL_1] or [URL_1]"),
        ("Call 1-800-555-HELPS today", "Call [PHONE_1] today"),
        ("联系我1-800-555-HELPS吧", "联系我[PHONE_1]吧"),
        ("call 1.800.GET.HELP", "call [PHONE_1]"),
        ("He called from 555-0198 again", "He called from [PHONE_1] again"),
        ("reach me at sam dot lee at gmail.com", "reach me at [EMAIL_1]"),
        ("(514) 690-2469 787-466-5478", "[PHONE_1] [PHONE_2]"),
        ("at my office (514-690-2469), or (787) 466-5478", "at my office ([PHONE_1]), or [PHONE_2]"),
        ("1. (514) 690-2469\n2) 020 7946 0958", "1. [PHONE_1]\n2) [PHONE_2]"),
        ("see linktr.ee/jane, discord.gg/abc", "see [URL_1], [URL_2]"),
        ("talk to him.and/or her.so be it", "talk to him.and/or her.so be it"),
        ("www.x.org, http://x.org/ and y.com, a@b.org", "[URL_1], [URL_1] and [URL_2], [EMAIL_1]"),
        ("https://a-b.org/c, www.ab.org/c, a.b@x.org", "[URL_1], [URL_2], [EMAIL_1]"),
        ("514-690-2469, (514) 690 2469", "[PHONE_1], [PHONE_1]"),
        ("https://youtu.be/dQw4w9WgXcQ or bit.ly/2abcDe, x.org/kimQ", "[URL_1] or [URL_2], [URL_3]"),
        ("[URL_3] and www.x.org", "[URL_3] and [URL_4]"),
        ("https://x.com/JaneRoe or y.com/in/JaneRoe, x.org/a?q=%2Fr%2Fhelp", "[URL_1] or [URL_2], [URL_3]"),
        ("x.org/2020-waysRest well, x.org/ovc-2019Rest", "[URL_1]Rest well, [URL_2]Rest"),
        ("x.org/AboutUs, x.org/AboutI hope, x.org/helpHope so", "[URL_1], [URL_2]I hope, [URL_3]Hope so"),
    ],
)
def test_a_contact_is_replaced_as_a_whole(text: str, cleaned: str) -> None:
    assert with_placeholders(text, CRISIS) == cleaned


def test_hosts_are_recognised_without_a_network() -> None:
    code = (
        "import socket; from psychocounsel.corpus.contacts import is_host; socket.socket.connect = None;"
        "socket.getaddrinfo = None; print(is_host('linktr.ee'), is_host('him.and'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@given(tangled)
def test_no_contact_is_left_and_no_crisis_line_lost(text: str) -> None:
    crisis = CRISIS
    before = Counter(_digits(text[start:end]) for start, end in crisis.spans(text))
    for change in (without_contacts, with_placeholders):
        after = change(text, CRISIS)
        assert crisis.told_apart(after)[1] == []
        assert before <= Counter(_digits(after[start:end]) for start, end in crisis.spans(after))
        assert change(after, CRISIS) == after


def _digits(number: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", number)


def test_every_listed_number_is_recognised() -> None:
    lists = re.findall(r"numbers: \[(.*)\]", BUNDLED.read_text(encoding="utf-8"))
    numbers = [number for row in lists for number in re.findall(r'"([^"]*)"', row)]
    assert len(numbers) > 100
    assert [number for number in numbers if not names_crisis_service(f"call {number}", CRISIS)] == []


def test_a_list_of_ones_own_is_read_and_a_broken_one_says_where(tmp_path: Path) -> None:
    path = tmp_path / "lines.yaml"
    line = '{name: Kirkens SOS, numbers: ["22 40 00 40"]}'
    path.write_text(f'countries:\n- country: NO\n  calling_code: "47"\n  services: [{line}]\n', encoding="utf-8")
    assert crisis_services(path).spans("Ring 22400040, +47 22 40 00 40, call 988.") == [(5, 13), (15, 30), (37, 40)]
    broken = tmp_path / "broken.yaml"
    broken.write_text("countries:\n- country: US\n  calling_code: 1\n  services: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.yaml line 3.*calling_code"):
        crisis_services(broken)


@pytest.mark.parametrize(
    "text",
    [
        "www.x.org 988 " * 3_000,
        "1-800-273-8255 " * 10_000,
        "call 1 " * 20_000,
        "(www.x.org) " * 3_000,
        "in " * 40_000 + "x.org",
        "a - " * 50_000 + "x.org",
    ],
)
def test_a_hostile_text_does_not_hang(text: str) -> None:
    assert len(without_contacts(text, CRISIS)) <= len(text)
