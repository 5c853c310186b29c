"""Rating reply with its token choices -> the rating to be expected, or the reason why there is none.

A rating is one token in practice. Of that token's alternatives those count that write another point of the
scale in its place; their probabilities are made to add up to one, and the mean of the points under them is
the rating (arXiv 2303.16634 weighs ratings so).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from psychocounsel.judging.parsing import only_object
from psychocounsel.judging.rubric import Rubric
from psychocounsel.llm.token_choices import TokenChoice

LEAST_MASS = 0.5
"""Share of probability that the points of the scale must have together, or they say little."""

_DECIMALS = 6
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+|[{}:]', re.DOTALL)
_NUMBER = re.compile(r"(-?\d+)(?![\d.eE])")


class Place(NamedTuple):
    """Where a number stands in a reply: its first character, and the one behind its last."""

    start: int
    end: int


class Unexpected(NamedTuple):
    """Why the token choices tell no rating."""

    reason: str


def points_are_told_apart(scale: Sequence[int]) -> bool:
    """Whether no point of a scale begins as another one does: a token 1 may be all of 1, or begin 10."""
    written = [str(point) for point in scale]
    return not any(one != other and other.startswith(one) for one in written for other in written)


def expected_ratings(
    reply_text: str, choices: Sequence[TokenChoice], rubric: Rubric
) -> dict[str, float] | Unexpected:
    """Return the expected rating on every principle, rounded to a millionth of a point.

    Args:
        reply_text: one that `parse_ratings` reads.
        choices: of the reply's tokens.
        rubric: declares principles and scale.
    """
    places = rating_places(reply_text, rubric)
    ratings: dict[str, float] = {}
    for name in rubric.principle_ids:
        choice = _covering(choices, places[name])
        if choice is None:
            return Unexpected(f"no single token writes the rating of '{name}'")
        masses = point_masses(choice, reply_text[choice.start : places[name].start], rubric.scale)
        whole = math.fsum(masses.values())
        if whole < LEAST_MASS:
            return Unexpected(f"of '{name}' the scale has {whole:.0%} of the probability")
        mean = math.fsum(point * mass for point, mass in masses.items()) / whole
        ratings[name] = round(mean, _DECIMALS)
    return ratings


def rating_places(reply_text: str, rubric: Rubric) -> dict[str, Place]:
    """Return where each principle's number stands in a reply that `parse_ratings` reads."""
    told = only_object(reply_text)
    offset = reply_text.rindex(told)  # nothing behind the object holds another one
    around = () if rubric.reply.flat else ("ratings",)
    places = {path: Place(offset + number.start(), offset + number.end()) for path, number in _numbers(told)}
    return {name: places[*around, name] for name in rubric.principle_ids}


def _numbers(told: str) -> Iterator[tuple[tuple[str, ...], re.Match[str]]]:
    """Yield every whole number that is a value, with the keys that lead to it."""
    around: list[str] = []
    key, last = "", ""
    for token in _TOKENS.finditer(told):
        sign = token[0]
        if sign == "{":
            around.append(key)
        elif sign == "}":
            around.pop()
        elif sign == ":":
            key = str(json.loads(last, strict=False))
        elif sign[0] == '"':
            last = sign
        elif key:
            yield (*around[1:], key), token
        key = key if sign == ":" or sign[0] == '"' else ""


def point_masses(choice: TokenChoice, head: str, scale: Sequence[int]) -> Mapping[int, float]:
    """Return the probability of each point that one of the alternatives writes.

    Args:
        choice: a token that writes a rating, alone or with signs around it.
        head: what of the token stands before the rating; white space in it may differ.
        scale: every point.
    """
    masses: dict[int, float] = {}
    for text, logprob in choice.alternatives:
        other, before = text.lstrip(), head.strip()
        number = _NUMBER.match(other.removeprefix(before).lstrip()) if other.startswith(before) else None
        if number is not None and int(number[1]) in scale:
            point = int(number[1])
            masses[point] = masses.get(point, 0.0) + math.exp(logprob)
    return masses


def _covering(choices: Sequence[TokenChoice], place: Place) -> TokenChoice | None:
    for choice in choices:
        if choice.start <= place.start and place.end <= choice.start + len(choice.token):
            return choice
    return None
