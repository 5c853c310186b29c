"""Processor without accelerator -> the same bytes every run, and no page faults in every step.

With several threads torch adds gradients in whatever order they arrive, unless told otherwise; and glibc
gives large freed blocks back to the system only to ask for them anew, which costs up to half of a step.
"""

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER_BYTES = 2**31 - 1


def prepare_processor() -> None:
    """Make training on a processor repeatable and keep freed memory; no change with an accelerator."""
    if torch.accelerator.is_available():
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)
