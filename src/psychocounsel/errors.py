"""Errors that a user may meet, with exit codes; each says what is wrong, where, and how to mend it."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

VERBOSE = "PSYCHOCOUNSEL_VERBOSE"
"""The environment variable of `--verbose`; processes that a run starts inherit it."""


class ExitCode(IntEnum):
    """Exit codes of the process."""

    DONE = 0
    USER_ERROR = 2
    INCOMPLETE = 3
    DATA_QUALITY = 4
    PREEMPTED = 75


class PsychoCounselError(Exception):
    """An error that the user can act on; it is shown without a traceback.

    Args:
        what: the fault in one sentence.
        where: file and line, config key, artifact or address, if there is one.
        remedy: what to do about it.
    """

    exit_code = ExitCode.USER_ERROR

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__((f"{where}: " if where else "") + what + (f"; {remedy}" if remedy else ""))


class ConfigError(PsychoCounselError):
    """A config file, a `--set` or a reference that cannot be used."""


class InputError(PsychoCounselError):
    """Data handed in by the user that cannot be read or must not be used."""


class StoreError(PsychoCounselError):
    """An artifact that is missing, damaged or held by another run."""


class EndpointError(PsychoCounselError):
    """A model endpoint that refuses requests for a reason that a retry does not mend."""


class IncompleteError(PsychoCounselError):
    """Work that stopped early; the same command resumes it."""

    exit_code = ExitCode.INCOMPLETE


class DataQualityError(PsychoCounselError):
    """Data that would make the result meaningless: nothing left, or too much missing."""

    exit_code = ExitCode.DATA_QUALITY


class Preempted(PsychoCounselError):
    """A run that was asked to stop, saved its work and can be resumed."""

    exit_code = ExitCode.PREEMPTED


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelled like another: but for case and outer blanks the same, or else similar."""
    known = list(known)
    same = [each for each in known if each.strip().casefold() == name.strip().casefold()]
    return next(iter(same or difflib.get_close_matches(name, known, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown name: the known one that is spelled like it, or all of them."""
    known = list(known)
    close = closest(name, known)
    return f"did you mean {close!r}?" if close is not None else f"known: {', '.join(known)}"


def counted(counts: Mapping[str, int]) -> str:
    """Return counts for a message: `6 gap_too_small, 2 vetoed`; zeros are left out."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def first_of(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return names for a message, of more than `most` the first: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
