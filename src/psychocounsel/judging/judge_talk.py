"""Text -> does it speak of its own rating, or in the name of the system? No list of phrases names all ways.

A sentence that names a rating, the top of a scale, and this response or every principle speaks to whoever
rates; clients are told of scales and of top marks, but not of those of the reply that they read.
"""

import re

from psychocounsel.judging.words import split_sentences

_RATING = re.compile(
    r"(?:rat(?:e[ds]?|ing|ings)|scor(?:e[ds]?|ing)|grad(?:e[ds]?|ing)|mark(?:s|ed|ing)?|points?)"
)
_TOP = frozenset({"maximum", "maximal", "maximally", "max", "highest", "top", "full", "perfect"})
_ITSELF = re.compile(
    r"\b(?:this|the above) (?:\w+ )?(?:response|reply|answer|item|candidate|output)\b"
    r"|\b(?:all|every|each|any)(?: of)?(?: the| these| those)?(?: \w+)? "
    r"(?:principles?|criteri(?:on|a)|dimensions?|categor(?:y|ies))\b"
)
_ROLE = r"(?:system|sys|inst|instructions?|developer)"
_HEADER = re.compile(
    rf"^\W*(?:[\[<{{]+\|?\s*/?{_ROLE}(?: \w+){{,2}}\s*\|?[\]>}}]+|#+\s*{_ROLE}\s*:?\s*$)",
    re.IGNORECASE | re.MULTILINE,
)


def speaks_of_its_rating(text: str) -> bool:
    """Say whether a sentence names a rating, the top of the scale, and this response or all principles."""
    return any(_is_about_itself(sentence.words) for sentence in split_sentences(text))


def opens_as_the_system(text: str) -> bool:
    """Say whether a line opens with the mark of a role that writes to a model, such as `[SYSTEM]`."""
    return _HEADER.search(text) is not None


def _is_about_itself(words: tuple[str, ...]) -> bool:
    if _TOP.isdisjoint(words) or not any(map(_RATING.fullmatch, words)):
        return False
    return _ITSELF.search(" ".join(words)) is not None
