"""`name@id8`, `name`, a path or `hub:owner/name@revision` -> the artifact or model it means."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.errors import ConfigError, StoreError
from psychocounsel.store.artifacts import KINDS, MANIFEST, Artifact, ArtifactSpec, Kind, Parent
from psychocounsel.store.files import digest_of_files
from psychocounsel.store.store import Store, flatten
from psychocounsel.types import Policy

POLICY_KINDS: tuple[Kind, ...] = ("policies", "base-models")
"""What can answer a speech."""

HUB = "hub:"
BEST = "@best"


class _UnansweredError(ConfigError):
    """No artifact of the wanted kind answers to a reference."""


class ModelReference(NamedTuple):
    """A model that a stage reads: the artifact it is, or what identifies weights from elsewhere."""

    parent: Parent | None
    fingerprint: dict[str, Any]
    outside: Policy | None

    def parents(self, role: str) -> tuple[Parent, ...]:
        """Return the artifact as a parent in `role`; weights from elsewhere have none."""
        return () if self.parent is None else (self.parent._replace(role=role),)

    def policy(self, store: Store) -> Policy:
        """Return where the weights lie.

        Raises:
            StoreError: the artifact does not exist yet.
            IncompleteError: its files are damaged.
        """
        if self.outside is not None:
            return self.outside
        if self.parent is None:
            raise StoreError("a model reference names neither an artifact nor outside weights")
        artifact = store.open(self.parent)
        store.require_intact(artifact)
        return Policy(str(artifact.folder))


def resolve(store: Store, ref: str, kind: Kind | None = None) -> Artifact | ArtifactSpec:
    """Return what a reference means: an artifact, or a plan of the present recipe run.

    Args:
        store: where to look.
        ref: `name@id8`, `name` (its newest), `name@best` (where its stage names one), `kind/name`, or the
            path of an artifact's folder.
        kind: the kind that is wanted; None accepts every kind.

    Raises:
        ConfigError: nothing, or more than one kind, answers to it; the message names near ones.
    """
    if (Path(ref) / MANIFEST).is_file():
        return _of_kind(store.open_at(Path(ref)), kind, ref)
    if ref.endswith(BEST):
        return _best(store, resolve(store, ref.removesuffix(BEST), kind))
    wanted_kind, name, short_id = _parts(ref, kind)
    for pin in store.pins:
        if _fits(pin, wanted_kind, name, short_id):
            return _of_kind(pin, kind, ref)
    found = [each for each in store.artifacts(wanted_kind) if _fits(each, wanted_kind, name, short_id)]
    kinds = {artifact.kind for artifact in found}
    if len(kinds) > 1:
        raise ConfigError(f"{ref!r} names {_joined(kinds)}", remedy=f"write {sorted(kinds)[0]}/{ref}")
    if not found:
        raise _UnansweredError(
            f"no {wanted_kind or 'artifact'} answers to {ref!r}",
            where=str(store.root),
            remedy=_suggest(store, (wanted_kind,), name),
        )
    return _of_kind(found[-1], kind, ref)


def _of_kind(found: Artifact | ArtifactSpec, kind: Kind | None, ref: str) -> Artifact | ArtifactSpec:
    if kind is not None and found.kind != kind:
        raise _UnansweredError(f"{ref!r} is one of {found.kind}", remedy=f"name one of {kind}")
    return found


def _best(store: Store, named: Artifact | ArtifactSpec) -> Artifact | ArtifactSpec:
    if isinstance(named, ArtifactSpec):
        raise ConfigError(
            f"which one is the best of {named.kind} {named.name} is known once it is made",
            remedy="run the stage that makes it first; a dry run cannot tell",
        )
    best = named.manifest["notes"].get("best")
    if best is None:
        raise ConfigError(
            f"{named.kind} {named.ref} names no best", remedy=f"write {named.ref} for the artifact itself"
        )
    return store.open(Parent(**best))


def resolve_parent(store: Store, ref: str, kind: Kind, role: str) -> Parent:
    """Return the artifact, made or planned, that a reference means, in the role of a parent."""
    return resolve(store, ref, kind).as_parent(role)


def resolve_model(store: Store, ref: str, kinds: Sequence[Kind]) -> ModelReference:
    """Return the model that a reference means.

    Args:
        store: where to look.
        ref: an artifact reference, a folder that `from_pretrained` opens, or `hub:owner/name@revision`.
        kinds: the kinds of artifact to try, in this order.
    """
    if ref.startswith(HUB):
        warn_unless_pinned(store, ref)
        location, _, revision = ref.removeprefix(HUB).partition("@")
        outside = Policy(location, revision or None)
        return ModelReference(None, {"hub": location, "revision": revision or None}, outside)
    if (Path(ref) / "config.json").is_file() and not (Path(ref) / MANIFEST).is_file():
        return ModelReference(None, {"weights": _weights_digest(Path(ref))}, Policy(ref))
    return _model_artifact(store, ref, kinds)


def warn_unless_pinned(store: Store, ref: str) -> None:
    """Tell, once, that a name on the Hub stands without a revision."""
    if ref.startswith(HUB) and not ref.partition("@")[2]:
        store.notify_once(f"{ref}: no revision is named, and what it holds may change; write {ref}@COMMIT")


def _model_artifact(store: Store, ref: str, kinds: Sequence[Kind]) -> ModelReference:
    for kind in kinds:
        try:
            return ModelReference(resolve_parent(store, ref, kind, "model"), {}, None)
        except _UnansweredError:
            continue
    raise ConfigError(
        f"no {' or '.join(kinds)} answers to {ref!r}",
        where=str(store.root),
        remedy=_suggest(store, kinds, ref.removesuffix(BEST).partition("@")[0]),
    )


def _weights_digest(folder: Path) -> str:
    """Return the digest of all that decides what a model says; cards and hidden files say nothing."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder) for path in files)
    told = (name for name in names if name.suffix != ".md" and not name.as_posix().startswith("."))
    return digest_of_files(folder, (name.as_posix() for name in told))


def _parts(ref: str, kind: Kind | None) -> tuple[Kind | None, str, str]:
    prefix, slash, rest = ref.partition("/")
    named_kind: Kind | None = next((each for each in KINDS if slash and each == prefix), None)
    name, _, short_id = (rest if named_kind else ref).partition("@")
    return named_kind or kind, name, short_id


def _fits(candidate: Artifact | ArtifactSpec, kind: Kind | None, name: str, short_id: str) -> bool:
    right_kind = kind is None or candidate.kind == kind
    right_id = not short_id or candidate.id.startswith(short_id)
    return right_kind and candidate.name == name and right_id


def _suggest(store: Store, kinds: Sequence[Kind | None], name: str) -> str:
    known = {artifact.name for kind in kinds for artifact in store.artifacts(kind)}
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known names: {_joined(known)}" if known else "run the stage that makes it first"


def _joined(names: set[str]) -> str:
    return ", ".join(sorted(names))


_OUTSIDE = ("sha256", "hub", "weights")
"""Keys under which settings name what lies outside the store."""


class Ancestor(NamedTuple):
    """An artifact on the way back, how far it is, and the role it plays for its child."""

    artifact: Artifact
    depth: int
    role: str


def ancestors(store: Store, artifact: Artifact) -> Iterator[Ancestor]:
    """Yield the artifact itself, then each ancestor once, depth first, parents in their order.

    Raises:
        StoreError: an ancestor is not in the store.
    """
    yield from _walk(store, artifact, 0, "", set())


def _walk(store: Store, artifact: Artifact, depth: int, role: str, seen: set[str]) -> Iterator[Ancestor]:
    seen.add(artifact.id)
    yield Ancestor(artifact, depth, role)
    for parent in artifact.parents:
        if parent.id not in seen:
            yield from _walk(store, store.open(parent), depth + 1, parent.role, seen)


def raw_sources(artifact: Artifact) -> tuple[str, ...]:
    """Return what an artifact was made from that is no artifact: files by digest, names on the Hub."""
    outside = flatten(artifact.manifest["settings"])
    return tuple(
        f"{key.rpartition('.')[0]}: {key.rpartition('.')[2]} {value}"
        for key, value in outside.items()
        if key.rpartition(".")[2] in _OUTSIDE and isinstance(value, str)
    )


def labelling_judges(store: Store, artifact: Artifact) -> tuple[str, ...]:
    """Return the judges whose ratings an artifact was made from, here or before they were imported."""
    named = [
        str(each.artifact.manifest["notes"].get("judge", ""))
        for each in ancestors(store, artifact)
        if each.artifact.kind in ("judgements", "preferences")
    ]
    return tuple(dict.fromkeys(name for name in named if name))


def models_behind(store: Store, answers: Artifact) -> tuple[str, ...]:
    """Return the names of the models behind one side's answers, as far as they are known.

    That is the model of an endpoint, the author of a file, or the Hub names of weights on this machine and of
    those that they were trained from.
    """
    responder: dict[str, Any] = answers.manifest["settings"]["responder"]
    if responder.get("endpoint"):
        return (str(responder["endpoint"]["model"]),)
    if responder.get("file"):
        return (str(responder["author"]),)
    made_from = (each.artifact for each in ancestors(store, answers))
    policies = [each.manifest["settings"] for each in made_from if each.kind == "policies"]
    weights: list[dict[str, Any] | None] = [responder.get("model")]
    weights += [settings.get("initial_policy") for settings in policies]
    return tuple(dict.fromkeys(str(each["hub"]) for each in weights if each and "hub" in each))
