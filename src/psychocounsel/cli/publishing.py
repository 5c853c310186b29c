"""`push` -> a repository of the Hub that holds the files of an artifact."""

from typing import Annotated

import typer

from psychocounsel import console
from psychocounsel.cli.options import DEFAULT_STORE, Offline, StoreFolder, open_store
from psychocounsel.errors import ConfigError

Published = Annotated[
    str, typer.Argument(metavar="REF", help="A preference dataset, a reward model or a policy.")
]
Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Repository of the Hub: hub:owner/name, or hub:owner/name@branch."),
]
Private = Annotated[
    bool, typer.Option("--private/--public", help="Who may read a repository that is made for it.")
]
Listing = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and list the files; send nothing.")
]


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
    from psychocounsel.store.hub import parse_target, upload
    from psychocounsel.store.publishing import plan_publication

    repository = parse_target(target, private)
    if offline and not dry_run:
        raise ConfigError("offline, but push writes to the Hub", remedy="drop --offline, or add --dry-run")
    publication = plan_publication(open_store(store, offline), ref)
    artifact = publication.artifact
    for notice in artifact.notices:
        console.result(f"! {notice}")
    for each in publication.files:
        console.result(f"  {each.bytes:>12,} bytes  {each.name}")
    if publication.left_out:
        console.result(f"  stays here: {', '.join(publication.left_out)}")
    what = f"{len(publication.files)} files, {publication.bytes:,} bytes of {artifact.kind} {artifact.ref}"
    if dry_run:
        console.result(f"would upload {what} to {repository.words}, branch {repository.branch}")
        return
    console.result(f"uploaded {what} to {upload(publication, repository)}")
