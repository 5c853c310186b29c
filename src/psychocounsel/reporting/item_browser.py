"""The answers of a run, one by one, as data for the script of the report, which filters, searches and shows them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from psychocounsel.evaluation.winrate import BothOrders, Outcome
from psychocounsel.store.artifacts import Artifact
from psychocounsel.types import Comparison, Rating, Speech, Winner


@dataclass(frozen=True)
class Answer:
    """What an author answered, its ratings and the judge's reasons for them; without ratings, why there are none.

    `faults` are shown first: what is wrong with the answer.
    """

    author: str
    text: str
    ratings: Mapping[str, Rating] = field(default_factory=dict[str, Rating])
    reasons: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """A speech and its answers; of a comparison first the policy's, then the reference's, and both orders.

    `labels` are the points that raters gave the policy: 1, 0.5 or 0. Of answers that were checked, `found` has the
    result by criterion, one that does not apply left out. A `title` stands in the list in place of the speech.
    """

    speech: Speech
    answers: tuple[Answer, ...]
    compared: BothOrders | None = None
    labels: Mapping[str, float] = field(default_factory=dict[str, float])
    found: Mapping[str, str] = field(default_factory=dict[str, str])
    title: str = ""

    def outcome(self, criterion: str) -> Outcome:
        """Return the result of a comparison for the policy by one criterion."""
        return Outcome.MISSING if self.compared is None else self.compared.outcome(criterion)


@dataclass(frozen=True)
class ItemSet:
    """Items from one artifact, in the order of their speeches' hashes, so that nobody selects the first ones.

    `total` counts those of the artifact. `criteria` are what its judge compared, `overall` first, rated or checked.
    `points` is the scale of ratings. Where answers were checked, `what` says which, `results` has what may come of it,
    and those with the first of them come first.
    """

    source: Artifact
    criteria: tuple[str, ...]
    total: int
    items: tuple[Item, ...]
    what: str = "ratings"
    results: tuple[str, ...] = ()
    points: tuple[float, ...] = ()

    @property
    def authors(self) -> str:
        """Who wrote the answers of a comparison, as `policy against reference`."""
        return " against ".join(answer.author for answer in self.items[0].answers)

    @property
    def compares(self) -> bool:
        """Whether two sides are compared, rather than answers rated."""
        return self.source.kind == "comparisons"


_SIDES = {Winner.FIRST: "policy", Winner.SECOND: "reference", Winner.TIE: "tie"}


def embedded_items(sets: Sequence[ItemSet]) -> Markup:
    """Return the sets as JSON that may stand in a script element: no `<`, so that no text ends it. Texts stand once."""
    texts: dict[str, int] = {}

    def text(words: str) -> int:
        return texts.setdefault(words, len(texts))

    def order(comparison: Comparison, criteria: Sequence[str]) -> dict[str, Any]:
        winners = [comparison.winners.get(name) for name in criteria]
        return {
            "winners": [winner and _SIDES[winner] for winner in winners],
            "status": comparison.status.value,
            "reasons": comparison.reasons,
        }

    def item(number: int, shown: Item) -> dict[str, Any]:
        criteria, compared = sets[number].criteria, shown.compared
        answers = [
            {
                **{name: getattr(each, name) for name in ("author", "ratings", "reasons", "faults")},
                "text": text(each.text),
            }
            for each in shown.answers
        ]
        speech = shown.speech
        found: dict[str, Any] = {
            "set": number,
            "speech": text(speech.transcript),
            "now": text(speech.text),
            "topic": speech.topic,
            "crisis": speech.crisis,
            "title": shown.title,
            "answers": answers,
            "labels": shown.labels,
        }
        if shown.found:
            found["outcomes"] = [shown.found.get(name) for name in criteria]
        if compared is not None:
            found["outcomes"] = [compared.outcome(name).value for name in criteria]
            found["orders"] = [order(compared.forward, criteria), order(compared.backward.swap(), criteria)]
        return found

    items = [item(number, each) for number, group in enumerate(sets) for each in group.items]
    described = [
        {
            "title": f"{group.authors if group.compares else group.what}, {group.source.ref}",
            **{name: getattr(group, name) for name in ("compares", "criteria", "total", "points")},
            "results": list(Outcome) if group.compares else group.results,
            "order": f"{group.results[0]} first" if group.results else "by hash",
        }
        for group in sets
    ]
    data = json.dumps({"sets": described, "items": items, "texts": list(texts)}, ensure_ascii=False)
    return Markup(data.replace("<", "\\u003c"))  # noqa: S704 - a text cannot end the element
