"""The PII evaluation set and the counts on it."""

import json
from collections.abc import Sequence
from importlib.resources import files

import pytest

from psychocounsel.config.schema import ENTITIES, DeidentificationConfig
from psychocounsel.corpus.deidentify import (
    Counts,
    Fingerprint,
    Span,
    evaluate,
    open_deidentifier,
    parse_marks,
    read_pii_set,
)


class ListFinder:
    """Returns given finds for each text."""

    def __init__(self, finds: dict[str, list[Span]]) -> None:
        self.fingerprint: Fingerprint = {}
        self.finds = finds

    def find(self, text: str) -> Sequence[Span]:
        return self.finds.get(text, [])


def test_marks_become_spans():
    item = parse_marks("My <PERSON>Anna</PERSON>, <PHONE>12</PHONE>.")
    assert item.text == "My Anna, 12."
    assert [(item.text[span.start : span.end], span.entity) for span in item.spans] == [
        ("Anna", "PERSON"),
        ("12", "PHONE"),
    ]


def test_a_span_is_found_when_it_is_covered_and_a_find_is_false_when_it_touches_nothing():
    texts = [parse_marks("<PERSON>Anna Bo</PERSON> <PERSON>Cy</PERSON> x"), parse_marks("<PHONE>12</PHONE> z")]
    finder = ListFinder(
        {
            "Anna Bo Cy x": [
                Span(0, 4, "PERSON", 1.0),
                Span(5, 7, "PERSON", 1.0),  # with the one before it all of Anna Bo
                Span(8, 9, "PERSON", 1.0),  # half of Cy: neither found nor false
                Span(11, 12, "PERSON", 1.0),
            ],
            "12 z": [Span(0, 2, "ID_NUMBER", 1.0)],
        }
    )
    evaluation = evaluate(finder, texts)
    assert evaluation.by_entity["PERSON"] == Counts(marked=2, found=1, finds=4, false=1)
    assert evaluation.by_entity["PHONE"] == Counts(marked=1, found=0, finds=0, false=0)
    assert evaluation.by_entity["ID_NUMBER"] == Counts(marked=0, found=0, finds=1, false=1)
    assert evaluation.overall == Counts(marked=3, found=1, finds=5, false=2)
    assert evaluation.texts == 2
    assert evaluation.overall.recall == pytest.approx(1 / 3)
    assert evaluation.overall.precision == pytest.approx(3 / 5)
    assert evaluation.by_entity["EMAIL"].recall is evaluation.by_entity["EMAIL"].precision is None


def test_the_set_is_large_and_holds_every_entity_and_many_hard_negatives():
    for half in ("tuned", "held_out"):
        items = read_pii_set(half)
        assert len(items) >= 100
        assert {span.entity for item in items for span in item.spans} == set(ENTITIES)
        assert sum(not item.spans for item in items) >= 35
    texts = [item.text for item in read_pii_set()]
    assert len(set(texts)) == len(texts)
    assert not any("<" in text or ">" in text for text in texts)


def test_the_file_says_which_half_was_looked_at():
    lines = (files("psychocounsel.corpus.deidentify") / "pii_evaluation.jsonl").read_text("utf-8").splitlines()
    assert "not looked at while tuning" in json.loads(lines[0])["about"]


@pytest.mark.parametrize(("half", "recall", "precision"), [("tuned", 0.95, 0.95), ("held_out", 0.85, 0.95)])
def test_the_pattern_engine_is_as_good_as_it_was(half, recall, precision):
    engine = open_deidentifier(DeidentificationConfig(engine="patterns"))
    assert engine is not None
    overall = evaluate(engine, read_pii_set(half)).overall
    assert overall.recall is not None and overall.recall >= recall
    assert overall.precision is not None and overall.precision >= precision
