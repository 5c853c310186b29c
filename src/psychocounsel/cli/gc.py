"""`psychocounsel gc`: what nothing in a store needs any more, and removing it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated

import typer

from psychocounsel.cli.output import StoreFolder
from psychocounsel.reporting import console
from psychocounsel.store.store import open_store

Yes = Annotated[bool, typer.Option("--yes/--dry-run", help="Remove it; without, only say what would be removed.")]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="REF", help="Keep name, name@id8 or kind/name, and what it was made from."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="REF", help="Give up this artifact although its name means it. Repeatable."),
]
KeepBest = Annotated[
    bool, typer.Option("--keep-best", help="Of online runs keep the weights of the best and the last round only.")
]
OldReports = Annotated[
    bool, typer.Option("--old-reports", help="Give up reports with a newer one of their name, and what only they need.")
]

Unfinished = Annotated[
    bool, typer.Option("--unfinished", help="Give up builds that were stopped, with the checkpoints of trainings.")
]


def gc(
    yes: Yes = False,
    keep: Keep = None,
    drop: Drop = None,
    keep_best: KeepBest = False,
    old_reports: OldReports = False,
    unfinished: Unfinished = False,
    store: StoreFolder = None,
) -> None:
    """Free disk space in the store.

    Keeps what each name means, every report, people's labels, and all that these were made from. Builds to
    be resumed stay, and paid replies always.
    """
    from psychocounsel.reporting.tables import Table
    from psychocounsel.store.files import human_bytes
    from psychocounsel.store.gc import Garbage, Kept, find_garbage
    from psychocounsel.store.references import all_named, resolve_existing

    def size(found: Sequence[Garbage]) -> int:
        return sum(each.bytes for each in found)

    opened = open_store(store)
    kept = Kept(
        {each.id for ref in keep or [] for each in all_named(opened, ref)},
        {resolve_existing(opened, ref).folder.resolve() for ref in drop or []},
        not old_reports,
        not keep_best,
        not unfinished,
    )
    with opened.in_use(alone=True) if yes else nullcontext():
        found = find_garbage(opened, kept)
        for each in found if yes else ():
            each.remove()
    rows = tuple((each.what, each.why, human_bytes(each.bytes)) for each in found)
    if rows:
        console.show(Table("garbage", "", ("what", "why", "frees"), "llr", rows))
    console.result(f"{'freed' if yes else 'would free'} {human_bytes(size(found))}")
    if yes:
        return
    more_options = (
        ("--old-reports", replace(kept, reports=False)),
        ("--keep-best", replace(kept, rounds=False)),
        ("--unfinished", replace(kept, unfinished=False)),
    )
    for flag, other in more_options:
        if more := size(find_garbage(opened, other)) - size(found):
            console.result(f"{flag} would free {human_bytes(more)} more")
    if rows:
        console.result("nothing was removed; to remove it, add --yes")
