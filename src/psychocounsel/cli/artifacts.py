"""`list`, `show`, `verify`, `diff` -> what is in the store and where it came from."""

import difflib
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from psychocounsel.cli.output import DEFAULT_STORE, Offline, StoreFolder, open_store
from psychocounsel.errors import ConfigError, InputError, StoreError
from psychocounsel.reporting import console
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

    from psychocounsel.cli.output import headlines
    from psychocounsel.store.references import ancestors, raw_sources

    opened = open_store(store)
    artifact = _resolve(opened, ref)
    for notice in artifact.warnings:
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
    from psychocounsel.store.references import ancestors
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


ExportTarget = Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines to write, one reply per line.")]
Source = Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines that `journal export` wrote.")]


def add_journal_to(app: typer.Typer) -> None:
    """Register the commands."""
    journal = typer.Typer(help="Carry paid replies elsewhere, or check them.", no_args_is_help=True)
    journal.command("export")(export)
    journal.command("import")(import_)
    journal.command("verify")(verify_journal)
    app.add_typer(journal, name="journal")


def export(file: ExportTarget, store: StoreFolder = DEFAULT_STORE) -> None:
    """Write every intact reply to a file."""
    from psychocounsel.llm.endpoints import existing_journal
    from psychocounsel.llm.journal import JournalRow, write_rows

    if not file.parent.is_dir():
        raise InputError("there is no such folder", where=str(file.parent), remedy="make it, or name another")
    if file.is_dir():
        raise InputError("this is a folder", where=str(file), remedy="name a file in it, such as replies.jsonl")
    with existing_journal(open_store(store)) as journal:
        broken = [line for line in journal.lost_responses() if line is not None]
        intact = chain((row for row in journal.rows() if isinstance(row, JournalRow)), broken)
        count = write_rows(intact, file) - len(broken)
    console.result(f"exported {count} replies{_and_broken(len(broken))} to {file}")


def import_(file: Source, store: StoreFolder = DEFAULT_STORE) -> None:
    """Take over the replies of a file; those that are known stay as they are."""
    from psychocounsel.llm.endpoints import open_journal
    from psychocounsel.llm.journal import LostResponse, read_rows

    if not file.is_file():
        raise InputError("there is no such file", where=str(file), remedy="name one that an export wrote")
    rows = list(read_rows(file))
    with open_journal(open_store(store)) as journal:
        taken = journal.merge(rows)
    broken = " and broken lines" if any(isinstance(row, LostResponse) for row in rows) else ""
    console.result(f"imported {taken} of {len(rows)} replies{broken}; the others were known")


def verify_journal(store: StoreFolder = DEFAULT_STORE) -> None:
    """Compare every reply with its checksum; exit 2 if one is damaged that no sound one replaces."""
    from psychocounsel.llm.endpoints import existing_journal
    from psychocounsel.llm.journal import JournalRow

    answered, damaged, intact = set[str](), list[str](), 0
    with existing_journal(open_store(store)) as journal:
        for row in journal.rows():
            if isinstance(row, JournalRow):
                answered.add(row.digest)
                intact += 1
            else:
                damaged.append(row.digest)
        lines = journal.lost_responses()
        where = str(journal.path)
    replaced = sum(digest in answered for digest in damaged)
    lost = len(damaged) - replaced + lines.count(None)
    told = f", {replaced} damaged and answered anew" if replaced else ""
    broken = _and_broken(len(lines) - lines.count(None))
    console.result(f"{intact} replies{broken} intact, {lost} damaged{told}")
    if lost:
        raise StoreError(
            f"{lost} rows are damaged; the requests of damaged replies are owed again",
            where=where,
            remedy="import them from an export, or run the stage again to ask them anew",
        )


def _and_broken(lines: int) -> str:
    return f" and {lines} broken lines" if lines else ""


Published = Annotated[str, typer.Argument(metavar="REF", help="A preference dataset, a reward model or a policy.")]
Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Repository of the Hub: hub:owner/name, or hub:owner/name@branch."),
]
Private = Annotated[bool, typer.Option("--private/--public", help="Who may read a repository that is made for it.")]
Listing = Annotated[bool, typer.Option("--dry-run", help="Check everything and list the files; send nothing.")]


def add_push_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("push")(push)


def push(
    ref: Published,
    target: Target,
    private: Private = True,
    dry_run: Listing = False,
    offline: Offline = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Publish an artifact on the Hub.

    Only files of a list go, and only if none is damaged and none holds a secret. The token is that
    of HF_TOKEN or of `hf auth login`.
    """
    from psychocounsel.store.publish import parse_target, prepare_publication, upload

    repository = parse_target(target, private)
    if offline and not dry_run:
        raise ConfigError("offline, but push writes to the Hub", remedy="drop --offline, or add --dry-run")
    publication = prepare_publication(open_store(store, offline), ref)
    artifact = publication.artifact
    for notice in artifact.warnings:
        console.result(f"! {notice}")
    for each in publication.files:
        console.result(f"  {each.bytes:>12,} bytes  {each.name}")
    if publication.left_out:
        console.result(f"  stays here: {', '.join(publication.left_out)}")
    what = f"{len(publication.files)} files, {publication.bytes:,} bytes of {artifact.kind} {artifact.ref}"
    if dry_run:
        console.result(f"would upload {what} to {repository.ref}, branch {repository.branch}")
        return
    console.result(f"uploaded {what} to {upload(publication, repository)}")
