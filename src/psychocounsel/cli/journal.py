"""`journal export`, `import`, `verify` -> paid replies as a file, and whether all are sound.

Lines that broke, and may have been paid for, travel with the replies.
"""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from psychocounsel import console
from psychocounsel.cli.options import DEFAULT_STORE, StoreFolder, open_store
from psychocounsel.errors import InputError, StoreError

ExportTarget = Annotated[
    Path, typer.Argument(metavar="FILE", help="JSON Lines to write, one reply per line.")
]
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
    from psychocounsel.endpoints import existing_journal
    from psychocounsel.llm.journal import JournalRow
    from psychocounsel.llm.journal_files import write_rows

    if not file.parent.is_dir():
        raise InputError("there is no such folder", where=str(file.parent), remedy="make it, or name another")
    if file.is_dir():
        raise InputError(
            "this is a folder", where=str(file), remedy="name a file in it, such as replies.jsonl"
        )
    with existing_journal(open_store(store)) as journal:
        broken = [line for line in journal.broken_lines() if line is not None]
        intact = chain((row for row in journal.rows() if isinstance(row, JournalRow)), broken)
        count = write_rows(intact, file) - len(broken)
    console.result(f"exported {count} replies{_and_broken(len(broken))} to {file}")


def import_(file: Source, store: StoreFolder = DEFAULT_STORE) -> None:
    """Take over the replies of a file; those that are known stay as they are."""
    from psychocounsel.endpoints import open_journal
    from psychocounsel.llm.journal import BrokenLine
    from psychocounsel.llm.journal_files import read_rows

    if not file.is_file():
        raise InputError("there is no such file", where=str(file), remedy="name one that an export wrote")
    rows = list(read_rows(file))
    with open_journal(open_store(store)) as journal:
        taken = journal.adopt(rows)
    broken = " and broken lines" if any(isinstance(row, BrokenLine) for row in rows) else ""
    console.result(f"imported {taken} of {len(rows)} replies{broken}; the others were known")


def verify_journal(store: StoreFolder = DEFAULT_STORE) -> None:
    """Compare every reply with its checksum; exit 2 if one is damaged that no sound one replaces."""
    from psychocounsel.endpoints import existing_journal
    from psychocounsel.llm.journal import JournalRow

    answered, damaged, intact = set[str](), list[str](), 0
    with existing_journal(open_store(store)) as journal:
        for row in journal.rows():
            if isinstance(row, JournalRow):
                answered.add(row.digest)
                intact += 1
            else:
                damaged.append(row.digest)
        lines = journal.broken_lines()
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
