"""Texts that many processes or machines have cleaned and de-identified, for a corpus that takes one too long."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from psychocounsel.corpus.cleaning import Prepared
from psychocounsel.errors import InputError
from psychocounsel.store.files import write_bytes
from psychocounsel.types import content_id

BATCH = 250


class PreparedTexts(NamedTuple):
    """A folder with one file per batch, named by a hash of its raw texts and of `key`, which says what they are.

    So the files do not depend on who wrote them, nor in which order. They hold texts from before de-identification.
    """

    folder: Path
    key: str

    def write(
        self, raws: Iterable[str], prepare: Callable[[str], Prepared], rank: int = 0, world_size: int = 1
    ) -> None:
        """Prepare every `world_size`-th batch, from the one at `rank` on, unless its file exists."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for batch in islice(_batches(raws), rank, None, world_size):
            path = self._path(batch)
            if not path.exists():
                write_bytes(path, json.dumps([prepare(raw) for raw in batch]).encode("ascii"))

    def read(self, raws: Iterable[str]) -> Iterator[Prepared]:
        """Yield each text as it was prepared.

        Raises:
            InputError: a batch has no file.
        """
        for batch in _batches(raws):
            try:
                rows = json.loads(self._path(batch).read_bytes())
            except FileNotFoundError as error:
                raise InputError(
                    f"the text that begins with {batch[0][:40]!r} was not prepared, or for another config",
                    where=str(self.folder),
                    remedy="run the pipeline again on this config; if its executor skips finished tasks, with an empty "
                    "logging_dir",
                ) from error
            yield from (Prepared(plain, text, tuple(changed_by), foreign) for plain, text, changed_by, foreign in rows)

    def _path(self, batch: list[str]) -> Path:
        return self.folder / f"{content_id(self.key, *batch)}.json"


def _batches(raws: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(raws)
    return iter(lambda: list(islice(remaining, BATCH)), [])
