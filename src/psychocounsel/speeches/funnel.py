"""Rows in -> rows out: the count of what was kept and of what was dropped, with the reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Funnel:
    """Counts of one reading; rows in always equal kept plus dropped."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])

    @property
    def rows_in(self) -> int:
        """Every row that was read."""
        return self.kept + sum(self.dropped.values())

    def keep(self) -> None:
        """Count one row as kept."""
        self.kept += 1

    def drop(self, reason: str) -> None:
        """Count one row as dropped for one reason."""
        self.dropped[reason] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in which `metrics.json` holds a funnel."""
        return {"rows_in": self.rows_in, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}
