"""Words that every command understands -> Store and settings."""

from pathlib import Path
from typing import Annotated

import typer

from psychocounsel import console
from psychocounsel.store.store import Store

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the config; repeatable."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config, the ids and what is owed; make nothing.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection beyond this machine.")]
StoreFolder = Annotated[
    Path, typer.Option("--store", envvar="PSYCHOCOUNSEL_STORE", help="Folder that holds the artifacts.")
]

DEFAULT_STORE = Path("data")


def open_store(folder: Path, is_offline: bool = False) -> Store:
    """Return the store at a folder."""
    return Store(folder, console.note, is_offline)
