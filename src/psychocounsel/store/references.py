"""References (`name@id8`, `name`, `name@best`, `kind/name`, a path, `hub:owner/name@revision`) and lineage."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.config.components import ChatFormat
from psychocounsel.errors import ConfigError, StoreError
from psychocounsel.store.artifacts import (
    ADAPTER,
    KINDS,
    MANIFEST,
    METRICS,
    OPTIMIZER,
    SHORT_ID,
    Artifact,
    ArtifactSpec,
    Kind,
    Parent,
    require_kept,
)
from psychocounsel.store.files import digest_of_files
from psychocounsel.store.store import DEFAULT_STORE, Store, flatten
from psychocounsel.types import Policy

POLICY_KINDS: tuple[Kind, ...] = ("policies", "base-models")
"""The kinds that can answer a speech."""

HUB = "hub:"
_ABOUT = (MANIFEST, METRICS, OPTIMIZER, ADAPTER)
"""Beside the weights of an artifact: some change later, or are dropped."""
_DIGEST = re.compile("[0-9a-f]{64}")
BEST = "@best"


class UnknownReferenceError(ConfigError):
    """No artifact of the wanted kinds has this reference."""

    def __init__(self, what: str, ref: str, kinds: Sequence[Kind], *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.ref, self.kinds = ref, kinds


class ModelReference(NamedTuple):
    """A model that a stage reads: an artifact (`parent`), or weights from elsewhere and what identifies them."""

    parent: Parent | None
    fingerprint: dict[str, Any]
    outside: Policy | None

    def parents(self, role: str) -> tuple[Parent, ...]:
        """Return the artifact as a parent with this role; weights from elsewhere have none."""
        return () if self.parent is None else (self.parent._replace(role=role),)

    def policy(self, store: Store) -> Policy:
        """Return where the weights are.

        Raises:
            StoreError: the artifact does not exist yet, or its weights were dropped.
            IncompleteError: its files are damaged.
        """
        if self.outside is not None:
            return self.outside
        if self.parent is None:
            raise StoreError("a model reference names neither an artifact nor outside weights")
        artifact = store.open(self.parent)
        require_kept(artifact)
        store.require_intact(artifact)
        return Policy(str(artifact.folder))


def resolve(store: Store, ref: str, *kinds: Kind) -> Artifact | ArtifactSpec:
    """Return the artifact of a reference, or the spec of one that the present recipe run is going to create.

    `ref` is `name@id8`, `name` (what a run made or found last), `name@best` (as noted by its stage), `kind/name`, or
    the path of an artifact's folder. No `kinds` means every kind.

    Raises:
        ConfigError: nothing has this reference, or artifacts of several kinds have; the message names similar ones.
    """
    if _has_file(ref, MANIFEST):
        found: Artifact | ArtifactSpec = store.open_at(Path(ref))
    elif ref.endswith(BEST):
        found = _best(store, resolve(store, ref.removesuffix(BEST), *kinds))
    else:
        found = _named(store, ref, kinds or KINDS)
    if kinds and found.kind not in kinds:
        remedy = f"name one of {', '.join(kinds)}"
        raise UnknownReferenceError(f"{ref!r} is one of {found.kind}", ref, kinds, remedy=remedy)
    return found


def resolve_existing(store: Store, ref: str, *kinds: Kind) -> Artifact:
    """Return the artifact of a reference as `resolve` does; one that is yet to come is a ConfigError."""
    found = resolve(store, ref, *kinds)
    if isinstance(found, ArtifactSpec):
        raise ConfigError(f"{ref!r} does not exist yet", remedy="run its stage first")
    return found


def _has_file(ref: str, name: str) -> bool:
    """Return whether a reference is the path of a folder with such a file; most are no paths, and may be too long."""
    with suppress(OSError, ValueError):
        return (Path(ref) / name).is_file()
    return False


def _named(store: Store, ref: str, wanted: Sequence[Kind]) -> Artifact | ArtifactSpec:
    _, matches = _matching(ref, wanted)
    for pin in store.pins:
        if matches(pin):
            return pin
    found = all_named(store, ref, *wanted)
    found_kinds = sorted({artifact.kind for artifact in found})
    if len(found_kinds) > 1:
        remedy = f"write {' or '.join(f'{kind}/{ref}' for kind in found_kinds)}"
        raise ConfigError(f"{ref!r} names artifacts of {len(found_kinds)} kinds", remedy=remedy)
    return found[-1]


def all_named(store: Store, ref: str, *wanted: Kind) -> list[Artifact]:
    """Return every artifact that `name`, `name@id8` or `kind/name` stands for; of each kind, the meant one is the last.

    Raises:
        ConfigError: there is none.
    """
    kinds, matches = _matching(ref, wanted or KINDS)
    found = [artifact for kind in kinds for artifact in store.artifacts(kind) if matches(artifact)]
    if not found:
        raise _not_found(store, ref, kinds)
    return found


def _matching(ref: str, wanted: Sequence[Kind]) -> tuple[Sequence[Kind], Callable[[Artifact | ArtifactSpec], bool]]:
    prefix, _, rest = ref.partition("/")
    explicit: list[Kind] = [kind for kind in KINDS if rest and kind == prefix]
    kinds = explicit or wanted
    name, _, short_id = (rest if explicit else ref).partition("@")
    return kinds, lambda each: each.kind in kinds and each.name == name and each.id.startswith(short_id)


def _best(store: Store, named: Artifact | ArtifactSpec) -> Artifact | ArtifactSpec:
    if isinstance(named, ArtifactSpec):
        if store.base is not None:  # a dry run, which shows ids
            later = "is known once it exists; ids that depend on it will differ"
            store.notify_once(f"which one is {named.name}{BEST} {later}")
        return named
    best = named.manifest["notes"].get("best")
    if best is None:
        raise ConfigError(
            f"{named.kind} {named.ref} names no best", remedy=f"write {named.ref} for the artifact itself"
        )
    return store.open(Parent(**best))


def resolve_parent(store: Store, ref: str, kind: Kind, role: str) -> Parent:
    """Return the artifact of a reference, existing or to come, as a parent with this role."""
    return resolve(store, ref, kind).as_parent(role)


def resolve_model(store: Store, ref: str, kinds: Sequence[Kind]) -> ModelReference:
    """Return the model of an artifact (`kinds` are tried in order), of a folder, or of `hub:owner/name@revision`."""
    if ref.startswith(HUB):
        warn_unless_pinned(store, ref)
        location, _, revision = ref.removeprefix(HUB).partition("@")
        fingerprint = {"hub": location, "revision": revision or None}
        return ModelReference(None, fingerprint, Policy(location, revision or None))
    if _has_file(ref, "config.json") and not _has_file(ref, MANIFEST):
        return ModelReference(None, {"weights": digest_of_weights(Path(ref))}, Policy(ref))
    for kind in kinds:
        with suppress(UnknownReferenceError):
            return ModelReference(resolve_parent(store, ref, kind, "model"), {}, None)
    raise _not_found(store, ref, kinds)


def model_of(store: Store, spec: ArtifactSpec, role: str, ref: str, kinds: Sequence[Kind]) -> ModelReference:
    """Return the model that is a spec's parent with this role; one from elsewhere is no parent, and `ref` names it.

    Meanwhile `ref` may have come to mean another artifact than the parent.
    """
    for parent in spec.parents:
        if parent.role == role:
            return ModelReference(parent, {}, None)
    return resolve_model(store, ref, kinds)


def digest_of_weights(folder: Path) -> str:
    """Return the digest of everything that shapes a model's output: all files but hidden ones and those about it."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shaping = (each for each in names if each.suffix != ".md" and each.parts[0] not in _ABOUT and str(each)[0] != ".")
    return digest_of_files(folder, map(str, shaping))


def warn_unless_pinned(store: Store, ref: str) -> None:
    """Warn, once, about a name on the Hub without a revision."""
    if ref.startswith(HUB) and not ref.partition("@")[2]:
        store.notify_once(f"{ref} has no revision, and its content may change; write {ref}@COMMIT")


def _not_found(store: Store, ref: str, kinds: Sequence[Kind]) -> UnknownReferenceError:
    prefix, _, rest = ref.rpartition("/")
    name, _, short_id = rest.partition("@")
    found = [artifact for artifact in store.artifacts() if artifact.name == name]
    known = {artifact.name for kind in kinds for artifact in store.artifacts(kind)}
    similar_kinds = difflib.get_close_matches(prefix, KINDS, n=1) if prefix not in KINDS else []
    ids = [artifact.ref for artifact in found if artifact.kind in kinds]
    if similar_kinds:
        remedy = f"did you mean '{similar_kinds[0]}/{rest}'?"
    elif short_id and ids:
        remedy = f"those of this name: {', '.join(dict.fromkeys(ids))}"
    elif list(kinds) == ["annotations"] and not ids and (found or not known):  # nothing but a rater's work makes them
        remedy = "export the comparison, and run `psychocounsel annotate import` with the labels first"
    elif found and not ids:
        remedy = f"of this name there are {', '.join(dict.fromkeys(each.kind for each in found))}"
    elif elsewhere := _projects_with(name, kinds):
        remedy = f"a project has it: --store {' or '.join(elsewhere)}"
    elif close := difflib.get_close_matches(name, known, n=1):
        remedy = f"did you mean {close[0]!r}?"
    elif same_id := [each for each in store.artifacts() if len(name) >= SHORT_ID and each.id.startswith(name)]:
        remedy = f"did you mean '{same_id[0].kind}/{same_id[0].ref}'?"
    elif name in KINDS:
        remedy = f"that is a kind; `psychocounsel list {name}` shows its artifacts"
    else:
        remedy = "run the stage that creates it first, or see `psychocounsel list`"
    what = "artifact" if len(kinds) == len(KINDS) else f"artifact of {' or '.join(kinds)}"
    where = str(store.base or store.root)
    return UnknownReferenceError(f"there is no {what} {ref!r}", ref, kinds, where=where, remedy=remedy)


def _projects_with(name: str, kinds: Sequence[Kind]) -> list[str]:
    """Return the stores of the projects in the current folder that have an artifact of this name."""
    folders = (f"*/{DEFAULT_STORE}/{kind}/{escape(name)}-{'?' * SHORT_ID}" for kind in kinds)
    return sorted({str(found.parent.parent) for each in folders for found in Path().glob(each)})


class Ancestor(NamedTuple):
    """An artifact, the number of steps back to it, and its role for its child."""

    artifact: Artifact
    depth: int
    role: str


def ancestors(store: Store, artifact: Artifact) -> Iterator[Ancestor]:
    """Yield the artifact itself, then each ancestor once: depth first, parents in their order.

    Raises StoreError if an ancestor is not in the store.
    """
    seen: set[str] = set()

    def walk(artifact: Artifact, depth: int, role: str) -> Iterator[Ancestor]:
        seen.add(artifact.id)
        yield Ancestor(artifact, depth, role)
        for parent in artifact.parents:
            if parent.id not in seen:
                yield from walk(store.open(parent), depth + 1, parent.role)

    return walk(artifact, 0, "")


def settings_of(store: Store, artifact: Artifact) -> dict[str, Any]:
    """Return the settings of an artifact by dotted keys.

    Those of a policy of an online round include those of its answers and pairs; those of an online run are those of
    its last round.

    Raises:
        StoreError: a part of the round is not in the store.
    """
    parents = {parent.role: parent for parent in artifact.parents}
    if last := parents.get("last round"):
        return settings_of(store, store.open(last))
    parts = [artifact]
    if artifact.kind == "policies" and "pairs" in parents:  # the first round may have no policy before it in the store
        pairs = store.open(parents["pairs"])
        parts = [store.open(pairs.parent("candidates")), pairs, artifact]
    return {key: value for each in parts for key, value in flatten(each.manifest["settings"]).items()}


def raw_sources(artifact: Artifact) -> tuple[str, ...]:
    """Return what an artifact was made from that is not an artifact: files by name and digest, names on the Hub."""
    settings = flatten(artifact.manifest["settings"])
    found: list[str] = []
    for place, value in settings.items():
        block, _, key = place.rpartition(".")
        several, is_one_of_several, file = place.partition(".files.")
        if key == "hub" and isinstance(value, str):
            found.append(f"{block}: hub {value}")
        elif not isinstance(value, str) or not _DIGEST.fullmatch(value):
            continue
        elif is_one_of_several:
            found.append(f"{several}: {file}, sha256 {value}")
        elif key in ("sha256", "weights"):
            name = settings.get(f"{block.rpartition('.')[0]}.name")
            found.append(f"{block}: {f'{name}, ' if name else ''}{key} {value}")
    return tuple(found)


def labelling_judges(store: Store, artifact: Artifact) -> tuple[str, ...]:
    """Return the judges of the ratings that an artifact was made from, here or before they were imported."""
    judges = (
        str(each.artifact.manifest["notes"].get("judge", ""))
        for each in ancestors(store, artifact)
        if each.artifact.kind in ("judgements", "preferences")
    )
    return tuple(dict.fromkeys(name for name in judges if name))


def models_behind(store: Store, answers: Artifact) -> tuple[str, ...]:
    """Return the names of the models that wrote some answers, as far as they are known.

    That is the model of an endpoint, the author of a file, or the Hub names of local weights and of those that
    they were trained from.
    """
    responder: dict[str, Any] = answers.manifest["settings"]["responder"]
    if responder.get("endpoint"):
        return (str(responder["endpoint"]["model"]),)
    if responder.get("file"):
        return (str(responder["author"]),)
    behind = [each.artifact for each in ancestors(store, answers) if each.artifact.kind == "policies"]
    initial: list[Any] = [each.manifest["settings"].get("initial_policy") for each in behind]
    weights: list[dict[str, Any] | None] = [responder.get("model"), *initial]
    return tuple(dict.fromkeys(str(each["hub"]) for each in weights if each and "hub" in each))


def trained_chat(store: Store, model: ModelReference) -> ChatFormat:
    """Return the chat format that a reward model was trained with here, the default one for one from elsewhere."""
    if model.parent is None:
        return ChatFormat()
    return ChatFormat.model_validate(store.open(model.parent).manifest["settings"]["chat"])
