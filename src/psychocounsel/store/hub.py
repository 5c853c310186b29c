"""Publication -> one commit in a repository of the Hub."""

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from psychocounsel.errors import ConfigError, EndpointError, IncompleteError, InputError
from psychocounsel.store.publishing import Publication, is_allowed
from psychocounsel.store.references import HUB
from psychocounsel.store.secrets import redacted

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

DEFAULT_BRANCH = "main"
_TARGET = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_LOGIN = "set HF_TOKEN to a token that may write there, or log in with `hf auth login`"


class HubTarget(NamedTuple):
    """A repository of the Hub, `owner/name`, and the branch to write to."""

    repository: str
    is_private: bool = True
    branch: str = DEFAULT_BRANCH

    @property
    def words(self) -> str:
        """The repository as a reference."""
        return f"{HUB}{self.repository}"


def parse_target(target: str, is_private: bool) -> HubTarget:
    """Return what `hub:owner/name` or `hub:owner/name@branch` means.

    Raises:
        ConfigError: it is written otherwise.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ConfigError(
            f"{target!r} names no repository", remedy="write hub:owner/name, or hub:owner/name@branch"
        )
    return HubTarget(found[1], is_private, found[2] or DEFAULT_BRANCH)


def upload(publication: Publication, target: HubTarget) -> str:
    """Commit the files of a publication; return the address of the commit as the Hub reports it.

    What an earlier upload left there and this one does not have is deleted: no old split beside a new one.

    Raises:
        ConfigError: the repository is open to all and should be private.
        EndpointError: the Hub refuses.
        IncompleteError: it could not be reached or broke off; the same command goes on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars  # heavy: loaded to upload, never for a dry run

    if not sys.stderr.isatty():
        disable_progress_bars()
    artifact = publication.artifact
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with _told(target):
        _open_repository(api, publication, target)
        new = {each.name: str(artifact.file(each.name)) for each in publication.files}
        stale = [name for name in _stands(api, publication, target) if name not in new]
        commit = api.create_commit(
            target.repository,
            [
                *(CommitOperationDelete(name) for name in stale if is_allowed(artifact.kind, name)),
                *(CommitOperationAdd(name, path) for name, path in new.items()),
            ],
            commit_message=f"{artifact.kind} {artifact.ref}",
            repo_type=_repository_type(publication),
            revision=target.branch,
        )
    return commit.commit_url


def _repository_type(publication: Publication) -> str:
    return "dataset" if publication.artifact.kind == "preferences" else "model"


def _open_repository(api: "HfApi", publication: Publication, target: HubTarget) -> None:
    """Make repository and branch, if need be; one that is open to all is no place for a private upload."""
    kind = _repository_type(publication)
    found = _find(api, target, kind)
    if found is None:
        api.create_repo(target.repository, repo_type=kind, private=target.is_private, exist_ok=True)
    elif target.is_private and not found.private:
        raise ConfigError(
            "is open to all",
            where=target.words,
            remedy="say --public if that is meant, or make the repository private first",
        )
    if target.branch != DEFAULT_BRANCH:
        api.create_branch(target.repository, branch=target.branch, repo_type=kind, exist_ok=True)


def _find(api: "HfApi", target: HubTarget, kind: str) -> "ModelInfo | DatasetInfo | None":
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        if kind == "dataset":
            return api.dataset_info(target.repository)
        return api.model_info(target.repository)
    except RepositoryNotFoundError:
        return None


def _stands(api: "HfApi", publication: Publication, target: HubTarget) -> list[str]:
    return api.list_repo_files(
        target.repository, repo_type=_repository_type(publication), revision=target.branch
    )


@contextmanager
def _told(target: HubTarget) -> Generator[None]:
    """Tell whatever the Hub or the way to it raises as an error with its remedy, keys blotted out."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as fault:
        raise _refusal(fault.response.status_code, _first_line(fault), target) from None
    except OfflineModeIsEnabled:
        raise ConfigError(
            "HF_HUB_OFFLINE is set", where=target.words, remedy="unset it to write to the Hub"
        ) from None
    except ValueError as fault:
        raise InputError(
            redacted(str(fault)), where=target.words, remedy="mend what the Hub names, then push again"
        ) from None
    except (httpx2.HTTPError, OSError, RuntimeError) as fault:
        cause = fault.__cause__ or fault
        raise IncompleteError(
            f"the Hub could not be reached or broke off: {_first_line(cause)}",
            where=target.words,
            remedy="run the same command again; what has arrived is not sent twice",
        ) from None


def _first_line(fault: BaseException) -> str:
    lines = [line for line in redacted(str(fault)).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__


def _refusal(status: int, said: str, target: HubTarget) -> EndpointError | IncompleteError:
    if status == 429 or status >= 500:
        return IncompleteError(
            f"the Hub failed: {said}", where=target.words, remedy="run the same command again later"
        )
    remedy = _LOGIN if status in (401, 403) else "check owner, name and branch"
    return EndpointError(f"the Hub refuses: {said}", where=target.words, remedy=remedy)
