"""What the rules of a corpus did to its texts: how many each touched, what was lost, and the largest changes."""

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import tee
from typing import NamedTuple

from psychocounsel.corpus.build import RawTexts
from psychocounsel.corpus.cleaning import DEIDENTIFICATION, Change, changes, parallel_map, worker_count

LARGEST = 50
MOST_SHORTENED = 1000
MOST_DROPPED = 50
TOUCHED_SHARE, TAKEN_SHARE, SHORTENED_SHARE = 0.05, 0.5, 0.1


class ShownChange(NamedTuple):
    """A text before and after a change; `lost` of its `length` characters, white space apart, are gone."""

    where: str
    before: str
    after: str
    lost: int
    length: int

    @property
    def share(self) -> float:
        """What part of the text was lost."""
        return self.lost / max(self.length, 1)


class DroppedRow(NamedTuple):
    """A row that was dropped, its reason with what was found, and its text before cleaning."""

    where: str
    reason: str
    text: str


@dataclass
class RuleEffect:
    """What one rule did: the number of texts that it touched, characters lost in all, and the largest changes."""

    name: str
    touched: int = 0
    lost: int = 0
    most: ShownChange | None = None
    largest: list[ShownChange] = field(default_factory=list[ShownChange])

    def add(self, change: ShownChange) -> None:
        """Count one change."""
        self.lost += change.lost
        if self.most is None or change.share > self.most.share:
            self.most = change
        insort(self.largest, change, key=lambda each: -each.lost)
        del self.largest[LARGEST:]


@dataclass
class CorpusEffects:
    """What the rules did to the texts of one artifact.

    `shortened` counts the texts that lost more than a tenth over all rules, and `most_shortened` are the worst. Changes
    of white space alone count nowhere. `dropped` are the first rows that were dropped for each reason.
    """

    kind: str
    rules: list[RuleEffect]
    texts: int = 0
    shortened: int = 0
    most_shortened: list[ShownChange] = field(default_factory=list[ShownChange])
    dropped: list[DroppedRow] = field(default_factory=list[DroppedRow])

    def flags(self) -> list[str]:
        """Return a sentence for each rule that touches more than 5 % of the texts, or takes more than half of one."""
        found: list[str] = []
        for rule in self.rules:
            if rule.touched > TOUCHED_SHARE * self.texts:
                share = rule.touched / self.texts
                found.append(f"{self.kind}: {rule.name} touches {rule.touched} of {self.texts} texts ({share:.1%})")
            if rule.most is not None and rule.most.share > TAKEN_SHARE:
                found.append(f"{self.kind}: {rule.name} takes {rule.most.share:.0%} of the text at {rule.most.where}")
        return found


def _shown(where: str, before: str, after: str) -> ShownChange | None:
    """Return a change; None if only white space differs."""
    old, new = "".join(before.split()), "".join(after.split())
    if old == new:
        return None
    # As multisets: words that move or are replaced by longer ones are found without an alignment.
    lost = (Counter(old) - Counter(new)).total()
    return ShownChange(where, before, after, lost, len(old))


def effects(raw: RawTexts, published: Mapping[str, str]) -> CorpusEffects:
    """Clean the texts again that a step changed, and return what each rule did.

    `published` are the texts of the artifact by id. De-identification is what they differ by from the cleaned texts,
    so it is not counted in rows that were dropped.
    """
    rules = {name: RuleEffect(name) for name in (*(step.name for step in raw.steps), DEIDENTIFICATION)}
    result = CorpusEffects(raw.artifact.kind, list(rules.values()))
    every, texts = tee(raw.rows)
    changed = (text for row, text in texts if row.changed_by)
    made = parallel_map(partial(partial, changes, steps=raw.steps), changed, worker_count())
    reasons: Counter[str] = Counter()
    for row, text in every:
        where = f"{row.where}, key {row.key}" if row.key else row.where
        result.texts += bool(text.strip())
        reasons[row.reason] += 1
        if row.reason and reasons[row.reason] <= MOST_DROPPED:
            why = f"{row.reason} ({row.detail})" if row.detail else row.reason
            result.dropped.append(DroppedRow(where, why.replace("_", " "), text))
        if not row.changed_by:
            continue
        steps = next(made)
        plain = steps[-1].after if steps else text
        final = published.get(row.text_id, plain)
        touched: set[str] = set()
        for change in (*steps, Change(DEIDENTIFICATION, plain, final)):
            if (shown := _shown(where, change.before, change.after)) is not None:
                rules[change.step].add(shown)
                touched.add(change.step)
        for name in touched:
            rules[name].touched += 1
        whole = _shown(where, text, final)
        if whole is not None and whole.share > SHORTENED_SHARE:
            result.shortened += 1
            insort(result.most_shortened, whole, key=lambda each: -each.share)
            del result.most_shortened[MOST_SHORTENED:]
    return result
