"""Text -> words: what counts as a word wherever length or repetition is measured."""

import re

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def word_count(text: str) -> int:
    """Return the length of a text in words, the one that every report and card shows."""
    return len(words(text))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, punctuation left out.

    A text of punctuation alone (a model that loops on dots) is cut at white space instead. Scripts written
    without spaces give one long word per run, so lengths in words do not suit them.
    """
    return _WORD.findall(text.casefold()) or text.split()
