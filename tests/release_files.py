"""Write a preference dataset in the columns of the released one."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

PRINCIPLES = ("empathy", "safety")
Ratings = tuple[int | None, int | None]


class Row(NamedTuple):
    """One row; ratings are in the order of PRINCIPLES."""

    split: str
    question: str
    chosen: str = "That sounds heavy. What do you miss most?"
    rejected: str = "Cheer up."
    chosen_ratings: Ratings = (5, 5)
    rejected_ratings: Ratings = (2, 2)
    chosen_model: str = "large"
    rejected_model: str = "small"

    @property
    def columns(self) -> dict[str, Any]:
        ratings = {
            f"{side}_{name}_rating": rating
            for side, both in (("chosen", self.chosen_ratings), ("rejected", self.rejected_ratings))
            for name, rating in zip(PRINCIPLES, both, strict=True)
        }
        texts = {name: getattr(self, name) for name in TEXTS}
        return {"ID": hashlib.sha256(self.question.encode()).hexdigest(), "prefID": 0, **texts, **ratings}


TEXTS = ("question", "chosen", "rejected", "chosen_model", "rejected_model")


def speech(number: int) -> str:
    """Return a text that shares hardly any run of letters with that of another number."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return " ".join(digest[at : at + 6] for at in range(0, 60, 6))


def near_copy(number: int) -> str:
    return f"{speech(number)}. Thank you!"


def write_release(folder: Path, rows: Iterable[Row], splits: Sequence[str] = ("train", "test")) -> Path:
    """Write one Parquet file per split, named as on the Hub."""
    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    for row in rows:
        by_split[row.split].append(row.columns)
    for split, each in by_split.items():
        write_columns(folder / "data" / f"{split}-00000-of-00001.parquet", each)
    return folder


def write_columns(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
