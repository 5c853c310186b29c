"""Artifact -> the files of it that may be published: listed by kind, sound, open to all, free of secrets."""

import os
import re
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from psychocounsel.errors import ConfigError, EndpointError, IncompleteError, InputError, StoreError
from psychocounsel.store.artifacts import CARD, MANIFEST, METRICS, Artifact, ArtifactSpec
from psychocounsel.store.references import HUB, ancestors, resolve
from psychocounsel.store.schemas import text_columns
from psychocounsel.store.store import Store, damaged_files, flatten

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo


_MIN_VALUE_CHARS = 8
"""A shorter value of a variable, such as `none` or `EMPTY`, is a placeholder and stands in many a text."""


class SecretKind(NamedTuple):
    """A kind of secret; a text without any of its markers holds none, which is quick to see."""

    name: str
    markers: tuple[str, ...]
    pattern: re.Pattern[str]


_GITHUB = ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_")
_KEYS = (
    SecretKind("an API key (sk-)", ("sk-",), re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}")),
    SecretKind("a Hugging Face token", ("hf_",), re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")),
    SecretKind("an AWS access key", ("AKIA", "ASIA"), re.compile(r"(?<![A-Z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Z0-9])")),
    SecretKind(
        "a GitHub token",
        _GITHUB,
        re.compile(r"(?<![A-Za-z0-9])(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ),
    SecretKind("a Google API key", ("AIza",), re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}")),
    SecretKind("a Slack token", ("xox",), re.compile(r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    SecretKind("a private key", ("PRIVATE KEY",), re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")),
)
_HOME = SecretKind(
    "a path of a home folder",
    ("/home/", "/Users/", "/root/", ":\\Users\\", ":\\\\Users\\\\"),
    re.compile(r"(?<![\w.-])(/(home|Users)/[^/\s\"'`]+|/root/|[A-Za-z]:\\+Users\\+[^\\\s\"'`]+)"),
)


def key_kinds(environment: Mapping[str, str] = os.environ) -> list[SecretKind]:
    """Return the kinds of keys to look for, the values of this machine's own keys and tokens among them."""
    own = [
        SecretKind(f"the value of {name}", (value.strip(),), re.compile(re.escape(value.strip())))
        for name, value in environment.items()
        if name.upper().endswith(("_API_KEY", "_TOKEN")) and len(value.strip()) >= _MIN_VALUE_CHARS
    ]
    return [*own, *_KEYS]


def home_kinds() -> list[SecretKind]:
    """Return the kinds of paths that name a person: home folders, this machine's own among them."""
    home = str(Path.home()).rstrip("/")
    own = SecretKind(_HOME.name, (home,), re.compile(re.escape(home) + r"(?![\w.-])"))
    return [_HOME, own] if home else [_HOME]


def kinds_in(text: str, kinds: Sequence[SecretKind]) -> Iterator[str]:
    """Yield the names of the kinds of secrets that a text holds, each once."""
    names = (
        kind.name for kind in kinds if any(marker in text for marker in kind.markers) and kind.pattern.search(text)
    )
    yield from dict.fromkeys(names)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text with every key and token in it blotted out."""
    for kind in key_kinds(environment):
        text = kind.pattern.sub("[...]", text)
    return text


_ABOUT = (CARD, MANIFEST, METRICS)
_MODEL = (
    *_ABOUT,
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
)
ALLOWED = {
    "preferences": (*_ABOUT, "data/*.parquet", "figures/*.png"),
    "reward-models": _MODEL,
    "policies": _MODEL,
}
"""What may leave the store, by kind of artifact. A file that no pattern names stays, whatever it is."""

_TEXT_SUFFIXES = {".md", ".json", ".jinja", ".txt"}
_WEIGHTS_SUFFIX = ".safetensors"
_HEADER_LENGTH_BYTES = 8
_FINDINGS_TOLD = 20


class PublishedFile(NamedTuple):
    """A file that goes: its name in the artifact and its size."""

    name: str
    bytes: int


class Publication(NamedTuple):
    """What of an artifact is published, and the names of the files that stay."""

    artifact: Artifact
    files: tuple[PublishedFile, ...]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all that goes."""
        return sum(each.bytes for each in self.files)


class Finding(NamedTuple):
    """A secret: in which file, at which line or row, of what kind."""

    name: str
    place: str
    kind: str


def prepare_publication(store: Store, ref: str) -> Publication:
    """Return what of an artifact may be published.

    Raises:
        ConfigError: nothing answers to the reference, or artifacts of its kind are not published.
        StoreError: a file is damaged, the card is missing, or an ancestor is not in the store.
        InputError: it was made from restricted text, or a file holds a secret.
    """
    artifact = resolve(store, ref)
    if isinstance(artifact, ArtifactSpec):
        raise ConfigError(f"{ref!r} is not made yet", remedy="run its stage first")
    if artifact.kind not in ALLOWED:
        raise ConfigError(
            f"{artifact.kind} are not published",
            where=artifact.ref,
            remedy=f"name one of {', '.join(ALLOWED)}",
        )
    _require_open_sources(store, artifact)
    _require_sound(artifact)
    names = sorted(name for name in artifact.manifest["files"] if is_allowed(artifact.kind, name))
    if CARD not in names:
        raise StoreError("has no card", where=artifact.ref, remedy="publish one that a stage wrote a card for")
    _require_no_secrets(artifact, [*names, MANIFEST])
    files = tuple(PublishedFile(name, artifact.file(name).stat().st_size) for name in sorted([*names, MANIFEST]))
    return Publication(artifact, files, tuple(sorted(set(artifact.manifest["files"]) - set(names))))


def is_allowed(kind: str, name: str) -> bool:
    """Whether a file of an artifact of this kind may be published; `*` stands for no folder."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in ALLOWED[kind])


def _require_open_sources(store: Store, artifact: Artifact) -> None:
    for each in ancestors(store, artifact):
        settings: dict[str, Any] = flatten(each.artifact.manifest["settings"])
        restricted = [
            key for key, value in settings.items() if key.rpartition(".")[2] == "data_class" and value == "restricted"
        ]
        if restricted:
            raise InputError(
                f"was made from restricted text: {restricted[0]} of {each.artifact.kind} {each.artifact.ref}",
                where=artifact.ref,
                remedy="leave that source out, or declare it deidentified once it is, and make it again",
            )


def _require_sound(artifact: Artifact) -> None:
    damage = [f"{name} {what}" for name, what in damaged_files(artifact).items()]
    if damage:
        raise StoreError(
            "; ".join(damage),
            where=str(artifact.folder),
            remedy="move the artifact's folder away and run its stage again",
        )


def _require_no_secrets(artifact: Artifact, names: Sequence[str]) -> None:
    keys, homes = key_kinds(), home_kinds()
    findings = (each for name in names for each in find_secrets(artifact.file(name), name, keys, homes))
    told = [f"{each.name} {each.place}: {each.kind}" for each in islice(findings, _FINDINGS_TOLD + 1)]
    if len(told) > _FINDINGS_TOLD:
        told[-1] = "and more"
    if told:
        raise InputError(
            "nothing is published, for these places hold what looks like a secret:\n" + "\n".join(told),
            where=artifact.ref,
            remedy="take it out of the source or the config that it came from and make the artifact again; "
            "a key that may have been seen is a key to be replaced",
        )


def find_secrets(path: Path, name: str, keys: Sequence[SecretKind], homes: Sequence[SecretKind]) -> Iterator[Finding]:
    """Yield the secrets in a file's text, in the cells of a table, in the header of weights.

    Args:
        path: the file.
        name: by which it is told.
        keys: looked for everywhere.
        homes: looked for in what a program wrote: cells of a table may tell of anything.
    """
    if path.suffix == ".parquet":
        for column in text_columns(path):
            for row, kind in _in_texts(column.texts, column.first_row, keys):
                yield Finding(name, f"row {row}, column {column.name}", kind)
    elif path.suffix == _WEIGHTS_SUFFIX:
        for kind in kinds_in(_header_of_weights(path), [*keys, *homes]):
            yield Finding(name, "header", kind)
    elif path.suffix in _TEXT_SUFFIXES:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, kind in _in_texts(lines, 1, [*keys, *homes]):
            yield Finding(name, f"line {number}", kind)


def _in_texts(texts: Sequence[str], first: int, kinds: Sequence[SecretKind]) -> Iterator[tuple[int, str]]:
    """Yield number and kind of every text with a secret; all are looked through at once, which is quick."""
    if any(kinds_in("\n".join(texts), kinds)):
        for number, text in enumerate(texts, start=first):
            for kind in kinds_in(text, kinds):
                yield number, kind


def _header_of_weights(path: Path) -> str:
    """Return the JSON with which a safetensors file opens: its only text."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        return stream.read(length).decode("utf-8", errors="replace")


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
        raise ConfigError(f"{target!r} names no repository", remedy="write hub:owner/name, or hub:owner/name@branch")
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
    return api.list_repo_files(target.repository, repo_type=_repository_type(publication), revision=target.branch)


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
        raise ConfigError("HF_HUB_OFFLINE is set", where=target.words, remedy="unset it to write to the Hub") from None
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
        return IncompleteError(f"the Hub failed: {said}", where=target.words, remedy="run the same command again later")
    remedy = _LOGIN if status in (401, 403) else "check owner, name and branch"
    return EndpointError(f"the Hub refuses: {said}", where=target.words, remedy=remedy)
