"""Reads a judge's reply: ratings or winners, or the reason why it holds none.

A reply is read strictly or not at all: one corpus was ruined by a "10" read as "1". Nothing is guessed, and no digit
is ever picked out of prose.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from psychocounsel.judging.rubric import Rubric
from psychocounsel.llm.items import UnreadableReplyError, checked_reasons, exactly, only_object, read_object
from psychocounsel.llm.structured_output import TokenChoice
from psychocounsel.types import OVERALL, Rating, ReplyStatus, Scoring, Winner

PARSER_VERSION = 3
"""Raised by hand whenever a reply may be read differently than before."""

WINNERS = {"A": Winner.FIRST, "B": Winner.SECOND, "tie": Winner.TIE}
"""What a reply may answer to a comparison: the first response, the second, neither."""

LEAST_MASS = 0.5
"""Share of probability that the points of the scale must have together for an expected rating."""

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+|[{}:]', re.DOTALL)
_ELLIPSIS = re.compile(r"\.{3}|\u2026")
_NUMBER = re.compile(r"(-?\d+)(?![\d.eE])")


class ParsedRatings(NamedTuple):
    """A rating on the scale for every principle of the rubric, and no other.

    They are whole numbers as written, or expectations; `remark` says why they are not what was wanted.
    """

    ratings: Mapping[str, Rating]
    reasons: str
    scored_by: Scoring = Scoring.WRITTEN
    remark: str = ""


class ParsedWinners(NamedTuple):
    """A winner overall and for every principle of the rubric, and no other."""

    winners: dict[str, Winner]
    reasons: str


class ParseFailure(NamedTuple):
    """Why a reply is not read, and the status of its judgement."""

    reason: str
    status: ReplyStatus = ReplyStatus.INVALID


# --- Written ratings and winners -------------------------------------------------------------------------------------


def parse_ratings(reply_text: str, rubric: Rubric, item_id: str) -> ParsedRatings | ParseFailure:
    """Read a rating reply in the layout of the rubric; it must echo `item_id`, unless the rubric leaves that out."""
    layout, names = rubric.reply, rubric.principle_ids
    heads = [key for key, is_there in (("item_id", layout.echo_id), ("reasons", layout.reasons)) if is_there]
    shown = names if layout.flat else ("ratings",)
    try:
        reply = exactly(read_object(reply_text), (*heads, *shown, *layout.extra_keys), "the reply")
        reasons = checked_reasons(reply, item_id)
        values = reply if layout.flat else exactly(reply["ratings"], names, "'ratings'")
    except UnreadableReplyError as fault:
        return ParseFailure(str(fault))
    ratings: dict[str, Rating] = {}
    for name in names:
        point = values[name]
        # `True` equals 1 and 4.0 equals 4 in Python: the type decides before the value does.
        if type(point) is not int or point not in rubric.scale:
            return ParseFailure(f"'{name}' is not a whole number of the scale")
        ratings[name] = point
    return ParsedRatings(ratings, reasons)


def parse_winners(reply_text: str, rubric: Rubric, item_id: str) -> ParsedWinners | ParseFailure:
    """Read a comparison reply; "A" is the first response shown."""
    criteria = (OVERALL, *rubric.principle_ids)
    try:
        reply = exactly(read_object(reply_text), ("item_id", "reasons", "winners"), "the reply")
        reasons = checked_reasons(reply, item_id)
        values = exactly(reply["winners"], criteria, "'winners'")
    except UnreadableReplyError as fault:
        return ParseFailure(str(fault))
    winners: dict[str, Winner] = {}
    for name in criteria:
        side = values[name]
        if not isinstance(side, str) or side not in WINNERS:
            return ParseFailure(f"'{name}' is neither A nor B nor tie")
        winners[name] = WINNERS[side]
    return ParsedWinners(winners, reasons)


def parse_quoted(
    reply_text: str, rubric: Rubric, answer_text: str, item_id: str, no_if_unquoted: Collection[str] = ()
) -> ParsedRatings | ParseFailure:
    """Read a reply of yes (1) and no (0) with quotes; the reasons are the quotes, as a JSON object.

    Every yes needs a quote whose words stand in `answer_text`, whatever their case and punctuation; an ellipsis may
    join several places. Without one, a yes to the questions `no_if_unquoted` is a no, and any other makes the reply
    unreadable.
    """
    spoken = f" {_plainly(answer_text)} "
    names = rubric.principle_ids
    ratings: dict[str, Rating] = {}
    quotes: dict[str, str] = {}
    try:
        reply = exactly(read_object(reply_text), ("item_id", "answers"), "the reply")
        checked_reasons(reply, item_id)
        answers = exactly(reply["answers"], names, "'answers'")
        for name in names:
            entry = exactly(answers[name], ("quote", "answer"), f"'{name}'")
            said, quote = entry["answer"], entry["quote"]
            if said not in ("yes", "no") or not isinstance(quote, str):
                return ParseFailure(f"'{name}' is neither yes nor no with a quote")
            parts = [part for part in map(_plainly, _ELLIPSIS.split(quote)) if part]
            is_quoted = bool(parts) and all(f" {part} " in spoken for part in parts)
            if said == "yes" and not is_quoted and name not in no_if_unquoted:
                return ParseFailure(f"the quote for '{name}' is not in the answer")
            ratings[name] = int(said == "yes" and is_quoted)
            if ratings[name]:
                quotes[name] = quote
    except UnreadableReplyError as fault:
        return ParseFailure(str(fault))
    return ParsedRatings(ratings, json.dumps(quotes, ensure_ascii=False))


def _plainly(text: str) -> str:
    """Return the letters and digits of a text in lower case, so that only its words count."""
    return " ".join(re.findall(r"\w+", text.casefold()))


# --- Expected ratings, from the probabilities of tokens --------------------------------------------------------------


def has_distinct_tokens(scale: Sequence[int]) -> bool:
    """Return whether no point of a scale begins as another one does: a token 1 may be all of 1, or begin 10."""
    written = [str(point) for point in scale]
    return not any(one != other and other.startswith(one) for one in written for other in written)


def expected_ratings(
    reply_text: str, choices: Sequence[TokenChoice], rubric: Rubric
) -> dict[str, float] | ParseFailure:
    """Return the expected rating on every principle, rounded to a millionth of a point.

    `choices` are the tokens of a reply that `parse_ratings` reads.
    """
    ratings: dict[str, float] = {}
    for name, place in rating_places(reply_text, rubric).items():
        covering = (
            each for each in choices if each.start <= place.start and place.stop <= each.start + len(each.token)
        )
        choice = next(covering, None)
        if choice is None:
            return ParseFailure(f"no single token writes the rating of '{name}'")
        masses = point_masses(choice, reply_text[choice.start : place.start], rubric.scale)
        whole = math.fsum(masses.values())
        if whole < LEAST_MASS:
            return ParseFailure(f"of '{name}' the scale has {whole:.0%} of the probability")
        ratings[name] = round(math.fsum(point * mass for point, mass in masses.items()) / whole, 6)
    return ratings


def rating_places(reply_text: str, rubric: Rubric) -> dict[str, slice]:
    """Return where each principle's number stands in a reply that `parse_ratings` reads."""
    block = only_object(reply_text)
    offset = reply_text.rindex(block)  # nothing behind the object holds another one
    around = () if rubric.reply.flat else ("ratings",)
    places = {path: slice(offset + number.start(), offset + number.end()) for path, number in _numbers(block)}
    return {name: places[*around, name] for name in rubric.principle_ids}


def _numbers(block: str) -> Iterator[tuple[tuple[str, ...], re.Match[str]]]:
    """Yield every whole number that is a value, with the keys that lead to it."""
    around: list[str] = []
    key, last = "", ""
    for token in _TOKENS.finditer(block):
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
    """Return the probability of each point that one of the alternatives of a token writes.

    `head` is what of the token stands before the rating; white space in it may differ.
    """
    masses: dict[int, float] = {}
    before = head.strip()
    for text, logprob in choice.alternatives:
        other = text.lstrip()
        number = _NUMBER.match(other.removeprefix(before).lstrip()) if other.startswith(before) else None
        if number is not None and int(number[1]) in scale:
            point = int(number[1])
            masses[point] = masses.get(point, 0.0) + math.exp(logprob)
    return masses
