"""Which speeches a win rate is measured on."""

from psychocounsel.evaluation.winrate import sample_speeches
from psychocounsel.types import Speech

TOPICS = ("anger", "grief", "sleep", "work")
SPEECHES = [Speech(f"{topic} {number}", topic) for topic in TOPICS for number in range(25)]


def test_all_of_them_in_their_order_where_no_number_is_given() -> None:
    assert sample_speeches(SPEECHES, None, 0) == SPEECHES
    assert sample_speeches(SPEECHES, 1000, 0) == SPEECHES


def test_a_corpus_sorted_by_topic_gives_every_topic() -> None:
    sampled = sample_speeches(SPEECHES, 40, 0)
    assert len(sampled) == 40
    assert {speech.topic for speech in sampled} == set(TOPICS)


def test_a_larger_sample_contains_the_smaller_and_another_seed_samples_others() -> None:
    sampled = set(sample_speeches(SPEECHES, 10, 0))
    assert sampled < set(sample_speeches(SPEECHES, 30, 0))
    assert sampled != set(sample_speeches(SPEECHES, 10, 1))


def test_the_order_of_the_speeches_affects_only_the_order() -> None:
    assert sample_speeches(SPEECHES[::-1], 10, 0) == sample_speeches(SPEECHES, 10, 0)[::-1]
