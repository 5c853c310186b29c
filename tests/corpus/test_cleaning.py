"""Named cleaning steps, spaces between sentences, and many texts in parallel."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path

import pytest
from counsel_chat import counsel_chat
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psychocounsel.config.corpus import CleaningConfig
from psychocounsel.corpus.authors import KnownPeople, person
from psychocounsel.corpus.cleaning import (
    Prepared,
    Step,
    parallel_map,
    prepare,
    response_steps,
    speech_steps,
    with_sentence_spacing,
)
from psychocounsel.corpus.contacts import phone_numbers, web_addresses
from psychocounsel.corpus.crisis import crisis_services
from psychocounsel.corpus.text import blanked, sentences

unspaced_pieces = st.sampled_from(
    [
        ".", "...", "!", "?", '"', "”", ")", "(", " ", "\n", "I", "feel", "Sad", "3", "www.x.org", "http://a.com/b",
        "a@b.org", "e.g", "U.S", "été", "¿", "😀", "م", "p.m", "i",
    ]
)  # fmt: skip
unspaced = st.lists(unspaced_pieces, max_size=20).map("".join)

CRISIS = crisis_services()


@pytest.mark.parametrize(
    ("glued", "apart"),
    [
        ("I am sad.I feel alone.My", "I am sad. I feel alone. My"),
        ("My mother left!She did?Yes", "My mother left! She did? Yes"),
        ("so sad...I cry", "so sad... I cry"), ("what?!I cannot", "what?! I cannot"),
        ('He said "go."Then he left', 'He said "go." Then he left'),
        ('He said."Go away" was all', 'He said. "Go away" was all'),
        ("(it hurts).Once more", "(it hurts). Once more"), ("I don't.It hurts", "I don't. It hurts"),
        ("since 2015.Now", "since 2015. Now"), ("at 9 p.m.We met", "at 9 p.m. We met"),
        ("I am sad.i feel it", "I am sad. i feel it"), ("rest.2. Eat", "rest. 2. Eat"),
        ("1.Talk to her", "1. Talk to her"), ("I have PTSD.The doctor", "I have PTSD. The doctor"),
        ("Estoy triste.\u00bfPor qu\u00e9?", "Estoy triste. \u00bfPor qu\u00e9?"),
        ("see https://x.org/helpI hope", "see https://x.org/help I hope"),
        ("see www.x.org.Be well", "see www.x.org. Be well"), ("Jane Roewww.x.org", "Jane Roe www.x.org"),
        ("this helps.https://x.org", "this helps. https://x.org"),
    ],
)  # fmt: skip
def test_a_missing_space_is_put_in(glued: str, apart: str) -> None:
    assert with_sentence_spacing(glued, CRISIS) == apart


@pytest.mark.parametrize(
    "text",
    [
        "www.Example.Org/A.B and https://x.org/a.Html?b=C.D", "write to Jane.Doe@Mail.Org",
        "report.PDF, notes.Docx, Node.JS, ASP.NET", "e.g. this, i.e. That, e.g.This",
        "the U.S.A and the U.S.Army, J.R.R. Tolkien, Ph.D. or M.Ed. or Psy.D", "3.5 times, 1.000, v2.0, 12.5%",
        "I...don't know...maybe", "a.m. and p.m. are fine", "He said. She said! Who? (Me.) \u201cYes.\u201d End",
        "one.\ntwo?\n\nThree", "(Nods, wiping tears) Yes...",
    ],
)  # fmt: skip
def test_what_is_right_stays(text: str) -> None:
    assert with_sentence_spacing(text, CRISIS) == text


@given(unspaced)
@example("a.A" * 30_000 + "http://" * 20_000)
@example("a@" * 30_000 + "x.org " * 10_000 + "a. b. " * 20_000)
def test_only_spaces_are_put_in_and_sentences_join_to_the_text(text: str) -> None:
    assert with_sentence_spacing(text, CRISIS).replace(" ", "") == text.replace(" ", "")
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
        ("psychologytoday.com/foo or Alz.org or bit.ly/abc", ["psychologytoday.com/foo", "Alz.org", "bit.ly/abc"]),
        ("mail jane.roe+x@mail.co.uk or jane (at) x (dot) org", ["jane.roe+x@mail.co.uk", "jane (at) x (dot) org"]),
        ("x.org/statshttps://y.org/z", ["x.org/stats", "https://y.org/z"]),
        ("sad.it is so.me and help.me in.it be.at", []),
        ("3.5 e.g. U.S.A p.m. report.pdf", []),
        ("go to example dot com", ["example dot com"]),
    ],
)
def test_addresses_are_found_from_end_to_end(text: str, addresses: list[str]) -> None:
    assert [text[each.start : each.end] for each in web_addresses(text)] == addresses


AUTHORS = KnownPeople.of(map(person, ["https://x.org/therapists/jane-roe-lcsw", "Robin Landwehr, LPC", "gpt-4o"]))
CONFIGS = [
    CleaningConfig(contacts=contacts, signatures=signatures)
    for contacts in ("drop_sentence", "placeholder", "keep")
    for signatures in ("remove", "keep")
]
STEPS = [speech_steps(CRISIS), *(response_steps(config, AUTHORS, CRISIS) for config in CONFIGS)]

fragments = st.sampled_from(
    [
        "I am sad.", "I feel", "Best,", "Jane Roe", ", LCSW", "- Robin", "www.x.org", "https://y.org/zI", "a@b.org",
        "988", "call 1-800-273-8255", "514-690-2469", "<br>", "<p>", "&amp;", "lt;", "&#38;", "&nbsp;", "\xa0", "\n",
        " ", "  ", ".", "...", "!", '"', "(Nods)", "e\u0301", "\u200d", "\u200b", "\u202e", "👩\u200d👧", "\xad",
        "Here is a link:", "1. ", "- ", "Warmly,", "My name is Jane", "[URL_1]", "[PERSON_1]", "م", "\u2028", "<",
        ">",
    ]
)  # fmt: skip
tangled = st.lists(fragments | st.characters(exclude_categories=["Cs"]), max_size=18).map("".join)
spaced = st.lists(fragments, max_size=18).map(" ".join)


@pytest.mark.parametrize("steps", STEPS, ids=range(len(STEPS)))
@settings(max_examples=60)
@given(text=tangled | spaced)
@example(text="I am sad. <br> www.x.org")
@example(text="call 1-800-273-82550call 1-800-273-82550\u00b9")
@example(text="Rest.\n\nBest,\nJane Roe, LCSW www.x.org\n\nWarmly,\nRobin")
def test_steps_are_named_where_the_text_changes_and_none_for_a_clean_one(steps: tuple[Step, ...], text: str) -> None:
    cleaned = prepare(text, steps)
    assert (cleaned.text != text) == bool(cleaned.changed_by)
    assert prepare(cleaned.text, steps) == Prepared(cleaned.text, cleaned.text, ())


def test_a_step_that_needs_two_goes_gets_them() -> None:
    halve = Step("halve", lambda text: text.replace("aa", "a"))
    assert prepare("aaaa b", (halve, Step("strip", str.strip))) == Prepared("a b", "a b", ("halve",))


def test_steps_are_named_in_order_and_follow_the_config() -> None:
    assert [step.name for step in speech_steps(CRISIS)] == ["markup", "characters", "sentence_spacing"]
    for config in CONFIGS:
        expected = (
            ["thoughts"] + ["signatures"] * (config.signatures == "remove") + ["contacts"] * (config.contacts != "keep")
        )
        assert [step.name for step in response_steps(config, AUTHORS, CRISIS)][3:] == expected


RAW = (
    "<p>I hear&nbsp;you.It is hard (nods).</p>Call 988 or see www.x.org.My site: www.janeroe.com"
    "<br>Best,<br>Jane Roe, LCSW"
)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (CONFIGS[0], "Call 988."),
        (CONFIGS[2], "Call 988 or see [URL_1]. My site: [URL_2]"),
        (CONFIGS[5], "Call 988 or see www.x.org. My site: www.janeroe.com\nBest,\nJane Roe, LCSW"),
    ],
)
def test_responses_are_cleaned_by_config_and_speeches_keep_contacts(config: CleaningConfig, text: str) -> None:
    cleaned = prepare(RAW, response_steps(config, AUTHORS, CRISIS))
    assert cleaned.text == f"I hear you. It is hard (nods).\n\n{text}"
    assert cleaned.changed_by[:3] == ("markup", "characters", "sentence_spacing")
    spoken = "(Nods, wiping tears) I am Jane Roe, 514-690-2469. I <3 him..."
    assert prepare(spoken, speech_steps(CRISIS)) == Prepared(spoken, spoken, ())


@pytest.mark.parametrize("raw", ["<think>\nShe is sad.\n</think>\n\nI hear you.", "&lt;think&gt;</think> I hear you."])
def test_thoughts_of_a_model_are_no_part_of_its_response(raw: str) -> None:
    steps = response_steps(CONFIGS[0], AUTHORS, CRISIS)
    assert prepare(raw, steps).text == "I hear you."
    assert prepare(raw, steps).changed_by[-1] == "thoughts"
    assert not prepare("<think>She is sad, and so", steps).text
    client = "I write <think> and </think> around it."
    assert prepare(client, speech_steps(CRISIS)).text == client


@cache
def _cleaned_answers(contacts: str) -> tuple[tuple[str, Prepared], ...]:
    answers = counsel_chat()
    config = CleaningConfig.model_validate({"contacts": contacts})
    steps = response_steps(config, KnownPeople.of(person(answer.author) for answer in answers), CRISIS)
    distinct = list(dict.fromkeys(answer.text for answer in answers))
    chosen = distinct if contacts == "drop_sentence" else distinct[::3]
    return tuple((text, prepare(text, steps)) for text in chosen)


def _without_services(text: str) -> str:
    return blanked(text, CRISIS.spans(text))


@pytest.mark.parametrize("contacts", ["drop_sentence", "placeholder"])
def test_no_address_and_of_numbers_only_crisis_lines_are_left_in_counsel_chat(contacts: str) -> None:
    sign = re.compile(r"http|www|\w@\w|\w\.(com|org|net|edu|gov|info|ca|bz|co|us)\b", re.IGNORECASE)
    left = [sign.search(_without_services(cleaned.text)) for _, cleaned in _cleaned_answers(contacts)]
    assert [each.string for each in left if each] == []
    assert sum(bool(sign.search(raw)) for raw, _ in _cleaned_answers("drop_sentence")) > 110
    numbers: Counter[str] = Counter()
    for _, cleaned in _cleaned_answers(contacts):
        lines = CRISIS.spans(cleaned.text)
        for run in re.finditer(r"\d(?:[ ().\u2013-]{0,3}\d){6,}", cleaned.text):
            is_crisis = any(start <= run.start() and run.end() <= end for start, end in lines)
            numbers["crisis" if is_crisis else run.group()] += 1
    assert set(numbers) <= {"crisis", "1931-1932"}
    crisis = re.compile(r"8\d\d.273.8255|911|741741|988\b|866.488.7386|800.422.4453|877.565.8860")
    for raw, cleaned in _cleaned_answers("drop_sentence"):
        assert sorted(crisis.findall(raw)) == sorted(crisis.findall(cleaned.text)), raw


def test_at_most_one_answer_in_a_hundred_loses_more_than_a_tenth_beside_its_contacts() -> None:
    def letters(text: str) -> Counter[str]:
        return Counter("".join(blanked(text, (*web_addresses(text), *phone_numbers(text))).split()))

    answers = _cleaned_answers("drop_sentence")
    lost = [(letters(raw) - letters(cleaned.text)).total() / len("".join(raw.split())) for raw, cleaned in answers]
    assert sum(share > 0.1 for share in lost) <= 0.01 * len(answers)
    assert max(lost) < 0.5


_NOT_NAMES = {
    "dr", "ms", "ma", "lpc", "lmhc", "lcsw", "lmsw", "phd", "ncc", "dbh", "lpcc", "psyd", "lmft", "mft", "m", "ph",
    "d", "2", "3",
}  # fmt: skip


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _slug_names() -> set[str]:
    """Join first and last names of slugs, all words of practices; short ones also arise across words."""
    slugs = {answer.author.rpartition("/")[2] for answer in counsel_chat()}
    words = [[word for word in slug.split("-") if word not in _NOT_NAMES] for slug in slugs]
    names = {"".join(each if "counseling" in each else each[:2]) for each in words}
    return {_letters(name) for name in names if len(name) > 8}


@pytest.mark.parametrize("contacts", ["drop_sentence", "placeholder", "keep"])
def test_no_author_of_counsel_chat_is_named_in_full(contacts: str) -> None:
    names = _slug_names()
    assert len(names) > 270
    left = [_letters(cleaned.text) for _, cleaned in _cleaned_answers(contacts)]
    assert [name for text in left for name in names if name in text] == []
    raw = [_letters(text) for text, _ in _cleaned_answers("drop_sentence")]
    assert sum(any(name in text for name in names) for text in raw) >= 45


TEXTS = [f"text {number}" for number in range(1_000)]
UPPER = [text.upper() for text in TEXTS]


def with_pid(text: str) -> tuple[str, int]:
    return text.upper(), os.getpid()


def open_with_pid() -> Callable[[str], tuple[str, int]]:
    return with_pid


def dies(text: str) -> tuple[str, int]:
    return os._exit(7) if text == "text 900" and parent_process() is not None else with_pid(text)


def open_dying() -> Callable[[str], tuple[str, int]]:
    return dies


def test_workers_map_many_texts_in_order_and_read_no_more_ahead_than_they_can_take() -> None:
    read: list[str] = []
    texts = (read.append(text) or text for text in TEXTS)
    mapped = parallel_map(open_with_pid, texts, workers=2, first=100, chunk=30)
    results = list(islice(mapped, 101))
    assert len(read) <= 100 + 30 * (2 * 3 + 1)
    results += mapped
    assert [text for text, _ in results] == UPPER
    assert {pid for _, pid in results[:100]} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in results[100:]}


@pytest.mark.parametrize(("workers", "count"), [(2, 100), (0, 1_000)])
def test_few_texts_start_no_worker(workers: int, count: int) -> None:
    def open_function() -> Callable[[str], tuple[str, int]]:
        return with_pid  # a local function cannot be sent to a worker

    results = parallel_map(open_function, TEXTS[:count], workers, first=100)
    assert list(results) == [(text, os.getpid()) for text in UPPER[:count]]


def test_a_worker_that_dies_loses_no_text() -> None:
    results = parallel_map(open_dying, TEXTS, workers=2, first=100, chunk=30)
    assert [text for text, _ in results] == UPPER


PARENT = """
import os, sys, time
sys.path[:0] = {path!r}
from psychocounsel.corpus.cleaning import parallel_map
from test_cleaning import open_with_pid
if __name__ == "__main__":
    def texts():
        yield from map(str, range(10))
        time.sleep(60)
    for text, pid in parallel_map(open_with_pid, texts(), workers=1, first=1, chunk=1):
        if pid != os.getpid():
            print(pid, flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(path=[str(Path(__file__).parent), *sys.path]), encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = next(int(line) for line in parent.stdout if line.strip().isdigit())
        assert len({Path(f"/proc/{pid}/fd/1").readlink() for pid in (worker, parent.pid)}) == 1
        parent.send_signal(signal.SIGKILL)
        parent.communicate()  # the pipe ends with the worker, which shares it
