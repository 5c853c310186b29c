"""Speech -> the responders that answer it: a draw that depends on its content alone."""

from collections.abc import Sequence

from psychocounsel.config.models import PoolConfig, ResponderConfig
from psychocounsel.domain import Speech, content_id


def draw_responders(speech: Speech, pool: PoolConfig) -> tuple[ResponderConfig, ...]:
    """Return `per_speech` different responders; the same speech, pool and seed give the same draw."""
    ranked = sorted(
        pool.responders, key=lambda each: content_id("draw", str(pool.seed), speech.id, each.author)
    )
    return tuple(ranked[: pool.per_speech])


def speeches_of(responder: ResponderConfig, speeches: Sequence[Speech], pool: PoolConfig) -> list[Speech]:
    """Return the speeches that a responder of the pool was drawn for."""
    return [speech for speech in speeches if responder in draw_responders(speech, pool)]
