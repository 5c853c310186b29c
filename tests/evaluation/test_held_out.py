"""Which speeches a win rate is measured on."""

from psychocounsel.config.components import ResponderConfig
from psychocounsel.config.schema import EvalWinrateConfig
from psychocounsel.evaluation.winrate import held_out_speeches
from psychocounsel.store.schemas import SplitSpeech
from psychocounsel.types import Speech

SIDE = ResponderConfig(author="a", model="m")
CONFIG = EvalWinrateConfig(name="rate", speeches="talk", policy=SIDE, reference=SIDE)
TOPICS = ("anger", "grief", "sleep", "work")
ROWS = [
    SplitSpeech(Speech(f"{topic} {number}", topic), split, "")
    for topic in TOPICS
    for number in range(50)
    for split in ("train", "test")
    if (number % 2 == 0) == (split == "test")
]


def drawn(count: int | None, seed: int = 0) -> list[Speech]:
    return held_out_speeches(ROWS, CONFIG.model_copy(update={"max_speeches": count, "seed": seed}))


def test_all_of_the_split_in_its_order_where_no_number_is_given() -> None:
    whole = [row.speech for row in ROWS if row.split == "test"]
    assert drawn(None) == whole
    assert drawn(1000) == whole


def test_a_corpus_sorted_by_topic_gives_every_topic() -> None:
    assert {speech.topic for speech in drawn(40)} == set(TOPICS)
    assert len(drawn(40)) == 40


def test_a_larger_draw_holds_the_smaller_and_another_seed_draws_others() -> None:
    assert set(drawn(10)) < set(drawn(30))
    assert set(drawn(10)) != set(drawn(10, seed=1))


def test_the_order_of_the_rows_decides_nothing_but_the_order() -> None:
    backwards = held_out_speeches(ROWS[::-1], CONFIG.model_copy(update={"max_speeches": 10}))
    assert backwards == drawn(10)[::-1]
