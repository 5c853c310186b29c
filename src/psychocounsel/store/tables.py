# pyright: standard, for its libraries come without types
"""Rows <-> Parquet: written in batches, so that a table may be larger than memory; read by its digest."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import Artifact, ArtifactWriter
from psychocounsel.store.files import digest_of_file, partial_path, put_in_place, write_faults

BATCH_ROWS = 8192

Row = Mapping[str, Any]


def write_table(writer: ArtifactWriter, name: str, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Write rows as one file of a writer, complete or not at all, and note their number.

    Raises:
        IncompleteError: the disk is full.
    """
    path = writer.file(name)
    partial = partial_path(path)
    written = 0
    source = iter(rows)
    with write_faults(path):
        with pq.ParquetWriter(partial, schema) as parquet:
            while batch := list(islice(source, BATCH_ROWS)):
                parquet.write_table(pa.Table.from_pylist(batch, schema=schema))
                written += len(batch)
        put_in_place(partial, path)
    writer.rows[name] = written


def read_table(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table whose bytes are those of the manifest.

    Parquet itself would read many a flipped byte.

    Raises:
        StoreError: the table is missing or damaged; nothing was yielded.
    """
    path = artifact.file(name)
    if not _is_sound(artifact, name):
        raise StoreError(
            "the table is missing or damaged",
            where=str(path),
            remedy="check it with `psychocounsel verify`; move the folder away to make it again",
        )
    return _rows(artifact, name)


def _is_sound(artifact: Artifact, name: str) -> bool:
    try:
        return digest_of_file(artifact.file(name)) == artifact.manifest["files"][name]["sha256"]
    except (OSError, KeyError):
        return False


def _rows(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(artifact.file(name)) as table:
        for batch in table.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


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
