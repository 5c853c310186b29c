"""Speeches of a split -> those that a win rate is measured on, drawn by content and never by place."""

from collections.abc import Iterable

from psychocounsel.config.stages import EvalWinrateConfig
from psychocounsel.domain import Speech, content_id
from psychocounsel.store.tables.nouns import SplitSpeech


def held_out_speeches(rows: Iterable[SplitSpeech], config: EvalWinrateConfig) -> list[Speech]:
    """Return the speeches of the config's split, `max_speeches` of them at most, in their order.

    Which ones is decided by a hash of seed and content: a corpus sorted by topic gives every topic, and a
    larger sample holds the smaller one.
    """
    speeches = [row.speech for row in rows if row.split == config.split]
    by_draw = sorted(speeches, key=lambda each: content_id("held out", str(config.seed), each.id))
    drawn = {each.id for each in by_draw[: config.max_speeches]}
    return [each for each in speeches if each.id in drawn]
