"""`list`, `show`, `verify`, `diff` -> what is in the store and where it came from."""

import difflib
from typing import Annotated

import typer

from psychocounsel import console
from psychocounsel.cli.options import DEFAULT_STORE, StoreFolder, open_store
from psychocounsel.errors import ConfigError, StoreError
from psychocounsel.store.artifacts import KINDS, Artifact
from psychocounsel.store.store import Store

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, name@id8, kind/name or a path.")]


def add_artifacts_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("list")(list_artifacts)
    app.command("show")(show)
    app.command("verify")(verify)
    app.command("diff")(diff)


def _resolve(store: Store, ref: str) -> Artifact:
    from psychocounsel.store.references import resolve

    found = resolve(store, ref)
    if not isinstance(found, Artifact):
        raise ConfigError(f"{ref!r} is not made yet", remedy="run its stage first")
    return found


def list_artifacts(
    kind: Annotated[str | None, typer.Argument(help="Only artifacts of this kind.")] = None,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """List the artifacts, oldest first."""
    if kind not in (None, *KINDS):
        close = difflib.get_close_matches(kind or "", KINDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known kinds: {', '.join(KINDS)}"
        raise ConfigError(f"there is no kind {kind!r}", remedy=hint)
    found = [each for each in open_store(store).artifacts() if kind in (None, each.kind)]
    if not found:
        console.result(f"no artifacts in {store}")
    for each in found:
        rows = sum(each.manifest["rows"].values())
        console.result(f"{each.kind:15} {each.ref:42} {rows or '':>8} {each.manifest['created_at'][:19]}")


def show(ref: Ref, store: StoreFolder = DEFAULT_STORE) -> None:
    """Show an artifact and its lineage.

    Settings, rows and digests, and the way back to the raw files; of an audit its table too.
    """
    import json

    from psychocounsel.cli.headlines import headlines
    from psychocounsel.store.lineage import ancestors, raw_sources

    opened = open_store(store)
    artifact = _resolve(opened, ref)
    for notice in artifact.notices:
        console.result(f"! {notice}")
    console.result(f"{artifact.kind} {artifact.ref}\nid       {artifact.id}\nfolder   {artifact.folder}")
    console.result(f"made     {artifact.manifest['created_at']} in {artifact.manifest['seconds']} s")
    for line in headlines(artifact, opened) if artifact.kind == "audits" else ():
        console.result(f"  {line}")  # no later run of its stage prints them again
    console.result("settings " + json.dumps(artifact.manifest["settings"], indent=1, ensure_ascii=False))
    console.result("files")
    for name, entry in artifact.manifest["files"].items():
        rows = artifact.manifest["rows"].get(name, "")
        console.result(f"  {entry['sha256']}  {entry['bytes']:>10} bytes  {rows:>7}  {name}")
    console.result("lineage")
    for each in ancestors(opened, artifact):
        rows = ", ".join(f"{count} {name}" for name, count in each.artifact.manifest["rows"].items())
        role = f" as {each.role}" if each.role else ""
        console.result(f"  {'  ' * each.depth}{each.artifact.kind} {each.artifact.ref}{role}  {rows}")
        for source in raw_sources(each.artifact):
            console.result(f"  {'  ' * each.depth}  from {source}")


def verify(ref: Ref, store: StoreFolder = DEFAULT_STORE) -> None:
    """Check every file against its digest.

    The files of its ancestors are checked too.
    """
    from psychocounsel.store.lineage import ancestors
    from psychocounsel.store.store import damaged_files

    opened = open_store(store)
    faults: list[str] = []
    for each in ancestors(opened, _resolve(opened, ref)):
        damage = damaged_files(each.artifact)
        console.result(f"{'damaged' if damage else 'sound':8} {each.artifact.kind} {each.artifact.ref}")
        faults += [f"{each.artifact.folder / name} {what}" for name, what in damage.items()]
    if faults:
        raise StoreError("\n".join(faults), remedy="move the artifact's folder away and run its stage again")


def diff(left: Ref, right: Ref, store: StoreFolder = DEFAULT_STORE) -> None:
    """Show how two artifacts differ.

    By dotted keys: settings, parents and the version of the stage.
    """
    from psychocounsel.store.store import artifact_keys, differing_keys

    opened = open_store(store)
    sides = [artifact_keys(_resolve(opened, ref)) for ref in (left, right)]
    keys = differing_keys(*sides)
    if not keys:
        console.result("no difference")
    for key in keys:
        values = [repr(side[key]) if key in side else "(absent)" for side in sides]
        console.result(f"{key}: {values[0]} -> {values[1]}")
