"""Recall and precision of de-identification on a bundled set of marked texts, `pii_evaluation.jsonl`."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from typing import Literal, NamedTuple

from psychocounsel.config.schema import ENTITIES, Entity
from psychocounsel.corpus.deidentify import Deidentifier, Span, resolve

Half = Literal["tuned", "held_out"]

_FILE = files("psychocounsel.corpus.deidentify") / "pii_evaluation.jsonl"
_MARK = re.compile(rf"<({'|'.join(ENTITIES)})>(.*?)</\1>", re.DOTALL)


class MarkedText(NamedTuple):
    """A made-up text and what in it identifies a person; a hard negative has no spans."""

    text: str
    spans: tuple[Span, ...]
    half: Half


class Counts(NamedTuple):
    """Marked spans, how many of them were found; finds, how many of them are false.

    A marked span is found when finds of its entity cover it completely. A find is false when it touches no
    marked span of its entity.
    """

    marked: int
    found: int
    finds: int
    false: int

    @property
    def recall(self) -> float | None:
        """Share of marked spans that were found; None when none is marked."""
        return self.found / self.marked if self.marked else None

    @property
    def precision(self) -> float | None:
        """Share of finds that are true; None without finds."""
        return (self.finds - self.false) / self.finds if self.finds else None


class Evaluation(NamedTuple):
    """Counts over a set of marked texts, overall and by entity."""

    overall: Counts
    by_entity: dict[Entity, Counts]
    texts: int


def read_pii_set(half: Half | None = None) -> list[MarkedText]:
    """Return the bundled set; its half `held_out` was not looked at while the patterns were tuned."""
    _about, *lines = _FILE.read_text(encoding="utf-8").splitlines()
    items = [parse_marks(row["text"], row["half"]) for row in map(json.loads, lines)]
    return [item for item in items if half in (None, item.half)]


def parse_marks(marked: str, half: Half = "held_out") -> MarkedText:
    """Parse a text whose spans are marked as `<PERSON>Anna</PERSON>`."""
    text, spans, end = "", list[Span](), 0
    for match in _MARK.finditer(marked):
        text += marked[end : match.start()]
        spans.append(Span(len(text), len(text) + len(match[2]), match[1], 1.0))  # pyrefly: ignore[bad-argument-type]
        text += match[2]
        end = match.end()
    return MarkedText(text + marked[end:], tuple(spans), half)


def evaluate(finder: Deidentifier, texts: Iterable[MarkedText]) -> Evaluation:
    """Count what the finder finds of the marked spans, and what else it finds."""
    tallies: dict[str, Counter[Entity]] = {name: Counter() for name in Counts._fields}
    count = 0
    for item in texts:
        count += 1
        finds = resolve(finder.find(item.text))
        for span in item.spans:
            tallies["marked"][span.entity] += 1
            tallies["found"][span.entity] += _is_covered(span, item.text, finds)
        for find in finds:
            tallies["finds"][find.entity] += 1
            tallies["false"][find.entity] += not any(_overlap(find, span) for span in item.spans)
    by_entity: dict[Entity, Counts] = {
        entity: Counts(*(tallies[name][entity] for name in Counts._fields)) for entity in ENTITIES
    }
    return Evaluation(Counts(*(tallies[name].total() for name in Counts._fields)), by_entity, count)


def _overlap(left: Span, right: Span) -> bool:
    return left.entity == right.entity and left.start < right.end and right.start < left.end


def _is_covered(span: Span, text: str, finds: Iterable[Span]) -> bool:
    own = [find for find in finds if find.entity == span.entity]
    return all(
        any(find.start <= at < find.end for find in own) for at in range(span.start, span.end) if text[at].isalnum()
    )
