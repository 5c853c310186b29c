"""A Hub data set -> rows, streamed."""

from collections.abc import Iterator
from typing import Any

from psychocounsel.errors import InputError


def hub_rows(name: str, split: str, config: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split of `owner/name@revision` through `datasets.load_dataset`.

    Args:
        name: the data set, with a revision or without.
        split: the split to read.
        config: the configuration to read; None for a data set that has one only.

    Raises:
        InputError: the data set, its revision or the network is not there, or was lost on the way.
    """
    from datasets import load_dataset  # heavy, both: loaded when a Hub source is read, not before
    from httpx import HTTPError

    repository, _, revision = name.partition("@")
    try:
        rows = load_dataset(repository, config, split=split, revision=revision or None, streaming=True)
        for row in rows:
            yield dict(row)
    except (OSError, ValueError, HTTPError) as fault:
        raise InputError(
            f"cannot be read: {fault}",
            where=f"hub:{name} split {split}",
            remedy="check name, revision, configuration, split and network, or download it and name the file",
        ) from fault
