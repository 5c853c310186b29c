"""The Hub: datasets and models, fetched once into its cache on this machine, and the rows of datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from psychocounsel.errors import InputError
from psychocounsel.store.publish import hub_errors
from psychocounsel.store.references import HUB

RepositoryKind = Literal["dataset", "model"]

_CONFIGS = ("*.json", "*.model", "*.txt", "*.jinja", "*.md")
_WEIGHTS = ("*.safetensors",)
_SUBFOLDERS = ("*/*",)
"""Of a model: other formats of the same weights."""
_ACCESS = "accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN"


def hub_rows(name: str, split: str, config: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split of a dataset, `owner/name` or `owner/name@revision`: of the fetched one, if it is.

    Raises:
        InputError: the dataset, its revision or the network is missing, or the connection broke.
    """
    from datasets import load_dataset  # both are heavy, and only needed for sources on the Hub
    from httpx2 import HTTPError

    repository, _, revision = name.partition("@")
    folder = fetched_dataset(name)
    place = repository if folder is None else str(folder)
    try:
        rows = load_dataset(place, config, split=split, revision=revision or None, streaming=True)
        for row in rows:
            yield dict(row)
    except (OSError, ValueError, HTTPError) as fault:
        raise InputError(
            f"cannot be read: {fault}",
            where=f"{HUB}{name} split {split}",
            remedy="check name, revision, configuration, split and network, or download it and name the file",
        ) from fault


def fetched_dataset(name: str) -> Path | None:
    """Return the folder of a dataset that `fetch` has brought here as a whole; opens no connection."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    where: dict[str, Any] = {"repo_type": "dataset", "revision": revision or None}
    try:
        # Without the list of files, a folder with the card alone passes for the dataset.
        get_cached_repo_tree(repository, **where)
        return Path(snapshot_download(repository, local_files_only=True, **where))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, HFValidationError):
        return None


def fetch(name: str, kind: RepositoryKind, *, weights: bool = False) -> Path:
    """Bring a repository, `owner/name` or `owner/name@revision`, into the cache of the Hub; return its folder there.

    Of a dataset that is everything; of a model its configs and tokenizer, and its `weights` if they are wanted. What is
    there already is not transferred again.

    Raises:
        EndpointError: the Hub refuses.
        IncompleteError: it could not be reached, or the connection broke.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    chosen: dict[str, Any] = {}
    if kind == "model":
        allowed = [*_CONFIGS, *(_WEIGHTS if weights else ())]
        chosen = {"allow_patterns": allowed, "ignore_patterns": list(_SUBFOLDERS)}
    with hub_errors(f"{HUB}{name}", _ACCESS):
        return Path(snapshot_download(repository, repo_type=kind, revision=revision or None, **chosen))
