"""Command line -> one stage, its result and the next command."""

import os
import signal
import sys

import typer

from psychocounsel import console
from psychocounsel.cli.artifacts import add_artifacts_to
from psychocounsel.cli.importing import add_import_to
from psychocounsel.cli.journal import add_journal_to
from psychocounsel.cli.publishing import add_push_to
from psychocounsel.cli.stages import add_stages_to
from psychocounsel.errors import ExitCode, PsychoCounselError

app = typer.Typer(
    name="psychocounsel",
    help="Teach a language model to answer counselling clients, and measure how well it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
add_stages_to(app)
add_import_to(app)
add_artifacts_to(app)
add_push_to(app)
add_journal_to(app)


INTERRUPTED = 130
"""With which typer ends the process after a KeyboardInterrupt."""


def main() -> None:
    """Run the command line; the user's errors end without a traceback, ours always show one."""
    console.show_log()
    # Threads that wait by spinning slow everything down on a machine that others use as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Clients' words are nobody else's business on a machine that others use as well.
    os.umask(0o077)
    # Stages that save their work listen for both signals themselves; elsewhere one ends like the other.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="psychocounsel")
    except PsychoCounselError as fault:
        console.error(fault)
        sys.exit(fault.exit_code)
    except SystemExit as ending:
        if ending.code != INTERRUPTED:
            raise
        console.note("stopped; the same command goes on where it was")
        sys.exit(ExitCode.PREEMPTED)
