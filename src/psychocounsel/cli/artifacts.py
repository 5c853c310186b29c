"""The commands on artifacts (list, show, open, verify, diff, compare, push) and journals (export, import, verify)."""

import json
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from psychocounsel.cli.output import Offline, StoreFolder
from psychocounsel.errors import ConfigError, InputError, StoreError, did_you_mean
from psychocounsel.reporting import console
from psychocounsel.store.artifacts import KINDS, Artifact
from psychocounsel.store.store import DEFAULT_STORE, Store, open_store

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, name@id8, name@best, kind/name or a path.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def list_artifacts(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Only artifacts of this kind.")] = None,
    as_json: AsJson = False,
    store: StoreFolder = None,
) -> None:
    """List the artifacts.

    With the number of rows, the size and the key metric of each. Of several with one name, the name means the last.
    """
    from psychocounsel.reporting.artifact_tables import key_metric, row_count
    from psychocounsel.reporting.tables import Table
    from psychocounsel.store.files import human_bytes

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}", remedy=did_you_mean(kind, KINDS))

    def key(artifact: Artifact) -> str:
        try:
            return key_metric(artifact) + (" (files dropped)" if artifact.dropped else "")
        except (StoreError, ValueError):
            return "(metrics.json cannot be read)"

    opened = open_store(store)
    found = [each for each in opened.artifacts() if kind in (None, each.kind)]
    sizes = [sum(entry["bytes"] for entry in each.kept_files.values()) for each in found]
    if as_json:
        shown = zip(found, sizes, strict=True)
        _print_json(
            [{**_head(each), "rows": row_count(each), "bytes": size, "key_metric": key(each)} for each, size in shown]
        )
        return
    rows = tuple(
        (
            *(each.kind, each.ref, str(row_count(each) or ""), human_bytes(size), key(each)),
            each.manifest["created_at"][:19].replace("T", " "),
        )
        for each, size in zip(found, sizes, strict=True)
    )
    header = ("kind", "artifact", "rows", "size", "key metric", "created")
    if rows:
        console.show(Table("list", "", header, "llrrll", rows))
    else:
        projects = [str(found) for found in sorted(Path().glob(f"*/{DEFAULT_STORE}")) if store is None]
        hint = f"; those of a project: --store {' or '.join(projects)}" if projects else ""
        console.result(f"no artifacts in {opened.root}{hint}")


def _print_json(value: object) -> None:
    console.result(json.dumps(value, indent=1, allow_nan=False))


def _head(artifact: Artifact) -> dict[str, Any]:
    """Return what says which artifact it is, ready for JSON."""
    return {
        **{"kind": artifact.kind, "name": artifact.name, "ref": artifact.ref, "id": artifact.id},
        **{"folder": str(artifact.folder), "created_at": artifact.manifest["created_at"]},
    }


def show(ref: Ref, as_json: AsJson = False, store: StoreFolder = None) -> None:
    """Show the numbers and lineage of an artifact.

    Its settings and files, too. The lineage goes back to the raw files.
    """
    from psychocounsel.reporting.artifact_tables import row_count, tables, warnings_of
    from psychocounsel.reporting.tables import Table
    from psychocounsel.store.references import ancestors, raw_sources, resolve_existing

    opened = open_store(store)
    artifact = resolve_existing(opened, ref)
    manifest = artifact.manifest
    if as_json:
        lineage = [
            {**_head(each.artifact), "role": each.role, "depth": each.depth, "from": raw_sources(each.artifact)}
            for each in ancestors(opened, artifact)
        ]
        warnings = [*artifact.warnings, *warnings_of(artifact)]
        more = {"warnings": warnings, "metrics": artifact.metrics, "lineage": lineage}
        _print_json({**manifest, **_head(artifact), **more})
        return
    for warning in (*artifact.warnings, *warnings_of(artifact)):
        console.prose(f"! {warning}")
    console.result(f"{artifact.kind} {artifact.ref}\nid       {artifact.id}\nfolder   {artifact.folder}")
    console.result(f"created  {manifest['created_at']} in {manifest['seconds']} s")
    for table in tables(artifact):
        console.result("")
        console.show(table)
    console.result("\nsettings " + json.dumps(manifest["settings"], indent=1, ensure_ascii=False))
    files = tuple(
        (
            f"{name} (dropped)" if name in artifact.dropped else name,
            str(manifest["rows"].get(name, "")),
            str(entry["bytes"]),
            entry["sha256"],
        )
        for name, entry in manifest["files"].items()
    )
    console.show(Table("files", "files", ("file", "rows", "bytes", "sha256"), "lrrl", files))
    if artifact.dropped:
        console.result(f"  to have dropped files again: {manifest['dropped']['remedy']}")
    console.result("lineage")
    for each in ancestors(opened, artifact):
        indent, count = "  " * (each.depth + 1), row_count(each.artifact)
        role = f" as {each.role}" if each.role else ""
        console.result(f"{indent}{each.artifact.kind} {each.artifact.ref}{role}{f'  {count} rows' if count else ''}")
        for source in raw_sources(each.artifact):
            console.result(f"{indent}  from {source}")


def open_(ref: Ref, store: StoreFolder = None) -> None:
    """Open an artifact's page in the browser.

    The report or the page for raters, or of any other artifact a new report about it, with the audit of its judge and
    what people's labels make of it. A name that several kinds share means the report. Prints the path of the page.
    """
    from psychocounsel.config.base import NAME_CHARS
    from psychocounsel.config.schema import ReportConfig
    from psychocounsel.reporting.tables import REPORT_FILE
    from psychocounsel.stages.report import make_report
    from psychocounsel.store.references import resolve_existing

    opened = open_store(store)
    is_report = any(each.name == ref for each in opened.artifacts("reports"))
    artifact = resolve_existing(opened, f"reports/{ref}" if is_report else ref)
    page = next((name for name in artifact.manifest["files"] if name.endswith(".html")), None)
    if page is None:
        name = f"{artifact.kind}-{artifact.name}"[:NAME_CHARS]  # that of the artifact alone is the report of its run
        shown = tuple(f"{each.kind}/{each.ref}" for each in (artifact, *_checks_of(artifact, opened)))
        artifact, page = make_report(ReportConfig(name=name, artifacts=shown), opened), REPORT_FILE
    path = artifact.file(page).resolve()
    console.result(str(path))
    # Without a display, some systems would start a browser in this terminal.
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        typer.launch(str(path))


def _checks_of(artifact: Artifact, store: Store) -> list[Artifact]:
    """Return what checks an artifact's judge: audits of its judgements, labels of people that correct its win rate."""
    judged = {artifact.id, *(each.id for each in artifact.parents if each.kind == "judgements")}
    checks = [*store.artifacts("audits"), *store.artifacts("anchors")]
    return [each for each in checks if each.id != artifact.id and judged & {parent.id for parent in each.parents}]


def verify(ref: Ref, as_json: AsJson = False, store: StoreFolder = None) -> None:
    """Check every file against its digest.

    The files of its ancestors are checked too.
    """
    from psychocounsel.store.references import ancestors, resolve_existing
    from psychocounsel.store.store import damaged_files

    opened = open_store(store)
    damage = {
        each.artifact.id: (each.artifact, damaged_files(each.artifact))
        for each in ancestors(opened, resolve_existing(opened, ref))
    }
    if as_json:
        _print_json([{**_head(each), "dropped": each.dropped, "damage": found} for each, found in damage.values()])
    else:
        for each, found in damage.values():
            dropped = f"  ({len(each.dropped)} files dropped)" if each.dropped else ""
            console.result(f"{'damaged' if found else 'intact':8} {each.kind} {each.ref}{dropped}")
    faults = [f"{each.folder / name} {what}" for each, found in damage.values() for name, what in found.items()]
    if faults:
        raise StoreError("\n".join(faults), remedy="move the artifact's folder away and run its stage again")


def diff(left: Ref, right: Ref, store: StoreFolder = None) -> None:
    """Show how two artifacts differ, side by side.

    Settings, parents and stage version by dotted keys, then every metric that differs.
    """
    from psychocounsel.reporting.artifact_tables import tables
    from psychocounsel.reporting.compare_tables import settings_table
    from psychocounsel.reporting.tables import differences
    from psychocounsel.store.references import resolve_existing

    opened = open_store(store)
    one, other = resolve_existing(opened, left), resolve_existing(opened, right)
    found = [settings_table([one, other], opened), differences(tables(one), tables(other), (one.ref, other.ref))]
    if differing := [table for table in found if table.rows]:
        console.show(*differing)
    else:
        console.result("no difference")


def compare(
    refs: Annotated[list[str], typer.Argument(metavar="COMPARISONS", help="Two or more results of eval-winrate.")],
    as_json: AsJson = False,
    store: StoreFolder = None,
) -> None:
    """Compare policies, or judges, across win rates.

    Rates that people's labels correct, paired differences by speech with intervals, a ranking, agreement of judges,
    slices, and settings that differ.
    """
    from psychocounsel.reporting.artifact_tables import warnings_of
    from psychocounsel.reporting.compare_tables import compare_data, compare_tables
    from psychocounsel.store.references import resolve_existing

    opened = open_store(store)
    found = list({each.id: each for each in (resolve_existing(opened, ref, "comparisons") for ref in refs)}.values())
    if len(found) < 2:
        raise ConfigError("one comparison cannot be compared", where=refs[0], remedy="name another one, or use show")
    newest = {each.parent("comparisons").id: each for each in opened.artifacts("anchors")}
    anchors = [newest[each.id] for each in found if each.id in newest]
    warned: dict[str, list[str]] = {}
    for each in found:
        by_people = warnings_of(newest[each.id]) if each.id in newest else []
        for warning in dict.fromkeys([*each.warnings, *warnings_of(each), *by_people]):
            warned.setdefault(warning, []).append(each.name)
    if as_json:
        _print_json({"warnings": warned, **compare_data(found, opened, anchors)})
        return
    for warning, names in warned.items():
        whose = "" if len(names) == len(found) else f"{', '.join(names)}: "
        console.prose(f"! {whose}{warning}")
    console.show(*compare_tables(found, opened, anchors))


ExportTarget = Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file to write, one reply per line.")]
Source = Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file that `journal export` wrote.")]


def export(file: ExportTarget, store: StoreFolder = None) -> None:
    """Write every intact reply to a file."""
    from psychocounsel.llm.endpoints import existing_journal
    from psychocounsel.llm.journal import DamagedRow, JournalRow, write_rows

    if not file.parent.is_dir():
        raise InputError("there is no such folder", where=str(file.parent), remedy="create it, or name another")
    if file.is_dir():
        raise InputError("this is a folder", where=str(file), remedy="name a file in it, such as replies.jsonl")
    with existing_journal(open_store(store)) as journal:
        lost = [each for each in journal.lost_responses() if each is not None]
        damaged: list[DamagedRow] = []

        def intact() -> Iterator[JournalRow]:
            for row in journal.rows():
                if isinstance(row, JournalRow):
                    yield row
                else:
                    damaged.append(row)

        count = write_rows(chain(intact(), lost), file) - len(lost)
    left_out = f"; {len(damaged)} damaged replies are left out" if damaged else ""
    console.result(f"exported {count} replies{_and_lost(len(lost))} to {file}{left_out}")


def import_(file: Source, store: StoreFolder = None) -> None:
    """Add the replies of a file. Replies that are already in the journal stay as they are."""
    from psychocounsel.llm.endpoints import open_journal
    from psychocounsel.llm.journal import LostResponse, read_rows

    if not file.is_file():
        raise InputError("there is no such file", where=str(file), remedy="name one that an export wrote")
    rows = list(read_rows(file))
    with open_journal(open_store(store)) as journal:
        added = journal.merge(rows)
    lost = " and lost responses" if any(isinstance(row, LostResponse) for row in rows) else ""
    console.result(f"imported {added} of {len(rows)} replies{lost}; the others were known")


def verify_journal(store: StoreFolder = None) -> None:
    """Compare every reply with its checksum.

    The exit code is 2 if one is damaged and no intact one replaces it.
    """
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
        responses = journal.lost_responses()
        where = str(journal.path)
    replaced = sum(digest in answered for digest in damaged)
    count = len(damaged) - replaced + responses.count(None)
    again = f", {replaced} damaged and answered again" if replaced else ""
    lost = _and_lost(len(responses) - responses.count(None))
    console.result(f"{intact} replies{lost} intact, {count} damaged{again}")
    if count:
        raise StoreError(
            f"{count} rows are damaged; the requests of damaged replies are pending again",
            where=where,
            remedy="import them from an export, or run the stage again to send their requests again",
        )


def _and_lost(responses: int) -> str:
    return f" and {responses} lost responses" if responses else ""


Published = Annotated[str, typer.Argument(metavar="REF", help="A preference dataset, a reward model or a policy.")]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="Repository of the Hub: hub:owner/name, or hub:owner/name@branch.")
]
Private = Annotated[bool, typer.Option("--private/--public", help="Who may read a repository that is created for it.")]
Listing = Annotated[bool, typer.Option("--dry-run", help="Check everything and list the files; send nothing.")]


def push(
    ref: Published,
    target: Target,
    private: Private = True,
    dry_run: Listing = False,
    offline: Offline = False,
    store: StoreFolder = None,
) -> None:
    """Publish an artifact on the Hub.

    Uploads only files of a list, and only if none is damaged and none contains a secret. The token is that of
    HF_TOKEN or of `hf auth login`.
    """
    from psychocounsel.store.publish import parse_target, prepare_publication, upload

    repository = parse_target(target, private)
    if offline and not dry_run:
        raise ConfigError("offline, but push writes to the Hub", remedy="leave --offline out, or add --dry-run")
    publication = prepare_publication(open_store(store, offline), ref)
    artifact = publication.artifact
    for warning in artifact.warnings:
        console.prose(f"! {warning}")
    for name, size in publication.files.items():
        console.result(f"  {size:>12,} bytes  {name}")
    if publication.left_out:
        console.result(f"  not uploaded: {', '.join(publication.left_out)}")
    what = (
        f"{len(publication.files)} files, {sum(publication.files.values()):,} bytes of {artifact.kind} {artifact.ref}"
    )
    if dry_run:
        console.result(f"would upload {what} to {repository.ref}, branch {repository.branch}")
        return
    console.result(f"uploaded {what} to {upload(publication, repository)}")


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for name, command in {
        "list": list_artifacts,
        "show": show,
        "open": open_,
        "verify": verify,
        "diff": diff,
        "compare": compare,
        "push": push,
    }.items():
        app.command(name)(command)
    journal = typer.Typer(help="Move paid replies between stores, or check them.", no_args_is_help=True)
    for name, command in {"export": export, "import": import_, "verify": verify_journal}.items():
        journal.command(name)(command)
    app.add_typer(journal, name="journal")
