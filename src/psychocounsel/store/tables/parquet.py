"""Rows <-> Parquet: written in batches, so that a table may be larger than memory; read by its digest."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.errors import StoreError
from psychocounsel.store.artifacts import Artifact, Draft
from psychocounsel.store.atomic import partial_path, put_in_place, write_faults
from psychocounsel.store.digests import digest_of_file

BATCH_ROWS = 8192

Row = Mapping[str, Any]


def write_table(draft: Draft, name: str, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Write rows as one file of a draft, complete or not at all, and note their number.

    Raises:
        IncompleteError: the disk is full.
    """
    path = draft.file(name)
    partial = partial_path(path)
    written = 0
    source = iter(rows)
    with write_faults(path):
        with pq.ParquetWriter(partial, schema) as writer:
            while batch := list(islice(source, BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                written += len(batch)
        put_in_place(partial, path)
    draft.rows[name] = written


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
