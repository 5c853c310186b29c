"""A Hub data set -> rows, streamed."""

from collections.abc import Iterator
from typing import Any

from psychocounsel.errors import InputError


def hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split of `owner/name@revision` through `datasets.load_dataset`.

    Raises:
        InputError: the data set, its revision or the network is not there.
    """
    from datasets import load_dataset  # heavy: loaded when a Hub source is read, not before

    repository, _, revision = name.partition("@")
    try:
        rows = load_dataset(repository, split=split, revision=revision or None, streaming=True)
    except (OSError, ValueError) as fault:
        raise InputError(
            f"cannot be loaded: {fault}",
            where=f"hub:{name} split {split}",
            remedy="check name, revision, split and network, or download it and name the file",
        ) from fault
    for row in rows:
        yield dict(row)
