"""Speech -> Topic by cues, which can be followed by hand."""

import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from topic_fakes import SMALL, ignore

from psychocounsel.config.components import locate
from psychocounsel.corpus.topics import (
    NO_CUE,
    Assigned,
    OfflineTopicAssigner,
    Topic,
    TopicAssigner,
    Unassigned,
    load_taxonomy,
    unassigned_by_reason,
)
from psychocounsel.types import Speech

COUNSEL_CHAT = Path(__file__).parents[3] / "shared" / "data" / "counsel-chat.csv"


def by_cues(text: str) -> Assigned:
    return OfflineTopicAssigner(SMALL).assign([Speech(text)], ignore)[0]


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("I CAN\u2019T sleep!", Topic("body", "sleep")),
        ("Panicking again.", Topic("body", "panic")),
        ("A friend told me.", Topic("others", "friends")),
        # 3 for the cue against 1 + 1 for the hints
        ("My friends came, all night, heart and all.", Topic("others", "friends")),
        # sleep 3 + panic 3 outweigh friends 3 + 1, and sleep comes first in its group
        ("My friends, a friendship, I panic, wide awake.", Topic("body", "sleep")),
        # each cue counts once: 3 against 3, and the first group wins
        ("My friend, my friend, my friend: insomnia.", Topic("body", "sleep")),
        # the longer cue takes its words: 3 for friends, and nothing for panic
        ("Panic buying.", Topic("others", "friends")),
        ("Panic. Buying.", Topic("others", "friends")),
        ("Wide awake together.", Topic("others", "friends")),
        ("Panicky.", Topic("others", "friends")),
        ("Heart attacks.", Topic("body", "panic")),
        ("Awake, wide.", Unassigned(NO_CUE)),
        ("Not one word of it.", Unassigned(NO_CUE)),
        ("Insomniac sleep.", Unassigned(NO_CUE)),
        ("my", Unassigned(NO_CUE)),
    ],
)
def test_cues_are_weighed_as_by_hand(text: str, topic: Assigned) -> None:
    assert by_cues(text) == topic


def test_cues_heard_say_why() -> None:
    heard = OfflineTopicAssigner(SMALL).cues_heard("Nights with my friends, friends, a night, a heart attack")
    assert heard == [
        ("sleep", "night*", 1),
        ("friends", "my friend*", 3),
        ("friends", "friend*", 1),
        ("panic", "heart attack*", 3),
    ]


def test_the_offline_identity_follows_the_cues() -> None:
    assigner: TopicAssigner = OfflineTopicAssigner(SMALL)
    assert assigner.identity == {"backend": "offline", "version": 1, "taxonomy": SMALL.digest_of_cues}
    json.dumps(assigner.identity)


def test_progress_counts_every_speech_and_results_keep_their_order() -> None:
    done: list[int] = []
    speeches = [Speech(text) for text in ("insomnia", "nothing", "my friend")]
    results = OfflineTopicAssigner(SMALL).assign(speeches, done.append)
    assert results == [Topic("body", "sleep"), Unassigned(NO_CUE), Topic("others", "friends")]
    assert sum(done) == 3
    assert unassigned_by_reason(results) == {NO_CUE: 1}


pieces = st.sampled_from(
    [
        "insomnia",
        "can't sleep",
        "wide",
        "awake",
        "panic",
        "buying",
        "my",
        "friends",
        "heart",
        "attack",
        "panicky",
        "together",
    ]
)


@given(st.lists(st.lists(pieces, min_size=1).map(" ".join), max_size=8))
def test_a_text_has_one_topic_whatever_stands_beside_it(texts: list[str]) -> None:
    together = OfflineTopicAssigner(SMALL).assign([Speech(text) for text in texts], ignore)
    assert together == [by_cues(text) for text in texts]


@given(st.lists(pieces, min_size=1))
def test_what_is_heard_is_what_a_search_word_by_word_finds(words: list[str]) -> None:
    heard = OfflineTopicAssigner(SMALL).cues_heard(" ".join(words))
    cues = {cue: fine.id for fine in SMALL.fine_topics for cue in (*fine.cues, *fine.hints)}
    left, found = " ".join(words).replace("'", ""), []
    while left:
        fits = [cue for cue in cues if re.match(cue.replace("*", r"\w*") + r"\b", left)]
        longest = max(fits, key=lambda cue: (len(cue.split()), len(cue)), default="")
        found += [(cues[longest], longest)] if fits else []
        left = " ".join(left.split()[len(longest.split()) or 1 :])
    assert [(cue.fine, cue.cue) for cue in heard] == list(dict.fromkeys(found))


def test_on_the_samples_cues_find_far_more_coarse_topics_than_chance() -> None:
    lines = locate("bundled:speeches.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assigner = OfflineTopicAssigner(load_taxonomy("counselling"))
    results = assigner.assign([Speech(row["text"]) for row in rows], ignore)
    found = [result for result in results if isinstance(result, Topic)]
    right = sum(result[0] == row["topic"] for result, row in zip(results, rows, strict=True))
    assert len(found) >= 0.95 * len(rows)
    assert right >= 0.4 * len(rows)  # chance: 0.125


PLAIN_TOPICS = {
    "relationships": "relationships",
    "marriage": "relationships",
    "relationship-dissolution": "relationships",
    "parenting": "family-and-parenting",
    "anger-management": "habits-and-addiction",
    "substance-abuse": "habits-and-addiction",
    "anxiety": "anxiety-and-stress",
    "lgbtq": "identity-and-self-worth",
    "counseling-fundamentals": "work-study-and-change",
}


def test_on_real_questions_most_plain_topics_are_found() -> None:
    if not COUNSEL_CHAT.exists():
        pytest.skip("shared/data/counsel-chat.csv is not beside the repository")
    with COUNSEL_CHAT.open(encoding="utf-8", newline="") as stream:
        topics = {row["questionText"].strip(): row["topic"] for row in csv.DictReader(stream)}
    plain = {text: topic for text, topic in topics.items() if text and topic in PLAIN_TOPICS}
    assigner = OfflineTopicAssigner(load_taxonomy("counselling"))
    results = assigner.assign([Speech(text) for text in plain], ignore)
    right = sum(result[0] == PLAIN_TOPICS[topic] for result, topic in zip(results, plain.values(), strict=True))
    assert right >= 0.6 * len(plain)
