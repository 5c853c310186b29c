"""Keys of `metrics.json` -> the words by which a page and the command line tell them."""

from typing import NamedTuple


class Words(NamedTuple):
    """A figure in a sentence, and in few words for a plot or a card."""

    full: str
    short: str


EMPTY_REPLY = {"empty": "empty_reply"}
"""The status of a judge whose own reply was empty, and not the response that it was shown."""

SAME_TIER = "same_tier"
BASELINES = {
    "author_identity": Words("the better author wins", "who wrote it"),
    "longer_wins": Words("the longer answer wins", "longer wins"),
    SAME_TIER: Words("between authors of one tier", "same-tier pairs"),
}
"""Beside the accuracy of a reward model; that of `same_tier` is the reward model's own."""
