"""Speech, Candidates, Rubric -> ChatRequest: what a judging model is asked, word for word.

The part that never changes comes first and alone (system message), so that servers can cache it; the item
comes last. Texts to be judged may address the judge: they stand as JSON between markers made from
a hash of the item, which no text can contain, and the reply has to echo the item's id.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files
from string import Template
from typing import NamedTuple

from psychocounsel.judging.injection import one_line
from psychocounsel.judging.judge import ComparisonTask
from psychocounsel.judging.rubric import Principle, Rubric
from psychocounsel.llm.types import JSON, ChatRequest, Message
from psychocounsel.types import OVERALL, Candidate, Speech, content_id

SIDES = ("A", "B", "tie")
"""What a reply may answer to a comparison: the first response, the second, neither."""

_PROMPTS = files("psychocounsel.judging") / "prompts"
_TEXT: JSON = {"type": "string"}
_ITEM_LINE = "=== ITEM ===\n"


@dataclass(frozen=True)
class SamplingParams:
    """How a judging model is sampled; a temperature or top_p of None is not sent.

    `sample_index` tells repeated draws apart: each is asked, and paid, on its own.
    """

    temperature: float | None = 0.0
    max_tokens: int = 600
    top_p: float | None = 1.0
    sample_index: int = 0


class JudgeRequest(NamedTuple):
    """A request and the id that its reply has to echo."""

    item_id: str
    request: ChatRequest


def rating_request(speech: Speech, candidate: Candidate, rubric: Rubric, sampling: SamplingParams) -> JudgeRequest:
    """Ask for a whole number on every principle, for one response alone."""
    item_id = content_id("rate", speech.text, candidate.text)
    item = {"item_id": item_id, "client": speech.text, "response": candidate.text}
    return JudgeRequest(item_id, _request("rate", item, rubric, sampling))


def comparison_request(item: ComparisonTask, rubric: Rubric, sampling: SamplingParams) -> JudgeRequest:
    """Ask which of two responses is better, in exactly the order given; A is the first."""
    texts = (item.speech.text, item.first.text, item.second.text)
    item_id = content_id("compare", *texts)
    shown = dict(zip(("client", "response_A", "response_B"), texts, strict=True))
    return JudgeRequest(item_id, _request("compare", {"item_id": item_id, **shown}, rubric, sampling))


def prompt_digests() -> dict[str, str]:
    """SHA-256 of each prompt's text, by name."""
    return {name: hashlib.sha256(_prompt(name).encode()).hexdigest() for name in ("rate", "compare")}


def _request(name: str, item: Mapping[str, str], rubric: Rubric, sampling: SamplingParams) -> ChatRequest:
    fixed = _fixed_part(name, _Shown(rubric.digest, rubric))
    data = one_line(item)
    # The data comes last: it may hold anything, the name of the marker too.
    asked = fixed.rest.replace("$marker", f"<<{content_id('marker', data)}>>").replace("$data", data)
    return ChatRequest(
        messages=(fixed.message, Message("user", asked)),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        response_schema=fixed.schema,
        schema_name=name,
        sample_index=sampling.sample_index,
    )


@dataclass(frozen=True)
class _Shown:
    """A rubric, known by the digest of what a judge is shown."""

    digest: str
    rubric: Rubric = field(compare=False)


class _FixedPart(NamedTuple):
    """What all requests of one kind share; a million of them hold one copy."""

    message: Message
    rest: str
    schema: Mapping[str, JSON]


@lru_cache(maxsize=32)
def _fixed_part(name: str, shown: _Shown) -> _FixedPart:
    fixed, variable = _prompt(name).split(_ITEM_LINE)
    schema = _rating_schema(shown.rubric) if name == "rate" else _comparison_schema(shown.rubric)
    return _FixedPart(Message("system", _filled(fixed, shown.rubric)), variable, schema)


@cache
def _prompt(name: str) -> str:
    return (_PROMPTS / f"{name}.txt").read_text(encoding="utf-8")


def _filled(template: str, rubric: Rubric) -> str:
    return Template(template).substitute(
        version=rubric.version,
        minimum=rubric.minimum,
        maximum=rubric.maximum,
        rubric="".join(_rendered(principle, rubric) for principle in rubric.principles),
        principles=_quoted(rubric.principle_ids),
        fields=_fields(rubric),
        in_language="" if rubric.language == "en" else f" in the language of the rubric ({rubric.language})",
    )


def _rendered(principle: Principle, rubric: Rubric) -> str:
    anchors = "".join(f"  {point}: {principle.anchors[point]}\n" for point in rubric.scale)
    return f'"{principle.id}" - {principle.name}. {principle.description}\n{anchors}\n'


def _comparison_schema(rubric: Rubric) -> dict[str, JSON]:
    side: JSON = {"type": "string", "enum": list(SIDES)}
    winners: dict[str, JSON] = dict.fromkeys((OVERALL, *rubric.principle_ids), side)
    return _strict_object({"item_id": _TEXT, "reasons": _TEXT, "winners": _strict_object(winners)})


def _rating_schema(rubric: Rubric) -> dict[str, JSON]:
    layout = rubric.reply
    point: JSON = {"type": "integer", "enum": list(rubric.scale)}
    ratings: dict[str, JSON] = dict.fromkeys(rubric.principle_ids, point)
    # The reasons come before the figures, so that a model thinks before it settles on them.
    before: dict[str, JSON] = {"item_id": _TEXT} if layout.echo_id else {}
    before |= {"reasons": _TEXT} if layout.reasons else {}
    shown = dict(ratings) if layout.flat else {"ratings": _strict_object(ratings)}
    after: dict[str, JSON] = {key: {"type": kind} for key, kind in layout.extra_keys.items()}
    return _strict_object({**before, **shown, **after})


def _fields(rubric: Rubric) -> str:
    """Return what a rating reply holds, in words, in the order of `_rating_schema`."""
    layout, names = rubric.reply, _quoted(rubric.principle_ids)
    language = "" if rubric.language == "en" else f" in the language of the rubric ({rubric.language})"
    told = ['"item_id", the item\'s identifier exactly as given with the item'] if layout.echo_id else []
    if layout.reasons:
        told.append(f'"reasons", two to four sentences{language} naming what decided the ratings')
    where = "" if layout.flat else '"ratings", '
    told.append(f"{where}one whole number for each of these principles: {names}")
    told += [f'"{key}" (a {kind})' for key, kind in layout.extra_keys.items()]
    return "; ".join(told)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _strict_object(properties: Mapping[str, JSON]) -> dict[str, JSON]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
