"""Rows in -> rows out: what every step of a reading changed and dropped, counted to the last row."""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

EXAMPLES = 3


class Dropped(NamedTuple):
    """The one reason for which a row was dropped, and the step that found it; `detail` names what it met."""

    step: str
    reason: str
    detail: str = ""


@dataclass
class FunnelStep:
    """Counts of one step, and the ids of a few texts it touched.

    The examples are those with the smallest ids, so that the order of the rows does not choose them.
    """

    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def show(self, what: str, text_id: str) -> None:
        """Remember the id as an example of what happened, where it is among the smallest."""
        shown = self.examples.setdefault(what, [])
        if not text_id or text_id in shown or (len(shown) == EXAMPLES and text_id > shown[-1]):
            return
        insort(shown, text_id)
        del shown[EXAMPLES:]


class Funnel:
    """A reading's steps in order; the rows that enter one are those that the steps before it let pass."""

    def __init__(self, steps: Sequence[str]) -> None:
        self._steps = {name: FunnelStep() for name in steps}
        self._rows_in = 0

    def keep(self, text_id: str, changed_by: Iterable[str] = ()) -> None:
        """Count one row that passed every step."""
        self._rows_in += 1
        self._change(text_id, changed_by)

    def drop(self, dropped: Dropped, text_id: str = "", changed_by: Iterable[str] = ()) -> None:
        """Count one row that a step dropped; it may have been changed on the way there."""
        self._rows_in += 1
        self._change(text_id, changed_by)
        step = self._steps[dropped.step]
        step.dropped[dropped.reason] += 1
        step.show(dropped.reason, text_id)

    def drop_kept(self, dropped: Dropped, text_id: str) -> None:
        """Take back a row that was counted as kept: only all rows together could tell."""
        step = self._steps[dropped.step]
        step.dropped[dropped.reason] += 1
        step.show(dropped.reason, text_id)

    def _change(self, text_id: str, changed_by: Iterable[str]) -> None:
        for name in changed_by:
            step = self._steps[name]
            step.changed += 1
            step.show("changed", text_id)

    @property
    def rows_in(self) -> int:
        """Every row that was read."""
        return self._rows_in

    @property
    def dropped(self) -> Counter[str]:
        """Rows by the reason for which they were dropped."""
        return sum((step.dropped for step in self._steps.values()), Counter[str]())

    @property
    def kept(self) -> int:
        """Rows that passed every step."""
        return self._rows_in - self.dropped.total()

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in which `metrics.json` holds a funnel: the whole, then step by step."""
        steps: list[dict[str, Any]] = []
        rows = self._rows_in
        for name, step in self._steps.items():
            left = rows - step.dropped.total()
            steps.append(
                {
                    "step": name,
                    "rows_in": rows,
                    "rows_out": left,
                    "changed": step.changed,
                    "dropped": dict(sorted(step.dropped.items())),
                    "examples": step.examples,
                }
            )
            rows = left
        dropped = dict(sorted(self.dropped.items()))
        return {"rows_in": self._rows_in, "kept": rows, "dropped": dropped, "steps": steps}
