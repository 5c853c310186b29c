"""Freed memory -> kept for the next step: glibc gives large blocks back to the system and asks for them anew.

On a processor that costs up to half of a training step in page faults. It changes speed and nothing else.
"""

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed; other libraries, and machines with an accelerator, are left alone."""
    if torch.accelerator.is_available() or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)
