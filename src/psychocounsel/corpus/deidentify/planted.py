"""Made-up identities, planted into copies of a corpus's own texts to measure what an engine finds of them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psychocounsel.config.corpus import Entity
from psychocounsel.config.loading import read_yaml
from psychocounsel.corpus.text import Span, sentences

PLANTED_TEXTS = 400
_PEOPLE, _OF_EACH_OTHER, _HARMLESS = 100, 30, 50
_LANGUAGE = "en"
_FILE = Path(__file__).resolve().parent / "planted.yaml"


class MarkedText(NamedTuple):
    """A text and what in it identifies a person; finds count in `begin` to `end` (None: of the text)."""

    text: str
    spans: tuple[Span, ...]
    begin: int = 0
    end: int | None = None


@cache
def _languages() -> dict[str, dict[str, Any]]:
    """Return by language the identities of each entity with the sentences around them, and sentences without any."""
    return read_yaml(_FILE.read_text(encoding="utf-8"), _FILE.name).data["languages"]


def planted_language(languages: Sequence[str]) -> str:
    """Return the first of the languages that there are identities for, English if there is none."""
    return next((each for each in languages if each in _languages()), _LANGUAGE)


def plant(texts: Sequence[str], language: str, entities: Sequence[Entity]) -> list[MarkedText]:
    """Return copies of the texts, each with a sentence about one identity, or a harmless one, between its own.

    There are 100 people, 30 identities of each other kind and 50 harmless sentences, by a fixed seed; only finds in the
    planted sentence count, because nobody has marked what else the texts hold.
    """
    rng = np.random.default_rng(0)

    def one_of(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    def put_in(before: str, identity: str, after: str, entity: Entity | None) -> MarkedText:
        own = sentences(one_of(texts))
        at = int(rng.integers(len(own) + 1))
        head = "".join(own[:at])
        head = head if not head or head[-1].isspace() else f"{head} "
        start, end = len(head + before), len(head + before + identity)
        spans = (Span(start, end, entity, 1.0),) if entity else ()
        whole = f"{head}{before}{identity}{after} {''.join(own[at:])}"
        return MarkedText(whole, spans, len(head), end + len(after))

    source = _languages()[language]
    marked = [put_in(one_of(source["harmless"]), "", "", None) for _ in range(_HARMLESS)]
    for entity, kind in source["identities"].items():
        for _ in range((_PEOPLE if entity == "PERSON" else _OF_EACH_OTHER) if entity in entities else 0):
            before, _mark, after = one_of(kind["sentences"]).partition("{}")
            marked.append(put_in(before, one_of(kind["values"]), after, entity))
    return marked
