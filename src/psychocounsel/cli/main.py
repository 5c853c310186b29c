"""The command line: its commands, its exit codes, and what signals do."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from errno import ENAMETOOLONG
from importlib.metadata import version
from typing import Annotated, Any

import typer

from psychocounsel.cli.annotate import add_annotate
from psychocounsel.cli.artifacts import add_commands
from psychocounsel.cli.chat import chat
from psychocounsel.cli.fetch import fetch
from psychocounsel.cli.gc import gc
from psychocounsel.cli.power import power
from psychocounsel.cli.project import init, recipes, schema
from psychocounsel.cli.run import add_stages
from psychocounsel.errors import VERBOSE, ConfigError, ExitCode, IncompleteError, Preempted, PsychoCounselError
from psychocounsel.reporting import console
from psychocounsel.store.files import FULL_DISK, umask

INTERRUPTED = 130
"""The exit code that typer gives a KeyboardInterrupt."""
BROKEN_PIPE = 141
"""The exit code of a program that SIGPIPE ends."""

app = typer.Typer(
    name="psychocounsel",
    help="Teach a language model to answer counselling clients, and measure how well it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        console.result(f"psychocounsel {version('psychocounsel')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", envvar=VERBOSE, help="Show more, and what libraries log. Also after a command."
        ),
    ] = False,
) -> None:
    """Teach a language model to answer counselling clients, and measure how well it does."""
    console.show_log(is_verbose=verbose)


add_stages(app)
add_commands(app)
add_annotate(app)
app.command()(power)
app.command()(gc)
app.command()(fetch)
app.command()(chat)
app.command()(recipes)
app.command()(init)
app.command()(schema)


def _require_one_process() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ConfigError(
            f"the command line was started in {processes} processes, and they would do the same work side by side",
            where="environment variable WORLD_SIZE",
            remedy="start it once, without torchrun or accelerate launch, and with --num-processes",
        )


def _verbose_first(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with `-v` at the beginning, where it belongs to every command."""
    rest = [word for word in words if word not in ("-v", "--verbose")]
    return rest if len(rest) == len(words) else ["-v", *rest]


def main() -> None:
    """Run the command line. Only bugs show a traceback."""
    console.show_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding without our dashes and Greek loses them, not the table
    # Threads that wait by spinning slow down everything else on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Stages that save their work handle both signals; elsewhere SIGTERM ends a run like SIGINT.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        os.umask(umask())
        _require_one_process()
        app(_verbose_first(sys.argv[1:]), prog_name="psychocounsel")
    except Preempted as asked:
        console.note(str(asked))
        sys.exit(asked.exit_code)
    except PsychoCounselError as fault:
        console.error(fault)
        sys.exit(fault.exit_code)
    except RuntimeError as fault:
        torch: Any = sys.modules.get("torch")  # imported only by what computes
        if torch is None or not isinstance(fault, torch.OutOfMemoryError):
            raise
        remedy = "lower the batch size (--batch-size, or batch_size under sampling), or take a smaller model; run again"
        console.error(IncompleteError(str(fault).split(". ")[0], remedy=remedy))
        sys.exit(ExitCode.INCOMPLETE)
    except OSError as fault:
        if fault.errno == ENAMETOOLONG:
            console.error(
                ConfigError("this name or path is too long", where=str(fault.filename), remedy="choose a shorter one")
            )
            sys.exit(ExitCode.USER_ERROR)
        if fault.errno not in FULL_DISK:
            raise
        # What stages write says so itself: this is our output, or a temporary file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what waits there would fail again at the end
        what, remedy = f"could not write: {fault.strerror}", "free some space, then run the same command again"
        with suppress(OSError):  # stderr may be on the same disk
            console.error(IncompleteError(what, where=fault.filename or "stdout", remedy=remedy))
        sys.exit(ExitCode.INCOMPLETE)
    except SystemExit as ending:
        if isinstance(ending.__context__, BrokenPipeError):  # the reader of our output is gone, as with `| head`
            sys.exit(BROKEN_PIPE)
        if ending.code != INTERRUPTED:
            raise
        creates_nothing = "--dry-run" in sys.argv
        console.note("stopped" if creates_nothing else "stopped; run the same command again to resume")
        sys.exit(ExitCode.PREEMPTED)
