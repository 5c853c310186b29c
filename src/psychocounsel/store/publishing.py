"""Artifact -> the files of it that may be published: listed by kind, sound, open to all, free of secrets."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.errors import ConfigError, InputError, StoreError
from psychocounsel.store.artifacts import CARD, MANIFEST, METRICS, Artifact, Plan
from psychocounsel.store.lineage import ancestors
from psychocounsel.store.references import resolve
from psychocounsel.store.secrets import SecretKind, home_kinds, key_kinds, kinds_in
from psychocounsel.store.store import Store, damaged_files, flatten
from psychocounsel.store.tables.text_columns import text_columns

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


def plan_publication(store: Store, ref: str) -> Publication:
    """Return what of an artifact may be published.

    Raises:
        ConfigError: nothing answers to the reference, or artifacts of its kind are not published.
        StoreError: a file is damaged, the card is missing, or an ancestor is not in the store.
        InputError: it was made from restricted text, or a file holds a secret.
    """
    artifact = resolve(store, ref)
    if isinstance(artifact, Plan):
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
        raise StoreError(
            "has no card", where=artifact.ref, remedy="publish one that a stage wrote a card for"
        )
    _require_no_secrets(artifact, [*names, MANIFEST])
    files = tuple(
        PublishedFile(name, artifact.file(name).stat().st_size) for name in sorted([*names, MANIFEST])
    )
    return Publication(artifact, files, tuple(sorted(set(artifact.manifest["files"]) - set(names))))


def is_allowed(kind: str, name: str) -> bool:
    """Whether a file of an artifact of this kind may be published; `*` stands for no folder."""
    return any(
        name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in ALLOWED[kind]
    )


def _require_open_sources(store: Store, artifact: Artifact) -> None:
    for each in ancestors(store, artifact):
        settings: dict[str, Any] = flatten(each.artifact.manifest["settings"])
        restricted = [
            key
            for key, value in settings.items()
            if key.rpartition(".")[2] == "data_class" and value == "restricted"
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


def find_secrets(
    path: Path, name: str, keys: Sequence[SecretKind], homes: Sequence[SecretKind]
) -> Iterator[Finding]:
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
