"""Parquet -> its columns that hold text, piece by piece: for whoever looks for words, not for rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.store.tables.parquet import BATCH_ROWS


class TextColumn(NamedTuple):
    """Cells of one column, one below the other; `first_row` is the row of the first, counted from 1."""

    first_row: int
    name: str
    texts: list[str]


def text_columns(path: Path) -> Iterator[TextColumn]:
    """Yield the columns of a Parquet file that may hold text; lists as JSON, nulls as nothing."""
    with pq.ParquetFile(path) as table:
        names = [field.name for field in table.schema_arrow if _may_hold_text(field.type)]
        first_row = 1
        for batch in table.iter_batches(BATCH_ROWS, columns=names):
            for name in names:
                yield TextColumn(first_row, name, [_as_text(cell) for cell in batch.column(name).to_pylist()])
            first_row += batch.num_rows


def _may_hold_text(kind: pa.DataType) -> bool:
    return not (pa.types.is_primitive(kind) or pa.types.is_null(kind))


def _as_text(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell, ensure_ascii=False, default=str)
