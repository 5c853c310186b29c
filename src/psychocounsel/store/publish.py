"""Publishing on the Hub: only listed files, intact, made from open sources, and free of secrets."""

import os
import re
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psychocounsel.errors import ConfigError, EndpointError, IncompleteError, InputError, StoreError
from psychocounsel.store.artifacts import CARD, MANIFEST, METRICS, Artifact, Kind, require_kept
from psychocounsel.store.references import HUB, ancestors, resolve_existing
from psychocounsel.store.schemas import text_columns
from psychocounsel.store.store import Store, damaged_files, flatten

if TYPE_CHECKING:
    from huggingface_hub import HfApi


_MIN_VALUE_CHARS = 8
"""A shorter value of a variable, such as `none` or `EMPTY`, is a placeholder that occurs in many texts."""


class SecretKind(NamedTuple):
    """A kind of secret. A text without any of its `markers` has none; that is quick to check."""

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
    """Return the kinds of keys to look for, including the values of this machine's own keys and tokens."""
    own = [
        SecretKind(f"the value of {name}", (value.strip(),), re.compile(re.escape(value.strip())))
        for name, value in environment.items()
        if name.upper().endswith(("_API_KEY", "_TOKEN")) and len(value.strip()) >= _MIN_VALUE_CHARS
    ]
    return [*own, *_KEYS]


def home_kinds() -> list[SecretKind]:
    """Return the kinds of paths that name a person: home folders, including this machine's own."""
    home = str(Path.home()).rstrip("/")
    own = SecretKind(_HOME.name, (home,), re.compile(re.escape(home) + r"(?![\w.-])"))
    return [_HOME, own] if home else [_HOME]


def kinds_in(text: str, kinds: Sequence[SecretKind]) -> Iterator[str]:
    """Yield the names of the kinds of secrets in a text, each once."""
    found = (kind for kind in kinds if any(marker in text for marker in kind.markers) and kind.pattern.search(text))
    yield from dict.fromkeys(kind.name for kind in found)


def redacted(text: str) -> str:
    """Return a text with every key and token replaced by `[...]`."""
    for kind in key_kinds():
        text = kind.pattern.sub("[...]", text)
    return text


_ABOUT = (CARD, MANIFEST, METRICS)
_MODEL = (
    *_ABOUT,
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
)
PUBLISHED_KINDS: tuple[Kind, ...] = ("preferences", "reward-models", "policies")
ALLOWED: dict[str, tuple[str, ...]] = {
    "preferences": (*_ABOUT, "data/*.parquet", "figures/*.png"),  # older cards have pictures
    "reward-models": _MODEL,
    "policies": _MODEL,
}
"""The files that may be published, by kind of artifact. Any other file stays, whatever it is."""

_TEXT_SUFFIXES = {".md", ".json", ".jinja", ".txt"}
_HEADER_LENGTH_BYTES = 8
_MAX_FINDINGS = 20


class Publication(NamedTuple):
    """The files of an artifact to be published with their sizes in bytes, and the names of those that stay."""

    artifact: Artifact
    files: dict[str, int]
    left_out: tuple[str, ...]


def prepare_publication(store: Store, ref: str) -> Publication:
    """Return what to publish of an artifact. A name shared by several kinds means the one that can be published.

    Raises:
        ConfigError: there is no artifact of such a kind.
        StoreError: a file is damaged, the card is missing, or an ancestor is not in the store.
        InputError: it was made from restricted text, or a file has a secret in it.
    """
    artifact = resolve_existing(store, ref, *PUBLISHED_KINDS)
    _require_open_sources(store, artifact)
    require_kept(artifact)
    damage = [f"{name} {what}" for name, what in damaged_files(artifact).items()]
    if damage:
        raise StoreError(
            "; ".join(damage),
            where=str(artifact.folder),
            remedy="move the artifact's folder away and run its stage again",
        )
    all_names = {*artifact.kept_files, MANIFEST}
    names = sorted(name for name in all_names if is_allowed(artifact.kind, name))
    if CARD not in names:
        raise StoreError("has no card", where=artifact.ref, remedy="publish an artifact whose stage wrote a card")
    _require_no_secrets(artifact, names)
    files = {name: artifact.file(name).stat().st_size for name in names}
    return Publication(artifact, files, tuple(sorted(all_names - set(names))))


def is_allowed(kind: str, name: str) -> bool:
    """Whether a file of an artifact of this kind may be published; `*` does not match a folder."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in ALLOWED[kind])


def _require_open_sources(store: Store, artifact: Artifact) -> None:
    for each in ancestors(store, artifact):
        for key in restricted_sources(each.artifact):
            raise InputError(
                f"was made from restricted text: {key} of {each.artifact.kind} {each.artifact.ref}",
                where=artifact.ref,
                remedy="leave that source out, or de-identify it and declare it deidentified, and create it again",
            )


def restricted_sources(artifact: Artifact) -> list[str]:
    """Return the keys of its settings that declare a source restricted."""
    settings = flatten(artifact.manifest["settings"])
    return [key for key, value in settings.items() if key.rpartition(".")[2] == "data_class" and value == "restricted"]


def _require_no_secrets(artifact: Artifact, names: Sequence[str]) -> None:
    keys, homes = key_kinds(), home_kinds()
    places = [
        f"{name} {place}: {kind}"
        for name in names
        for place, kind in islice(find_secrets(artifact.file(name), keys, homes), _MAX_FINDINGS + 1)
    ]
    if len(places) > _MAX_FINDINGS:
        places[_MAX_FINDINGS:] = ["and more"]
    if places:
        raise InputError(
            "nothing is published, because these places hold what looks like a secret:\n" + "\n".join(places),
            where=artifact.ref,
            remedy="remove it from the source or the config that it came from and create the artifact again; "
            "a key that may have been seen must be replaced",
        )


def find_secrets(path: Path, keys: Sequence[SecretKind], homes: Sequence[SecretKind]) -> Iterator[tuple[str, str]]:
    """Yield place and kind of the secrets in a text file, in the cells of a table or in the header of weights.

    `homes` are not looked for in the cells of a table: people may write about any path.
    """
    if path.suffix == ".parquet":
        for column in text_columns(path):
            for row, kind in _in_texts(column.texts, column.first_row, keys):
                yield f"row {row}, column {column.name}", kind
    elif path.suffix == ".safetensors":
        with path.open("rb") as stream:  # the header is JSON, and the only text in the file
            length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
            header = stream.read(length).decode("utf-8", errors="replace")
        for kind in kinds_in(header, [*keys, *homes]):
            yield "header", kind
    elif path.suffix in _TEXT_SUFFIXES:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, kind in _in_texts(lines, 1, [*keys, *homes]):
            yield f"line {number}", kind


def _in_texts(texts: Sequence[str], first: int, kinds: Sequence[SecretKind]) -> Iterator[tuple[int, str]]:
    """Yield number and kind of every text with a secret; a quick look at all of them at once comes first."""
    if any(kinds_in("\n".join(texts), kinds)):
        for number, text in enumerate(texts, start=first):
            for kind in kinds_in(text, kinds):
                yield number, kind


DEFAULT_BRANCH = "main"
_TARGET = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_LOGIN = "set HF_TOKEN to a token that may write there, or log in with `hf auth login`"


class HubTarget(NamedTuple):
    """A repository of the Hub, `owner/name`, and the branch to write to."""

    repository: str
    is_private: bool = True
    branch: str = DEFAULT_BRANCH

    @property
    def ref(self) -> str:
        """The repository as a reference."""
        return f"{HUB}{self.repository}"


def parse_target(target: str, is_private: bool) -> HubTarget:
    """Parse `hub:owner/name` or `hub:owner/name@branch`.

    Raises:
        ConfigError: it has another form.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ConfigError(f"{target!r} is not a repository", remedy="write hub:owner/name, or hub:owner/name@branch")
    return HubTarget(found[1], is_private, found[2] or DEFAULT_BRANCH)


def upload(publication: Publication, target: HubTarget) -> str:
    """Commit the files of a publication; return the address of the commit as the Hub reports it.

    Files of an earlier upload that this one lacks are deleted, so that no old split remains next to a new one.

    Raises:
        ConfigError: the repository is public and should be private.
        EndpointError: the Hub refuses.
        IncompleteError: it could not be reached, or the connection broke; the same command resumes.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars  # heavy: not needed for a dry run

    if not sys.stderr.isatty():
        disable_progress_bars()
    artifact = publication.artifact
    kind = "dataset" if artifact.kind == "preferences" else "model"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with hub_errors(target.ref, _LOGIN):
        _create_repository(api, target, kind)
        existing = api.list_repo_files(target.repository, repo_type=kind, revision=target.branch)
        old = [name for name in existing if name not in publication.files and is_allowed(artifact.kind, name)]
        stale = [CommitOperationDelete(name) for name in old]
        new = [CommitOperationAdd(name, str(artifact.file(name))) for name in publication.files]
        commit = api.create_commit(
            target.repository,
            [*stale, *new],
            commit_message=f"{artifact.kind} {artifact.ref}",
            repo_type=kind,
            revision=target.branch,
        )
    return commit.commit_url


def _create_repository(api: "HfApi", target: HubTarget, kind: str) -> None:
    """Create repository and branch if necessary; refuse a public repository for a private upload."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.repo_info(target.repository, repo_type=kind)
    except RepositoryNotFoundError:
        api.create_repo(target.repository, repo_type=kind, private=target.is_private, exist_ok=True)
    else:
        if target.is_private and not found.private:
            raise ConfigError(
                "is public",
                where=target.ref,
                remedy="add --public if that is intended, or make the repository private first",
            )
    if target.branch != DEFAULT_BRANCH:
        api.create_branch(target.repository, branch=target.branch, repo_type=kind, exist_ok=True)


@contextmanager
def hub_errors(where: str, on_denial: str) -> Generator[None]:
    """Turn what the Hub's client raises into errors with a remedy, without keys in them.

    `on_denial` is the remedy where the Hub knows who asks and does not allow it, or wants to know who asks.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as fault:
        status, text = fault.response.status_code, _first_line(fault)
        if status == 429 or status >= 500:
            raise IncompleteError(
                f"the Hub failed: {text}", where=where, remedy="run the same command again later"
            ) from None
        remedy = on_denial if status in (401, 403) else "check owner, name and branch or revision"
        raise EndpointError(f"the Hub refuses: {text}", where=where, remedy=remedy) from None
    except OfflineModeIsEnabled:
        raise ConfigError("HF_HUB_OFFLINE is set", where=where, remedy="unset it to reach the Hub") from None
    except ValueError as fault:
        raise InputError(
            redacted(str(fault)), where=where, remedy="correct what the Hub names, then run the same command again"
        ) from None
    except (httpx2.HTTPError, OSError, RuntimeError) as fault:
        cause = fault.__cause__ or fault
        raise IncompleteError(
            f"the Hub could not be reached, or the connection broke: {_first_line(cause)}",
            where=where,
            remedy="run the same command again; what has arrived is not sent twice",
        ) from None


def _first_line(fault: BaseException) -> str:
    lines = [line for line in redacted(str(fault)).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__
