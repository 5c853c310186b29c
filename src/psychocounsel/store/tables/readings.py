"""RowFate <-> Parquet: what became of every row of a source, so that a funnel can be counted again."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from psychocounsel.store.artifacts import Artifact, Draft
from psychocounsel.store.tables.parquet import read_table, write_table

ROWS_FILE = "rows.parquet"
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "where", "key", "raw_digest", "text_id")),
        ("changed_by", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("dropped_by", "reason", "detail")),
    ]
)


class RowFate(NamedTuple):
    """One row of a source and what became of it.

    `text_id` is the id of the speech or candidate that it holds, kept or not; empty where it holds no text.
    `raw_digest` is a digest of the text as it stood in the source; `dropped_by` and `reason` are empty for a
    row that was kept.
    """

    source: str
    where: str
    key: str
    raw_digest: str
    text_id: str
    changed_by: tuple[str, ...] = ()
    dropped_by: str = ""
    reason: str = ""
    detail: str = ""


def write_row_fates(draft: Draft, fates: Iterable[RowFate]) -> None:
    """Write what became of each row, in the order of the sources."""
    write_table(draft, ROWS_FILE, (each._asdict() for each in fates), _SCHEMA)


def read_row_fates(artifact: Artifact) -> Iterator[RowFate]:
    """Yield what became of each row, in the order of the sources."""
    for row in read_table(artifact, ROWS_FILE):
        yield RowFate(**{**row, "changed_by": tuple(row["changed_by"])})
