"""The chain of cleaning: named steps, in order, and nothing left for a second run."""

import re
from collections import Counter
from functools import cache

import pytest
import yaml
from counsel_chat import counsel_chat
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psychocounsel.config.schema import CleaningConfig
from psychocounsel.corpus.cleaning import SPEECH_STEPS, Cleaned, Step, clean, response_steps
from psychocounsel.corpus.contacts import BUNDLED

AUTHORS = ["https://x.org/therapists/jane-roe-lcsw", "Robin Landwehr, LPC", "gpt-4o"]
CONFIGS = [
    CleaningConfig(contacts=contacts, signatures=signatures)
    for contacts in ("drop_sentence", "placeholder", "keep")
    for signatures in ("remove", "keep")
]
STEPS = [SPEECH_STEPS, *(response_steps(config, AUTHORS) for config in CONFIGS)]

fragments = st.sampled_from(
    [
        "I am sad.",
        "I feel",
        "Best,",
        "Jane Roe",
        ", LCSW",
        "- Robin",
        "www.x.org",
        "https://y.org/zI",
        "a@b.org",
        "988",
        "call 1-800-273-8255",
        "514-690-2469",
        "<br>",
        "<p>",
        "&amp;",
        "lt;",
        "&#38;",
        "&nbsp;",
        "\xa0",
        "\n",
        " ",
        "  ",
        ".",
        "...",
        "!",
        '"',
        "(Nods)",
        "e\u0301",
        "\u200d",
        "\u200b",
        "\u202e",
        "👩\u200d👧",
        "\xad",
        "Here is a link:",
        "1. ",
        "- ",
        "Warmly,",
        "My name is Jane",
        "[URL_1]",
        "[PERSON_1]",
        "م",
        "\u2028",
        "<",
        ">",
    ]
)
tangled = st.lists(fragments | st.characters(exclude_categories=["Cs"]), max_size=18).map("".join)
spaced = st.lists(fragments, max_size=18).map(" ".join)


@pytest.mark.parametrize("steps", STEPS, ids=range(len(STEPS)))
@settings(max_examples=60)
@given(text=tangled | spaced)
@example(text="I am sad. <br> www.x.org")
@example(text="call 1-800-273-82550call 1-800-273-82550\u00b9")
@example(text="Rest.\n\nBest,\nJane Roe, LCSW www.x.org\n\nWarmly,\nRobin")
def test_cleaning_what_is_clean_changes_nothing(steps: tuple[Step, ...], text: str) -> None:
    cleaned = clean(text, steps)
    assert clean(cleaned.text, steps) == Cleaned(cleaned.text, ())


def test_a_step_that_needs_two_goes_gets_them() -> None:
    asked: list[str] = []

    def halve(text: str) -> str:
        asked.append(text)
        return text.replace("aa", "a")

    assert clean("aaaa b", (Step("halve", halve), Step("strip", str.strip))) == Cleaned("a b", ("halve",))
    assert asked == ["aaaa b", "aa b", "a b"]


@given(tangled | spaced)
def test_the_steps_that_are_named_are_those_that_changed_the_text(text: str) -> None:
    cleaned = clean(text, SPEECH_STEPS)
    assert (cleaned.text != text) == bool(cleaned.changed_by)


def test_steps_are_named_in_order_and_follow_the_config() -> None:
    assert [step.name for step in SPEECH_STEPS] == ["markup", "characters", "sentence_spacing"]
    named = {
        (config.contacts, config.signatures): [step.name for step in response_steps(config, AUTHORS)][3:]
        for config in CONFIGS
    }
    assert named == {
        ("drop_sentence", "remove"): ["signatures", "contacts"],
        ("drop_sentence", "keep"): ["contacts"],
        ("placeholder", "remove"): ["signatures", "contacts"],
        ("placeholder", "keep"): ["contacts"],
        ("keep", "remove"): ["signatures"],
        ("keep", "keep"): [],
    }


RAW = (
    "<p>I hear&nbsp;you.It is hard (nods).</p>Call 988 or see www.x.org.My site: www.janeroe.com"
    "<br>Best,<br>Jane Roe, LCSW"
)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (CONFIGS[0], "I hear you. It is hard (nods).\n\nCall 988."),
        (CONFIGS[2], "I hear you. It is hard (nods).\n\nCall 988 or see [URL_1]. My site: [URL_2]"),
        (
            CONFIGS[5],
            "I hear you. It is hard (nods).\n\nCall 988 or see www.x.org. My site: www.janeroe.com\nBest,\n"
            "Jane Roe, LCSW",
        ),
    ],
)
def test_a_response_is_cleaned_as_the_config_says(config: CleaningConfig, text: str) -> None:
    cleaned = clean(RAW, response_steps(config, AUTHORS))
    assert cleaned.text == text
    assert cleaned.changed_by[:3] == ("markup", "characters", "sentence_spacing")


def test_a_speech_keeps_its_contacts_and_stage_directions() -> None:
    text = "(Nods, wiping tears) I am Jane Roe, 514-690-2469. I <3 him..."
    assert clean(text, SPEECH_STEPS) == Cleaned(text, ())


@cache
def _cleaned_answers(contacts: str) -> tuple[tuple[str, Cleaned], ...]:
    answers = counsel_chat()
    config = CleaningConfig.model_validate({"contacts": contacts})
    steps = response_steps(config, {answer.author for answer in answers})
    distinct = list(dict.fromkeys(answer.text for answer in answers))
    chosen = distinct if contacts == "drop_sentence" else distinct[::3]
    return tuple((text, clean(text, steps)) for text in chosen)


def test_counsel_chat_needs_each_step() -> None:
    changes = Counter(name for _, cleaned in _cleaned_answers("drop_sentence") for name in cleaned.changed_by)
    assert changes["markup"] == 0  # its export holds no markup
    assert changes["characters"] > 1_200
    assert changes["sentence_spacing"] > 1_000
    assert changes["signatures"] > 100
    assert changes["contacts"] > 120


def _crisis_digits() -> set[str]:
    """Read the list anew, with letters as digits and without the leading 1."""
    keypad = {letter: digit for digit, letters in _KEYS.items() for letter in letters}
    listed = yaml.safe_load(BUNDLED.read_text(encoding="utf-8"))
    numbers = [n for country in listed["countries"] for line in country["lines"] for n in line["numbers"]]
    plain = ("".join(keypad.get(character, character) for character in number) for number in numbers)
    return {re.sub(r"\D", "", number).removeprefix("1") for number in plain}


_KEYS = {"2": "ABC", "3": "DEF", "4": "GHI", "5": "JKL", "6": "MNO", "7": "PQRS", "8": "TUV", "9": "WXYZ"}


@pytest.mark.parametrize("contacts", ["drop_sentence", "placeholder"])
def test_no_phone_but_crisis_lines_is_left_in_counsel_chat(contacts: str) -> None:
    crisis = _crisis_digits()
    runs = [
        run
        for _, cleaned in _cleaned_answers(contacts)
        for run in re.findall(r"\d(?:[ ().\u2013-]{0,3}\d){6,}", cleaned.text)
    ]
    digits = [re.sub(r"\D", "", run).removeprefix("1") for run in runs]
    assert [each for each in digits if each not in crisis and each != "9311932"] == []  # the years 1931-1932
    if contacts == "drop_sentence":
        assert digits.count("8002738255") >= 7


@pytest.mark.parametrize("contacts", ["drop_sentence", "placeholder"])
def test_no_address_is_left_in_counsel_chat(contacts: str) -> None:
    sign = re.compile(r"http|www|\w@\w|\w\.(com|org|net|edu|gov|info|ca|bz|co|us)\b", re.IGNORECASE)
    left = [cleaned.text for _, cleaned in _cleaned_answers(contacts) if sign.search(cleaned.text)]
    assert left == []
    assert sum(bool(sign.search(raw)) for raw, _ in _cleaned_answers("drop_sentence")) > 110


_NOT_NAMES = {
    "dr",
    "ms",
    "ma",
    "lpc",
    "lmhc",
    "lcsw",
    "lmsw",
    "phd",
    "ncc",
    "dbh",
    "lpcc",
    "psyd",
    "lmft",
    "mft",
    "m",
    "ph",
    "d",
    "2",
    "3",
}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _slug_names() -> set[str]:
    """Join first and last names of slugs, all words of practices; short ones also arise across words."""
    slugs = {answer.author.rpartition("/")[2] for answer in counsel_chat()}
    words = [[word for word in slug.split("-") if word not in _NOT_NAMES] for slug in slugs]
    names = {"".join(each if "counseling" in each else each[:2]) for each in words}
    return {_letters(name) for name in names if len(name) > 8}


@pytest.mark.parametrize("contacts", ["drop_sentence", "placeholder", "keep"])
def test_no_author_is_named_in_full_in_counsel_chat(contacts: str) -> None:
    names = _slug_names()
    assert len(names) > 270
    left = [_letters(cleaned.text) for _, cleaned in _cleaned_answers(contacts)]
    assert [name for text in left for name in names if name in text] == []
    raw = [_letters(text) for text, _ in _cleaned_answers("drop_sentence")]
    assert sum(any(name in text for name in names) for text in raw) >= 45


def test_crisis_lines_of_counsel_chat_stay() -> None:
    number = re.compile(r"8\d\d.273.8255|911|741741|988\b|866.488.7386|800.422.4453|877.565.8860")
    for raw, cleaned in _cleaned_answers("drop_sentence"):
        assert sorted(number.findall(raw)) == sorted(number.findall(cleaned.text)), raw
