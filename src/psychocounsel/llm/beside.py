"""A reply beside those that were asked for -> who counts the costs hears of it.

What a server can do is found out by questions of the client's own. They are paid for like any other, and only
whoever asked knows the budget that pays; so the news takes a way of its own, one for each run.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from psychocounsel.llm.chat import ChatReply

_Payer = Callable[[ChatReply], None]
_payer: ContextVar[_Payer | None] = ContextVar("payer", default=None)


@contextmanager
def paying_beside(payer: _Payer) -> Generator[None]:
    """Have `payer` called for every reply beside the requests that this task asks for in the block."""
    before = _payer.set(payer)
    try:
        yield
    finally:
        _payer.reset(before)


def paid_beside(reply: ChatReply) -> None:
    """Tell whoever asked that a reply came which answers none of the requests."""
    payer = _payer.get()
    if payer is not None:
        payer(reply)
