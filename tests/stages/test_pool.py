"""Speech -> the responders that answer it: by content, never by place."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.components import PoolConfig, ResponderConfig
from psychocounsel.stages.respond import draw_responders, speeches_of
from psychocounsel.types import Speech

RESPONDERS = tuple(ResponderConfig(author=f"author-{number}", model="tiny") for number in range(8))
POOL = PoolConfig(responders=RESPONDERS, per_speech=4)
SPEECHES = [Speech(f"speech {number}") for number in range(200)]


@given(
    st.text(min_size=1).filter(lambda text: bool(text.strip())),
    st.permutations(RESPONDERS),
    st.integers(1, 8),
)
def test_a_draw_depends_on_the_speech_alone(text: str, order: list[ResponderConfig], per_speech: int) -> None:
    drawn = draw_responders(Speech(text), PoolConfig(responders=RESPONDERS, per_speech=per_speech))
    again = draw_responders(Speech(text, "topic", True), PoolConfig(responders=tuple(order), per_speech=per_speech))
    assert drawn == again
    assert len({each.author for each in drawn}) == per_speech


def test_every_responder_gets_about_its_share() -> None:
    counts = Counter(each.author for speech in SPEECHES for each in draw_responders(speech, POOL))
    assert sum(counts.values()) == 800
    assert all(70 <= counts[each.author] <= 130 for each in RESPONDERS)  # 100 expected, deviation 7


def test_another_seed_draws_otherwise() -> None:
    other = POOL.model_copy(update={"seed": 1})
    assert any(draw_responders(speech, POOL) != draw_responders(speech, other) for speech in SPEECHES[:9])


def test_the_speeches_of_all_responders_are_the_draws_the_other_way_round() -> None:
    by_author = {each.author: speeches_of(each, SPEECHES, POOL) for each in RESPONDERS}
    for speech in SPEECHES:
        drawn = {each.author for each in draw_responders(speech, POOL)}
        assert {author for author, speeches in by_author.items() if speech in speeches} == drawn
    assert by_author["author-0"] == [speech for speech in SPEECHES if speech in by_author["author-0"]]
